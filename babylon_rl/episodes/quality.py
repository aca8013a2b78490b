"""Quality of recorded rows: which are odd or poor although they count.

Counts of an hour's odd rows are taken while it is read, and kept in babylon_rl.windows. Shares of the newest rows must be high enough for a
training. The checks of ``babylon-rl verify-data`` are looser than decoding: they ask for what a person would want recorded, not for what
makes a row count.
"""

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from babylon_rl.episodes.decode import Fault, decode
from babylon_rl.episodes.faults import strict_json
from babylon_rl.episodes.messages import embedded_calls, logged_calls
from babylon_rl.episodes.steps import CallFacts, Step, StepCall, StepFacts, as_number
from babylon_rl.store.connection import Connection
from babylon_rl.store.trajectories import CallLogRow, TrajectoryRow, unmatched_calls
from babylon_rl.types import Check, HourQuality, Trajectory
from babylon_rl.windows import HOUR, window_start

# Limits in characters, milliseconds, multiples of the stake, dollars, and ids per list.
LONG_SYSTEM_PROMPT = 50
LONG_USER_PROMPT = 100
CLOCK_TOLERANCE_MS = 5 * 60_000
MOST_LEVERAGE = 10
LEAST_STAKE_USD = 1000.0
MOST_NAMED = 20
_NUMBERS = frozenset((int, float))
_EPOCH = datetime(1970, 1, 1)
_MILLISECOND = timedelta(milliseconds=1)


def is_short(call: CallFacts) -> bool:
    """Return True if a prompt of the call is too short.

    A system prompt of at most 50 characters, or a user prompt of at most 100.
    """
    system, user = call.system_prompt, call.user_prompt
    return not (isinstance(system, str) and len(system) > LONG_SYSTEM_PROMPT and isinstance(user, str) and len(user) > LONG_USER_PROMPT)


def is_skewed(row: TrajectoryRow, steps: Sequence[StepFacts]) -> bool:
    """Return True if a row's times contradict each other.

    It ends before it starts, its "windowId" is another hour than that of both its start and its end, or a step was taken more than five
    minutes before the start or after the end.
    """
    start, end = row.start_time, row.end_time
    # One of start and end must lie in the row's own hour.
    opens, closes = _bounds(row.window)
    if end < start or not (opens <= start <= closes or opens <= end <= closes):
        return True
    # Fast path: all timestamps are numbers. Otherwise only the numbers among them count.
    began = [step.timestamp for step in steps]
    try:
        first, last = min(began), max(began)
    except TypeError:
        first = last = None
    if first.__class__ not in _NUMBERS or last.__class__ not in _NUMBERS:
        numbers = [ms for moment in began if (ms := as_number(moment)) is not None]
        if not numbers:
            return False
        first, last = min(numbers), max(numbers)
    return bool(first < _ms(start) - CLOCK_TOLERANCE_MS or last > _ms(end) + CLOCK_TOLERANCE_MS)


@functools.lru_cache(maxsize=4096)
def _bounds(window: str) -> tuple[datetime, datetime]:
    # The hour's last microsecond: the next hour's first moment is outside.
    return window_start(window), window_start(window) + (HOUR - datetime.resolution)


def _ms(moment: datetime) -> float:
    return (moment - _EPOCH) / _MILLISECOND


def jumps(steps: Sequence[StepFacts], end_pnl: float) -> bool:
    """Return True if the P&L jumps by more than the agent could win or lose.

    From one step to the next, or to the end. The limit is MOST_LEVERAGE times the stake: the largest agentBalance of the row so far, and at
    least the game's starting balance, because an agent with all its money in positions has a small one.
    """
    pnls = [step.environment_state.agent_pnl for step in steps]
    pnls.append(end_pnl)
    # Nearly all rows: no single change can exceed the whole range.
    if max(pnls) - min(pnls) <= MOST_LEVERAGE * LEAST_STAKE_USD:
        return False
    # The limit grows with the largest balance so far.
    most = LEAST_STAKE_USD
    for step, (before, after) in zip(steps, pairwise(pnls), strict=True):
        most = max(most, step.environment_state.agent_balance)
        if abs(after - before) > MOST_LEVERAGE * most:
            return True
    return False


def hour_quality(agents: Sequence[Sequence[Trajectory]], odd_hours: int) -> HourQuality:
    """Count the odd rows among one hour's eligible trajectories.

    ``agents`` holds the trajectories by agent, in order; ``odd_hours`` counts rows of another length than 1 h. Lists name at most
    MOST_NAMED ids in order, beside the full counts.
    """
    duplicates: list[str] = []
    jumping: list[str] = []
    for own in agents:
        duplicates += _repeated(own)
        # Within a row it was looked at while its steps were at hand; between rows their ends and starts are compared here.
        if any([row.jumped for row in own]) or any([_jumps_between(before, after) for before, after in pairwise(own)]):
            jumping.append(own[0].agent_id)
    skewed = [row.trajectory_id for own in agents for row in own if row.skewed]
    # None: the row has no recorded call.
    judged = [row.short_prompts for own in agents for row in own if row.short_prompts is not None]
    return HourQuality(
        short_prompts=sum(judged),
        prompts=len(judged),
        duplicates=tuple(sorted(duplicates)[:MOST_NAMED]),
        duplicate_rows=len(duplicates),
        clock_skew=tuple(sorted(skewed)[:MOST_NAMED]),
        skewed_rows=len(skewed),
        pnl_jumps=tuple(jumping[:MOST_NAMED]),
        jumping_agents=len(jumping),
        other_lengths=odd_hours,
    )


def _repeated(own: Iterable[Trajectory]) -> list[str]:
    seen: set[str] = set()
    repeated = []
    for row in own:
        if row.recorded in seen:
            repeated.append(row.trajectory_id)
        seen.add(row.recorded)
    return repeated


def _jumps_between(before: Trajectory, after: Trajectory) -> bool:
    return abs(after.start_pnl - before.end_pnl) > MOST_LEVERAGE * max(before.stake, LEAST_STAKE_USD)


@dataclass(frozen=True, slots=True)
class SampleQuality:
    """Share (0..1) of sampled rows that pass each of four checks.

    Provider accesses are reported but not counted.
    """

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
    """Return the share of rows, each with its logged calls, that passes each check.

    Without rows every share is 0.
    """
    checks = [_row_checks(row, logs) for row, logs in rows]
    shares = [sum(column) / len(rows) for column in zip(*checks, strict=True)] if checks else [0.0] * 5
    return SampleQuality(len(rows), *shares)


def _row_checks(row: TrajectoryRow, logs: Sequence[CallLogRow]) -> tuple[bool, bool, bool, bool, bool]:
    decoded = decode(row)
    if isinstance(decoded, Fault):
        return (False,) * 5
    steps = decoded.completed
    # Shares in order: steps, calls, long prompts, results, provider accesses.
    calls = _calls(steps, row, logs)
    served = [call for own in calls for call in own]
    entries = json.loads(row.steps_json)
    # Read again as plain JSON: results and provider accesses count here only, and the typed steps leave them out.
    actions = [entry["action"] for entry in entries if entry["action"]["actionType"] != "pending"]
    return (
        bool(steps),
        all(calls),
        bool(served) and not any(is_short(call) for call in served),
        all(any(action.get(key) is not None for key in ("result", "error", "success")) for action in actions),
        any(entry.get("providerAccesses") for entry in entries) or any(log.has_accesses for log in logs),
    )


def _calls(steps: Sequence[Step], row: TrajectoryRow, logs: Sequence[CallLogRow]) -> Sequence[Sequence[StepCall]]:
    own = [embedded_calls(step) for step in steps]
    return own if any(own) else logged_calls(logs, row.trajectory_id, steps)


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
    """Yield the names of the checks that a row fails by itself.

    llm_call_logs may still hold its calls, and provider accesses with them.
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


def unmatched_sentence(connection: Connection, first: str, now: datetime, end: str | None = None) -> str | None:
    """Return what to know about logged calls of the hours from ``first`` that belong to no trajectory, or None.

    Calls of the last hour are left out: a trajectory is written when it ends, after its calls.
    """
    stop = now - HOUR if end is None else min(now - HOUR, window_start(end))
    count, example = unmatched_calls(connection, window_start(first), stop)
    if not count:
        return None
    advice = 'log calls under the "trajectoryId" of their trajectory.'
    return f"{count} logged calls belong to no trajectory and count nowhere, such as those under {example!r}: {advice}"


def summarize(rows: int, faults: Iterable[tuple[str, str]]) -> list[Check]:
    """Return one check per kind over ``rows`` rows.

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
