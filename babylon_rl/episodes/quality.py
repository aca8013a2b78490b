"""Quality of recorded rows: shares for readiness, and checks of ``babylon-rl verify-data``.

The checks are looser than decoding: they ask for what a person would want recorded, not for what makes a row count. Odd rows of an hour
are counted while it is read (reading.py).
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from babylon_rl.episodes.decode import PENDING, Fault, StepCall, decode, strict_json
from babylon_rl.episodes.trajectories import StepPlaces, calls_by_step, is_short, logged_call
from babylon_rl.store.connection import Connection
from babylon_rl.store.trajectories import CallLogRow, TrajectoryRow, unmatched_calls
from babylon_rl.types import Check
from babylon_rl.windows import HOUR, window_start


@dataclass(frozen=True, slots=True)
class SampleQuality:
    """Share (0..1) of sampled rows that pass each of four checks. Provider accesses are reported but not counted."""

    rows: int
    has_steps: float
    has_calls: float
    long_prompts: float
    has_results: float
    provider_accesses: float

    @property
    def mean(self) -> float:
        """Mean quality, 0..1; 0 without rows."""
        return (self.has_steps + self.has_calls + self.long_prompts + self.has_results) / 4


def sample_quality(rows: Sequence[tuple[TrajectoryRow, Sequence[CallLogRow]]]) -> SampleQuality:
    """Return the share of rows, each with its logged calls, that passes each check. Without rows every share is 0."""
    checks = [_row_checks(row, logs) for row, logs in rows]
    shares = [sum(column) / len(rows) for column in zip(*checks, strict=True)] if checks else [0.0] * 5
    return SampleQuality(len(rows), *shares)


def _row_checks(row: TrajectoryRow, logs: Sequence[CallLogRow]) -> tuple[bool, bool, bool, bool, bool]:
    decoded = decode(row)
    if isinstance(decoded, Fault):
        return (False,) * 5
    steps = decoded.completed
    own = [step.llm_calls or () for step in steps]
    calls: Sequence[Sequence[StepCall]] = own if any(own) else calls_by_step(logs, row.trajectory_id, StepPlaces.of(steps), logged_call)
    served = [call for own in calls for call in own]
    entries = json.loads(row.steps_json)
    # Read again as plain JSON: results and provider accesses count here only, and the typed steps leave them out.
    actions = [entry["action"] for entry in entries if entry["action"]["actionType"] != PENDING]
    return (
        bool(steps),
        all(calls),
        bool(served) and not any(is_short(call) for call in served),
        all(any(action.get(key) is not None for key in ("result", "error", "success")) for action in actions),
        any(entry.get("providerAccesses") for entry in entries) or any(log.has_accesses for log in logs),
    )


_NAMED = 3

# By name of the check: the status if a row fails it, and the sentence in the report.
CHECKS: dict[str, tuple[str, str]] = {
    "readable": ("FAIL", "stepsJson is not an array of objects"),
    "steps": ("FAIL", "no steps"),
    "environment state": ("FAIL", "a step without environmentState"),
    "LLM calls": ("FAIL", "no LLM call, in its steps or in llm_call_logs"),
    "first LLM call": ("FAIL", "the first LLM call lacks system prompt, user prompt, response or temperature"),
    "provider accesses": ("WARN", "no provider access, in its steps or in llm_call_logs"),
    "action results": ("WARN", "an action without result or error"),
    "scores": ("WARN", "not scored"),
}


def row_faults(row: TrajectoryRow) -> Iterator[str]:
    """Yield the names of the checks that a row fails by itself. llm_call_logs may still hold its calls, and provider accesses with them."""
    try:
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
    calls = [call for step in steps if isinstance(step.get("llmCalls"), list) for call in step["llmCalls"]]
    if not calls:
        yield "LLM calls"
    if calls and not _is_whole(calls[0]):
        yield "first LLM call"


def unmatched_sentence(connection: Connection, first: str, now: datetime, end: str | None = None) -> str | None:
    """Return a sentence on logged calls of the hours from ``first`` that belong to no trajectory, or None.

    Calls of the last hour are left out: a trajectory is written when it ends, after its calls.
    """
    stop = now - HOUR if end is None else min(now - HOUR, window_start(end))
    count, example = unmatched_calls(connection, window_start(first), stop)
    if not count:
        return None
    advice = 'log calls under the "trajectoryId" of their trajectory.'
    return f"{count} logged calls belong to no trajectory and count nowhere, such as those under {example!r}: {advice}"


def summarize(rows: int, faults: Iterable[tuple[str, str]]) -> list[Check]:
    """Return one check per kind over ``rows`` rows. ``faults`` are pairs (trajectory id, check name)."""
    failed: dict[str, list[str]] = {name: [] for name in CHECKS}
    for trajectory_id, name in faults:
        failed[name].append(trajectory_id)
    return [
        Check(name, status, f"{len(ids)} of {rows} rows: {sentence}{named(sorted(ids), len(ids))}")
        if (ids := failed[name])
        else Check(name, "PASS", f"{rows} rows")
        for name, (status, sentence) in CHECKS.items()
    ]


def named(ids: Sequence[str], total: int) -> str:
    """The first of ``total`` ids in brackets, as the end of a sentence; nothing without ids."""
    more = f" and {total - _NAMED} more" if total > _NAMED else ""
    return f" ({', '.join(ids[:_NAMED])}{more})" if ids else ""


def _has_result(action: Any) -> bool:
    return isinstance(action, dict) and (action.get("result") is not None or action.get("error") is not None)


def _is_whole(call: Any) -> bool:
    return isinstance(call, dict) and all(
        call.get(name) not in (None, "") for name in ("systemPrompt", "userPrompt", "response", "temperature")
    )
