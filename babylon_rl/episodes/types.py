"""Values made from the rows of an hour: sequences, trajectories, episodes, rejections, summaries.

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
    """One LLM call exactly as served, built from the call's own columns only."""

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
        """True if one of our scripted strategies wrote the prompt and the answer."""
        return self.model.startswith("scripted/")


class Trajectory(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One eligible row, reduced to the content of episodes.

    ``recorded`` is a digest of the recorded steps, ``content`` of steps and calls. ``sequences`` holds those that train, or nothing if the
    reading was requested without texts; ``trainable_sequences`` counts them in both cases. The last four fields serve the hour's quality:
    the first call's prompts are short (None without a call), its times contradict each other, its P&L jumps, and the larger of its first
    and last balance (dollars).
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
        """Change of P&L within this trajectory, in dollars."""
        return difference(self.end_pnl, self.start_pnl)


def difference(end: float, start: float) -> float:
    """Return ``end`` - ``start``, limited to the largest finite float."""
    return max(-_LARGEST, min(_LARGEST, end - start))


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One agent's eligible trajectories in one window.

    In order of (startTime, trajectoryId).
    """

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
        """P&L at the end less P&L at the start, in dollars.

        Lifetime counters are never summed.
        """
        return difference(self.end_pnl, self.start_pnl)

    @property
    def win_rate(self) -> float | None:
        """Share of wins among trajectories that won or lost; None without any."""
        decided = self.wins + self.losses
        return self.wins / decided if decided else None

    @property
    def used(self) -> bool:
        """True if a training consumed one of its trajectories."""
        return bool(self.used_ids)


@dataclass(frozen=True)
class Rejection:
    """One rejected row: the first rule that it failed, with place and cause in words."""

    trajectory_id: str
    window: str
    reason: str
    detail: str


@dataclass(frozen=True)
class WindowReading:
    """The trajectories of one hour, stitched and counted.

    ``episodes`` are in order of agent id, ``rejections`` of trajectory id; ``quality`` is built by hour_quality.py.
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
        """Number of eligible trajectories."""
        return sum(len(episode.trajectory_ids) for episode in self.episodes)

    @property
    def new_trainable(self) -> int:
        """Number of eligible trajectories that no training has used."""
        return self.eligible - sum(len(episode.used_ids) for episode in self.episodes)

    @property
    def usable_episodes(self) -> tuple[Episode, ...]:
        """Episodes with enough steps, in order of agent id."""
        return tuple(episode for episode in self.episodes if episode.usable)

    @property
    def ready(self) -> bool:
        """True if there are enough usable episodes for a group."""
        return len(self.usable_episodes) >= self.min_agents


@dataclass(frozen=True, kw_only=True)
class WindowSummary:
    """Numbers of one hour, as in babylon_rl.windows and on the command line.

    ``rejected`` counts by reason (present reasons only), ``message_sources`` counts trajectories by source (all three keys), ``avg_pnl`` is
    the mean window P&L of its episodes in dollars. ``quality`` is built by hour_quality.py. ``data_version`` is a hash of the content that
    does not change when rows are marked as used.
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
