"""Decoding of a row into typed steps, or into a rejection reason with the fault's place.

``decode`` holds the rules that reject a row, in their order, for everybody who reads rows: with texts or numbers only. The fast path is
one typed msgspec pass; a text that it refuses is read again, strictly, to name the place of the fault. Only the four fields that can reject
a row have a type of their own; every other field may hold anything. The ``...Facts`` structs hold the input of numbers; the others also
hold the input of texts.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import msgspec

from babylon_rl.store.trajectories import TrajectoryRow
from babylon_rl.tolerant_json import NotJson
from babylon_rl.types import RejectionReason

PENDING = "pending"


class EnvironmentState(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """The agent's account at the start of a step, in dollars and positions."""

    agent_balance: float
    agent_pnl: float = msgspec.field(name="agentPnL")
    open_positions: float


class ActionFacts(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Kind of an action; ``success`` is the recorded value, of any type."""

    action_type: Annotated[str, msgspec.Meta(min_length=1)]
    success: Any = None

    @property
    def succeeded(self) -> bool:
        return self.success is True


class Action(ActionFacts, frozen=True, gc=False, rename="camel"):
    parameters: msgspec.Raw = msgspec.Raw(b"null")
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")
    reasoning: Any = None


class CallFacts(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """The fields of a recorded call that decide whether it trains."""

    purpose: Any = None
    system_prompt: Any = None
    user_prompt: Any = None
    response: Any = None


class StepCall(CallFacts, frozen=True, gc=False, rename="camel"):
    """One recorded call with the content of a training sequence."""

    model: Any = None
    model_version: Any = None
    call_id: Any = None
    messages: Any = None
    response_format: Any = None
    logprobs: Any = None
    reasoning: Any = None
    finish_reason: Any = None


class StepFacts(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """One step without the texts of training sequences."""

    environment_state: EnvironmentState
    action: ActionFacts
    llm_calls: Sequence[CallFacts] | None = None
    step_number: Any = None
    timestamp: Any = None

    @property
    def began_ms(self) -> float | None:
        """Start time in milliseconds since the epoch; None if no number was recorded."""
        return as_number(self.timestamp)


class Step(StepFacts, frozen=True, gc=False, rename="camel"):
    """One step with the texts of its calls. ``step_number`` is a whole number after ``decode_steps``."""

    environment_state: EnvironmentState
    action: Action
    llm_calls: Sequence[StepCall] | None = None

    @property
    def number(self) -> int:
        """stepNumber, else the index in stepsJson."""
        return whole_number(self.step_number, 0)


def whole_number(recorded: Any, otherwise: int) -> int:
    """Return a recorded whole number, else ``otherwise``."""
    whole = recorded.__class__ is int or (recorded.__class__ is float and recorded.is_integer())
    return int(recorded) if whole else otherwise


def recorded_value(value: msgspec.Raw) -> Any:
    """Decode a recorded JSON value; None if no parser can."""
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        # slower, and reads a number out of range, at which msgspec gives up
        return json.loads(bytes(value))
    except (ValueError, RecursionError):
        return None


def as_number(value: Any) -> float | None:
    """Return a recorded number as a float; None for anything else. Booleans and integers beyond the range of a float give None."""
    if value.__class__ is float:
        return float(value)
    if value.__class__ is not int:
        return None
    try:
        return float(value)
    except OverflowError:
        return None


_VALUE_CHARACTERS = 60
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NUMBERS = ("agentBalance", "agentPnL", "openPositions")


def strict_json(text: bytes) -> Any:
    """Parse standard JSON: no NaN, no Infinity, no lone surrogates. Raises NotJson: the message names the place."""
    try:
        # The search for surrogates walks the whole value, so it is skipped unless the text escapes one.
        parsed = _STRICT.decode(text.decode("utf-8"))
        surrogate = _lone_surrogate("$", parsed) if _SURROGATE.search(text) else None
    except json.JSONDecodeError as fault:
        near = fault.doc[max(0, fault.pos - 10) : fault.pos + 20]
        raise NotJson(f"not JSON at character {fault.pos}: {fault.msg}, near {near!r}") from None
    except UnicodeDecodeError as fault:
        raise NotJson(f"not JSON: {fault}") from None
    except RecursionError:
        raise NotJson("not readable as JSON: nested too deeply") from None
    if surrogate is not None:
        raise NotJson(surrogate)
    return parsed


def _refuse(constant: str) -> Any:
    raise NotJson(f"not JSON: it holds {constant}, which JSON does not know")


def _integer(digits: str) -> int | float:
    # Python converts no longer ones. As a float it may become infinite; a field that counts refuses that, and any other may hold it.
    return int(digits) if len(digits) <= 4300 else float(digits)


_STRICT = json.JSONDecoder(parse_constant=_refuse, parse_int=_integer)


def _lone_surrogate(path: str, value: Any) -> str | None:
    """Describe the first lone surrogate in ``value``; None if there is none."""
    if _encodes(value):
        return None
    entries: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        bad = next((key for key in value if not _encodes(key)), None)
        # A key has no path of its own: it is reported at its object.
        if bad is not None:
            return f"not JSON: a key of {path} holds a lone surrogate, {bad[:_VALUE_CHARACTERS]!r}"
        entries = ((f"{path}.{key}", entry) for key, entry in value.items())
    elif isinstance(value, list):
        entries = ((f"{path}[{index}]", entry) for index, entry in enumerate(value))
    inner = next((fault for where, entry in entries if (fault := _lone_surrogate(where, entry)) is not None), None)
    return inner or f"not JSON: {path} holds a lone surrogate, in {str(value)[:_VALUE_CHARACTERS]!r}"


def _encodes(value: Any) -> bool:
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        return False
    except OverflowError:  # an integer of more than 64 bits
        return _encodes(json.dumps(value, ensure_ascii=False))
    return True


def _wrong_shape(steps: Any) -> str | None:
    """Return path and value of the first fault among the fields that can reject a row, or None."""
    if not isinstance(steps, list):
        return f"$ is {_shown(steps)}, not an array"
    return next((f"$[{index}]{fault}" for index, step in enumerate(steps) if (fault := _wrong_step(step)) is not None), None)


def _wrong_step(step: Any) -> str | None:
    if not isinstance(step, dict):
        return f" is {_shown(step)}, not an object"
    state, action = step.get("environmentState"), step.get("action")
    if not isinstance(state, dict):
        return f".environmentState is {_missing_or(step, 'environmentState')}, not an object"
    for name in _NUMBERS:
        number = as_number(state.get(name))
        if number is None or not math.isfinite(number):
            return f".environmentState.{name} is {_missing_or(state, name)}, not a finite number"
    if not isinstance(action, dict):
        return f".action is {_missing_or(step, 'action')}, not an object"
    if not isinstance(action.get("actionType"), str) or not action["actionType"]:
        return f".action.actionType is {_missing_or(action, 'actionType')}, not a non-empty string"
    return None


def _missing_or(mapping: dict[str, Any], name: str) -> str:
    return _shown(mapping[name]) if name in mapping else "missing"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _VALUE_CHARACTERS else text[: _VALUE_CHARACTERS - 3] + "..."


class _Metrics(msgspec.Struct):
    finalPnL: float | None = None


# A change of the rules below, of the struct's types or of what an episode counts takes another version: every hour is read again.
EPISODE_RULES = "2"
_FACTS = msgspec.json.Decoder(list[StepFacts])
_STEPS = msgspec.json.Decoder(list[Step])
_BENCHMARK = "benchmark-"
MOST_DOLLARS = 1e12  # a larger amount is an overflow or a mistake, and would win every comparison
_METRICS = msgspec.json.Decoder(_Metrics)
_REFUSED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True)
class Fault:
    """Rejection reason of a row, with path and value in words."""

    reason: RejectionReason
    detail: str


class Decoded(NamedTuple):
    """A row that counts: all its steps, the completed ones in order, and its P&L at the end in dollars.

    Each is a ``Step``, or StepFacts of a row that was decoded without texts.
    """

    recorded: Sequence[Any]
    completed: Sequence[Any]
    end_pnl: float


def decode(row: TrajectoryRow, *, texts: bool = True) -> Decoded | Fault:
    """Return a row's steps, with the texts of training sequences or without, or its first fault. Never raises for a row's content."""
    fault = not_for_training(row)
    if fault is not None:
        return fault
    steps = decode_steps(row.steps_json) if texts else decode_facts(row.steps_json)
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
    """Return the reason why a row was never meant for training, or None. An evaluation, not training data, or a benchmark."""
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
    """Decode every step with its texts, pending ones included, or return the fault. A step without a whole stepNumber gets its index."""
    try:
        steps = _STEPS.decode(text)
    except _REFUSED:
        return _explained(text)
    return [
        step if step.step_number.__class__ is int else msgspec.structs.replace(step, step_number=whole_number(step.step_number, index))
        for index, step in enumerate(steps)
    ]


def decode_facts(text: bytes) -> Sequence[StepFacts] | Fault:
    """Decode the steps without the texts of training sequences, or return the fault."""
    try:
        return _FACTS.decode(text)
    except _REFUSED:
        return _explained(text)


def _explained(text: bytes) -> list[Step] | Fault:
    try:
        entries = strict_json(text)
        wrong = _wrong_shape(entries)
        if wrong is not None:
            return Fault("malformed_shape", wrong)
        # A text without a fault was refused for a field that may hold anything, such as a call of another shape; it is then read here.
        return [_step(entry, index) for index, entry in enumerate(entries)]
    except NotJson as fault:
        return Fault("malformed_json", str(fault))
    except RecursionError:  # the stack sufficed to read the value, but not to show it
        return Fault("malformed_json", "not readable as JSON: nested too deeply")


def _step(entry: dict[str, Any], index: int) -> Step:
    state, action, calls = entry["environmentState"], entry["action"], entry.get("llmCalls")
    return Step(
        EnvironmentState(float(state["agentBalance"]), float(state["agentPnL"]), float(state["openPositions"])),
        Action(
            action["actionType"],
            action.get("success"),
            _raw(action.get("parameters")),
            _raw(action.get("result")),
            _raw(action.get("error")),
            action.get("reasoning"),
        ),
        [msgspec.convert(call, StepCall) for call in calls if isinstance(call, dict)] if isinstance(calls, list) else None,
        whole_number(entry.get("stepNumber"), index),
        entry.get("timestamp"),
    )


def _raw(value: Any) -> msgspec.Raw:
    return msgspec.Raw(json.dumps(value).encode())


def end_pnl(final_pnl: float | None, metrics_json: bytes, last: StepFacts) -> float:
    """Return a trajectory's P&L at its end in dollars. "finalPnL", else metricsJson.finalPnL, else the P&L of the last step."""
    if final_pnl is not None and math.isfinite(final_pnl):
        return final_pnl
    try:
        recorded = _METRICS.decode(metrics_json).finalPnL
    except _REFUSED:
        recorded = None
    return recorded if recorded is not None else last.environment_state.agent_pnl
