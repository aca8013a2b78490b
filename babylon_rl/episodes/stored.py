"""Conversion of an hour's reading into rows of babylon_rl.windows, episodes and rejections."""

from datetime import datetime

from babylon_rl.episodes.summary import group_version, state, summary
from babylon_rl.episodes.types import Episode, WindowReading
from babylon_rl.store.windows import StoredEpisode, StoredRejection, StoredWindow


def stored(reading: WindowReading, judged: str | None, now: datetime) -> StoredWindow:
    """Return the rows of ``reading``.

    ``judged`` is the group version behind the hour's scores, None without scores.
    """
    # Scored only if the scores were made from the present group. The store keeps a quarantine that it already has.
    facts = summary(reading, now)
    version = group_version(reading)
    return StoredWindow(
        window=reading.window,
        rows=facts.rows,
        eligible=facts.eligible,
        new_trainable=facts.new_trainable,
        agents=facts.agents,
        usable_episodes=facts.usable_episodes,
        ready=facts.ready,
        state=state(facts, scored=judged is not None and judged == version, quarantined=False),
        rejected=facts.rejected,
        message_sources=facts.message_sources,
        avg_pnl=facts.avg_pnl,
        trainable_sequences=facts.trainable_sequences,
        quality=facts.quality,
        data_version=facts.data_version,
        group_version=version,
        episodes=[_stored_episode(episode) for episode in reading.episodes],
        rejections=[StoredRejection(rejection.trajectory_id, rejection.reason, rejection.detail) for rejection in reading.rejections],
    )


def _stored_episode(episode: Episode) -> StoredEpisode:
    return StoredEpisode(
        agent_id=episode.agent_id,
        trajectory_ids=list(episode.trajectory_ids),
        used_ids=list(episode.used_ids),
        steps=episode.steps,
        start_pnl=episode.start_pnl,
        end_pnl=episode.end_pnl,
        window_pnl=episode.window_pnl,
        wins=episode.wins,
        losses=episode.losses,
        win_rate=episode.win_rate,
        trades=episode.trades,
        posts=episode.posts,
        message_sources=episode.message_sources,
        usable=episode.usable,
        trainable_sequences=episode.trainable_sequences,
        actions=episode.actions,
        content=episode.content,
    )
