"""Row-shaped nouns that several rooms read, write or show, each defined once.

Frozen values; terms are those of docs/reference/glossary.md. Money is in dollars, datetimes are naive UTC. Names in JSON and in our tables
are the camel case of the fields. The statements of store/ take their column lists from these structs: a new field of an hour or of an
episode is the field here, its value where the struct is built, a migration, and a place that shows it.
"""

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

import msgspec

from babylon_rl.versions import content_version

MessageSource = Literal["embedded", "llm_call_logs", "synthetic"]
MESSAGE_SOURCES: tuple[MessageSource, ...] = get_args(MessageSource)
# Why a row does not count, in the order of the rules: the first that applies is stored and counted.
RejectionReason = Literal["evaluation", "not_training_data", "benchmark", "malformed_json", "malformed_shape", "no_steps"]
REJECTION_REASONS: tuple[RejectionReason, ...] = get_args(RejectionReason)
WindowState = Literal["pending", "thin", "ready", "scored", "trained", "quarantined"]
NO_SPREAD = 1e-6  # a standard deviation of scores below it carries no training signal
_LARGEST = sys.float_info.max


SCRIPTED = "scripted/"  # names of models that are scripts begin so


class ServedSequence(msgspec.Struct, frozen=True, kw_only=True):
    """One LLM call exactly as served, built from the call's own columns only.

    ``finish_reason`` is OpenAI's name of why the answer ended, None where none was recorded. ``minute`` is the hour's, in which its step
    began.
    """

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
    finish_reason: str | None = None
    minute: int = 0

    @property
    def scripted(self) -> bool:
        """True if one of our scripted strategies wrote the prompt and the answer."""
        return self.model.startswith(SCRIPTED)


class MinutePnl(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """P&L of a trajectory's steps that began in one minute of the hour, in dollars: at the first step, and after the last."""

    minute: int
    start_pnl: float
    end_pnl: float


class Trajectory(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One eligible row, reduced to the content of episodes.

    ``recorded`` is a digest of the recorded steps, ``content`` of steps and calls. ``sequences`` holds those that train, or nothing if the
    reading was requested without texts; ``trainable_sequences`` counts them in both cases. Four fields serve the hour's quality: the first
    call's prompts are short (None without a call), its times contradict each other, its P&L jumps, and the larger of its first
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
    sequences: tuple[ServedSequence, ...] = ()
    short_prompts: bool | None = None
    skewed: bool = False
    jumped: bool = False
    stake: float = 0.0
    minutes: tuple[MinutePnl, ...] = ()

    @property
    def delta(self) -> float:
        """Change of P&L within this trajectory, in dollars."""
        return difference(self.end_pnl, self.start_pnl)


def difference(end: float, start: float) -> float:
    """Return ``end`` - ``start``, limited to the largest finite float."""
    # Two finite numbers may be infinitely far apart, and JSON has no infinity.
    return max(-_LARGEST, min(_LARGEST, end - start))


class Episode(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One agent's eligible trajectories in one window: a row of babylon_rl.episodes.

    In order of (startTime, trajectoryId). ``window_pnl`` is the P&L at the end less the P&L at the start, in dollars; lifetime counters are
    never summed. ``win_rate`` is the share of wins among trajectories that won or lost, None without any. ``sequences`` is not
    stored. ``minutes`` are in order, and empty of an hour that was read before they were kept.
    """

    window: str
    agent_id: str
    trajectory_ids: tuple[str, ...]
    used_ids: tuple[str, ...]
    steps: int
    start_pnl: float
    end_pnl: float
    window_pnl: float
    wins: int
    losses: int
    win_rate: float | None
    trades: int
    posts: int
    message_sources: dict[str, int]
    usable: bool
    trainable_sequences: int
    actions: dict[str, int]
    content: str
    sequences: tuple[ServedSequence, ...] = ()
    minutes: tuple[MinutePnl, ...] = ()

    @property
    def used(self) -> bool:
        return bool(self.used_ids)


class Rejection(msgspec.Struct, frozen=True, rename="camel"):
    """A row of babylon_rl.rejections: the first failed rule, place and cause in words."""

    window: str
    trajectory_id: str
    reason: RejectionReason
    detail: str


def count_reasons(rejections: Iterable[Rejection]) -> dict[str, int]:
    """Count rejections by reason, in the order of the rules; absent reasons are left out."""
    counts = Counter(rejection.reason for rejection in rejections)
    return {reason: counts[reason] for reason in REJECTION_REASONS if counts[reason]}


@dataclass(frozen=True)
class Check:
    """One line of a report of checks; ``status`` is PASS, WARN or FAIL."""

    name: str
    status: str
    detail: str


class HourQuality(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Odd but eligible rows or agents of an hour: counts, first ids.

    Of ``prompts`` rows with a recorded call, ``short_prompts`` have a first prompt that is too short. Built by episodes/reading.py.
    """

    short_prompts: int = 0
    prompts: int = 0
    duplicates: tuple[str, ...] = ()
    duplicate_rows: int = 0
    clock_skew: tuple[str, ...] = ()
    skewed_rows: int = 0
    pnl_jumps: tuple[str, ...] = ()
    jumping_agents: int = 0
    other_lengths: int = 0


@dataclass(frozen=True, kw_only=True)
class HourEpisodes:
    """The episodes of one hour, in order of agent id, and how many usable ones make a group."""

    window: str
    episodes: tuple[Episode, ...]
    min_agents: int

    @property
    def usable_episodes(self) -> tuple[Episode, ...]:
        """Episodes with enough steps, in order of agent id."""
        return tuple(episode for episode in self.episodes if episode.usable)

    @property
    def ready(self) -> bool:
        return len(self.usable_episodes) >= self.min_agents


@dataclass(frozen=True, kw_only=True)
class WindowReading(HourEpisodes):
    """The trajectories of one hour, stitched and counted; ``rejections`` are in order of trajectory id."""

    rows: int
    rejections: tuple[Rejection, ...]
    quality: HourQuality = field(default_factory=HourQuality)

    @property
    def eligible(self) -> int:
        return sum(len(episode.trajectory_ids) for episode in self.episodes)

    @property
    def new_trainable(self) -> int:
        """Number of eligible trajectories that no training has used."""
        return self.eligible - sum(len(episode.used_ids) for episode in self.episodes)


class WindowSummary(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Numbers of one hour: a row of babylon_rl.windows, and a line of ``babylon-rl windows``.

    ``rejected`` counts by reason (present reasons only), ``message_sources`` counts trajectories by source (all three keys), ``avg_pnl`` is
    the mean window P&L of its episodes in dollars. ``data_version`` is a hash of the content that does not change when rows are marked as
    used, ``group_version`` one of the group to be judged, empty for a window that is not ready. ``changed``, which is not stored, says
    whether the call that returned the summary wrote it.
    """

    window: str
    rows: int
    eligible: int
    new_trainable: int
    agents: int
    episodes: int
    usable_episodes: int
    ready: bool
    state: WindowState
    rejected: dict[str, int]
    message_sources: dict[str, int]
    avg_pnl: float | None
    trainable_sequences: int
    quality: HourQuality
    data_version: str
    group_version: str
    changed: bool = False


class EpisodeScore(msgspec.Struct, frozen=True, rename="camel"):
    """Score of one episode, 0 to 1, relative to its group: a row of babylon_rl.episode_scores.

    ``rank`` counts from 1, ``disagreement`` is that between orders (0: heuristic). Of a language model: the score in each order, the
    ``places`` there (0 first, 1 last), the number of tokens shown, and the flagged passages that address a judge. ``gain`` is the effect of
    the group's flagged sentences on the episode (its score as shown less that with them masked), None where nothing was masked.
    """

    agent_id: str
    score: float
    rank: int
    advantage: float
    disagreement: float
    reasoning: str
    order_scores: tuple[float, ...] = ()
    places: tuple[float, ...] = ()
    shown_tokens: int = 0
    flags: tuple[str, ...] = ()
    gain: float | None = None


class PartScore(msgspec.Struct, frozen=True, rename="camel"):
    """Score of one agent's part of an hour, 0 to 1, relative to the others who acted in it: a row of babylon_rl.part_scores.

    The part reaches from ``start_minute`` of the hour to before ``end_minute``.
    """

    agent_id: str
    start_minute: int
    end_minute: int
    score: float
    advantage: float


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """Facts on how a language model reached the scores of a group, all tries included.

    ``tau`` is Kendall's, the mean over pairs of orders (None where none ranks); tokens and ``usd`` are None where one of them is unknown,
    ``seconds`` the sum over the answers. ``shown_version`` is the hash of what was shown, ``server`` the address that answered in the
    place of the model's provider; empty: that did itself; None: not known, as of judgements from before it was noted. ``steps`` are those
    of the episodes, ``shortened`` those of them that were not shown in full, ``decisions_shortened`` the trades among these; None as there.

    ``context_flags`` are passages in news, questions and shared lines that address a judge. ``masked`` says whether the scores are those
    with flagged sentences masked, as they are where one of ``gainers`` gained by them, None where there were none to mask;
    ``masked_passages`` are the lines that hold one, as shown, ``noise`` is the standard error of a gain, ``masked_version`` the hash of
    what was shown then. ``words`` is the gain of agents' own words, of an hour of the sample, ``words_noise`` its standard error, and
    ``followed`` are the agents whose score follows their words and not their deeds.
    """

    orders: int
    tau: float | None
    requests: int
    prompt_tokens: int | None
    completion_tokens: int | None
    usd: float | None
    seconds: float
    shown_version: str
    server: str | None = None
    steps: int | None = None
    shortened: int | None = None
    decisions_shortened: int | None = None
    context_flags: tuple[str, ...] = ()
    masked: bool | None = None
    noise: float | None = None
    masked_version: str = ""
    masked_passages: tuple[str, ...] = ()
    gainers: tuple[str, ...] = ()
    words: dict[str, float] | None = None
    words_noise: float | None = None
    followed: tuple[str, ...] = ()


class GroupScores(msgspec.Struct, frozen=True, rename="camel"):
    """Scores of one window's group, ordered by rank, then agent id.

    A row of babylon_rl.group_scores and its episodes.

    ``judgement`` is set only where a language model judged. ``spread`` is the population standard deviation of the scores,
    ``input_version`` the hash of what was judged, and ``changed`` says whether the call that returned them wrote them. ``parts``, by time
    and agent, are empty where the hour was judged as a whole.
    """

    window: str
    judge: str
    judge_version: str
    scores: tuple[EpisodeScore, ...]
    mean: float
    spread: float
    disagreement: float
    input_version: str
    changed: bool = False
    judgement: Judgement | None = None
    parts: tuple[PartScore, ...] = ()

    @property
    def group_size(self) -> int:
        return len(self.scores)

    @property
    def shown_version(self) -> str:
        """Hash of a language model's prompt; empty of other judges."""
        return "" if self.judgement is None else self.judgement.shown_version

    @property
    def has_spread(self) -> bool:
        """False when all scores are equal, those of each part where it was judged by part: there is no training signal."""
        return any(part.advantage for part in self.parts) if self.parts else self.spread >= NO_SPREAD

    @property
    def data_version(self) -> str:
        """Hash of the judgement; the same inputs judged the same way give the same hash."""
        # Without the judgement: its seconds and dollars differ between two runs that say the same.
        rows = [[score.agent_id, score.score, score.advantage, score.reasoning] for score in self.scores]
        parts = [[part.agent_id, part.start_minute, part.end_minute, part.score, part.advantage] for part in self.parts]
        return content_version([self.window, self.judge, self.judge_version, self.input_version, rows, *parts])


class BenchmarkReport(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The evidence on a batch's version: a row of babylon_rl.benchmark_reports.

    ``rows`` holds one object per model, ``reference`` is the version the gate compared with, ``plot_path`` the file of the picture.
    """

    batch_id: str
    version: str
    reference: str | None
    decision: str
    reason: str
    markets: int
    min_improvement: float
    rows: list[dict[str, Any]]
    table_markdown: str
    data_version: str
    plot_path: str | None
    created_at: datetime
