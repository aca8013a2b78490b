"""Decoding of a row into typed steps, or into a rejection reason.

``_decoded`` holds the rules that reject a row, in their order, for everybody who reads rows: with texts or numbers only. The fast path is
one typed msgspec pass; a text that it refuses is read again, strictly, to name the place of the fault.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from babylon_rl.episodes.faults import NotJson, WrongShape, checked_steps
from babylon_rl.episodes.steps import PENDING, Action, EnvironmentState, Step, StepCall, StepFacts, whole_number
from babylon_rl.store.trajectories import TrajectoryRow
from babylon_rl.types import RejectionReason


class _Metrics(msgspec.Struct):
    finalPnL: float | None = None


# A change of the rules below, of the struct's types or of what an episode counts takes another version: every hour is read again.
EPISODE_RULES = "1"
_FACTS = msgspec.json.Decoder(list[StepFacts])
_STEPS = msgspec.json.Decoder(list[Step])
_BENCHMARK = "benchmark-"
MOST_DOLLARS = 1e12  # a larger amount is an overflow or a mistake, and would win every comparison
_METRICS = msgspec.json.Decoder(_Metrics)
_NO_METRICS = (b"{}", b"")
_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_CALL_KEYS = dict(zip(StepCall.__struct_fields__, StepCall.__struct_encode_fields__, strict=True))


@dataclass(frozen=True)
class Fault:
    """Rejection reason of a row, with path and value in words."""

    reason: RejectionReason
    detail: str


_S = TypeVar("_S", bound=StepFacts)


class Decoded(NamedTuple, Generic[_S]):
    """A row that counts: all its steps, the completed ones in order, and its P&L at the end in dollars."""

    recorded: Sequence[_S]
    completed: Sequence[_S]
    end_pnl: float


def decode(row: TrajectoryRow) -> Decoded[Step] | Fault:
    """Return a row's steps with their texts, or its first fault.

    Never raises for the content of a row.
    """
    return _decoded(row, decode_steps)


def decode_numbers(row: TrajectoryRow) -> Decoded[StepFacts] | Fault:
    """As ``decode``, without the texts of training sequences."""
    return _decoded(row, decode_facts)


def _decoded(row: TrajectoryRow, steps_of: Callable[[bytes], Sequence[_S] | Fault]) -> Decoded[_S] | Fault:
    fault = not_for_training(row)
    if fault is not None:
        return fault
    steps = steps_of(row.steps_json)
    if isinstance(steps, Fault):
        return steps
    completed = [step for step in steps if step.action.action_type != PENDING]
    if not completed:
        return Fault("no_steps", f"all {len(steps)} steps are pending" if steps else "stepsJson is an empty array")
    start, end = completed[0].environment_state.agent_pnl, end_pnl(row.final_pnl, row.metrics_json, completed[-1])
    most = max(start, end, key=abs)
    if abs(most) > MOST_DOLLARS:
        return Fault("malformed_shape", f"a P&L of {most:.3g} dollars, more than {MOST_DOLLARS:g}")
    return Decoded(steps, completed, end)


def not_for_training(row: TrajectoryRow) -> Fault | None:
    """Return the reason why a row was never meant for training, or None.

    An evaluation, not training data, or a benchmark.
    """
    if row.is_evaluation:
        return Fault("evaluation", '"isEvaluation" is true')
    if not row.is_training_data:
        return Fault("not_training_data", '"isTrainingData" is false')
    if row.scenario_id is not None and row.scenario_id.startswith(_BENCHMARK):
        return Fault("benchmark", f'"scenarioId" is {row.scenario_id!r}')
    if row.window_id is not None and row.window_id.startswith(_BENCHMARK):
        return Fault("benchmark", f'"windowId" is {row.window_id!r}')
    return None


def decode_steps(text: bytes) -> list[Step] | Fault:
    """Decode every step with its texts, pending ones included, or return the fault."""
    try:
        steps = _STEPS.decode(text)
    except _REFUSED as refused:
        return _explained(text, refused)
    # A step without a whole stepNumber gets its index.
    return _numbered(steps)


def decode_facts(text: bytes) -> Sequence[StepFacts] | Fault:
    """Decode the steps without the texts of training sequences, or return the fault."""
    try:
        return _FACTS.decode(text)
    except _REFUSED as refused:
        return _explained(text, refused)


def _numbered(steps: list[Step]) -> list[Step]:
    return [
        step if step.step_number.__class__ is int else msgspec.structs.replace(step, step_number=whole_number(step.step_number, index))
        for index, step in enumerate(steps)
    ]


def _explained(text: bytes, refused: Exception) -> list[Step] | Fault:
    try:
        # A text without a fault was refused for a field that may hold anything, such as a call of another shape; it is then read here.
        return [_step(entry, index) for index, entry in enumerate(checked_steps(text, refused))]
    except NotJson as fault:
        return Fault("malformed_json", str(fault))
    except WrongShape as fault:
        return Fault("malformed_shape", str(fault))
    except RecursionError:  # the stack sufficed to read the value, but not to show it
        return Fault("malformed_json", "not readable as JSON: nested too deeply")


def _step(entry: dict[str, Any], index: int) -> Step:
    state, action, calls = entry["environmentState"], entry["action"], entry.get("llmCalls")
    return Step(
        EnvironmentState(float(state["agentBalance"]), float(state["agentPnL"]), float(state["openPositions"])),
        Action(action["actionType"], action.get("success"), msgspec.Raw(json.dumps(action.get("parameters")).encode())),
        [_call(call) for call in calls if isinstance(call, dict)] if isinstance(calls, list) else None,
        whole_number(entry.get("stepNumber"), index),
        entry.get("timestamp"),
    )


def _call(entry: dict[str, Any]) -> StepCall:
    return StepCall(**{field: entry.get(key) for field, key in _CALL_KEYS.items()})


def end_pnl(final_pnl: float | None, metrics_json: bytes, last: StepFacts) -> float:
    """Return a trajectory's P&L at its end in dollars.

    "finalPnL", else metricsJson.finalPnL, else the P&L of the last step.
    """
    if final_pnl is not None and math.isfinite(final_pnl):
        return final_pnl
    try:
        recorded = None if metrics_json in _NO_METRICS else _METRICS.decode(metrics_json).finalPnL
    except _REFUSED:
        recorded = None
    return recorded if recorded is not None else last.environment_state.agent_pnl
