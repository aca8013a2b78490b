"""The page: one HTML file that needs nothing else and runs nothing. Its policy forbids scripts and every request."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from babylon_rl.evaluation.compare_results import Bounds
from babylon_rl.evaluation.html_report.charts import Curve, axis, curve_panel, difference_bars, dots_row, interval_bar, share_bar
from babylon_rl.evaluation.html_report.markup import DASH, MINUS, Html, dollars, duration, element, joined, moment, number, percent
from babylon_rl.evaluation.html_report.summaries import MOST_COMPARED, AgentSummary, Difference, Measure, compared, turned_around
from babylon_rl.evaluation.html_report.timeline import timelines
from babylon_rl.evaluation.results import SEEN, Result
from babylon_rl.market.simulation.scenario import Scenario

APART = 3.0
COLUMNS: tuple[tuple[str, str, Measure, str], ...] = (
    ("Return", "P&L of the start balance", lambda row: row.returns, "+%"),
    ("Sharpe", "mean over spread of the equity's changes in a run, mean over markets", lambda row: row.sharpe, "2"),
    ("Drawdown", "largest fall of the equity from its peak, in dollars, mean over markets", lambda row: row.max_drawdown, "$"),
    ("Win rate", "of the positions that won or lost", lambda row: row.win_rate, "%"),
    ("Accuracy", "of the questions' sides that were bought", lambda row: row.accuracy, "%"),
    ("Brier", "squared error of what was paid for being right; 0 is perfect", lambda row: row.brier, "3"),
    ("Invalid", "answers that were no action", lambda row: row.invalid_rate, "%"),
    ("Optimality", "P&L of the best plan's, 0 to 100", lambda row: row.optimality, "0"),
)
KINDS = (
    ("hold", "hold"),
    ("open_perp:long", "open-long"),
    ("open_perp:short", "open-short"),
    ("close_perp", "close"),
    ("buy_prediction:yes", "buy-yes"),
    ("buy_prediction:no", "buy-no"),
    ("sell_prediction:yes", "sell-yes"),
    ("sell_prediction:no", "sell-no"),
    ("post", "post"),
    ("invalid", "invalid"),
)


def summary(agents: Sequence[AgentSummary]) -> Html:
    """One row for each agent, best first."""
    floor, ceiling = _reach([one.row.pnl for one in agents])
    head = [element("th", "Agent"), element("th", "P&L, $ a market, with its 95 % interval", colspan="2")]
    head += [element("th", name, title=meaning, class_="number") for name, meaning, _, _ in COLUMNS]
    rows = []
    for one in agents:
        cells = [
            element("th", element("i", class_=f"key c{one.colour}"), one.agent, scope="row"),
            element("td", element("b", dollars(one.row.pnl.mean)), " ", element("small", _interval(one.row.pnl)), class_="number"),
            element("td", interval_bar(one.row.pnl, floor, ceiling, one.colour)),
        ]
        cells += [element("td", _told(measure(one.row), form), class_="number") for _, _, measure, form in COLUMNS]
        cells.append(element("td", f"{len(one.runs)}", class_="number"))
        rows.append(element("tr", *cells))
    head.append(element("th", "Runs", class_="number"))
    made = element("table", element("thead", element("tr", *head)), element("tbody", *rows), class_="standings")
    return element("div", made, class_="wide")


def equity(agents: Sequence[AgentSummary]) -> Html:
    """A panel for each agent with its P&L over time."""
    panels = _panels([(one, one.curve) for one in agents], dollars, "Mean P&L over time")
    return element("div", *panels, class_="panels") if panels else element("p", "No run has more than one moment.")


def risk(agents: Sequence[AgentSummary]) -> Html:
    """Panels with the Sharpe ratio and the drawdown of each agent over time."""
    sharpe = _panels([(one, one.sharpe_curve) for one in agents], number, "Mean Sharpe ratio over time")
    drawdown = _panels([(one, one.drawdown_curve) for one in agents], partial(dollars, sign=False), "Mean drawdown over time")
    return joined([
        element("h3", "Sharpe ratio so far"),
        element("div", *sharpe, class_="panels") if sharpe else element("p", "No run has a Sharpe ratio."),
        element("h3", "Dollars below the peak so far"),
        element("div", *drawdown, class_="panels") if drawdown else element("p", "No run has more than one moment."),
    ])  # fmt: skip


def _panels(curves: Sequence[tuple[AgentSummary, Curve | None]], told: Callable[[float], str], label: str) -> list[Html]:
    """A panel for each agent that has a curve, all on one scale, but for one that would flatten the others."""
    shown = [(one, curve) for one, curve in curves if curve is not None]
    if not shown:
        return []
    reaches = {one.agent: (min(0.0, *curve.low), max(0.0, *curve.high)) for one, curve in shown}
    apart = _apart(reaches)
    common = [reach for agent, reach in reaches.items() if agent != apart]
    low, high = min(reach[0] for reach in common), max(reach[1] for reach in common)
    ends = {run.ticks_processed * run.tick_interval for one, _ in curves for run in one.runs}
    end = moment(ends.pop()) if len(ends) == 1 else "end"
    panels = []
    for one, curve in shown:
        caption = f" {told(curve.mean[-1])} at the end{', on a scale of its own' if one.agent == apart else ''}"
        bounds = reaches[one.agent] if one.agent == apart else (low, high)
        panels.append(element("figure", _caption(one, caption), curve_panel(curve, *bounds, end, one.colour, label=label, told=told)))
    return panels


def distributions(agents: Sequence[AgentSummary]) -> Html:
    """Every run's P&L as a dot, agents under each other on one scale."""
    values = [run.metrics.total_pnl for one in agents for run in one.runs]
    low, high = min(0.0, *values), max(0.0, *values)
    high = high if high > low else low + 1.0
    rows = []
    for one in agents:
        pnls = [run.metrics.total_pnl for run in one.runs]
        median = element("small", f"median {dollars(one.spread.median)}, {percent(sum(v > 0 for v in pnls) / len(pnls))} above 0")
        rows.append(element("div", _caption(one), median, class_="label"))
        rows.append(dots_row(pnls, one.spread, low, high, one.colour))
    rows += [element("div"), axis(low, high)]
    return element("div", *rows, class_="rows")


def pairs(agents: Sequence[AgentSummary], differences: Mapping[tuple[str, str], Difference]) -> Html:
    """Paired differences: neighbours market by market, then everybody against everybody."""
    if not differences:
        return element("p", "No two agents played the same market.")
    neighbours = [differences.get((a.agent, b.agent)) for a, b in pairwise(agents)]
    panels = [_pair(difference) for difference in neighbours if difference is not None]
    told = f" Of {len(agents)} agents the first {MOST_COMPARED} are compared." if len(agents) > MOST_COMPARED else ""
    note = element("p", "Row less column, in dollars a market; bold where the corrected p is below 5 %.", told, class_="note")
    return joined([element("div", *panels, class_="panels"), note, _matrix(agents[:MOST_COMPARED], differences)])


def actions(agents: Sequence[AgentSummary]) -> Html:
    """Shares of each agent's decisions."""
    known = dict(KINDS)
    rows, seen = [], set()
    for one in agents:
        shares = [(name, one.row.action_shares.get(kind, 0.0)) for kind, name in KINDS]
        shares.append(("other", sum(share for kind, share in one.row.action_shares.items() if kind not in known)))
        seen |= {name for name, share in shares if share > 0}
        most = max(shares, key=lambda pair: pair[1])
        rows.append(
            element("div", _caption(one), element("small", f"mostly {most[0].replace('-', ' ')}, {percent(most[1])}"), class_="label")
        )
        rows.append(share_bar(shares) if one.row.action_shares else element("p", DASH))
    legend = [
        element("span", element("i", class_=f"key s-{name}"), name.replace("-", " ")) for _, name in (*KINDS, ("", "other")) if name in seen
    ]
    return joined([element("p", *legend, class_="legend"), element("div", *rows, class_="rows")])


def _pair(difference: Difference) -> Html:
    interval, p = difference.interval, difference.p
    better = sum(value > 0 for value in difference.values)
    told = f"better in {better} of {len(difference.values)} markets; {_chance(p)}"
    return element(
        "figure",
        element(
            "figcaption", element("b", f"{difference.ours} {MINUS} {difference.theirs}"), f" {dollars(interval.mean)} {_interval(interval)}"
        ),
        difference_bars(difference.values, interval),
        element("small", told, class_="note"),
    )


def _chance(p: float | None) -> str:
    if p is None:
        return "one market is no test"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def _matrix(agents: Sequence[AgentSummary], differences: Mapping[tuple[str, str], Difference]) -> Html:
    head = element("tr", element("th"), *(element("th", one.agent, class_="number") for one in agents))
    rows = []
    for ours in agents:
        cells = [element("th", element("i", class_=f"key c{ours.colour}"), ours.agent, scope="row")]
        for theirs in agents:
            turned = (theirs.agent, ours.agent) in differences
            found = differences.get((theirs.agent, ours.agent) if turned else (ours.agent, theirs.agent))
            cells.append(_cell(found, turned))
        rows.append(element("tr", *cells))
    return element("div", element("table", element("thead", head), element("tbody", *rows), class_="matrix"), class_="wide")


def _cell(difference: Difference | None, turned: bool) -> Html:
    if difference is None:
        return element("td", DASH, class_="number")
    interval = turned_around(difference.interval) if turned else difference.interval
    told = dollars(interval.mean)
    kind = ("gain" if interval.mean > 0 else "loss") if difference.clear else "unclear"
    title = f"{_interval(interval)}, {_chance(difference.p)}"
    return element("td", element("b", told) if difference.clear else told, class_=f"number {kind}", title=title)


def _caption(one: AgentSummary, more: str = "") -> Html:
    return element("figcaption", element("i", class_=f"key c{one.colour}"), element("b", one.agent), more)


def _interval(interval: Bounds) -> str:
    if interval.low is None or interval.high is None:
        return "one market: no interval"
    return f"[{dollars(interval.low)}, {dollars(interval.high)}]"


def _apart(reaches: Mapping[str, tuple[float, float]]) -> str | None:
    """The agent whose curve would make flat lines of all others: three times as high as any; the oracle, as a rule."""
    heights = sorted(((high - low, agent) for agent, (low, high) in reaches.items()), reverse=True)
    return heights[0][1] if len(heights) > 1 and heights[0][0] > APART * heights[1][0] > 0.0 else None


def _reach(intervals: Sequence[Bounds]) -> tuple[float, float]:
    """Where the bars of a column begin and end: at the bounds that there are, and zero."""
    bounds = [bound for one in intervals for bound in (one.mean, one.low, one.high) if bound is not None]
    low, high = min(0.0, *bounds), max(0.0, *bounds)
    return low, high if high > low else low + 1.0


def _told(value: float | None, form: str) -> str:
    if form == "$":
        return dollars(value, sign=False)
    if form.endswith("%"):
        return percent(value, 1, sign=form.startswith("+"))
    return number(value, int(form))


POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
PARTS = {
    "equity": "P&L over time",
    "risk": "Sharpe and drawdown over time",
    "spread": "P&L by run",
    "pairs": "Paired differences",
    "actions": "What they did",
    "runs": "Runs, tick by tick",
    "reading": "How to read this",
}
ALWAYS = ("runs", "reading")
STYLE = Path(__file__).with_name("style.css")


def page(results: Sequence[Result], scenarios: Mapping[str, Scenario]) -> str:
    """The report of some runs as an HTML document."""
    found = compared(results)
    agents, differences = found.agents, found.differences
    title = "Benchmark report"
    parts = [_part("runs", timelines(results, {run.id: one.agent for one in agents for run in one.runs}, scenarios))]
    if agents:
        parts = [*_comparisons(agents, differences), *parts]
    links = [element("a", name, href=f"#{anchor}") for anchor, name in PARTS.items() if agents or anchor in ALWAYS]
    body = [
        element("h1", title),
        element("p", _lead(results, agents, differences), class_="lead"),
        _warnings(results, agents),
        element("nav", *links),
        summary(agents) if agents else None,
        *parts,
        _part("reading", _reading()),
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", title),
        Html(f"<style>{STYLE.read_text(encoding='utf-8')}</style>"),
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', *body), lang='en')}\n"


def _comparisons(agents: Sequence[AgentSummary], differences: Mapping[tuple[str, str], Difference]) -> list[Html]:
    return [
        _part(
            "equity",
            equity(agents),
            "Mean of all runs; the band holds the middle 80 % of them. All on one scale unless it says otherwise.",
        ),
        _part(
            "risk",
            risk(agents),
            "Means of all runs; the band holds the middle 80 % of them. The Sharpe ratio is the mean over the spread of the equity's "
            "changes so far, times the root of their number; it is drawn once every run has one.",
        ),
        _part("spread", distributions(agents), "A dot is a run; the box holds the middle half, the line 5 to 95 %."),
        _part(
            "pairs",
            pairs(agents, differences),
            "Each agent less the next one down, in the same market. A bar is a market; the stripe is the mean's 95 % interval.",
        ),
        _part("actions", actions(agents), "Share of all decisions, refused orders by what was asked for."),
    ]


def _part(anchor: str, content: Html, note: str | None = None) -> Html:
    return element("section", element("h2", PARTS[anchor], id=anchor), element("p", note, class_="note") if note else None, content)


def _lead(results: Sequence[Result], agents: Sequence[AgentSummary], differences: Mapping[tuple[str, str], Difference]) -> str:
    markets = {run.snapshot for run in results}
    count = len(agents) or len({run.agent_id for run in results})
    spans = {run.ticks * run.tick_interval for run in results}
    lasts = f" of {duration(next(iter(spans)))} each" if len(spans) == 1 else ""
    played = f"{_many(count, 'agent')} in {_many(len(markets), 'market')}{lasts}, {_many(len(results), 'run')}"
    if not agents:
        return f"{played}. No run was played to its end, so nothing is compared."
    best = agents[0]
    told = f"{played}. {best.agent} earned most: {dollars(best.row.pnl.mean)} a market"
    if len(agents) == 1:
        return f"{told}."
    second = agents[1]
    found = differences.get((best.agent, second.agent))
    if found is None:
        return f"{told}; it shares no market with {second.agent}, the next."
    ahead = f"{dollars(found.interval.mean)} ahead of {second.agent}"
    return f"{told}, {ahead}, {'more than chance explains' if found.clear else 'which may be chance'}."


def _warnings(results: Sequence[Result], agents: Sequence[AgentSummary]) -> Html | None:
    found = []
    if early := [run for run in results if not run.complete]:
        names = ", ".join(sorted({run.agent_id for run in early})[:5])
        found.append(f"{_many(len(early), 'run')} ended early ({names}) and {'is' if len(early) == 1 else 'are'} in no comparison.")
    if len({frozenset(run.snapshot for run in one.runs) for one in agents}) > 1:
        found.append("Not every agent played every market: means are over different markets. Paired differences use the shared ones only.")
    if len({run.engine for run in results if run.engine}) > 1:
        found.append("Results of several versions of the engine are here: only those of one are compared.")
    if any(run.seen for run in results):
        found.append(SEEN)
    return joined([element("p", sentence, class_="warning") for sentence in found]) if found else None


def _reading() -> Html:
    sentences = (
        "P&L is in simulated dollars a market, after all fees. Its interval is a bootstrap over markets: repeats of one count once.",
        "Paired differences compare two agents in the same market; p is of a permutation test, corrected for all comparisons (Holm).",
        "Brier scores what was paid for a share as a probability of being right; 0 is perfect.",
        "Optimality is P&L as a percentage of what the best plan of the snapshot's policy class earns.",
        "Brought is by how much the equity changed until the next decision, whatever moved it.",
        "A dash says that there was nothing to measure.",
    )
    return element("ul", *(element("li", sentence) for sentence in sentences))


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
