"""Decoding of stepsJson into typed steps, or into a rejection reason.

The fast path is one typed msgspec pass. A row that it refuses is read again: leniently if the fault is in a field that cannot reject a
row, otherwise strictly, to name the place of the fault.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from babylon_rl.episodes.faults import NotJson, WrongShape, checked_steps
from babylon_rl.episodes.steps import PENDING, Action, EnvironmentState, ServedStep, Step, StepCall, StepFacts, whole_number
from babylon_rl.store.trajectories import TrajectoryRow
from babylon_rl.types import RejectionReason


class _Metrics(msgspec.Struct):
    finalPnL: float | None = None


# From fast to complete: calls of the usual form; any calls, without the texts of sequences; everything.
_SERVED = msgspec.json.Decoder(list[ServedStep])
_FACTS = msgspec.json.Decoder(list[StepFacts])
_STEPS = msgspec.json.Decoder(list[Step])
_CALLS = ".llmCalls"
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


def decode(row: TrajectoryRow) -> list[Step] | Fault:
    """Return the completed steps of a row in recorded order, or its first fault.

    Never raises for the content of a row.
    """
    fault = flagged(row)
    if fault is not None:
        return fault
    steps = decode_steps(row.steps_json)
    if isinstance(steps, Fault):
        return steps
    finished = [step for step in steps if step.action.action_type != PENDING]
    if not finished:
        return nothing_completed(len(steps))
    return absurd(finished[0].environment_state.agent_pnl, end_pnl(row.final_pnl, row.metrics_json, finished[-1])) or finished


def flagged(row: TrajectoryRow) -> Fault | None:
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


def nothing_completed(steps: int) -> Fault:
    """Return the fault of a row with ``steps`` steps, all pending."""
    return Fault("no_steps", f"all {steps} steps are pending" if steps else "stepsJson is an empty array")


def absurd(start_pnl: float, end_pnl: float) -> Fault | None:
    """Return the fault of a row with an impossible start or end P&L, or None."""
    most = max(start_pnl, end_pnl, key=abs)
    return Fault("malformed_shape", f"a P&L of {most:.3g} dollars, more than {MOST_DOLLARS:g}") if abs(most) > MOST_DOLLARS else None


def decode_steps(text: bytes) -> list[Step] | Fault:
    """Decode every step with its texts, pending ones included, or return the fault."""
    try:
        steps = _STEPS.decode(text)
    except _REFUSED as refused:
        return _explained(text, refused)
    # A step without a whole stepNumber gets its index.
    return _numbered(steps)


def decode_facts(text: bytes) -> Sequence[StepFacts] | Fault:
    """Decode the steps without the texts of training sequences, or return the fault.

    Faster than ``decode_steps``.
    """
    try:
        return _SERVED.decode(text)
    except msgspec.ValidationError as refused:
        # A fault in the calls cannot reject a row: the slower decoder accepts any call.
        if _CALLS not in str(refused):  # the message names the path
            return _explained(text, refused)
    except _REFUSED as refused:
        return _explained(text, refused)
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
