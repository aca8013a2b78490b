"""Rows of the scale test, and the bounds that they are held to: ratios of speed, and what the how-to says of faults."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from babylon_rl_tests.store.servers import ROOT

HOWTO = ROOT / "docs" / "howto" / "several-machines.md"
SPEED = ROOT / "benchmarks" / "scale_test.json"  # seconds of the scenario ``speed``, for the capacity model
# Fewer hours are too few runs to spread over four workers.
COUNTS_FROM_HOURS = 720
# CI's: two runs, half a minute for one worker. Alone the ratios were 1.02 and 2.05, at load 6 on two cores 1.00 and 1.51.
# The wide bounds notice work that is done twice, a worker that waits between its runs, or two that take turns.
SHORT_HOURS = 48
ONE_PROCESS, ONE_WORKER = "one process", "1 worker"
# Allowed beyond the how-to's bounds: on a machine that is busy with other tests too, a run's process may take so much longer to begin.
BUSY_S = 60.0
_HALF_A_MINUTE = "half a minute"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    ``repeated`` counts requests that the judge got again, ``remade`` hours that were materialized again. ``waited_s`` is the time from
    the end of a fault until the work that it struck went on, ``bound_s`` the most that the how-to says.
    """

    scenario: str
    hours: int
    seconds: float
    repeated: int = 0
    remade: int = 0
    waited_s: float | None = None
    bound_s: float | None = None
    remark: str = ""

    @property
    def cells(self) -> list[str]:
        """What the table shows."""
        waited = "" if self.waited_s is None else f"{self.waited_s:.0f} of {self.bound_s:.0f}"
        return [self.scenario, str(self.hours), f"{self.seconds:.0f}", str(self.repeated), str(self.remade), waited, self.remark]


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    head = ["scenario", "hours", "seconds", "requests repeated", "hours made again", "went on after s", ""]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *(row.cells for row in rows)])


@dataclass(frozen=True)
class Ratio:
    """Quotient of the seconds of two scenarios, with its bound; None over hours that say too little."""

    sentence: str
    value: float
    bound: float | None
    at_least: bool

    @property
    def kept(self) -> bool:
        """True within the bound."""
        return self.bound is None or (self.value >= self.bound if self.at_least else self.value <= self.bound)

    @property
    def line(self) -> str:
        """The ratio with its bound, and whether that is missed."""
        bound = "no bound over so few hours" if self.bound is None else f"at {'least' if self.at_least else 'most'} {self.bound}"
        return f"{self.sentence}: {self.value:.2f} ({bound}{'' if self.kept else ': MISSED'})"


def ratios(rows: Sequence[Row]) -> list[Ratio]:
    """The ratios of those rows of speed that are there."""
    found = {row.scenario: row for row in rows}
    bounds = (
        ("one worker's time over one process's", ONE_WORKER, ONE_PROCESS, 1.4, 1.8, False),
        ("2 workers, times as fast as one", ONE_WORKER, "2 workers", 1.8, 1.3, True),
        ("4 workers, times as fast as one", ONE_WORKER, "4 workers", 3.2, None, True),
    )
    return [
        Ratio(sentence, found[over].seconds / found[under].seconds, _counting(found[over].hours, bound, short), at_least)
        for sentence, over, under, bound, short, at_least in bounds
        if over in found and under in found
    ]


def _counting(hours: int, bound: float, short: float | None) -> float | None:
    """The bound that counts over so many hours."""
    return bound if hours >= COUNTS_FROM_HOURS else short if hours == SHORT_HOURS else None


def bound_s(what_stops: str) -> float:
    """Bound of the how-to on the time until work goes on, of the row that begins with ``what_stops``, in seconds."""
    (said,) = re.findall(rf"^\| {re.escape(what_stops)}[^|]*\|[^|]*\| ([^|]+) \|$", HOWTO.read_text(), re.MULTILINE)
    if said.startswith(_HALF_A_MINUTE):
        return 30.0
    minutes = re.match(r"(\d+) minutes?\b", said)
    assert minutes, f"The how-to says {said!r} of {what_stops!r}, which is no number of minutes."
    return 60.0 * int(minutes[1])


def commands() -> list[list[str]]:
    """The commands of the how-to's code blocks, in its order, as words."""
    blocks = re.findall(r"^ *```\n(.*?)^ *```$", HOWTO.read_text(), re.MULTILINE | re.DOTALL)
    return [line.split() for block in blocks for line in block.splitlines() if line.strip().startswith("babylon-rl ")]


def settings_named() -> list[str]:
    """The settings that the how-to gives to every machine."""
    return re.findall(r"^ +([A-Z_]+)=", HOWTO.read_text(), re.MULTILINE)
