"""Reduction of one eligible row to the content of episodes.

An hour then needs the memory of its results, not of its texts.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import xxhash

from babylon_rl.episodes import messages
from babylon_rl.episodes.decode import Decoded
from babylon_rl.episodes.messages import SequenceRules
from babylon_rl.episodes.quality import is_short, is_skewed, jumps
from babylon_rl.episodes.steps import CallFacts, Step, StepCall, StepFacts
from babylon_rl.store.columns import UNSTORABLE
from babylon_rl.store.trajectories import CallLogRow, TrajectoryRow
from babylon_rl.types import MessageSource, ServedSequence, Trajectory


class _Kind(NamedTuple):
    shown: str
    trade: bool
    post: bool


@functools.lru_cache(maxsize=1024)
def _kind(action_type: str) -> _Kind:
    trade = action_type != "HOLD" and any(word in action_type for word in ("TRADING", "BUY", "SELL"))
    return _Kind(action_type.replace("\0", UNSTORABLE), trade, "POST" in action_type)


# Rows that did the same share it: such a dict is a third of the memory that a row's reading takes.
@functools.lru_cache(maxsize=1024)
def _shown(kinds: tuple[tuple[str, int], ...]) -> dict[str, int]:
    """Number of actions by shown name."""
    return {_kind(name).shown: number for name, number in kinds}


def _counted(names: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}  # faster than a Counter for the few dozen steps of a row
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def reduced(row: TrajectoryRow, decoded: Decoded[Any], rules: SequenceRules) -> Trajectory:
    """Return the trajectory of a row without sequences.

    If its steps hold no call, the message source is "synthetic" until ``with_logs`` finds some in llm_call_logs.
    """
    steps: Sequence[StepFacts] = decoded.completed
    kinds = _counted([step.action.action_type for step in steps])
    # Trades and posts count only when they succeeded.
    won = [step.action.action_type for step in steps if step.action.success is True]
    # Mostly every step succeeded; then the counts are those of all steps and are not made again.
    wins = kinds if len(won) == len(steps) else _counted(won)
    trades = posts = 0
    for name, number in wins.items():
        kind = _kind(name)
        trades += number * kind.trade
        posts += number * kind.post
    # Facts for the hour's quality are taken here, while the texts are still in memory.
    first = _first_call(steps)
    first_state, last_state = steps[0].environment_state, steps[-1].environment_state
    content = digest(row.steps_json)
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
        trades=trades,
        posts=posts,
        message_source="synthetic" if first is None else "embedded",
        trainable_sequences=_count(steps, rules) if first is not None else len(steps) * rules.train_synthetic,
        content=content,
        recorded=content,
        short_prompts=None if first is None else is_short(first),
        skewed=is_skewed(row, steps),
        jumped=jumps(steps, decoded.end_pnl),
        stake=max(first_state.agent_balance, last_state.agent_balance),
    )


def _first_call(steps: Sequence[StepFacts]) -> CallFacts | None:
    for step in steps:
        if step.llm_calls:
            return step.llm_calls[0]
    return None


def _count(steps: Sequence[StepFacts], rules: SequenceRules) -> int:
    """Count the training sequences in ``steps``."""
    called = [(step.llm_calls, step.action.action_type) for step in steps if step.llm_calls]
    return sum([messages.is_served(own[place]) for own, kind in called for place in rules.training(own, kind)])


def embedded_sequences(trajectory: Trajectory, steps: Sequence[Step], rules: SequenceRules) -> Trajectory:
    """Return the trajectory with the texts of the calls in its completed steps."""
    calls = [step.llm_calls or () for step in steps]
    return _with_texts(trajectory, [step.number for step in steps], [step.action.action_type for step in steps], calls, rules)


def synthetic_sequences(trajectory: Trajectory, steps: Sequence[Step]) -> Trajectory:
    """Return the trajectory with one synthetic text per step."""
    texts = tuple(messages.synthetic(step, trajectory.trajectory_id, index) for index, step in enumerate(steps))
    return msgspec.structs.replace(trajectory, sequences=texts, trainable_sequences=len(texts))


class LoggedSteps(msgspec.Struct, frozen=True, gc=False):
    """A trajectory without calls in its steps, with the places of its steps.

    The places assign logged calls to steps.
    """

    trajectory: Trajectory
    places: messages.StepPlaces


def with_logs(held: LoggedSteps, logs: Sequence[CallLogRow], rules: SequenceRules, *, texts: bool) -> Trajectory:
    """Return the trajectory with the calls in ``logs``.

    ``logs`` is not empty and in any order; ``texts`` keeps the training sequences.
    """
    trajectory, places = held.trajectory, held.places
    ordered = sorted(logs, key=lambda log: (log.timestamp, log.call_id))
    # A changed log changes the content as a changed step does.
    content = digest(trajectory.recorded.encode(), *(log_bytes(log) for log in ordered))
    done = [index for index in range(len(places.numbers)) if index not in places.pending]
    facts = messages.calls_by_step(ordered, trajectory.trajectory_id, places, messages.logged_facts)
    first = next((facts[index][0] for index in done if facts[index]), None)
    counted = msgspec.structs.replace(
        trajectory,
        message_source="llm_call_logs",
        content=content,
        short_prompts=None if first is None else is_short(first),
        trainable_sequences=sum(
            messages.is_served(facts[index][place]) for index in done for place in rules.training(facts[index], places.action_types[index])
        ),
    )
    if not texts:
        return counted
    # The texts are decoded only now, because most readings need the numbers only.
    calls = messages.calls_by_step(ordered, trajectory.trajectory_id, places, messages.logged_call)
    numbers = [places.numbers[index] for index in done]
    kinds = [places.action_types[index] for index in done]
    return _with_texts(counted, numbers, kinds, [calls[index] for index in done], rules)


def _with_texts(
    trajectory: Trajectory, numbers: Sequence[int], action_types: Sequence[str], calls: Sequence[Sequence[StepCall]], rules: SequenceRules
) -> Trajectory:
    source: MessageSource = trajectory.message_source
    sequences: list[ServedSequence] = []
    for number, action_type, own in zip(numbers, action_types, calls, strict=True):
        for place in rules.training(own, action_type):
            served = messages.sequence(own[place], trajectory.trajectory_id, number, place, source)
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
    """Encode the whole content of a log row as bytes."""
    named = (log.step_id, log.call_id, log.timestamp.isoformat(), log.model, log.purpose)
    texts = (*named, log.system_prompt, log.user_prompt, log.response)
    return "\0".join(texts).encode() + b"\0" + (log.messages_json or b"") + b"\0" + (log.metadata or b"")
