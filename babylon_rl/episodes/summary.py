"""Summary of an hour's reading in numbers, and its content hash.

Tables, metadata and reports show the same summary.
"""

import math
from datetime import datetime

from babylon_rl.types import MESSAGE_SOURCES, HourEpisodes, WindowReading, WindowState, WindowSummary, count_reasons
from babylon_rl.versions import content_version
from babylon_rl.windows import is_complete


def summary(reading: WindowReading, now: datetime, *, judged: str | None = None, quarantined: bool = False) -> WindowSummary:
    """Return the numbers of ``reading``; completeness is decided at ``now`` (naive UTC).

    ``judged`` is the version of the group from which the hour's scores were made, None without scores: the hour is scored only if its
    group is still that one. ``quarantined`` says that the judge could not score it.
    """
    episodes, group = reading.episodes, group_version(reading)
    pnls = [episode.window_pnl for episode in episodes]
    return WindowSummary(
        window=reading.window,
        rows=reading.rows,
        eligible=reading.eligible,
        new_trainable=reading.new_trainable,
        agents=len(episodes),
        episodes=len(episodes),
        usable_episodes=len(reading.usable_episodes),
        ready=reading.ready,
        state=_state(reading, is_complete(reading.window, now), judged == group, quarantined),
        rejected=count_reasons(reading.rejections),
        message_sources={source: sum(episode.message_sources[source] for episode in episodes) for source in MESSAGE_SOURCES},
        avg_pnl=_mean(pnls) if pnls else None,
        trainable_sequences=sum(episode.trainable_sequences for episode in episodes),
        quality=reading.quality,
        data_version=data_version(reading),
        group_version=group,
    )


def _state(reading: WindowReading, complete: bool, scored: bool, quarantined: bool) -> WindowState:
    """Return the state of a window; the later stage wins, and quarantine over all."""
    if quarantined:
        return "quarantined"
    if not complete:
        return "pending"
    if any(episode.used for episode in reading.episodes):
        return "trained"
    if scored:
        return "scored"
    return "ready" if reading.ready else "thin"


def _mean(numbers: list[float]) -> float:
    try:
        return math.fsum(numbers) / len(numbers)
    except OverflowError:
        # The sum of finite numbers can exceed a float where their mean does not.
        return math.fsum(number / len(numbers) for number in numbers)


def data_version(reading: WindowReading) -> str:
    """Hash the content of the hour.

    It does not change when rows are marked as used in training.
    """
    episodes = [
        [
            episode.agent_id,
            episode.trajectory_ids,
            episode.content,
            episode.steps,
            episode.start_pnl,
            episode.end_pnl,
            episode.wins,
            episode.losses,
            episode.trades,
            episode.posts,
            episode.usable,
            episode.trainable_sequences,
        ]
        for episode in reading.episodes
    ]
    # Flags of use in training are left out on purpose.
    rejections = [[rejection.trajectory_id, rejection.reason, rejection.detail] for rejection in reading.rejections]
    return content_version([reading.window, reading.rows, reading.ready, episodes, rejections])


def group_version(reading: HourEpisodes) -> str:
    """Hash the content of the group to be judged: its usable episodes.

    Empty for a window that is not ready.
    """
    if not reading.ready:
        return ""
    return content_version(
        [[e.agent_id, e.trajectory_ids, e.content, e.start_pnl, e.end_pnl, e.wins, e.losses, e.steps] for e in reading.usable_episodes]
    )
