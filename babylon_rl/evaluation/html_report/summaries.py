"""Numbers of the page: `benchmark compare` of every agent and every two, with the runs behind them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from babylon_rl.evaluation.compare_results import AgentRow, Bounds, PairRow, by_agent, compare_results
from babylon_rl.evaluation.comparison import RunKey
from babylon_rl.evaluation.html_report.charts import Curve, Quantiles, curve_of, spread_of
from babylon_rl.evaluation.metrics import FEWEST_TO_DRAW, drawdowns, sharpe_path
from babylon_rl.evaluation.results import Result

LEVEL = 0.05
MOST_COMPARED = 12


@dataclass(frozen=True)
class AgentSummary:
    """An agent's complete runs, and what they come to.

    ``number`` is its place by mean P&L from 0, which also chooses its colour; ``row`` holds its means, over markets. Curves are over a
    market's time; None where no run has such values.
    """

    number: int
    row: AgentRow
    runs: tuple[Result, ...]
    spread: Quantiles
    curve: Curve | None
    sharpe_curve: Curve | None
    drawdown_curve: Curve | None

    @property
    def agent(self) -> str:
        """Its name in tables."""
        return self.row.agent

    @property
    def colour(self) -> int:
        """One of the page's ten colours."""
        return self.number % 10


@dataclass(frozen=True)
class Difference:
    """The better-placed of two agents less the other, in the runs that both have: each market's mean, and the mean of these.

    ``p`` accounts for all comparisons of the report (Holm); it is None with one market, of which no test can be made.
    """

    ours: str
    theirs: str
    values: tuple[float, ...]
    interval: Bounds
    p: float | None

    @property
    def clear(self) -> bool:
        """True when chance is a poor explanation, all comparisons of the report taken together."""
        return self.p is not None and self.p <= LEVEL


Measure = Callable[[AgentRow], float | None]


@dataclass(frozen=True)
class Compared:
    """Every agent with a complete run, best mean P&L first, and every better-placed one of the first MOST_COMPARED less every other."""

    agents: tuple[AgentSummary, ...]
    differences: dict[tuple[str, str], Difference]


def compared(results: Sequence[Result]) -> Compared:
    """Compare the runs that were played to their end.

    Raises:
        UsageError: one agent has two different results of the same market, seed and repeat.
    """
    complete = [result for result in results if result.complete]
    if not complete:
        return Compared((), {})
    found = compare_results(complete)
    ranked = sorted(found.agents, key=lambda row: (-row.pnl.mean, row.agent))
    runs = by_agent(found.runs)
    agents = tuple(_summary(number, row, list(runs[row.agent].values())) for number, row in enumerate(ranked))
    places = {one.agent: one.number for one in agents}
    differences = {}
    for pair in found.pairs:
        if max(places[pair.a], places[pair.b]) < MOST_COMPARED:
            difference = _difference(pair, runs, turned=places[pair.a] > places[pair.b])
            differences[difference.ours, difference.theirs] = difference
    return Compared(agents, differences)


def _summary(number: int, row: AgentRow, runs: Sequence[Result]) -> AgentSummary:
    spread = spread_of([run.metrics.total_pnl for run in runs])
    return AgentSummary(
        number,
        row,
        tuple(runs),
        spread,
        curve=curve_of([run.pnl_path for run in runs]),
        sharpe_curve=curve_of([sharpe_path(run.equity, FEWEST_TO_DRAW) for run in runs]),
        drawdown_curve=curve_of([drawdowns(run.equity) for run in runs]),
    )


def _difference(pair: PairRow, runs: dict[str, dict[RunKey, Result]], turned: bool) -> Difference:
    ours, theirs = (pair.b, pair.a) if turned else (pair.a, pair.b)
    of_market: dict[str, list[float]] = {}
    for key, run in runs[ours].items():
        if key in runs[theirs]:
            of_market.setdefault(run.snapshot, []).append(run.metrics.total_pnl - runs[theirs][key].metrics.total_pnl)
    values = tuple(math.fsum(gains) / len(gains) for gains in of_market.values())
    p = pair.adjusted_p if pair.snapshots > 1 else None
    return Difference(ours, theirs, values, turned_around(pair.difference) if turned else pair.difference, p)


def turned_around(interval: Bounds) -> Bounds:
    """The interval of the difference the other way round."""
    low, high = (None if bound is None else -bound for bound in (interval.high, interval.low))
    return Bounds(mean=-interval.mean, low=low, high=high)
