"""What the rows of an hour become: sequences, trajectories, episodes, rejections and the summary of a window.

Frozen values without behaviour beyond derived properties; terms are those of docs/reference/glossary.md. Money is in dollars,
datetimes are naive UTC.
"""

import sys
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import msgspec

MessageSource = Literal["embedded", "llm_call_logs", "synthetic"]
MESSAGE_SOURCES: tuple[MessageSource, ...] = ("embedded", "llm_call_logs", "synthetic")
REJECTION_REASONS = ("evaluation", "not_training_data", "benchmark", "malformed_json", "malformed_shape", "no_steps")
_LARGEST = sys.float_info.max
WindowState = Literal["pending", "thin", "ready", "scored", "trained", "quarantined"]


class Sequence(msgspec.Struct, frozen=True, kw_only=True):
    """One LLM call exactly as the policy was served it, built from the call's own columns alone."""

    trajectory_id: str
    call_id: str
    step: int
    messages: list[dict[str, str]]
    response: str
    source: MessageSource
    purpose: str
    model: str
    model_version: str | None = None
    response_format: dict[str, Any] | None = None
    logprobs: list[dict[str, Any]] | None = None

    @property
    def scripted(self) -> bool:
        """True when one of our scripted strategies composed the prompt and the answer."""
        return self.model.startswith("scripted/")


class Trajectory(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One eligible row, reduced to what episodes are made of.

    ``recorded`` is a digest of the recorded steps, ``content`` of steps and calls. ``sequences`` holds those that train, or nothing when
    the reading was asked for numbers only; ``trainable_sequences`` counts them in both cases. The last four fields are for the hour's
    quality: whether the first call's prompts are short (None without a call), whether its times contradict each other, whether its P&L
    jumps, and the larger of its first and last balance (dollars).
    """

    trajectory_id: str
    agent_id: str
    window: str
    start_time: datetime
    used: bool
    steps: int
    start_pnl: float
    end_pnl: float
    actions: dict[str, int]
    trades: int
    posts: int
    message_source: MessageSource
    trainable_sequences: int
    content: str
    recorded: str = ""
    sequences: tuple[Sequence, ...] = ()
    short_prompts: bool | None = None
    skewed: bool = False
    jumped: bool = False
    stake: float = 0.0

    @property
    def delta(self) -> float:
        """This trajectory's own change of P&L."""
        return difference(self.end_pnl, self.start_pnl)


def difference(end: float, start: float) -> float:
    """``end`` - ``start``, kept finite where both are."""
    return max(-_LARGEST, min(_LARGEST, end - start))


@dataclass(frozen=True, kw_only=True)
class Episode:
    """Everything that one agent did in one window: its eligible trajectories in order of (startTime, trajectoryId)."""

    window: str
    agent_id: str
    trajectory_ids: tuple[str, ...]
    used_ids: tuple[str, ...]
    steps: int
    start_pnl: float
    end_pnl: float
    wins: int
    losses: int
    trades: int
    posts: int
    message_sources: dict[str, int]
    actions: dict[str, int]
    usable: bool
    trainable_sequences: int
    content: str
    sequences: tuple[Sequence, ...] = ()

    @property
    def window_pnl(self) -> float:
        """End minus start P&L; lifetime counters are never summed."""
        return difference(self.end_pnl, self.start_pnl)

    @property
    def win_rate(self) -> float | None:
        """Wins among the trajectories that won or lost; None when none did."""
        decided = self.wins + self.losses
        return self.wins / decided if decided else None

    @property
    def used(self) -> bool:
        """True when a training consumed a trajectory of it."""
        return bool(self.used_ids)


@dataclass(frozen=True)
class Rejection:
    """One row that does not count: the first rule that it failed, and where and why in words."""

    trajectory_id: str
    window: str
    reason: str
    detail: str


@dataclass(frozen=True)
class WindowReading:
    """All that an hour's trajectories say, ``quality`` as hour_quality.py has it.

    ``episodes`` are in order of agent id, ``rejections`` of trajectory id.
    """

    window: str
    rows: int
    episodes: tuple[Episode, ...]
    rejections: tuple[Rejection, ...]
    min_agents: int
    odd_hours: tuple[str, ...] = ()
    quality: dict[str, Any] = field(default_factory=dict)

    @property
    def eligible(self) -> int:
        """Trajectories that count."""
        return sum(len(episode.trajectory_ids) for episode in self.episodes)

    @property
    def new_trainable(self) -> int:
        """Eligible trajectories that no training has used."""
        return self.eligible - sum(len(episode.used_ids) for episode in self.episodes)

    @property
    def usable_episodes(self) -> tuple[Episode, ...]:
        """Episodes with enough steps, in order of agent id."""
        return tuple(episode for episode in self.episodes if episode.usable)

    @property
    def ready(self) -> bool:
        """True with enough usable episodes for a group."""
        return len(self.usable_episodes) >= self.min_agents


@dataclass(frozen=True, kw_only=True)
class WindowSummary:
    """An hour in numbers, as babylon_rl.windows and the command line show it.

    ``rejected`` counts by reason (present reasons only), ``message_sources`` counts trajectories by source (all three
    keys), ``avg_pnl`` is the mean window P&L of its episodes in dollars. ``quality`` is as hour_quality.py has
    it. ``data_version`` is a hash of the content that does not change when rows are marked as used.
    """

    window: str
    rows: int
    eligible: int
    new_trainable: int
    agents: int
    episodes: int
    usable_episodes: int
    ready: bool
    complete: bool
    rejected: dict[str, int] = field(default_factory=dict)
    message_sources: dict[str, int] = field(default_factory=dict)
    avg_pnl: float | None = None
    trainable_sequences: int = 0
    odd_hours: int = 0
    used_episodes: int = 0
    quality: dict[str, Any] = field(default_factory=dict)
    data_version: str = ""
    changed: bool = False
