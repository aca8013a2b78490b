"""The whole page: one file that needs nothing else and runs nothing: its policy forbids scripts and every request."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from babylon_rl.evaluation.html_report import sections
from babylon_rl.evaluation.html_report.markup import Html, element, joined
from babylon_rl.evaluation.html_report.numbers import dollars, duration
from babylon_rl.evaluation.html_report.standings import Difference, Standing, compared
from babylon_rl.evaluation.html_report.timeline import timelines
from babylon_rl.evaluation.results import SEEN, Result
from babylon_rl.market.simulation.scenario import Scenario

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
PARTS = {
    "equity": "P&L over time",
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
    standings, differences = found.standings, found.differences
    title = "Benchmark report"
    parts = [_part("runs", timelines(results, {run.id: one.agent for one in standings for run in one.runs}, scenarios))]
    if standings:
        parts = [*_comparisons(standings, differences), *parts]
    links = [element("a", name, href=f"#{anchor}") for anchor, name in PARTS.items() if standings or anchor in ALWAYS]
    body = [
        element("h1", title),
        element("p", _lead(results, standings, differences), class_="lead"),
        _warnings(results, standings),
        element("nav", *links),
        sections.summary(standings) if standings else None,
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


def _comparisons(standings: Sequence[Standing], differences: Mapping[tuple[str, str], Difference]) -> list[Html]:
    return [
        _part(
            "equity",
            sections.equity(standings),
            "Mean of all runs; the band holds the middle 80 % of them. All on one scale unless it says otherwise.",
        ),
        _part("spread", sections.distributions(standings), "A dot is a run; the box holds the middle half, the line 5 to 95 %."),
        _part(
            "pairs",
            sections.pairs(standings, differences),
            "Each agent less the next one down, in the same market. A bar is a market; the stripe is the mean's 95 % interval.",
        ),
        _part("actions", sections.actions(standings), "Share of all decisions, refused orders by what was asked for."),
    ]


def _part(anchor: str, content: Html, note: str | None = None) -> Html:
    return element("section", element("h2", PARTS[anchor], id=anchor), element("p", note, class_="note") if note else None, content)


def _lead(results: Sequence[Result], standings: Sequence[Standing], differences: Mapping[tuple[str, str], Difference]) -> str:
    markets = {run.snapshot for run in results}
    agents = len(standings) or len({run.agent_id for run in results})
    spans = {run.ticks * run.tick_interval for run in results}
    lasts = f" of {duration(next(iter(spans)))} each" if len(spans) == 1 else ""
    played = f"{_many(agents, 'agent')} in {_many(len(markets), 'market')}{lasts}, {_many(len(results), 'run')}"
    if not standings:
        return f"{played}. No run was played to its end, so nothing is compared."
    best = standings[0]
    told = f"{played}. {best.agent} earned most: {dollars(best.row.pnl.mean)} a market"
    if len(standings) == 1:
        return f"{told}."
    second = standings[1]
    found = differences.get((best.agent, second.agent))
    if found is None:
        return f"{told}; it shares no market with {second.agent}, the next."
    ahead = f"{dollars(found.interval.mean)} ahead of {second.agent}"
    return f"{told}, {ahead}, {'more than chance explains' if found.clear else 'which may be chance'}."


def _warnings(results: Sequence[Result], standings: Sequence[Standing]) -> Html | None:
    found = []
    if early := [run for run in results if not run.complete]:
        agents = ", ".join(sorted({run.agent_id for run in early})[:5])
        found.append(f"{_many(len(early), 'run')} ended early ({agents}) and {'is' if len(early) == 1 else 'are'} in no comparison.")
    if len({frozenset(run.snapshot for run in one.runs) for one in standings}) > 1:
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
