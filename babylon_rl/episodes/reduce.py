"""One eligible row reduced to what episodes are made of, so that an hour needs the memory of its results, not of its texts."""

import hashlib
from collections import Counter

from babylon_rl.episodes import messages
from babylon_rl.episodes.decode import Step, end_pnl
from babylon_rl.episodes.messages import Call
from babylon_rl.episodes.types import MessageSource, Sequence, Trajectory
from babylon_rl.settings import Settings
from babylon_rl.store.trajectories import CallLogRow, TrajectoryRow

UNSTORABLE = "\ufffd"  # stands for U+0000, which JSON can say and Postgres cannot hold


def reduced(
    row: TrajectoryRow, steps: list[Step], calls: list[list[Call]], source: MessageSource, content: str, settings: Settings, texts: bool
) -> Trajectory:
    """The trajectory of a row whose completed ``steps`` made ``calls`` (by step); ``texts`` keeps the sequences that train."""
    sequences = _sequences(row.trajectory_id, steps, calls, source, settings)
    kinds = [step.action.action_type.replace("\0", UNSTORABLE) for step in steps]
    return Trajectory(
        trajectory_id=row.trajectory_id,
        agent_id=row.agent_id,
        window=row.window,
        start_time=row.start_time,
        used=row.used_in_training,
        steps=len(steps),
        start_pnl=steps[0].environment_state.agent_pnl,
        end_pnl=end_pnl(row.final_pnl, row.metrics_json, steps),
        actions=dict(Counter(kinds)),
        trades=sum(_is_trade(step.action.action_type) and step.action.succeeded for step in steps),
        posts=sum("POST" in step.action.action_type and step.action.succeeded for step in steps),
        message_source=source,
        trainable_sequences=len(sequences),
        content=content,
        sequences=tuple(sequences) if texts else (),
    )


def _is_trade(action_type: str) -> bool:
    return action_type != "HOLD" and any(word in action_type for word in ("TRADING", "BUY", "SELL"))


def _sequences(trajectory_id: str, steps: list[Step], calls: list[list[Call]], source: MessageSource, settings: Settings) -> list[Sequence]:
    if source == "synthetic":
        return [messages.synthetic(step, trajectory_id, index) for index, step in enumerate(steps)] if settings.train_synthetic else []
    found = []
    for index, (step, own) in enumerate(zip(steps, calls, strict=True)):
        for position, call in messages.training_calls(own, step.action.action_type, settings):
            number = step.number if step.number is not None else index
            served = messages.sequence(call, trajectory_id, number, position, source)
            if served is not None:
                found.append(served)
    return found


def digest(*parts: bytes) -> str:
    """A short hash of recorded texts, for telling whether they changed."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
        digest.update(b"\0")
    return digest.hexdigest()


def log_bytes(log: CallLogRow) -> bytes:
    """All that a log row says of its call."""
    texts = (log.step_id, log.call_id, log.model, log.purpose, log.system_prompt, log.user_prompt, log.response)
    return "\0".join(texts).encode() + (log.messages_json or b"") + (log.metadata or b"")
