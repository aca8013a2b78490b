"""LLM calls of a trajectory, and the selection of those that train.

Calls come from the steps. If no step has any they come from llm_call_logs; if there are none either, a text is synthesized from state
and action. One call is one sequence, exactly as served, and nothing is added to it from anywhere else.
"""

import functools
import json
import math
from array import array
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from babylon_rl.chats import finish_reason, plain_messages
from babylon_rl.episodes.steps import PENDING, CallFacts, Step, StepCall, StepFacts, whole_number
from babylon_rl.errors import RequestRefused
from babylon_rl.settings import TrainingSettings
from babylon_rl.store.trajectories import CallLogRow
from babylon_rl.tolerant_json import NotJson, read_json
from babylon_rl.types import MessageSource, ServedSequence

TRADING = ("TRADING", "BUY", "SELL", "HOLD")
ACTION = "action"
_SYNTHETIC_SYSTEM = "You are a trading agent in a prediction market game."
# A longer number names no step, and Python refuses to convert very long ones.
_MOST_DIGITS = 18
_C = TypeVar("_C", bound=CallFacts)
_T = TypeVar("_T", bound=Hashable)


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    model_version: Any = None
    response_format: Any = None
    logprobs: Any = None
    finish_reason: Any = None


_METADATA = msgspec.json.Decoder(_Metadata)
_METADATA_KEYS = dict(zip(_Metadata.__struct_fields__, _Metadata.__struct_encode_fields__, strict=True))


@dataclass(frozen=True)
class SequenceRules:
    """Selection rules for training calls, from the settings."""

    purposes: frozenset[str]
    train_synthetic: bool

    @classmethod
    def of(cls, settings: TrainingSettings) -> "SequenceRules":
        """Return the rules of the given settings."""
        return cls(settings.purposes_g, settings.train_synthetic)

    def training(self, calls: Sequence[CallFacts], action_type: str) -> list[int]:
        """Return the indexes of a step's calls that train.

        Those with a training purpose. In a trading step without an action call, the first call stands in for it.
        """
        purposes = self.purposes
        selected = [index for index, call in enumerate(calls) if call.purpose.__class__ is str and call.purpose in purposes]
        # A trading step without an action call: its first call stands in for it.
        first_stands_in = ACTION in purposes and (not selected or selected[0] != 0) and _is_trading(action_type)
        if first_stands_in and calls and not any(call.purpose == ACTION for call in calls):
            selected.insert(0, 0)
        return selected


@functools.lru_cache(maxsize=1024)
def _is_trading(action_type: str) -> bool:
    return any(word in action_type for word in TRADING)


@functools.lru_cache(maxsize=4096)
def _shared(values: _T) -> _T:
    """Return the first of all equal ``values``, to save memory.

    Most trajectories of an agent look alike, and many are held at once.
    """
    return values


@dataclass(frozen=True, slots=True)
class StepPlaces:
    """Numbers, start times and action types of a trajectory's steps.

    Pending steps are included. ``began_ms``: milliseconds since the epoch, or NaN.
    """

    numbers: tuple[int, ...]
    began_ms: "array[float]"
    action_types: tuple[str, ...]
    pending: frozenset[int]

    @classmethod
    def of(cls, steps: Sequence[StepFacts]) -> "StepPlaces":
        """Return the places of the given steps."""
        return cls(
            _shared(tuple(whole_number(step.step_number, index) for index, step in enumerate(steps))),
            array("d", [math.nan if step.began_ms is None else step.began_ms for step in steps]),
            _shared(tuple(step.action.action_type for step in steps)),
            frozenset(index for index, step in enumerate(steps) if step.action.action_type == PENDING),
        )


def embedded_calls(step: Step) -> Sequence[StepCall]:
    """Return the calls recorded in a step."""
    return step.llm_calls or ()


def logged_calls(rows: Iterable[CallLogRow], trajectory_id: str, steps: Sequence[Step]) -> list[list[StepCall]]:
    """Return the logged calls by step, for decoded steps.

    See ``calls_by_step``.
    """
    return calls_by_step(rows, trajectory_id, StepPlaces.of(steps), logged_call)


def calls_by_step(rows: Iterable[CallLogRow], trajectory_id: str, places: StepPlaces, read: Callable[[CallLogRow], _C]) -> list[list[_C]]:
    """Return the logged calls by step, in order of (timestamp, callId).

    ``read`` converts a row into a call. A call belongs to the step named by its stepId in the recorder's form, else to the last step that
    began at or before it. Calls of unknown steps are left out.
    """
    by_step: list[list[_C]] = [[] for _ in places.numbers]
    indexes = {number: index for index, number in enumerate(places.numbers)}
    # A step's first call matters, so the order must not depend on the query.
    for row in sorted(rows, key=lambda row: (row.timestamp, row.call_id)):
        index = _step_of(row, f"{trajectory_id}-step-", places, indexes)
        if index is not None:
            by_step[index].append(read(row))
    return by_step


def _step_of(row: CallLogRow, prefix: str, places: StepPlaces, indexes: Mapping[int, int]) -> int | None:
    number = row.step_id.removeprefix(prefix)
    if row.step_id.startswith(prefix) and number.isascii() and number.isdigit():
        # An id that names no step leaves the call out: by its time it would be given to a step that it does not belong to.
        return indexes.get(int(number)) if len(number) <= _MOST_DIGITS else None
    # No usable step id: the last step that began at or before the call. A NaN compares false.
    index, moment_ms = 0, row.timestamp_ms
    for place, began in enumerate(places.began_ms):
        if began <= moment_ms:
            index = place
    return index


def logged_facts(row: CallLogRow) -> CallFacts:
    """Return the facts of a log row that decide whether it trains.

    messagesJson replaces an empty prompt.
    """
    messages = None if row.user_prompt else valid_messages(row.messages_json)
    # The last message is the user's, as valid_messages asks, and so the one to measure in place of the prompt.
    prompt = messages[-1]["content"] if messages else row.user_prompt
    return CallFacts(row.purpose, row.system_prompt, prompt, row.response)


def logged_call(row: CallLogRow) -> StepCall:
    """Return the call of a log row with its texts."""
    try:
        metadata = _METADATA.decode(row.metadata or b"{}")
    except (msgspec.DecodeError, RecursionError):
        # One field of a wrong type must not lose the others.
        metadata = _Metadata(**{field: _lenient(row.metadata).get(key) for field, key in _METADATA_KEYS.items()})
    return StepCall(
        model=row.model,
        model_version=metadata.model_version,
        system_prompt=row.system_prompt,
        user_prompt=row.user_prompt,
        response=row.response,
        purpose=row.purpose,
        call_id=row.call_id,
        messages=valid_messages(row.messages_json),
        response_format=metadata.response_format,
        logprobs=metadata.logprobs,
        finish_reason=metadata.finish_reason,
    )


def _lenient(text: bytes | None) -> dict[str, Any]:
    try:
        parsed = read_json(text or b"{}")
    except NotJson:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def valid_messages(text: bytes | None) -> list[dict[str, str]] | None:
    """Decode messagesJson as chat messages, or return None.

    Valid: an array of messages with texts (chats.py) that ends with a user message.
    """
    if not text:
        return None
    try:
        messages = plain_messages(msgspec.convert(read_json(text), list[dict[str, Any]]))
    except (NotJson, msgspec.ValidationError, RequestRefused):
        return None
    return messages if messages and messages[-1]["role"] == "user" and messages[-1]["content"] else None


def is_served(call: CallFacts) -> bool:
    """Return True if the call has a prompt and a response: it is a sequence."""
    prompt, response = call.user_prompt, call.response
    return prompt.__class__ is str and response.__class__ is str and prompt != "" and response != ""


def sequence(call: StepCall, trajectory_id: str, step: int, index: int, source: MessageSource) -> ServedSequence | None:
    """Return the call as it was served, or None without a prompt or a response."""
    # A logged call may hold a longer chat; a call in a step has one system and one user text.
    messages = call.messages if source == "llm_call_logs" and call.messages else _prompts(call)
    if not messages or not isinstance(call.response, str) or not call.response:
        return None
    return ServedSequence(
        trajectory_id=trajectory_id,
        call_id=call.call_id if isinstance(call.call_id, str) and call.call_id else f"{trajectory_id}-call-{step}-{index}",
        step=step,
        messages=messages,
        response=call.response,
        source=source,
        purpose=call.purpose if isinstance(call.purpose, str) else "",
        model=call.model if isinstance(call.model, str) else "",
        model_version=call.model_version if isinstance(call.model_version, str) else None,
        response_format=call.response_format if isinstance(call.response_format, dict) else None,
        logprobs=_token_logprobs(call.logprobs),
        finish_reason=finish_reason(call.finish_reason),
    )


def _prompts(call: StepCall) -> list[dict[str, str]]:
    if not isinstance(call.user_prompt, str) or not call.user_prompt:
        return []
    system = [{"role": "system", "content": call.system_prompt}] if isinstance(call.system_prompt, str) and call.system_prompt else []
    return [*system, {"role": "user", "content": call.user_prompt}]


def _token_logprobs(recorded: Any) -> list[dict[str, Any]] | None:
    if not isinstance(recorded, list) or not recorded:
        return None
    return recorded if all(isinstance(token, dict) for token in recorded) else None


def synthetic(step: Step, trajectory_id: str, index: int) -> ServedSequence:
    """Build a text from the state and action of a step without a recorded prompt.

    It is labelled synthetic and does not train unless a setting allows it.
    """
    state = step.environment_state
    prompt = f"Balance: ${state.agent_balance:.2f}. P&L: ${state.agent_pnl:.2f}. Open positions: {state.open_positions:g}. What do you do?"
    answer = {"action": step.action.action_type, "parameters": json.loads(bytes(step.action.parameters))}
    return ServedSequence(
        trajectory_id=trajectory_id,
        call_id=f"{trajectory_id}-synthetic-{index}",
        step=index,
        messages=[{"role": "system", "content": _SYNTHETIC_SYSTEM}, {"role": "user", "content": prompt}],
        response=json.dumps(answer),
        source="synthetic",
        purpose=ACTION,
        model="synthetic",
    )
