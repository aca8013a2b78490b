"""Trajectories into episodes: everything one agent did in one window, in order of (startTime, trajectoryId).

Pure and independent of the order in which rows arrive: the same rows give the same bytes.
"""

from collections import Counter
from collections.abc import Iterable
from itertools import groupby

from babylon_rl.episodes.types import MESSAGE_SOURCES, Episode, Trajectory
from babylon_rl.versions import content_version


def stitch(trajectories: Iterable[Trajectory], min_steps: int) -> tuple[Episode, ...]:
    """The episodes of one window in order of agent id; ``min_steps`` makes one usable."""
    ordered = sorted(trajectories, key=lambda row: (row.agent_id, row.start_time, row.trajectory_id))
    return tuple(_episode(list(own), min_steps) for _, own in groupby(ordered, key=lambda row: row.agent_id))


def _episode(own: list[Trajectory], min_steps: int) -> Episode:
    sources = Counter(row.message_source for row in own)
    actions: Counter[str] = Counter()
    for row in own:
        actions.update(row.actions)
    steps = sum(row.steps for row in own)
    return Episode(
        window=own[0].window,
        agent_id=own[0].agent_id,
        trajectory_ids=tuple(row.trajectory_id for row in own),
        used_ids=tuple(row.trajectory_id for row in own if row.used),
        steps=steps,
        start_pnl=own[0].start_pnl,
        end_pnl=own[-1].end_pnl,
        wins=sum(row.delta > 0 for row in own),
        losses=sum(row.delta < 0 for row in own),
        trades=sum(row.trades for row in own),
        posts=sum(row.posts for row in own),
        message_sources={source: sources[source] for source in MESSAGE_SOURCES},
        actions=dict(sorted(actions.items())),
        usable=steps >= min_steps,
        trainable_sequences=sum(row.trainable_sequences for row in own),
        content=content_version([[row.trajectory_id, row.content] for row in own]),
        sequences=tuple(sequence for row in own for sequence in row.sequences),
    )
