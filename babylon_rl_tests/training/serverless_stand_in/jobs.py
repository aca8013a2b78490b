"""What a posted job would train, and what its events are at a moment of its life.

The advantage of an episode is as in ART, reward - mean of its group, and only an exact zero is dropped; without
``allow_training_without_logprobs`` only choices with ``token_id:<id>`` log-probabilities train.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

JobFault = Literal["none", "zero", "zero_but_steps", "fails", "stalls", "out_of_order", "nan", "no_step", "steps_but_fails", "late"]
_ENDLESS = ("stalls", "late")  # a late one ends when it is let go


@dataclass(frozen=True)
class Payload:
    """What a job would train. ``problems`` are what the service chokes on; ``trajectories`` the (batchId, iteration, id) that train."""

    sequences: int
    tokens: int
    trajectories: tuple[tuple[str, int, str], ...]
    problems: tuple[str, ...]
    batches: frozenset[str]


@dataclass
class Job:
    """One job: posted at ``posted_s``, over ``duration_s`` later, whatever its client does."""

    id: str
    model_id: str
    posted_s: float
    duration_s: float
    payload: Payload
    fault: JobFault
    config: dict[str, Any] = field(default_factory=dict)
    announces: bool = True  # how many sequences it trains
    sequences_a_step: int = 1
    step: int | None = None
    settled: bool = False

    def over(self, now_s: float) -> bool:
        return self.fault not in _ENDLESS and now_s >= self.posted_s + self.duration_s

    @property
    def trains(self) -> bool:
        """True when its end makes a checkpoint."""
        makes_one = self.fault in ("none", "out_of_order", "nan", "steps_but_fails", "zero_but_steps")
        return makes_one and not self.payload.problems and self.payload.sequences > 0

    def loss(self, number: int) -> float:
        return math.nan if self.fault == "nan" else 1.0 / (number + 2)

    def events(self, now_s: float) -> list[dict[str, Any]]:
        """The events so far: started at once, gradient steps evenly over the duration, the end at the end."""
        sequences = 0 if self.fault in ("zero", "zero_but_steps") else self.payload.sequences
        share = 1.0 if self.duration_s <= 0 else min(1.0, (now_s - self.posted_s) / self.duration_s)
        done = int(sequences * (min(share, 0.5) if self.fault in _ENDLESS else share))
        events = [self._event("started", "training_started", {"num_sequences": sequences} if self.announces else {})]
        tokens = self.payload.tokens // max(1, sequences)
        for number in range(-(-done // self.sequences_a_step) if self.sequences_a_step else 0):
            data = {"loss": self.loss(number), "grad_norm": 0.5, "entropy": 0.1, "num_trainable_tokens": tokens}
            events.append(self._event(f"step-{number}", "gradient_step", data))
        if self.over(now_s):
            if self.fault in ("fails", "steps_but_fails") or self.payload.problems:
                message = "; ".join(self.payload.problems) or "the trainer's machine went away"
                events.append(self._event("failed", "training_failed", {"error_message": message}))
            else:
                events.append(self._event("ended", "training_ended", {}))
        return events[::-1] if self.fault == "out_of_order" else events

    def _event(self, name: str, kind: str, data: dict[str, Any]) -> dict[str, Any]:
        return {"id": f"{self.id}-{name}", "type": kind, "data": data}


def read_payload(groups: Sequence[dict[str, Any]], config: dict[str, Any], vocabulary: int) -> Payload:
    """What of posted groups would train under ART's rules; newer clients leave out what has its default."""
    allow = bool(config.get("allow_training_without_logprobs"))
    sequences = tokens = 0
    trained: list[tuple[str, int, str]] = []
    problems: list[str] = []
    batches: set[str] = set()
    for group in groups:
        rewards = [trajectory.get("reward", 0.0) for trajectory in group["trajectories"]]
        mean = sum(rewards) / len(rewards) if rewards else 0.0
        for trajectory in group["trajectories"]:
            marks = trajectory.get("metadata", {})
            batches.add(str(marks.get("batchId")))
            if trajectory.get("reward", 0.0) == mean:
                continue
            histories = [trajectory, *trajectory.get("additional_histories", [])]
            counted = [_tokens(history.get("messages_and_choices", []), allow, vocabulary, problems) for history in histories]
            sequences += sum(1 for number in counted if number)
            tokens += sum(counted)
            if any(counted):
                ids = str(marks.get("trajectoryIds", "")).split(",")
                trained += [(str(marks.get("batchId")), int(marks.get("iteration", 0)), one) for one in ids]
    return Payload(sequences, tokens, tuple(trained), tuple(problems), frozenset(batches))


def _tokens(history: Sequence[dict[str, Any]], allow: bool, vocabulary: int, problems: list[str]) -> int:
    found = 0
    for entry in history:
        if "finish_reason" not in entry:
            if allow and entry["role"] == "assistant":
                if not entry.get("content") or entry.get("tool_calls"):
                    problems.append("an assistant message without text")
                found += len((entry.get("content") or "").split())
            continue
        content = (entry.get("logprobs") or {}).get("content")
        if not content:
            if allow:
                problems.append("a choice without logprobs")
            continue
        for token in content:
            kind, _, number = token["token"].partition(":")
            if kind != "token_id" or not number.isdecimal() or int(number) >= vocabulary:
                problems.append(f"{token['token']!r} is not a token id of the base")
            elif not (isinstance(token["logprob"], int | float) and math.isfinite(token["logprob"])):
                problems.append("a log-probability that is not finite")
        found += len(content)
    return found
