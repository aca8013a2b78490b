"""Perpetual market of a stock: the price without agents, times their impact.

Impact is linear in the log price: trading ``u`` units moves it by ``per_unit * u``, and costs the integral of the price on the way. So
the price depends only on what is held, and any round trip without other moves, however split, returns exactly what it cost.
"""

from babylon_rl.market.simulation.arithmetic import exp, growth, log_growth
from babylon_rl.market.simulation.scenario import Asset


class PerpBook:
    """Book of a stock.

    ``mark`` is the price now, ``pressure`` the log distance to which agents have pushed it from ``base``; volumes in dollars.
    """

    __slots__ = ("asset", "base", "mark", "open_units", "path", "per_unit", "pressure", "volume")

    def __init__(self, asset: Asset, impact_per_usd: float) -> None:
        self.asset = asset
        self.base = self.mark = asset.prices[0]
        self.per_unit = impact_per_usd * asset.prices[0]
        self.pressure = self.open_units = self.volume = 0.0
        self.path: list[float] = []

    @property
    def open_interest(self) -> float:
        """Worth of all positions, long and short, at the mark, in dollars."""
        return self.open_units * self.mark

    def move_to(self, tick: int, recovery: float) -> None:
        """Move to the price of a moment, where ``recovery`` (0..1) of the pressure is gone."""
        self.base = self.asset.prices[tick]
        if self.pressure:
            self.pressure *= 1.0 - recovery
            self.mark = self.base * exp(self.pressure)
        else:
            self.mark = self.base

    def units_for(self, direction: int, usd: float) -> float:
        """How many units ``usd`` dollars buy (+1) or are sold for (-1), impact included. Needs a sale of less than the market."""
        per_usd = self.per_unit / self.mark
        return usd / self.mark * log_growth(direction * per_usd * usd)

    def usd_for(self, direction: int, units: float) -> float:
        """Cost or proceeds of buying or selling these units, in dollars."""
        return self.mark * units * growth(direction * self.per_unit * units)

    def exit_units(self, direction: int, units: float) -> float:
        """The units whose worth at the mark is the result of leaving a position. Proceeds of a long one, costs of a short one."""
        return units * growth(-direction * self.per_unit * units)

    def trade(self, direction: int, units: float, usd: float) -> None:
        """Book a trade of these units for these dollars; the mark moves."""
        self.volume += usd
        self.pressure += direction * self.per_unit * units
        self.mark = self.base * exp(self.pressure)
