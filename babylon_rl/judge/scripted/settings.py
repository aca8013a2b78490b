"""Settings of a scripted judge: skill, weaknesses and faults, as one frozen value."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, TypeGuard

from babylon_rl.errors import UsageError

# Faults of the connection or the server in front of the model.
TRANSPORT_FAULTS = ("rate-limit", "server-error", "unavailable", "time-out", "reset", "reset-mid-body", "web-page", "slow-stream")
# Faults of the answer itself.
CONTENT_FAULTS = (
    "fenced", "prefixed", "trailing-comma", "missing-id", "duplicate-id", "unknown-id", "out-of-range", "nan", "boolean",
    "no-explanation", "empty", "truncated", "refusal",
)  # fmt: skip
FAULTS = TRANSPORT_FAULTS + CONTENT_FAULTS
# Final refusals of a provider: a retry cures none of them, so "every fault" leaves them out.
REFUSALS = ("bad-key", "unknown-model", "bad-request")
SKILLS = ("auto", "marker", "pnl", "text")
_NO_FAULTS: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class ScriptedJudge:
    """Settings of a judge. Shares, probabilities and scores are in 0..1, times in seconds.

    Raises:
        UsageError: a value is outside its range, or a fault has another name; the message lists all of them.
    """

    seed: int = 0
    skill: str = "auto"  # where an episode's skill is read: a marker, its P&L, its text's hash; "auto" takes the first that is there
    noise: float = 0.0  # standard deviation of the noise added to each skill
    position_bias: float = 0.0  # how much the first place of a request gains over the last, linear between
    length_bias: float = 0.0  # how much the longest episode of a request gains over the shortest, linear in the rank of the length
    out_of_order: float = 0.0  # share of the answers whose verdicts stand in another order than the episodes
    latency_s: float = 0.0
    jitter_s: float = 0.0  # uniform, on top of the latency
    obedience: float = 0.0  # share of the agents' instructions that are followed and of the fake structure that is believed
    chars_per_token: float = 4.0  # of the usage that is reported; no tokenizer is loaded
    retry_after_s: float = 1.0  # the Retry-After of a 429
    slow_s: float = 2.0  # how long a slow stream takes
    model: str = "scripted"  # the name in /v1/models; a request may name any
    faults: Mapping[str, float] = field(default_factory=lambda: _NO_FAULTS)  # probability of each, drawn on its own at every attempt

    def __post_init__(self) -> None:
        # all values are checked, so that one message lists every fault
        wrong = [f"{name} is {getattr(self, name)!r}, not in 0..1" for name in _SHARES if not _share(getattr(self, name))]
        wrong += [f"{name} is {getattr(self, name)!r}, not 0 or more" for name in _NOT_NEGATIVE if not _amount(getattr(self, name))]
        wrong += [f"{name} is {getattr(self, name)!r}, not a number" for name in _BIASES if not _number(getattr(self, name))]
        if not _amount(self.chars_per_token) or not self.chars_per_token:
            wrong.append(f"chars_per_token is {self.chars_per_token!r}, not above 0")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            wrong.append(f"seed is {self.seed!r}, not a whole number")
        if self.skill not in SKILLS:
            wrong.append(f"skill is {self.skill!r}, none of {', '.join(SKILLS)}")
        if not isinstance(self.model, str) or not self.model:
            wrong.append(f"model is {self.model!r}, not a name")
        for name, probability in self.faults.items():
            if name not in FAULTS + REFUSALS:
                wrong.append(f"there is no fault {name!r}, only {', '.join(FAULTS + REFUSALS)}")
            elif not _share(probability):
                wrong.append(f"the probability of {name} is {probability!r}, not in 0..1")
        if wrong:
            raise UsageError("The scripted judge cannot be so: " + "; ".join(wrong) + ".")
        object.__setattr__(self, "faults", MappingProxyType(dict(self.faults)))

    def but(self, changes: Mapping[str, Any]) -> "ScriptedJudge":
        """Copy with other values; ``faults`` are added, and probability 0 removes one.

        Raises:
            UsageError: there is no such setting, or a value is not allowed.
        """
        if unknown := sorted(set(changes) - _NAMES):
            raise UsageError(f"The scripted judge has no setting {', '.join(unknown)}; it has {', '.join(sorted(_NAMES))}.")
        faults = changes.get("faults", {})
        if not isinstance(faults, Mapping):
            raise UsageError(f"faults is {faults!r}, not an object of probabilities.")
        return replace(self, **{**changes, "faults": {**self.faults, **faults}})

    def described(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {name: getattr(self, name) for name in sorted(_NAMES - {"faults"})} | {"faults": dict(self.faults)}


_NAMES = {entry.name for entry in fields(ScriptedJudge)}
_BIASES = ("position_bias", "length_bias")
_SHARES = ("out_of_order", "obedience")
_NOT_NEGATIVE = ("noise", "latency_s", "jitter_s", "retry_after_s", "slow_s")


def every_fault(probability: float) -> dict[str, float]:
    """Each fault that a retry can cure, with this probability."""
    return dict.fromkeys(FAULTS, probability)


def probabilities(named: Sequence[str]) -> dict[str, float]:
    """Parse ``NAME=PROBABILITY`` entries.

    Raises:
        UsageError: one is not written so.
    """
    by_name = {}
    for entry in named:
        name, _, probability = entry.partition("=")
        try:
            by_name[name.strip()] = float(probability)
        except ValueError as invalid:
            raise UsageError(f"A fault is written NAME=PROBABILITY, such as rate-limit=0.05, not {entry!r}.") from invalid
    return by_name


def changes_of(raw: str) -> dict[str, Any]:
    """Parse changes from a header or body with a JSON object; empty means none.

    Raises:
        UsageError: it is not a JSON object.
    """
    try:
        changes = json.loads(raw) if raw.strip() else {}
    except ValueError as invalid:
        raise UsageError(f"The scripted judge's settings are no JSON: {invalid}.") from invalid
    if not isinstance(changes, dict):
        raise UsageError("The scripted judge's settings are not a JSON object.")
    return changes


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _amount(value: object) -> TypeGuard[float]:
    return _number(value) and value >= 0


def _share(value: object) -> TypeGuard[float]:
    return _amount(value) and value <= 1
