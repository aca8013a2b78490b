"""Checks of single recorded rows for ``babylon-rl verify-data``.

The result is PASS, WARN or FAIL per check, with the rows named. Looser than decoding: the checks ask for what a person would want
recorded, not for what makes a row count.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from babylon_rl.episodes.faults import strict_json
from babylon_rl.store.trajectories import TrajectoryRow

Status = Literal["PASS", "WARN", "FAIL"]
_NAMED = 3

# By name of the check: the status if a row fails it, and the sentence in the report.
CHECKS: dict[str, tuple[Status, str]] = {
    "readable": ("FAIL", "stepsJson is not an array of objects"),
    "steps": ("FAIL", "no steps"),
    "environment state": ("FAIL", "a step without environmentState"),
    "LLM calls": ("FAIL", "no LLM call, in its steps or in llm_call_logs"),
    "first LLM call": ("FAIL", "the first LLM call lacks system prompt, user prompt, response or temperature"),
    "provider accesses": ("WARN", "no provider access"),
    "action results": ("WARN", "an action without result or error"),
    "scores": ("WARN", "not scored"),
}


@dataclass(frozen=True)
class Check:
    """The result of one check over all rows."""

    name: str
    status: Status
    detail: str


def row_faults(row: TrajectoryRow) -> Iterator[str]:
    """Yield the names of the checks that a row fails by itself.

    llm_call_logs may still hold its calls.
    """
    try:
        # Without readable steps no other check applies.
        steps = strict_json(row.steps_json)
    except ValueError:
        steps = None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        yield "readable"
        return
    if not steps:
        yield "steps"
        return
    if not all(isinstance(step.get("environmentState"), dict) for step in steps):
        yield "environment state"
    if not any(step.get("providerAccesses") for step in steps):
        yield "provider accesses"
    if not all(_has_result(step.get("action")) for step in steps):
        yield "action results"
    # Without calls here the caller looks into llm_call_logs.
    calls = [call for step in steps for call in _list(step.get("llmCalls"))]
    if not calls:
        yield "LLM calls"
    if calls and not _is_whole(calls[0]):
        yield "first LLM call"


def summarize(rows: int, faults: Iterable[tuple[str, str]]) -> list[Check]:
    """Return one Check per kind over ``rows`` rows.

    ``faults`` are pairs (trajectory id, check name).
    """
    failed: dict[str, list[str]] = {name: [] for name in CHECKS}
    for trajectory_id, name in faults:
        failed[name].append(trajectory_id)
    checks = []
    for name, (status, sentence) in CHECKS.items():
        ids = sorted(failed[name])
        if ids:
            more = "" if len(ids) <= _NAMED else f" and {len(ids) - _NAMED} more"
            checks.append(Check(name, status, f"{len(ids)} of {rows} rows: {sentence} ({', '.join(ids[:_NAMED])}{more})"))
        else:
            checks.append(Check(name, "PASS", f"{rows} rows"))
    return checks


def _has_result(action: Any) -> bool:
    return isinstance(action, dict) and (action.get("result") is not None or action.get("error") is not None)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_whole(call: Any) -> bool:
    return isinstance(call, dict) and all(
        call.get(name) not in (None, "") for name in ("systemPrompt", "userPrompt", "response", "temperature")
    )
