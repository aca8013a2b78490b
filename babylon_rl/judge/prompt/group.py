"""Rendered group of one window: the values that requests are made of."""

from dataclasses import dataclass

from babylon_rl.judge.consensus import MIN_SUBGROUP
from babylon_rl.judge.prompt.injection import Flag
from babylon_rl.settings import Settings


@dataclass(frozen=True)
class RenderedEpisode:
    """Rendered episode: raw ``text`` of ``tokens`` tokens without ``left_out`` steps.

    ``pnl`` is its window P&L in dollars (None where that is private) in ``steps`` steps; ``flags`` are suspicions in its name, in its own
    words and in what it was served. ``shortened`` counts the steps, and ``decisions_shortened`` the trades among them, that are not shown
    in full.
    """

    agent_id: str
    text: str
    tokens: int
    left_out: int
    flags: tuple[Flag, ...] = ()
    pnl: float | None = None
    steps: int = 0
    shortened: int = 0
    decisions_shortened: int = 0


@dataclass(frozen=True)
class RenderedGroup:
    """Rendered group of one window, episodes in order of agent id.

    ``context`` are sentences on the hour's outcome, ``common`` the numbered lines that episodes name, ``max_episodes`` the number that fits
    one request, ``input_version`` the hash of all that is shown and of the rubric. ``context_flags`` are suspicions in news, questions and
    the market's names. ``masked`` is the group without flagged passages, None where that shows the same.
    """

    window: str
    context: tuple[str, ...]
    common: str
    episodes: tuple[RenderedEpisode, ...]
    input_version: str
    max_episodes: int = 16
    context_flags: tuple[Flag, ...] = ()
    masked: "RenderedGroup | None" = None

    @property
    def judged(self) -> tuple["RenderedGroup", ...]:
        """Forms of the group to judge: as it is, and with flagged passages masked."""
        return (self,) if self.masked is None else (self, self.masked)

    @property
    def left_out(self) -> int:
        """Steps left out, over all episodes."""
        return sum(episode.left_out for episode in self.episodes)

    @property
    def steps(self) -> int:
        """Steps of all episodes."""
        return sum(episode.steps for episode in self.episodes)

    @property
    def shortened(self) -> int:
        """Steps not shown in full, those left out included."""
        return sum(episode.shortened for episode in self.episodes)

    @property
    def decisions_shortened(self) -> int:
        """Successful trades among the shortened steps."""
        return sum(episode.decisions_shortened for episode in self.episodes)

    @property
    def flags(self) -> dict[str, tuple[Flag, ...]]:
        """Flags by agent id; agents without flags are absent."""
        return {episode.agent_id: episode.flags for episode in self.episodes if episode.flags}


def episodes_per_request(group: RenderedGroup, settings: Settings) -> int:
    """Largest number of a group's episodes in one request."""
    return max(MIN_SUBGROUP, min(group.max_episodes, settings.judge_group_size))
