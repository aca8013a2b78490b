"""A run told tick by tick: what was published, what the agent did, what came of it, and by how much its equity then changed.

A report shows a few runs of each agent and a few ticks of each run, chosen by what can be learned from them, and says what it leaves out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from babylon_rl.evaluation.html_report.charts import sparkline
from babylon_rl.evaluation.html_report.markup import Html, dollars, element, joined, moment, number, percent, shortened
from babylon_rl.evaluation.results import ActionTaken, Result
from babylon_rl.market.simulation.scenario import Scenario

MOST_RUNS = 24
MOST_ROWS = 60
MOST_TOLD = 4
MOST_QUESTIONS = 12
LONGEST_TEXT = 240


@dataclass(frozen=True)
class Told:
    """One piece of what was published at a tick; ``who`` is a source with how far to trust it."""

    who: str
    text: str


def chosen(results: Sequence[Result], names: Mapping[str, str], most: int = MOST_RUNS) -> list[Result]:
    """The runs to tell: every agent's best, worst and median, agents in turn, then those that ended early; ``most`` at most.

    Args:
        names: of agents by run id, as the report calls them; a run that is in no comparison may be missing.
    """
    by_agent: dict[str, list[Result]] = {}
    for result in results:
        if result.complete:
            by_agent.setdefault(names.get(result.id, result.agent_id), []).append(result)
    picked: dict[str, Result] = {}
    for place in (1.0, 0.0, 0.5):
        for runs in by_agent.values():
            ordered = sorted(runs, key=lambda run: (run.metrics.total_pnl, run.id))
            run = ordered[round(place * (len(ordered) - 1))]
            picked.setdefault(run.id, run)
    for result in results:
        if not result.complete:
            picked.setdefault(result.id, result)
    order = {result.id: number for number, result in enumerate(results)}
    kept = list(picked.values())[:most]
    return sorted(kept, key=lambda run: (names.get(run.id, run.agent_id), -run.metrics.total_pnl, order[run.id]))


def timelines(results: Sequence[Result], names: Mapping[str, str], scenarios: Mapping[str, Scenario]) -> Html:
    """The chosen runs, each folded up."""
    shown = chosen(results, names)
    left = len(results) - len(shown)
    note = "Every agent's best, median and worst run, and runs that ended early." if left else "Every run."
    told = f" {left:,} more are in runs.csv and actions.csv." if left else ""
    unread = "" if scenarios else " What was published is not shown: the markets were not given to the report."
    runs = [_run(run, names.get(run.id, run.agent_id), scenarios.get(run.snapshot)) for run in shown]
    return joined([element("p", note, told, unread, class_="note"), *runs])


def rows_of(run: Result, scenario: Scenario | None, most: int = MOST_ROWS) -> list[ActionTaken]:
    """The decisions to tell: all, or the ``most`` that say most: what was done and moved money, then what there was to read, in time."""
    if len(run.actions) <= most:
        return run.actions
    rewards = run.trajectory.rewards

    def weight(action: ActionTaken) -> tuple[bool, float, bool]:
        brought = abs(rewards[action.tick]) if action.tick < len(rewards) else 0.0
        published = scenario is not None and bool(scenario.events_at(action.tick))
        return action.type != "hold", brought, published

    heaviest = sorted(run.actions, key=weight, reverse=True)[:most]
    return sorted(heaviest, key=lambda action: action.tick)


def did(action: ActionTaken) -> Html:
    """A decision in words; what an agent wrote is quoted."""
    data = action.data
    market, side = _name(data, "market") or _name(data, "ticker"), _text(data, "side")
    usd = dollars(_amount(data, "usd"), sign=False)
    if action.type == "open_perp":
        leverage = _amount(data, "leverage") or 1.0
        return joined([element("b", side), " ", market, f", {usd}{f' × {leverage:g}' if leverage != 1.0 else ''}"])
    if action.type == "buy_prediction":
        return joined([element("b", f"buys {side.upper()}"), " of ", market, f", {usd}"])
    if action.type == "sell_prediction":
        return joined([element("b", f"sells {side.upper()}"), " of ", market, _part(data)])
    if action.type == "close_perp":
        return joined([element("b", "closes"), " ", market, _part(data)])
    if action.type == "post":
        return joined([element("b", "posts"), " ", element("q", shortened(_text(data, "text"), LONGEST_TEXT))])
    return Html("holds") if action.type == "hold" else element("b", shortened(action.type, 40))


def came(action: ActionTaken) -> Html | None:
    """Outcome of a decision: its price and fee, or why it was refused or could not be used."""
    data = action.data
    outcome = _text(data, "outcome")
    if outcome in ("refused", "invalid"):
        reason = shortened(_text(data, "reason"), LONGEST_TEXT)
        return joined([element("span", outcome, class_="minus"), f": {reason}" if reason else None])
    if (price := _amount(data, "price")) is None:
        return None
    profit = _amount(data, "profit")
    told = f"{number(_amount(data, 'quantity'))} at {dollars(price, sign=False)}, fee {dollars(_amount(data, 'fee'), sign=False)}"
    return joined([told, None if profit is None else [", profit ", _coloured(profit)]])


def _run(run: Result, name: str, scenario: Scenario | None) -> Html:
    tags = [f"seed {run.seed}", *([f"repeat {run.repeat}"] if run.repeat else []), f"{run.ticks_processed:,} ticks"]
    told = [[element("span", tag, class_="tag"), " "] for tag in tags]
    heading = element("summary", element("b", name), " ", _coloured(run.metrics.total_pnl), f" in {run.benchmark_id} ", told)
    stopped = None if run.complete else element("p", run.stopped or "The run ended early.", class_="warning")
    curve = sparkline(run.pnl_path) if len(run.trajectory.states) > 1 else None
    return element("details", heading, element("div", stopped, curve, _questions(run, scenario), _table(run, scenario), class_="inside"))


def _table(run: Result, scenario: Scenario | None) -> Html:
    rows = rows_of(run, scenario)
    titles = ("When", "Published", "Did") if scenario is not None else ("When", "Did")
    head = element("tr", *(element("th", title) for title in titles), element("th", "Brought", class_="number"))
    table = element("table", element("thead", head), element("tbody", *(_row(run, row, scenario) for row in rows)), class_="timeline")
    capped = f"{len(rows)} of {len(run.actions):,} decisions, those that moved the most money. All are in actions.csv."
    note = element("p", capped, class_="note") if len(rows) < len(run.actions) else None
    return joined([note, element("div", table, class_="wide")])


def _questions(run: Result, scenario: Scenario | None) -> Html | None:
    """The questions that the agent traded, as they were asked."""
    traded = {action.data.get("market") for action in run.actions}
    asked = [question for question in scenario.questions if question.id in traded] if scenario is not None else []
    if not asked:
        return None
    items = [
        element("li", element("b", q.id), f" {shortened(q.text, LONGEST_TEXT)} ", element("small", "YES" if q.answer else "NO"))
        for q in asked
    ]
    return element("ul", *items[:MOST_QUESTIONS], class_="questions note")


def _row(run: Result, action: ActionTaken, scenario: Scenario | None) -> Html:
    rewards = run.trajectory.rewards
    brought = rewards[action.tick] if action.tick < len(rewards) else None
    cells = [element("td", f"{action.tick}", element("br"), element("small", moment(action.tick * run.tick_interval)), class_="when")]
    if scenario is not None:
        cells.append(element("td", _published(scenario, action.tick), class_="told"))
    outcome = came(action)
    cells.append(element("td", did(action), [element("br"), element("small", outcome)] if outcome else None, class_="did"))
    cells.append(element("td", _coloured(brought) if brought else "", class_="number"))
    return element("tr", *cells, class_="quiet" if action.type == "hold" and not brought else None)


def _published(scenario: Scenario, tick: int) -> Html | None:
    found = [Told("answered", f"{q.id}: {'YES' if q.answer else 'NO'}") for q in scenario.questions if q.resolve_tick == tick]
    found += [Told("rumour" if event.rumour else f"news, {percent(event.clarity)} clear", event.text) for event in scenario.events_at(tick)]
    found += [Told(f"{post.author}, trust {percent(post.trust)}", post.text) for post in scenario.posts_at(tick)]
    if not found:
        return None
    items = [element("li", element("small", shortened(one.who, 80), ": "), shortened(one.text, LONGEST_TEXT)) for one in found[:MOST_TOLD]]
    more = element("li", element("small", f"and {len(found) - MOST_TOLD} more")) if len(found) > MOST_TOLD else None
    return element("ul", *items, more)


def _coloured(usd: float) -> Html:
    return element("span", dollars(usd), class_="plus" if usd > 0 else "minus" if usd < 0 else None)


def _name(data: Mapping[str, Any], field: str) -> str:
    return shortened(_text(data, field), 60)


def _text(data: Mapping[str, Any], field: str) -> str:
    value = data.get(field)
    return value if isinstance(value, str) else ""


def _amount(data: Mapping[str, Any], field: str) -> float | None:
    value = data.get(field)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _part(data: Mapping[str, Any]) -> str | None:
    share = _amount(data, "share")
    return f", {percent(share)} of it" if share is not None and share != 1.0 else None
