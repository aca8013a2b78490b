"""Stitching of trajectories into episodes.

An episode is everything one agent did in one window, in order of (startTime, trajectoryId). Pure and independent of the order in which
rows arrive: the same rows give the same bytes.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from operator import attrgetter

from babylon_rl.types import MESSAGE_SOURCES, Episode, Trajectory, difference
from babylon_rl.versions import content_version

_IN_TIME = attrgetter("start_time", "trajectory_id")


def by_agent(trajectories: Iterable[Trajectory]) -> list[list[Trajectory]]:
    """Group trajectories by agent, in order of agent id.

    Each group is in order of (startTime, trajectoryId).
    """
    agents: defaultdict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        agents[trajectory.agent_id].append(trajectory)
    return [sorted(agents[agent], key=_IN_TIME) for agent in sorted(agents)]


def episode(own: Sequence[Trajectory], min_steps: int) -> Episode:
    """Join one agent's trajectories in one window; ``own`` is in order."""
    sources = Counter([row.message_source for row in own])
    # Sorted before it is stored, so that the same rows give the same bytes.
    actions: dict[str, int] = {}
    for row in own:
        for name, number in row.actions.items():
            actions[name] = actions.get(name, 0) + number
    steps = sum([row.steps for row in own])
    # A row counts as won or lost by its own change; one that changed nothing is neither.
    deltas = [row.delta for row in own]
    wins, losses = sum([delta > 0 for delta in deltas]), sum([delta < 0 for delta in deltas])
    return Episode(
        window=own[0].window,
        agent_id=own[0].agent_id,
        trajectory_ids=tuple(row.trajectory_id for row in own),
        used_ids=tuple(row.trajectory_id for row in own if row.used),
        steps=steps,
        start_pnl=own[0].start_pnl,
        end_pnl=own[-1].end_pnl,
        window_pnl=difference(own[-1].end_pnl, own[0].start_pnl),
        wins=wins,
        losses=losses,
        win_rate=wins / (wins + losses) if wins + losses else None,
        trades=sum([row.trades for row in own]),
        posts=sum([row.posts for row in own]),
        message_sources={source: sources[source] for source in MESSAGE_SOURCES},
        actions=dict(sorted(actions.items())),
        usable=steps >= min_steps,
        trainable_sequences=sum([row.trainable_sequences for row in own]),
        content=content_version([[row.trajectory_id, row.content] for row in own]),
        sequences=tuple(sequence for row in own for sequence in row.sequences),
    )
