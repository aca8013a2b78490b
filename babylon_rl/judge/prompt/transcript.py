"""Recorded steps of trajectories with all that a judge may see: prompts, answers, reasoning.

Steps count as in ``decode``. Calls come from the steps, otherwise from the log. Texts may hold anything.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import msgspec

from babylon_rl.episodes.decode import Fault, decode
from babylon_rl.episodes.messages import embedded_calls, logged_calls
from babylon_rl.episodes.steps import PENDING, EnvironmentState, Step, StepCall
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_inputs import logged_reasoning
from babylon_rl.store.trajectories import TrajectoryRow, call_log_rows, trajectories_by_id

MOST_DEEP = 6  # levels of parameters and results that are shown


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """One LLM call: prompts, response, and the reasoning recorded beside it."""

    system: str
    prompt: str
    response: str
    reasoning: str


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One completed step; ``parameters``, ``result`` and ``error`` are as recorded."""

    state: EnvironmentState
    action_type: str
    succeeded: bool
    parameters: Any
    result: Any
    error: Any
    reasoning: str
    calls: tuple[RecordedCall, ...]


def read_transcripts(connection: Connection, trajectory_ids: Sequence[str]) -> dict[str, list[RecordedStep]]:
    """Read the steps of some trajectories by id; missing and rejected ones are absent."""
    transcripts: dict[str, list[RecordedStep]] = {}
    silent: dict[str, tuple[TrajectoryRow, list[Step]]] = {}
    for row in trajectories_by_id(connection, trajectory_ids):
        steps = decode(row)
        if isinstance(steps, Fault):
            continue
        if any(step.llm_calls for step in steps):
            transcripts[row.trajectory_id] = _recorded(row, steps, [embedded_calls(step) for step in steps], {})
        else:
            silent[row.trajectory_id] = (row, steps)
    # trajectories without calls in their steps may have them in the log
    reasoning = logged_reasoning(connection, list(silent))
    for trajectory_id, logs in groupby(list(call_log_rows(connection, list(silent))), key=lambda log: log.trajectory_id):
        row, steps = silent.pop(trajectory_id)
        transcripts[trajectory_id] = _recorded(row, steps, logged_calls(logs, trajectory_id, steps), reasoning)
    return transcripts | {trajectory_id: _recorded(row, steps, [()] * len(steps), {}) for trajectory_id, (row, steps) in silent.items()}


def _recorded(
    row: TrajectoryRow, steps: Sequence[Step], calls: Sequence[Sequence[StepCall]], reasoning: dict[str, str]
) -> list[RecordedStep]:
    """Combine decoded steps, their raw entries and their calls."""
    recorded = []
    for step, entry, served in zip(steps, _entries(row, len(steps)), calls, strict=True):
        action = entry["action"]
        own = entry.get("llmCalls")
        notes = [call.get("reasoning") for call in own if isinstance(call, dict)] if isinstance(own, list) else []
        recorded.append(
            RecordedStep(
                step.environment_state,
                step.action.action_type,
                step.action.succeeded,
                shallow(action.get("parameters")),
                shallow(action.get("result")),
                shallow(action.get("error")),
                _text(action.get("reasoning")),
                tuple(_call(call, notes[place] if place < len(notes) else None, reasoning) for place, call in enumerate(served)),
            )
        )
    return recorded


def _entries(row: TrajectoryRow, steps: int) -> list[dict[str, Any]]:
    """Raw entries of the completed steps; empty ones where the JSON cannot be read."""
    try:
        recorded = msgspec.json.decode(row.steps_json)
    except (msgspec.DecodeError, RecursionError):
        try:
            recorded = json.loads(row.steps_json)
        except (ValueError, RecursionError):
            return [{"action": {}}] * steps
    return [entry for entry in recorded if entry["action"]["actionType"] != PENDING]


def shallow(value: Any, deep: int = MOST_DEEP) -> Any:
    """A JSON value down to ``deep`` levels."""
    if not isinstance(value, dict | list):
        return value
    if deep == 0:
        return "…"
    if isinstance(value, list):
        return [shallow(entry, deep - 1) for entry in value]
    return {key: shallow(entry, deep - 1) for key, entry in value.items()}


def _call(call: StepCall, note: Any, reasoning: dict[str, str]) -> RecordedCall:
    """One call with its reasoning: that of the step, else that of the log."""
    system, prompt = _text(call.system_prompt), _text(call.user_prompt)
    if isinstance(call.messages, list) and call.messages and not prompt:
        prompt = "\n".join(_text(message.get("content")) for message in call.messages if isinstance(message, dict))
    logged = reasoning.get(call.call_id, "") if isinstance(call.call_id, str) else ""
    return RecordedCall(system, prompt, _text(call.response), _text(note) or logged)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
