"""Markets of an exchange at a moment: perpetuals of stocks, and makers of questions.

A perpetual costs the price without agents times their impact, which is linear in the log price: trading ``u`` units moves it by
``per_unit * u``, and costs the integral of the price on the way. So the price depends only on what is held, and any round trip without
other moves, however split, returns exactly what it cost.

A question's market is a constant-product maker, moved by agents and by the crowd. The price of YES is no / (yes + no), that of NO the rest
of 1. Every dollar paid in mints one YES and one NO share, so the collateral ``sets`` always covers whichever share will be paid. Buying in
parts costs what buying at once costs; a round trip through a quiet pool returns what was paid.
"""

import math

from babylon_rl.market.simulation.arithmetic import exp, growth, log_growth
from babylon_rl.market.simulation.scenario import Asset, Question


class PerpBook:
    """Book of a stock.

    ``mark`` is the price now, ``pressure`` the log distance to which agents have pushed it from ``base``; ``open_units`` of all positions,
    long and short; volumes in dollars.
    """

    def __init__(self, asset: Asset, impact_per_usd: float) -> None:
        self.asset = asset
        self.base = self.mark = asset.prices[0]
        self.per_unit = impact_per_usd * asset.prices[0]
        self.pressure = self.open_units = self.volume = 0.0
        self.path: list[float] = []

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


class Pool:
    """Market maker of a question.

    ``yes`` and ``no`` are the maker's shares, ``crowd_yes`` and ``crowd_no`` the crowd's; maker and crowd are the house's.

    ``resolved`` is the answer once it is known, None before.
    """

    def __init__(self, question: Question, tick: int, depth: float) -> None:
        probability = question.crowd[tick]
        self.question = question
        self._odds = probability / (1.0 - probability)
        root = math.sqrt(self._odds)
        self.yes, self.no = depth / root, depth * root
        self.sets = max(self.yes, self.no)
        self.crowd_yes, self.crowd_no = self.sets - self.yes, self.sets - self.no
        self.volume = 0.0
        self.resolved: bool | None = None
        self.path: list[float] = []

    @property
    def yes_price(self) -> float:
        """Dollars for the next YES share, 0..1; 0 or 1 once the question is resolved."""
        if self.resolved is not None:
            return float(self.resolved)
        return self.no / (self.yes + self.no)

    def buy(self, side: str, usd: float) -> float:
        """Pay ``usd`` in; returns the shares of that side received."""
        self.sets += usd
        self.volume += usd
        if side == "yes":
            no = self.no + usd
            shares = usd + self.yes * usd / no
            self.yes, self.no = self.yes * self.no / no, no
        else:
            yes = self.yes + usd
            shares = usd + self.no * usd / yes
            self.yes, self.no = yes, self.no * self.yes / yes
        return shares

    def worth(self, side: str, shares: float) -> float:
        """The dollars that selling these shares now would bring, before the fee."""
        if self.resolved is not None:
            return shares if (side == "yes") == self.resolved else 0.0
        other = self.no if side == "yes" else self.yes
        total = self.yes + self.no + shares
        # the maker burns usd complete sets: (mine + shares - usd) * (other - usd) = mine * other, in the form without cancellation
        return 2.0 * shares * other / (total + math.sqrt(total * total - 4.0 * shares * other))

    def sell(self, side: str, shares: float) -> float:
        """Give shares back; returns the dollars received."""
        usd = self.worth(side, shares)
        product = self.yes * self.no
        if side == "yes":
            self.no -= usd
            self.yes = product / self.no
        else:
            self.yes -= usd
            self.no = product / self.yes
        self.sets -= usd
        self.volume += usd
        return usd

    def crowd_moves(self, tick: int, recovery: float) -> float:
        """The crowd trades as its belief changed since the last moment. It takes back ``recovery`` (0..1) of the agents' effect.

        Returns the dollars that it got out, below zero where it paid.
        """
        probability = self.question.crowd[tick]
        odds = probability / (1.0 - probability)
        pushed = self.no / (self.yes * self._odds)
        root = math.sqrt(odds / self._odds * (1.0 + recovery * (1.0 / pushed - 1.0)))
        self._odds = odds
        yes, no = self.yes / root, self.no * root
        if root > 1.0:
            paid = no - self.no
            self.crowd_yes += self.yes + paid - yes
        else:
            paid = yes - self.yes
            self.crowd_no += self.no + paid - no
        redeemed = min(self.crowd_yes, self.crowd_no)
        self.crowd_yes -= redeemed
        self.crowd_no -= redeemed
        self.sets += paid - redeemed
        self.yes, self.no = yes, no
        return redeemed - paid
