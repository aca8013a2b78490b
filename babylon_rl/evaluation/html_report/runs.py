"""Runs of the report, tick by tick: publications, decisions, fills, changes of equity.

A report shows a few runs of each agent and a few ticks of each run, chosen by what can be learned from them, and says what it leaves out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from babylon_rl.evaluation.results import ActionTaken, Result
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.reporting.numbers import dollars, number, percent, shortened

MOST_RUNS = 24
MOST_ROWS = 60
MOST_TEXTS = 4
MOST_QUESTIONS = 12
LONGEST_TEXT = 240


def chosen(results: Sequence[Result], names: Mapping[str, str], most: int = MOST_RUNS) -> list[Result]:
    """Select runs to show: best, worst and median of every agent, then incomplete runs.

    Agents take turns; ``most`` is the limit.

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
    shown = list(picked.values())[:most]
    return sorted(shown, key=lambda run: (names.get(run.id, run.agent_id), -run.metrics.total_pnl, order[run.id]))


def run_view(run: Result, name: str, scenario: Scenario | None) -> dict[str, Any]:
    """Values of one run for runs.html.j2; without a scenario there are no publications."""
    traded = {action.data.get("market") for action in run.actions}
    questions = [question for question in scenario.questions if question.id in traded] if scenario is not None else []
    return {
        "name": name,
        "result": run,
        "tags": [f"seed {run.seed}", *([f"repeat {run.repeat}"] if run.repeat else []), f"{run.ticks_processed:,} ticks"],
        "stopped": None if run.complete else run.stopped or "The run ended early.",
        "questions": questions[:MOST_QUESTIONS],
        "has_market": scenario is not None,
        "decisions": [_decision_row(run, action, scenario) for action in rows_of(run, scenario)],
    }


def rows_of(run: Result, scenario: Scenario | None) -> list[ActionTaken]:
    """Select decisions to show, MOST_ROWS at most, in order of time.

    Those that moved the most money come first, then those with something to read.
    """
    if len(run.actions) <= MOST_ROWS:
        return run.actions

    def weight(action: ActionTaken) -> tuple[bool, float, bool]:
        published = scenario is not None and bool(scenario.events_at(action.tick))
        return action.type != "hold", abs(run.trajectory.rewards[action.tick]), published

    heaviest = sorted(run.actions, key=weight, reverse=True)[:MOST_ROWS]
    return sorted(heaviest, key=lambda action: action.tick)


def _decision_row(run: Result, action: ActionTaken, scenario: Scenario | None) -> dict[str, Any]:
    """Values of one decision; ``brought_usd`` is the change of equity until the next."""
    brought = run.trajectory.rewards[action.tick]
    texts = _published(scenario, action.tick) if scenario is not None else []
    return {
        "tick": action.tick,
        "seconds": action.tick * run.tick_interval,
        "texts": texts[:MOST_TEXTS],
        "more_texts": max(0, len(texts) - MOST_TEXTS),
        "decision": _decision(action),
        "fill": _fill(action),
        "brought_usd": brought,
        "quiet": action.type == "hold" and not brought,
    }


def _decision(action: ActionTaken) -> tuple[str, str, str]:
    """A decision in words: a bold verb, the order, and an agent's text."""
    data = action.data
    market, side = shortened(_text(data, "market") or _text(data, "ticker"), 60), _text(data, "side")
    usd = dollars(_amount(data, "usd"), sign=False)
    match action.type:
        case "open_perp":
            leverage = _amount(data, "leverage") or 1.0
            return side, f" {market}, {usd}{f' × {leverage:g}' if leverage != 1.0 else ''}", ""
        case "buy_prediction":
            return f"buys {side.upper()}", f" of {market}, {usd}", ""
        case "sell_prediction":
            return f"sells {side.upper()}", f" of {market}{_share_sold(data)}", ""
        case "close_perp":
            return "closes", f" {market}{_share_sold(data)}", ""
        case "post":
            return "posts", " ", shortened(_text(data, "text"), LONGEST_TEXT)
        case "hold":
            return "", "holds", ""
    return shortened(action.type, 40), "", ""


def _fill(action: ActionTaken) -> tuple[str, str, float | None] | None:
    """The outcome of a decision: a failure, its words, and the profit; None where nothing was filled or refused."""
    data = action.data
    outcome = _text(data, "outcome")
    if outcome in ("refused", "invalid"):
        reason = shortened(_text(data, "reason"), LONGEST_TEXT)
        return outcome, f": {reason}" if reason else "", None
    if (price := _amount(data, "price")) is None:
        return None
    words = f"{number(_amount(data, 'quantity'))} at {dollars(price, sign=False)}, fee {dollars(_amount(data, 'fee'), sign=False)}"
    return "", words, _amount(data, "profit")


def _published(scenario: Scenario, tick: int) -> list[tuple[str, str]]:
    """Publications at a tick: a source, which says how far to trust it, and the text."""
    texts = [("answered", f"{q.id}: {'YES' if q.answer else 'NO'}") for q in scenario.questions if q.resolve_tick == tick]
    texts += [("rumour" if event.rumour else f"news, {percent(event.clarity)} clear", event.text) for event in scenario.events_at(tick)]
    return texts + [(f"{post.author}, trust {percent(post.trust)}", post.text) for post in scenario.posts_at(tick)]


def _text(data: Mapping[str, Any], field: str) -> str:
    value = data.get(field)
    return value if isinstance(value, str) else ""


def _amount(data: Mapping[str, Any], field: str) -> float | None:
    value = data.get(field)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _share_sold(data: Mapping[str, Any]) -> str:
    share = _amount(data, "share")
    return f", {percent(share)} of it" if share is not None and share != 1.0 else ""
