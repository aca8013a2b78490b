"""The LLM calls of a trajectory, and which of them train.

Calls come from the steps; if no step has any, from llm_call_logs; if there are none either, a text is synthesized from
state and action. One call is one sequence, exactly as served, and nothing is joined to it from anywhere else.
"""

import json
from collections.abc import Iterator
from collections.abc import Sequence as Rows
from typing import Any

import msgspec

from babylon_rl.episodes.decode import Step
from babylon_rl.episodes.types import MessageSource, Sequence
from babylon_rl.settings import Settings
from babylon_rl.store.trajectories import CallLogRow

TRADING = ("TRADING", "BUY", "SELL", "HOLD")
ACTION = "action"
_SYNTHETIC_SYSTEM = "You are a trading agent in a prediction market game."
_NO_CALLS = (b"null", b"[]", b"")


class Call(msgspec.Struct, frozen=True, rename="camel"):
    """One recorded call; every field may hold anything, as none of them can reject a row."""

    model: Any = None
    model_version: Any = None
    system_prompt: Any = None
    user_prompt: Any = None
    response: Any = None
    purpose: Any = None
    call_id: Any = None
    messages: Any = None
    response_format: Any = None
    logprobs: Any = None


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    model_version: Any = None
    response_format: Any = None
    logprobs: Any = None


_CALLS = msgspec.json.Decoder(list[Call])
_METADATA = msgspec.json.Decoder(_Metadata)
_CALL_KEYS = dict(zip(Call.__struct_fields__, Call.__struct_encode_fields__, strict=True))
_METADATA_KEYS = dict(zip(_Metadata.__struct_fields__, _Metadata.__struct_encode_fields__, strict=True))


def embedded_calls(step: Step) -> list[Call]:
    """The calls that a step holds; what is not a call is left out."""
    if bytes(step.llm_calls) in _NO_CALLS:
        return []
    try:
        return _CALLS.decode(step.llm_calls)
    except (msgspec.DecodeError, RecursionError):
        return [_call(entry) for entry in _entries(bytes(step.llm_calls))]


def _entries(text: bytes) -> list[dict[str, Any]]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [entry for entry in parsed if isinstance(entry, dict)] if isinstance(parsed, list) else []


def _call(entry: dict[str, Any]) -> Call:
    return Call(**{field: entry.get(key) for field, key in _CALL_KEYS.items()})


def logged_calls(rows: Rows[CallLogRow], trajectory_id: str, steps: list[Step]) -> list[list[Call]]:
    """The log's calls by step, each step's in order of (timestamp, callId); those of a step that does not count are left out."""
    by_step: list[list[Call]] = [[] for _ in steps]
    numbers = {step.number if step.number is not None else index: index for index, step in enumerate(steps)}
    for row in sorted(rows, key=lambda row: (row.timestamp, row.call_id)):
        index = _step_of(row, trajectory_id, steps, numbers)
        if index is not None:
            by_step[index].append(_logged(row))
    return by_step


def _step_of(row: CallLogRow, trajectory_id: str, steps: list[Step], numbers: dict[int, int]) -> int | None:
    prefix = f"{trajectory_id}-step-"
    named = row.step_id.removeprefix(prefix)
    if row.step_id.startswith(prefix) and named.isascii() and named.isdigit():
        return numbers.get(int(named))
    index = 0
    for position, step in enumerate(steps):
        if step.began_ms is not None and step.began_ms <= row.timestamp_ms:
            index = position
    return index


def _logged(row: CallLogRow) -> Call:
    try:
        metadata = _METADATA.decode(row.metadata or b"{}")
    except (msgspec.DecodeError, RecursionError):
        metadata = _Metadata(**{field: _lenient(row.metadata).get(key) for field, key in _METADATA_KEYS.items()})
    return Call(
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
    )


def _lenient(text: bytes | None) -> dict[str, Any]:
    try:
        parsed = json.loads(text or b"{}")
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def valid_messages(text: bytes | None) -> list[dict[str, str]] | None:
    """messagesJson as chat messages where it is an array of {role, content} texts that ends with the user; else None."""
    if not text:
        return None
    try:
        messages = msgspec.json.decode(text, type=list[dict[str, str]])
    except (msgspec.DecodeError, RecursionError):
        return None
    named = all(message.get("role") in ("system", "user", "assistant") and "content" in message for message in messages)
    if not messages or not named or messages[-1]["role"] != "user":
        return None
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def training_calls(calls: list[Call], action_type: str, settings: Settings) -> Iterator[tuple[int, Call]]:
    """The calls of one step that train, with their position in it: those whose purpose does, else a trading step's first."""
    purposes = settings.purposes_g
    first_stands_in = (
        ACTION in purposes and any(word in action_type for word in TRADING) and not any(call.purpose == ACTION for call in calls)
    )
    for index, call in enumerate(calls):
        if (isinstance(call.purpose, str) and call.purpose in purposes) or (first_stands_in and index == 0):
            yield index, call


def sequence(call: Call, trajectory_id: str, step: int, index: int, source: MessageSource) -> Sequence | None:
    """The call as it was served, or None when it holds no prompt or no response."""
    messages = call.messages if source == "llm_call_logs" and call.messages else _prompts(call)
    if not messages or not isinstance(call.response, str) or not call.response:
        return None
    return Sequence(
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
    )


def _prompts(call: Call) -> list[dict[str, str]]:
    if not isinstance(call.user_prompt, str) or not call.user_prompt:
        return []
    system = [{"role": "system", "content": call.system_prompt}] if isinstance(call.system_prompt, str) and call.system_prompt else []
    return [*system, {"role": "user", "content": call.user_prompt}]


def _token_logprobs(recorded: Any) -> list[dict[str, Any]] | None:
    if not isinstance(recorded, list) or not recorded:
        return None
    return recorded if all(isinstance(token, dict) for token in recorded) else None


def synthetic(step: Step, trajectory_id: str, index: int) -> Sequence:
    """A text for a step that recorded no prompt, from its state and action; labelled, and not trained unless a setting says so."""
    state = step.environment_state
    prompt = f"Balance: ${state.agent_balance:.2f}. P&L: ${state.agent_pnl:.2f}. Open positions: {state.open_positions:g}. What do you do?"
    answer = {"action": step.action.action_type, "parameters": json.loads(bytes(step.action.parameters))}
    return Sequence(
        trajectory_id=trajectory_id,
        call_id=f"{trajectory_id}-synthetic-{index}",
        step=index,
        messages=[{"role": "system", "content": _SYNTHETIC_SYSTEM}, {"role": "user", "content": prompt}],
        response=json.dumps(answer),
        source="synthetic",
        purpose=ACTION,
        model="synthetic",
    )
