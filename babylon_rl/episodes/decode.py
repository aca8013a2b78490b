"""stepsJson into typed steps, or the reason why a row does not count.

The fast path is one typed msgspec pass that leaves free objects raw; only a row that fails it is parsed again, slowly
and strictly, to say where the fault is. The four typed fields are the only ones whose value can reject a row.
"""

import json
import math
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from babylon_rl.store.trajectories import TrajectoryRow

PENDING = "pending"
_VALUE_CHARACTERS = 60


class EnvironmentState(msgspec.Struct, frozen=True, rename="camel"):
    """What the agent had when the step began, in dollars and positions."""

    agent_balance: float
    agent_pnl: float = msgspec.field(name="agentPnL")
    open_positions: float


class Action(msgspec.Struct, frozen=True, rename="camel"):
    """What the agent did; ``success`` is whatever was recorded."""

    action_type: Annotated[str, msgspec.Meta(min_length=1)]
    success: msgspec.Raw = msgspec.Raw(b"null")
    parameters: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def succeeded(self) -> bool:
        """True when ``success`` is JSON's true and nothing else."""
        return bytes(self.success) == b"true"


class Step(msgspec.Struct, frozen=True, rename="camel"):
    """One step; the fields that cannot reject a row stay raw JSON."""

    environment_state: EnvironmentState
    action: Action
    llm_calls: msgspec.Raw = msgspec.Raw(b"null")
    step_number: msgspec.Raw = msgspec.Raw(b"null")
    timestamp: msgspec.Raw = msgspec.Raw(b"null")

    @property
    def number(self) -> int | None:
        """stepNumber where it is a whole number."""
        found = _number(self.step_number)
        return int(found) if found is not None and found == int(found) else None

    @property
    def began_ms(self) -> float | None:
        """Milliseconds since the epoch where they are a number."""
        return _number(self.timestamp)


class _Metrics(msgspec.Struct):
    finalPnL: float | None = None


_STEPS = msgspec.json.Decoder(list[Step])
_METRICS = msgspec.json.Decoder(_Metrics)


@dataclass(frozen=True)
class Fault:
    """Why a row does not count: the reason's name, and path and value in words."""

    reason: str
    detail: str


def decode(row: TrajectoryRow) -> list[Step] | Fault:
    """The completed steps of a row in recorded order, or the first rule that it fails; never raises for what a row holds."""
    fault = flagged(row)
    if fault is not None:
        return fault
    steps = decode_steps(row.steps_json)
    if isinstance(steps, Fault):
        return steps
    completed = [step for step in steps if step.action.action_type != PENDING]
    if not completed:
        return Fault("no_steps", f"all {len(steps)} steps are pending" if steps else "stepsJson is an empty array")
    return completed


def flagged(row: TrajectoryRow) -> Fault | None:
    """The reason why a row was never meant to train: an evaluation, not training data, a benchmark; else None."""
    if row.is_evaluation:
        return Fault("evaluation", '"isEvaluation" is true')
    if not row.is_training_data:
        return Fault("not_training_data", '"isTrainingData" is false')
    for column, value in (("scenarioId", row.scenario_id), ("windowId", row.window_id)):
        if value is not None and value.startswith("benchmark-"):
            return Fault("benchmark", f'"{column}" is {value!r}')
    return None


def decode_steps(text: bytes) -> list[Step] | Fault:
    """Every step of a stepsJson, pending ones included, or what is wrong with it."""
    try:
        return _STEPS.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _explain(text)


def _explain(text: bytes) -> list[Step] | Fault:
    try:
        parsed = strict_json(text)
    except ValueError as refused:
        return Fault("malformed_json", str(refused))
    fault = _shape_fault(parsed)
    if fault is not None:
        return Fault("malformed_shape", fault)
    return [_step(entry) for entry in parsed]


def strict_json(text: bytes) -> Any:
    """Parse JSON as the standard has it: no NaN, no Infinity, no lone surrogates.

    Raises:
        ValueError: not JSON; the message says where.
    """
    try:
        parsed = json.loads(text.decode("utf-8"), parse_constant=_refuse, parse_int=_integer)
    except json.JSONDecodeError as fault:
        near = fault.doc[max(0, fault.pos - 10) : fault.pos + 20]
        raise ValueError(f"not JSON at character {fault.pos}: {fault.msg}, near {near!r}") from None
    except RecursionError:
        raise ValueError("not readable as JSON: nested too deeply") from None
    surrogate = _lone_surrogate(parsed)
    if surrogate is not None:
        raise ValueError(surrogate)
    return parsed


def _refuse(constant: str) -> Any:
    raise ValueError(f"not JSON: it holds {constant}, which JSON does not know")


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= 300 else float(digits)


def _lone_surrogate(parsed: Any) -> str | None:
    pending: list[tuple[str, Any]] = [("$", parsed)]
    while pending:
        path, value = pending.pop()
        if isinstance(value, str) and not _encodes(value):
            return f"not JSON: {path} holds a lone surrogate, in {value[:_VALUE_CHARACTERS]!r}"
        if isinstance(value, dict):
            bad = next((key for key in value if not _encodes(key)), None)
            if bad is not None:
                return f"not JSON: a key of {path} holds a lone surrogate, {bad[:_VALUE_CHARACTERS]!r}"
            pending += [(f"{path}.{key}", entry) for key, entry in value.items()]
        elif isinstance(value, list):
            pending += [(f"{path}[{index}]", entry) for index, entry in enumerate(value)]
    return None


def _encodes(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _shape_fault(parsed: Any) -> str | None:
    if not isinstance(parsed, list):
        return f"$ is {_shown(parsed)}, not an array"
    for index, step in enumerate(parsed):
        path = f"$[{index}]"
        if not isinstance(step, dict):
            return f"{path} is {_shown(step)}, not an object"
        state = step.get("environmentState")
        if not isinstance(state, dict):
            return f"{path}.environmentState is {_missing_or(step, 'environmentState')}, not an object"
        for name in ("agentBalance", "agentPnL", "openPositions"):
            if not _finite(state.get(name)):
                return f"{path}.environmentState.{name} is {_missing_or(state, name)}, not a finite number"
        action = step.get("action")
        if not isinstance(action, dict):
            return f"{path}.action is {_missing_or(step, 'action')}, not an object"
        if not isinstance(action.get("actionType"), str) or not action["actionType"]:
            return f"{path}.action.actionType is {_missing_or(action, 'actionType')}, not a non-empty string"
    return None


def _finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _missing_or(mapping: dict[str, Any], name: str) -> str:
    return _shown(mapping[name]) if name in mapping else "missing"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _VALUE_CHARACTERS else text[: _VALUE_CHARACTERS - 3] + "..."


def _step(entry: dict[str, Any]) -> Step:
    state, action = entry["environmentState"], entry["action"]
    return Step(
        EnvironmentState(float(state["agentBalance"]), float(state["agentPnL"]), float(state["openPositions"])),
        Action(action["actionType"], _raw(action.get("success")), _raw(action.get("parameters"))),
        _raw(entry.get("llmCalls")),
        _raw(entry.get("stepNumber")),
        _raw(entry.get("timestamp")),
    )


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def _number(raw: msgspec.Raw) -> float | None:
    try:
        return msgspec.json.decode(raw, type=float)
    except msgspec.DecodeError:
        return None


def end_pnl(final_pnl: float | None, metrics_json: bytes, steps: list[Step]) -> float:
    """A trajectory's P&L at its end in dollars: "finalPnL", else metricsJson.finalPnL, else the last step's."""
    if final_pnl is not None and math.isfinite(final_pnl):
        return final_pnl
    try:
        recorded = _METRICS.decode(metrics_json).finalPnL
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        recorded = None
    return recorded if recorded is not None else steps[-1].environment_state.agent_pnl
