"""Reading of hours: every row counted, decoded or rejected, stitched into episodes, and summed up.

An episode is everything one agent did in one window, in order of (startTime, trajectoryId): the same rows give the same bytes in whatever
order they arrive. Rows are reduced as they stream in, so that an hour needs the memory of its results, not of its texts (unless the texts
are requested). ``sync_windows`` keeps babylon_rl.windows, episodes and rejections equal to that reading.
"""

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import TypeVar

from msgspec import structs

from babylon_rl.episodes.decode import Decoded, Fault, decode
from babylon_rl.episodes.trajectories import (
    LEAST_STAKE_USD,
    MOST_LEVERAGE,
    SequenceRules,
    StepPlaces,
    embedded_sequences,
    reduced,
    synthetic_sequences,
    with_logs,
)
from babylon_rl.settings import HourSettings, Settings, TrainingSettings
from babylon_rl.store import scores
from babylon_rl.store.batches import BatchEpisode
from babylon_rl.store.columns import UNSTORABLE, portions
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_inputs import keep_names
from babylon_rl.store.trajectories import TrajectoryRow, call_log_rows, trajectories_by_id, trajectory_rows
from babylon_rl.store.windows import lock_windows, quarantined, reading_chunks, replace_hours
from babylon_rl.types import (
    MESSAGE_SOURCES,
    Episode,
    HourEpisodes,
    HourQuality,
    Rejection,
    Trajectory,
    WindowReading,
    WindowState,
    WindowSummary,
    count_reasons,
    difference,
)
from babylon_rl.versions import content_version
from babylon_rl.windows import is_complete, window_start


def by_agent(trajectories: Iterable[Trajectory]) -> list[list[Trajectory]]:
    """Group trajectories by agent, in order of agent id. Each group is in order of (startTime, trajectoryId)."""
    ordered = sorted(trajectories, key=attrgetter("agent_id", "start_time", "trajectory_id"))
    return [list(own) for _, own in groupby(ordered, key=attrgetter("agent_id"))]


def episode(own: Sequence[Trajectory], min_steps: int) -> Episode:
    """Join one agent's trajectories in one window; ``own`` is in order."""
    sources = Counter([row.message_source for row in own])
    actions: Counter[str] = Counter()
    for row in own:
        actions.update(row.actions)
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
        actions=dict(sorted(actions.items())),  # so that the same rows give the same bytes
        usable=steps >= min_steps,
        trainable_sequences=sum([row.trainable_sequences for row in own]),
        content=content_version([[row.trajectory_id, row.content] for row in own]),
        sequences=tuple(sequence for row in own for sequence in row.sequences),
        minutes=tuple(sorted((minute for row in own for minute in row.minutes), key=attrgetter("minute"))),
    )


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
        avg_pnl=math.fsum(pnls) / len(pnls) if pnls else None,
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


def data_version(reading: WindowReading) -> str:
    """Hash the content of the hour. It does not change when rows are marked as used in training."""
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
    """Hash the content of the group to be judged: its usable episodes. Empty for a window that is not ready."""
    if not reading.ready:
        return ""
    return content_version(
        [[e.agent_id, e.trajectory_ids, e.content, e.start_pnl, e.end_pnl, e.wins, e.losses, e.steps] for e in reading.usable_episodes]
    )


MOST_NAMED = 20  # ids in a list
_LOG_CHUNK = 1000  # trajectories per query for log rows
TEXTS_AT_ONCE = 250  # trajectories whose texts are held


_E = TypeVar("_E", Episode, BatchEpisode)
OnRow = Callable[[TrajectoryRow, Decoded | Fault], None]


@dataclass
class _WindowRows:
    rows: int = 0
    trajectories: list[Trajectory] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    other_lengths: int = 0

    def count(self, row: TrajectoryRow, content: Decoded | Fault) -> None:
        self.rows += 1
        self.other_lengths += row.window_hours != 1
        if isinstance(content, Fault):
            # A detail may quote the row, and Postgres stores no NUL in a text.
            self.rejections.append(Rejection(row.window, row.trajectory_id, content.reason, content.detail.replace("\0", UNSTORABLE)))


def read_window(connection: Connection, window: str, settings: Settings, *, texts: bool = True) -> WindowReading:
    """Read one hour as ``read_windows``; ``texts=False`` leaves the sequences out (they are still counted)."""
    return read_windows(connection, [window], settings, texts=texts)[window]


def read_windows(connection: Connection, windows: Iterable[str], settings: Settings, *, texts: bool = False) -> dict[str, WindowReading]:
    """Read many hours with one query, by window in order, empty hours included. Raises UsageError: one of ``windows`` is no window id."""
    ordered = _checked(windows)
    hours = {window: _WindowRows() for window in ordered}
    rows = trajectory_rows(connection, ordered)
    for trajectory in _eligible(connection, rows, settings, texts, lambda row, content: hours[row.window].count(row, content)):
        hours[trajectory.window].trajectories.append(trajectory)
    return {window: _reading(window, hour, settings) for window, hour in hours.items()}


def stream_trajectories(
    connection: Connection, windows: Iterable[str], settings: TrainingSettings, on_row: OnRow | None = None
) -> Generator[Trajectory]:
    """Yield the eligible trajectories of some hours with their sequences, in no particular order. Each row is shown to ``on_row`` first.

    Nothing is kept of a trajectory that was yielded, so memory does not grow with the hours' texts. The connection is busy until the
    iterator is exhausted; closing it earlier aborts the transaction.
    """
    return _eligible(connection, trajectory_rows(connection, _checked(windows)), settings, True, on_row)


def trajectories_with_texts(connection: Connection, trajectory_ids: Sequence[str], settings: TrainingSettings) -> dict[str, Trajectory]:
    """Return the eligible ones of the given trajectories with their sequences, by id."""
    rows = trajectories_by_id(connection, trajectory_ids)
    return {trajectory.trajectory_id: trajectory for trajectory in _eligible(connection, rows, settings, True)}


def by_rows(episodes: Iterable[_E]) -> Iterator[list[_E]]:
    """Split episodes, in order, into lists of at most TEXTS_AT_ONCE trajectories. An episode with more trajectories forms its own list."""
    return portions(episodes, lambda own: len(own.trajectory_ids), TEXTS_AT_ONCE)


def _checked(windows: Iterable[str]) -> list[str]:
    # window_start raises UsageError for anything that is no window id
    return sorted(sorted(set(windows)), key=window_start)


def _eligible(
    connection: Connection, rows: Iterable[TrajectoryRow], settings: TrainingSettings, texts: bool, on_row: OnRow | None = None
) -> Generator[Trajectory]:
    rules = SequenceRules(settings.purposes_g, settings.train_synthetic)
    without_calls: list[tuple[Trajectory, StepPlaces]] = []
    for row in rows:
        result = _decoded(row, rules, texts, on_row)
        if isinstance(result, Trajectory):
            yield result
        elif result is not None:
            without_calls.append(result)
    # Trajectories without calls in their steps wait until the row stream ends: the connection can answer no other query before.
    while without_calls:
        # Taken off the end, so that what has been completed is let go.
        portion, without_calls[-_LOG_CHUNK:] = without_calls[-_LOG_CHUNK:], []
        yield from _completed(connection, portion, rules, texts)


def _decoded(
    row: TrajectoryRow, rules: SequenceRules, texts: bool, on_row: OnRow | None
) -> Trajectory | tuple[Trajectory, StepPlaces] | None:
    """A function of its own, so that a row's steps are let go before the next row is decoded."""
    decoded = decode(row, texts=texts)
    if on_row is not None:
        on_row(row, decoded)
    if isinstance(decoded, Fault):
        return None
    trajectory = reduced(row, decoded, rules)
    if trajectory.message_source != "embedded":
        return trajectory, StepPlaces.of(decoded.recorded)
    return embedded_sequences(trajectory, decoded.completed, rules) if texts else trajectory


def _completed(
    connection: Connection, portion: list[tuple[Trajectory, StepPlaces]], rules: SequenceRules, texts: bool
) -> Iterator[Trajectory]:
    """Yield trajectories with the calls of the log; else with texts made of their steps, if these train; else as they are."""
    remaining = {trajectory.trajectory_id: (trajectory, places) for trajectory, places in portion}
    for trajectory_id, logs in groupby(call_log_rows(connection, list(remaining)), key=lambda log: log.trajectory_id):
        yield with_logs(*remaining.pop(trajectory_id), list(logs), rules, texts=texts)
    # Their steps were not kept, so these rows are read once more; only TRAIN_SYNTHETIC costs that.
    if texts and rules.train_synthetic:
        for row in trajectories_by_id(connection, list(remaining)):
            decoded = decode(row)
            if not isinstance(decoded, Fault):
                yield synthetic_sequences(remaining.pop(row.trajectory_id)[0], decoded.completed)
    yield from (trajectory for trajectory, _ in remaining.values())


def _reading(window: str, hour: _WindowRows, settings: HourSettings) -> WindowReading:
    agents = by_agent(hour.trajectories)
    return WindowReading(
        window=window,
        rows=hour.rows,
        episodes=tuple(episode(own, settings.min_actions_per_trajectory) for own in agents),
        rejections=tuple(sorted(hour.rejections, key=attrgetter("trajectory_id"))),
        min_agents=settings.min_agents_per_window,
        quality=hour_quality(agents, hour.other_lengths),
    )


def hour_quality(agents: Sequence[Sequence[Trajectory]], other_lengths: int) -> HourQuality:
    """Count the odd rows among one hour's eligible trajectories, by agent; ``other_lengths`` counts rows of another length than 1 h."""
    duplicates = [trajectory_id for own in agents for trajectory_id in _repeated(own)]
    # Jumps within a row were found while it was reduced; here the end of each row is compared with the start of the next.
    jumping = [own[0].agent_id for own in agents if any([row.jumped for row in own]) or any(map(_jumps_between, own, own[1:]))]
    skewed = [row.trajectory_id for own in agents for row in own if row.skewed]
    judged = [row.short_prompts for own in agents for row in own if row.short_prompts is not None]
    return HourQuality(
        short_prompts=sum(judged),
        prompts=len(judged),
        duplicates=tuple(sorted(duplicates)[:MOST_NAMED]),
        duplicate_rows=len(duplicates),
        clock_skew=tuple(sorted(skewed)[:MOST_NAMED]),
        skewed_rows=len(skewed),
        pnl_jumps=tuple(jumping[:MOST_NAMED]),
        jumping_agents=len(jumping),
        other_lengths=other_lengths,
    )


def _repeated(own: Iterable[Trajectory]) -> list[str]:
    """Ids of the trajectories that recorded the same steps as one before them."""
    first: dict[str, Trajectory] = {}
    return [row.trajectory_id for row in own if first.setdefault(row.recorded, row) is not row]


def _jumps_between(before: Trajectory, after: Trajectory) -> bool:
    return abs(after.start_pnl - before.end_pnl) > MOST_LEVERAGE * max(before.stake, LEAST_STAKE_USD)


def sync_windows(connection: Connection, windows: Iterable[str], settings: Settings, now: datetime) -> dict[str, WindowSummary]:
    """Bring our tables up to date for ``windows``, and return a summary of each, in order; ``changed`` ones were written by this call.

    Hours are written whole or not at all: up to HOURS_READ_AT_ONCE of them in one transaction, under each hour's lock. An hour without rows
    leaves nothing behind, and scores of a changed group are marked stale. ``connection`` should not be inside a transaction, which would
    delay the commit. Raises UsageError: one of ``windows`` is not a window id.
    """
    summaries: dict[str, WindowSummary] = {}
    for portion in reading_chunks(connection, windows):
        with connection.transaction():
            lock_windows(connection, portion)
            # Read under the lock, so that two runs cannot write an older reading over a newer one.
            readings = read_windows(connection, portion, settings)
            judged, set_aside = scores.input_versions(connection, portion), quarantined(connection, portion)
            hours = {
                window: summary(reading, now, judged=judged.get(window), quarantined=window in set_aside)
                for window, reading in readings.items()
            }
            keep_names(connection, sorted({episode.agent_id for reading in readings.values() for episode in reading.episodes}))
            # One transaction: the rows of the hour and the staleness of its scores change together.
            written = replace_hours(connection, [(hours[window], reading) for window, reading in readings.items()], now)
            scores.mark_stale(connection, {window: hour.group_version for window, hour in hours.items()})
            summaries |= {window: structs.replace(hour, changed=window in written) for window, hour in hours.items()}
    return summaries
