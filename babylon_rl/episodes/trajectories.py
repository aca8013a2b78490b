"""Reduction of one eligible row to its trajectory: numbers, and the LLM calls that train.

An hour then needs the memory of its results, not of its texts. Calls come from the steps. If no step has any they come from llm_call_logs;
if there are none either, a text is synthesized from state and action. One call is one sequence, exactly as served, and nothing is added to
it from anywhere else.
"""

import functools
import json
import math
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import msgspec
import xxhash

from babylon_rl.chats import finish_reason, plain_messages
from babylon_rl.episodes.decode import PENDING, CallFacts, Decoded, Step, StepCall, StepFacts, whole_number
from babylon_rl.errors import RequestRefused
from babylon_rl.store.columns import UNSTORABLE
from babylon_rl.store.trajectories import CallLogRow, TrajectoryRow
from babylon_rl.tolerant_json import NotJson, read_json
from babylon_rl.types import MessageSource, MinutePnl, ServedSequence, Trajectory
from babylon_rl.windows import HOUR, window_start

_TRADES = ("TRADING", "BUY", "SELL")
ACTION = "action"
_SYNTHETIC_SYSTEM = "You are a trading agent in a prediction market game."
# A longer number names no step, and Python refuses to convert very long ones.
_MOST_DIGITS = 18
_C = TypeVar("_C", bound=CallFacts)
_T = TypeVar("_T", bound=Hashable)
# Limits in characters, milliseconds, multiples of the stake, and dollars.
LONG_SYSTEM_PROMPT = 50
LONG_USER_PROMPT = 100
CLOCK_TOLERANCE_MS = 5 * 60_000
MOST_LEVERAGE = 10
LEAST_STAKE_USD = 1000.0
_EPOCH = datetime(1970, 1, 1)
_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True)
class SequenceRules:
    """Selection rules for training calls, from the settings."""

    purposes: frozenset[str]
    train_synthetic: bool

    def training(self, calls: Sequence[CallFacts], action_type: str) -> list[int]:
        """Return the indexes of a step's calls with a training purpose."""
        purposes = self.purposes
        selected = [index for index, call in enumerate(calls) if call.purpose.__class__ is str and call.purpose in purposes]
        # A trading step without an action call: its first call stands in for it.
        first_stands_in = ACTION in purposes and (not selected or selected[0] != 0) and _kind(action_type).decides
        if first_stands_in and calls and not any(call.purpose == ACTION for call in calls):
            selected.insert(0, 0)
        return selected


@functools.lru_cache(maxsize=4096)
def _shared(values: _T) -> _T:
    """Return the first of all equal ``values``, to save memory. Most trajectories of an agent look alike, and many are held at once."""
    return values


@dataclass(frozen=True, slots=True)
class StepPlaces:
    """Numbers, start times (milliseconds since the epoch, or NaN) and action types of a trajectory's steps, pending ones included."""

    numbers: tuple[int, ...]
    began_ms: "array[float]"
    action_types: tuple[str, ...]

    @classmethod
    def of(cls, steps: Sequence[StepFacts]) -> "StepPlaces":
        return cls(
            _shared(tuple(whole_number(step.step_number, index) for index, step in enumerate(steps))),
            array("d", [math.nan if step.began_ms is None else step.began_ms for step in steps]),
            _shared(tuple(step.action.action_type for step in steps)),
        )


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
    """Return the facts of a log row that decide whether it trains. messagesJson replaces an empty prompt."""
    messages = None if row.user_prompt else valid_messages(row.messages_json)
    # The last message is the user's, as valid_messages asks, and so the one to measure in place of the prompt.
    prompt = messages[-1]["content"] if messages else row.user_prompt
    return CallFacts(row.purpose, row.system_prompt, prompt, row.response)


def logged_call(row: CallLogRow) -> StepCall:
    try:
        parsed = read_json(row.metadata or b"{}")
    except NotJson:
        parsed = None
    metadata = parsed if isinstance(parsed, dict) else {}
    return StepCall(
        model=row.model,
        model_version=metadata.get("modelVersion"),
        system_prompt=row.system_prompt,
        user_prompt=row.user_prompt,
        response=row.response,
        purpose=row.purpose,
        call_id=row.call_id,
        messages=valid_messages(row.messages_json),
        response_format=metadata.get("responseFormat"),
        logprobs=metadata.get("logprobs"),
        finish_reason=metadata.get("finishReason"),
    )


def valid_messages(text: bytes | None) -> list[dict[str, str]] | None:
    """Decode messagesJson, or return None unless it is an array of messages with texts (chats.py) that ends with a user message."""
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


def sequence(call: StepCall, trajectory_id: str, step: int, index: int, source: MessageSource, minute: int = 0) -> ServedSequence | None:
    """Return the call as it was served, or None without a prompt or a response."""
    # A logged call may hold a longer chat; a call in a step has one system and one user text.
    messages = call.messages if source == "llm_call_logs" and call.messages else _prompts(call)
    if not messages or not isinstance(call.response, str) or not call.response:
        return None
    logprobs = call.logprobs
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
        logprobs=logprobs if isinstance(logprobs, list) and logprobs and all(isinstance(token, dict) for token in logprobs) else None,
        finish_reason=finish_reason(call.finish_reason),
        minute=minute,
    )


def _prompts(call: StepCall) -> list[dict[str, str]]:
    if not isinstance(call.user_prompt, str) or not call.user_prompt:
        return []
    system = [{"role": "system", "content": call.system_prompt}] if isinstance(call.system_prompt, str) and call.system_prompt else []
    return [*system, {"role": "user", "content": call.user_prompt}]


def synthetic(step: Step, trajectory_id: str, index: int, minute: int = 0) -> ServedSequence:
    """Build a text from the state and action of a step without a recorded prompt; it trains only if a setting allows it."""
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
        minute=minute,
    )


class _Kind(NamedTuple):
    shown: str
    decides: bool
    trade: bool
    post: bool


@functools.lru_cache(maxsize=1024)
def _kind(action_type: str) -> _Kind:
    trade = action_type != "HOLD" and any(word in action_type for word in _TRADES)
    return _Kind(action_type.replace("\0", UNSTORABLE), trade or "HOLD" in action_type, trade, "POST" in action_type)


# Rows that did the same share it: such a dict is a third of the memory that a row's reading takes.
@functools.lru_cache(maxsize=1024)
def _shown(kinds: tuple[tuple[str, int], ...]) -> dict[str, int]:
    return {_kind(name).shown: number for name, number in kinds}


def reduced(row: TrajectoryRow, decoded: Decoded, rules: SequenceRules) -> Trajectory:
    """Return the trajectory of a row without sequences.

    If its steps hold no call, the message source is "synthetic" until ``with_logs`` finds some in llm_call_logs.
    """
    steps: Sequence[StepFacts] = decoded.completed
    kinds = Counter([step.action.action_type for step in steps])
    won = [_kind(step.action.action_type) for step in steps if step.action.succeeded]
    # Facts for the hour's quality are taken here, while the texts are still in memory.
    first = next((step.llm_calls[0] for step in steps if step.llm_calls), None)
    first_state, last_state = steps[0].environment_state, steps[-1].environment_state
    content = digest(row.steps_json)
    began_ms = [step.began_ms for step in steps]
    minutes = step_minutes(row.window, row.start_time, began_ms)
    return Trajectory(
        trajectory_id=row.trajectory_id,
        # An hour holds many rows of few agents: equal texts are kept once.
        agent_id=sys.intern(row.agent_id),
        window=sys.intern(row.window),
        start_time=row.start_time,
        used=row.used_in_training,
        steps=len(steps),
        start_pnl=first_state.agent_pnl,
        end_pnl=decoded.end_pnl,
        actions=_shown(tuple(kinds.items())),
        trades=sum([kind.trade for kind in won]),
        posts=sum([kind.post for kind in won]),
        message_source="synthetic" if first is None else "embedded",
        trainable_sequences=_count(steps, rules) if first is not None else len(steps) * rules.train_synthetic,
        content=content,
        recorded=content,
        short_prompts=None if first is None else is_short(first),
        skewed=is_skewed(row, began_ms),
        jumped=jumps(steps, decoded.end_pnl),
        stake=max(first_state.agent_balance, last_state.agent_balance),
        minutes=minute_pnls(minutes, steps, decoded.end_pnl),
    )


def step_minutes(window: str, start: datetime, began_ms: Sequence[float | None]) -> list[int]:
    """Minute of the hour (0 to 59) in which each step began; it never falls.

    A step without a time of its own, or with one before the trajectory's start, began with the step before it.
    """
    opens = _ms(_bounds(window)[0])
    minute = min(59, max(0, int((_ms(start) - opens) // 60_000)))
    minutes = []
    for moment in began_ms:
        # a NaN compares false, as no time
        if moment is not None and moment >= opens + 60_000 * (minute + 1):
            minute = int(min(59, (moment - opens) // 60_000))
        minutes.append(minute)
    return minutes


def minute_pnls(minutes: Sequence[int], steps: Sequence[StepFacts], end_pnl: float) -> tuple[MinutePnl, ...]:
    """Return the P&L of a trajectory by minute: from the first step of each to the first of the next, or to the end."""
    first = [place for place, minute in enumerate(minutes) if place == 0 or minute != minutes[place - 1]]
    pnls = [*(steps[place].environment_state.agent_pnl for place in first), end_pnl]
    return tuple(MinutePnl(minutes[place], start, end) for place, (start, end) in zip(first, pairwise(pnls), strict=True))


def is_short(call: CallFacts) -> bool:
    """Return True if a prompt of the call is missing or too short."""
    system, user = call.system_prompt, call.user_prompt
    return not (isinstance(system, str) and len(system) > LONG_SYSTEM_PROMPT and isinstance(user, str) and len(user) > LONG_USER_PROMPT)


def is_skewed(row: TrajectoryRow, began_ms: Sequence[float | None]) -> bool:
    """Return True if a row's times contradict each other.

    It ends before it starts, its "windowId" is another hour than that of both its start and its end, or a step was taken more than five
    minutes before the start or after the end.
    """
    start, end = row.start_time, row.end_time
    # One of start and end must lie in the row's own hour.
    opens, closes = _bounds(row.window)
    if end < start or not (opens <= start <= closes or opens <= end <= closes):
        return True
    earliest, latest = _ms(start) - CLOCK_TOLERANCE_MS, _ms(end) + CLOCK_TOLERANCE_MS
    return any([moment is not None and not earliest <= moment <= latest for moment in began_ms])


@functools.lru_cache(maxsize=4096)
def _bounds(window: str) -> tuple[datetime, datetime]:
    # The hour's last microsecond: the next hour's first moment is outside.
    return window_start(window), window_start(window) + (HOUR - datetime.resolution)


def _ms(moment: datetime) -> float:
    return (moment - _EPOCH) / _MILLISECOND


def jumps(steps: Sequence[StepFacts], end_pnl: float) -> bool:
    """Return True if the P&L jumps by more than the agent could win or lose, from one step to the next, or to the end.

    The limit is MOST_LEVERAGE times the stake: the largest agentBalance of the row so far, and at least the game's starting balance,
    because an agent with all its money in positions has a small one.
    """
    pnls = [step.environment_state.agent_pnl for step in steps]
    pnls.append(end_pnl)
    # Nearly all rows: no single change can exceed the whole range.
    if max(pnls) - min(pnls) <= MOST_LEVERAGE * LEAST_STAKE_USD:
        return False
    most = LEAST_STAKE_USD
    for step, (before, after) in zip(steps, pairwise(pnls), strict=True):
        most = max(most, step.environment_state.agent_balance)
        if abs(after - before) > MOST_LEVERAGE * most:
            return True
    return False


def _count(steps: Sequence[StepFacts], rules: SequenceRules) -> int:
    called = [(step.llm_calls, step.action.action_type) for step in steps if step.llm_calls]
    return sum([is_served(own[place]) for own, kind in called for place in rules.training(own, kind)])


def embedded_sequences(trajectory: Trajectory, steps: Sequence[Step], rules: SequenceRules) -> Trajectory:
    """Return the trajectory with the texts of the calls in its completed steps."""
    called = [(step.number, step.action.action_type, step.llm_calls or (), step.began_ms) for step in steps]
    return _with_texts(trajectory, called, rules)


def synthetic_sequences(trajectory: Trajectory, steps: Sequence[Step]) -> Trajectory:
    """Return the trajectory with one synthetic text per step."""
    minutes = step_minutes(trajectory.window, trajectory.start_time, [step.began_ms for step in steps])
    texts = tuple(
        synthetic(step, trajectory.trajectory_id, index, minute) for index, (step, minute) in enumerate(zip(steps, minutes, strict=True))
    )
    return msgspec.structs.replace(trajectory, sequences=texts, trainable_sequences=len(texts))


def with_logs(trajectory: Trajectory, places: StepPlaces, logs: Sequence[CallLogRow], rules: SequenceRules, *, texts: bool) -> Trajectory:
    """Return a trajectory without calls in its steps with those in ``logs``; ``texts`` keeps the training sequences.

    ``logs`` is not empty, in any order.
    """
    ordered = sorted(logs, key=lambda log: (log.timestamp, log.call_id))
    # A changed log changes the content as a changed step does.
    content = digest(trajectory.recorded.encode(), *(log_bytes(log) for log in ordered))
    done = [index for index, action_type in enumerate(places.action_types) if action_type != PENDING]
    facts = calls_by_step(ordered, trajectory.trajectory_id, places, logged_facts)
    first = next((facts[index][0] for index in done if facts[index]), None)
    counted = msgspec.structs.replace(
        trajectory,
        message_source="llm_call_logs",
        content=content,
        short_prompts=None if first is None else is_short(first),
        trainable_sequences=sum(
            is_served(facts[index][place]) for index in done for place in rules.training(facts[index], places.action_types[index])
        ),
    )
    if not texts:
        return counted
    # The texts are decoded only now, because most readings need the numbers only.
    calls = calls_by_step(ordered, trajectory.trajectory_id, places, logged_call)
    called = [(places.numbers[index], places.action_types[index], calls[index], places.began_ms[index]) for index in done]
    return _with_texts(counted, called, rules)


def _with_texts(
    trajectory: Trajectory, steps: Sequence[tuple[int, str, Sequence[StepCall], float | None]], rules: SequenceRules
) -> Trajectory:
    """Return the trajectory with the texts of its steps: number, action type, calls and start of each."""
    minutes = step_minutes(trajectory.window, trajectory.start_time, [began_ms for *_, began_ms in steps])
    sequences: list[ServedSequence] = []
    for (number, action_type, own, _), minute in zip(steps, minutes, strict=True):
        for place in rules.training(own, action_type):
            served = sequence(own[place], trajectory.trajectory_id, number, place, trajectory.message_source, minute)
            if served is not None:
                sequences.append(served)
    return msgspec.structs.replace(trajectory, sequences=tuple(sequences), trainable_sequences=len(sequences))


def digest(*parts: bytes) -> str:
    """Return a short hash of recorded texts, for detecting changes."""
    if len(parts) == 1:
        return xxhash.xxh3_128_hexdigest(parts[0])
    hasher = xxhash.xxh3_128()
    for part in parts:
        # The length first: else a text that moves from the end of one part to the start of the next would not show.
        hasher.update(len(part).to_bytes(8, "big"))
        hasher.update(part)
    return hasher.hexdigest()


def log_bytes(log: CallLogRow) -> bytes:
    named = (log.step_id, log.call_id, log.timestamp.isoformat(), log.model, log.purpose)
    texts = (*named, log.system_prompt, log.user_prompt, log.response)
    return "\0".join(texts).encode() + b"\0" + (log.messages_json or b"") + b"\0" + (log.metadata or b"")
