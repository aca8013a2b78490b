"""HTML page of the report: statistics of every agent and pair, with their runs.

page.html.j2 draws these values; it runs nothing and asks nothing of a network.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from babylon_rl.evaluation.compare_results import LEVEL, AgentRow, Bounds, PairRow, by_agent, compare_results
from babylon_rl.evaluation.gate import BASE, NOTHING, STRATEGY, RunKey
from babylon_rl.evaluation.html_report.runs import chosen, run_view
from babylon_rl.evaluation.metrics import FEWEST_TO_DRAW, drawdowns, sharpe_path
from babylon_rl.evaluation.report import AGENTS, MARKET_FIT, NOTHING_WORDS, ON_PAGE, READER_WORDS, Rival, standing_words
from babylon_rl.evaluation.results import SEEN, Result
from babylon_rl.evaluation.stakes import NEWS_READER
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.market.simulation.strategies import STRATEGIES
from babylon_rl.reporting.numbers import dollars, duration, moment, plural
from babylon_rl.reporting.pages import curve_of, quantiles_of, render

MOST_COMPARED = 12  # agents of which every pair is shown: 66 pairs
OWN_SCALE_FROM = 3.0  # times as high as every other curve
TEMPLATE = Path(__file__).with_name("page.html.j2")
HEADINGS = {
    "equity": "P&L over time",
    "risk": "Sharpe and drawdown over time",
    "spread": "P&L by run",
    "pairs": "Paired differences",
    "actions": "What they did",
    "runs": "Runs, tick by tick",
    "reading": "How to read this",
}
KIND_NAMES = {
    "hold": "hold",
    "open_perp:long": "open-long",
    "open_perp:short": "open-short",
    "close_perp": "close",
    "buy_prediction:yes": "buy-yes",
    "buy_prediction:no": "buy-no",
    "sell_prediction:yes": "sell-yes",
    "sell_prediction:no": "sell-no",
    "post": "post",
    "invalid": "invalid",
}


@dataclass(frozen=True)
class AgentSummary:
    """An agent's complete runs and their statistics.

    ``colour`` is one of the page's ten, by its place; ``row`` holds its means, over markets.
    """

    colour: int
    row: AgentRow
    runs: tuple[Result, ...]

    @property
    def name(self) -> str:
        return self.row.agent

    @property
    def pnls(self) -> list[float]:
        return [run.pnl_usd for run in self.runs]

    @property
    def quantiles(self) -> dict[str, float]:
        return quantiles_of(self.pnls)

    @property
    def share_above_zero(self) -> float:
        return sum(pnl > 0 for pnl in self.pnls) / len(self.pnls)

    @property
    def action_shares(self) -> list[tuple[str, float]]:
        """Shares of its decisions by name, ``other`` last."""
        shares = self.row.action_shares
        other = sum(share for kind, share in shares.items() if kind not in KIND_NAMES)
        return [*((name, shares.get(kind, 0.0)) for kind, name in KIND_NAMES.items()), ("other", other)]


@dataclass(frozen=True)
class Difference:
    """Difference of two agents over shared runs.

    ``values`` are means by market, ``interval`` is that of their mean. ``p`` accounts for all comparisons of the report (Holm); it is None
    with one market, of which no test can be made.
    """

    ours: str
    theirs: str
    values: tuple[float, ...]
    interval: Bounds
    p: float | None

    @property
    def clear(self) -> bool:
        return self.p is not None and self.p <= LEVEL

    @property
    def better(self) -> int:
        """Markets in which ours earned more."""
        return sum(value > 0 for value in self.values)

    @property
    def negated(self) -> "Difference":
        low, high = (None if bound is None else -bound for bound in (self.interval.high, self.interval.low))
        interval = Bounds(mean=-self.interval.mean, low=low, high=high)
        return replace(self, ours=self.theirs, theirs=self.ours, values=tuple(-value for value in self.values), interval=interval)


@dataclass(frozen=True)
class ReportSummary:
    """Agents with complete runs, best mean P&L first, and their paired differences.

    Differences are those of the first MOST_COMPARED agents that share a market, either of two first; their intervals are corrected for
    ``analyses`` interim analyses.
    """

    agents: tuple[AgentSummary, ...]
    differences: dict[tuple[str, str], Difference]
    analyses: int = 1


def page(results: Sequence[Result], scenarios: Mapping[str, Scenario]) -> str:
    summary = summarized(results)
    agents, differences, compared = summary.agents, summary.differences, summary.agents[:MOST_COMPARED]
    names = {run.id: agent.name for agent in agents for run in agent.runs}
    shown = chosen(results, names)
    # Markets of one length share a time axis with its end in words; of several lengths only "end" can be said.
    ends = {run.ticks_processed * run.tick_interval for agent in agents for run in agent.runs}
    pnls = [pnl for agent in agents for pnl in agent.pnls]
    used = {name for agent in agents for name, share in agent.action_shares if share > 0}
    return render(
        TEMPLATE,
        headings=HEADINGS,
        lead=_lead(results, summary),
        warnings=_warnings(results, agents),
        agents=agents,
        standing=_standing(summary),
        looks=summary.analyses,
        market_fit=MARKET_FIT,
        columns=[column for column in AGENTS if column.title in ON_PAGE],
        unsigned_dollars=partial(dollars, sign=False),
        end=moment(ends.pop()) if len(ends) == 1 else "end",
        pnl_range=_range([bound for agent in agents for bound in (agent.row.pnl.mean, agent.row.pnl.low, agent.row.pnl.high)]),
        run_range=_range(pnls),
        equity=_curve_panels(agents, lambda run: run.pnl_path),
        sharpe=_curve_panels(agents, lambda run: sharpe_path(run.equity, FEWEST_TO_DRAW)),
        drawdown=_curve_panels(agents, lambda run: drawdowns(run.equity)),
        neighbours=[differences[a.name, b.name] for a, b in pairwise(agents) if (a.name, b.name) in differences],
        matrix=[(ours, [differences.get((ours.name, theirs.name)) for theirs in compared]) for ours in compared] if differences else [],
        kinds=[name for name in (*KIND_NAMES.values(), "other") if name in used],
        runs=[run_view(run, names.get(run.id, run.agent_id), scenarios.get(run.snapshot)) for run in shown],
        runs_left_out=len(results) - len(shown),
        has_markets=bool(scenarios),
    )


def summarized(results: Sequence[Result]) -> ReportSummary:
    """Compare the runs that were played to their end.

    Raises:
        UsageError: one agent has two different results of the same market, seed and repeat.
    """
    # A run that ended early has earned over another time, and cannot be averaged with the others.
    complete = [result for result in results if result.complete]
    if not complete:
        return ReportSummary((), {})
    comparison = compare_results(complete)
    # The name breaks ties, so that colours are stable.
    ranked = sorted(comparison.agents, key=lambda row: (-row.pnl.mean, row.agent))
    runs = by_agent(comparison.runs)
    agents = tuple(AgentSummary(place % 10, row, tuple(runs[row.agent].values())) for place, row in enumerate(ranked))
    compared = {row.agent for row in ranked[:MOST_COMPARED]}
    one_way = [_difference(pair, runs) for pair in comparison.pairs if {pair.a, pair.b} <= compared]
    differences = {(difference.ours, difference.theirs): difference for found in one_way for difference in (found, found.negated)}
    return ReportSummary(agents, differences, comparison.analyses)


def _difference(pair: PairRow, runs: Mapping[str, Mapping[RunKey, Result]]) -> Difference:
    by_market = defaultdict[str, list[float]](list)
    for key, run in runs[pair.a].items():
        if key in runs[pair.b]:
            by_market[run.snapshot].append(run.pnl_usd - runs[pair.b][key].pnl_usd)
    values = tuple(math.fsum(gains) / len(gains) for gains in by_market.values())
    return Difference(pair.a, pair.b, values, pair.difference, pair.adjusted_p if pair.snapshots > 1 else None)


def _curve_panels(agents: Sequence[AgentSummary], path_of: Callable[[Result], Sequence[float | None]]) -> list[dict[str, Any]]:
    """A curve of each agent that has one, with the range of its vertical axis: one scale, but for a curve that would flatten the others."""
    curves = [(agent, curve) for agent in agents if (curve := curve_of([path_of(run) for run in agent.runs])) is not None]
    if not curves:
        return []
    ranges = {agent.name: (min(0.0, *curve.low), max(0.0, *curve.high)) for agent, curve in curves}
    heights = sorted(((high - low, name) for name, (low, high) in ranges.items()), reverse=True)
    own = heights[0][1] if len(heights) > 1 and heights[0][0] > OWN_SCALE_FROM * heights[1][0] > 0.0 else None
    lows, highs = zip(*(limits for name, limits in ranges.items() if name != own), strict=True)
    scales = {name: limits if name == own else (min(lows), max(highs)) for name, limits in ranges.items()}
    return [
        {"agent": agent, "curve": curve, "low": scales[agent.name][0], "high": scales[agent.name][1], "own_scale": agent.name == own}
        for agent, curve in curves
    ]


def _range(values: Sequence[float | None]) -> tuple[float, float]:
    numbers = [value for value in values if value is not None]
    low, high = min([0.0, *numbers]), max([0.0, *numbers])
    return low, high if high > low else low + 1.0


def _lead(results: Sequence[Result], summary: ReportSummary) -> str:
    """First sentences of the page: the size of the benchmark and its winner."""
    agents = summary.agents
    count = len(agents) or len({run.agent_id for run in results})
    spans = {run.ticks * run.tick_interval for run in results}
    length = f" of {duration(next(iter(spans)))} each" if len(spans) == 1 else ""
    markets = len({run.snapshot for run in results})
    played = f"{plural(count, 'agent')} in {plural(markets, 'market')}{length}, {plural(len(results), 'run')}"
    if not agents:
        return f"{played}. No run was played to its end, so nothing is compared."
    best = agents[0]
    winner = f"{played}. {best.name} earned most: {dollars(best.row.pnl.mean)} a market"
    if len(agents) == 1:
        return f"{winner}."
    second = agents[1]
    difference = summary.differences.get((best.name, second.name))
    if difference is None:
        return f"{winner}; it shares no market with {second.name}, the next."
    ahead = f"{dollars(difference.interval.mean)} ahead of {second.name}"
    return f"{winner}, {ahead}, {'more than chance explains' if difference.clear else 'which may be chance'}."


def _standing(summary: ReportSummary) -> str | None:
    """A sentence on the best-placed model against doing nothing, the best script that played, and the news reader."""
    ours = next((agent.name for agent in summary.agents if agent.row.role != STRATEGY and agent.name != BASE), None)
    if ours is None:
        return None
    script = next((agent.name for agent in summary.agents if agent.name in STRATEGIES), None)
    wanted = [
        (NOTHING_WORDS, NOTHING),
        ("a script of training hours, as none played" if script is None else f"{script}, the best script that played", script),
        (READER_WORDS, NEWS_READER),
    ]
    markets, rivals = 0, []
    for words, name in wanted:
        found = summary.differences.get((ours, name or ""))
        if found is None:
            rivals.append(Rival(words, name))
            continue
        if found.interval.low is None:  # one market
            return None
        markets = max(markets, len(found.values))
        rivals.append(Rival(words, name, found.interval.mean, found.interval.low, found.interval.high))
    return standing_words(ours, markets, rivals, summary.analyses)


def _warnings(results: Sequence[Result], agents: Sequence[AgentSummary]) -> list[str]:
    warnings = []
    if early := [run for run in results if not run.complete]:
        names = ", ".join(sorted({run.agent_id for run in early})[:5])
        warnings.append(f"{plural(len(early), 'run')} ended early ({names}) and {'is' if len(early) == 1 else 'are'} in no comparison.")
    if len({frozenset(run.snapshot for run in agent.runs) for agent in agents}) > 1:
        warnings.append(
            "Not every agent played every market: means are over different markets. Paired differences use the shared ones only."
        )
    if len({run.engine for run in results if run.engine}) > 1:
        warnings.append("Results of several versions of the engine are here: only those of one are compared.")
    if any(run.seen for run in results):
        warnings.append(SEEN)
    return warnings
