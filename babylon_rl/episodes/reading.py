"""Reading of hours: every row counted, decoded or rejected, and stitched into episodes.

Rows are reduced as they stream in, so that an hour needs the memory of its results, not of its texts (unless the texts are requested).
``sync_windows`` keeps babylon_rl.windows, episodes and rejections equal to that reading.
"""

from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any, Protocol, TypeVar

from msgspec import structs

from babylon_rl.episodes.decode import Decoded, Fault, decode, decode_numbers
from babylon_rl.episodes.messages import SequenceRules, StepPlaces
from babylon_rl.episodes.quality import hour_quality
from babylon_rl.episodes.reduce import LoggedSteps, embedded_sequences, reduced, synthetic_sequences, with_logs
from babylon_rl.episodes.stitch import by_agent, episode
from babylon_rl.episodes.summary import summary
from babylon_rl.settings import HourSettings, Settings, TrainingSettings
from babylon_rl.store import scores
from babylon_rl.store.columns import UNSTORABLE
from babylon_rl.store.connection import Connection
from babylon_rl.store.judge_inputs import keep_names
from babylon_rl.store.trajectories import TrajectoryRow, call_log_rows, trajectories_by_id, trajectory_rows
from babylon_rl.store.windows import lock_windows, quarantined, reading_chunks, replace_hours
from babylon_rl.types import Rejection, Trajectory, WindowReading, WindowSummary
from babylon_rl.windows import window_start

_LOG_CHUNK = 1000  # trajectories per query for log rows
TEXTS_AT_ONCE = 250  # trajectories whose texts are held


class _HasRows(Protocol):
    @property
    def trajectory_ids(self) -> Sequence[str]: ...


E = TypeVar("E", bound=_HasRows)

OnRow = Callable[[TrajectoryRow, Trajectory | LoggedSteps | Fault], None]


@dataclass
class _WindowRows:
    """Rows of one window gathered so far."""

    rows: int = 0
    trajectories: list[Trajectory] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    odd_hours: list[str] = field(default_factory=list)

    def count(self, row: TrajectoryRow, content: Trajectory | LoggedSteps | Fault) -> None:
        """Count a row with its decoded content or fault."""
        self.rows += 1
        if row.window_hours != 1:
            self.odd_hours.append(row.trajectory_id)
        if isinstance(content, Fault):
            # A detail may quote the row, and Postgres stores no NUL in a text.
            self.rejections.append(Rejection(row.window, row.trajectory_id, content.reason, content.detail.replace("\0", UNSTORABLE)))


def read_window(connection: Connection, window: str, settings: Settings, *, texts: bool = True) -> WindowReading:
    """Read one hour; ``texts=False`` leaves the sequences out (they are still counted).

    Raises:
        UsageError: ``window`` is not a window id.
    """
    return read_windows(connection, [window], settings, texts=texts)[window]


def read_windows(connection: Connection, windows: Iterable[str], settings: Settings, *, texts: bool = False) -> dict[str, WindowReading]:
    """Read many hours with one query; the keys are ``windows`` in order.

    Empty hours are included.

    Raises:
        UsageError: one of them is not a window id.
    """
    ordered = _checked(windows)
    hours: dict[str, _WindowRows] = {window: _WindowRows() for window in ordered}
    rows = trajectory_rows(connection, ordered)
    for trajectory in _eligible(connection, rows, settings, lambda row, content: hours[row.window].count(row, content), texts):
        hours[trajectory.window].trajectories.append(trajectory)
    return {window: _reading(window, hour, settings) for window, hour in hours.items()}


def stream_trajectories(
    connection: Connection, windows: Iterable[str], settings: TrainingSettings, only: Container[str] | None = None
) -> Generator[Trajectory]:
    """Yield the eligible trajectories of some hours with their sequences.

    In no particular order; with ``only``, those with these ids. Nothing is kept of a trajectory that was yielded, so memory does not grow
    with the hours' texts. The connection is busy until the iterator is exhausted; closing it earlier aborts the transaction.

    Raises:
        UsageError: one of ``windows`` is not a window id.
    """
    rows = trajectory_rows(connection, _checked(windows))
    return _eligible(connection, (row for row in rows if only is None or row.trajectory_id in only), settings, None, True)


def trajectories_with_texts(connection: Connection, trajectory_ids: Sequence[str], settings: TrainingSettings) -> dict[str, Trajectory]:
    """Return the eligible ones of the given trajectories with their sequences, by id."""
    rows = trajectories_by_id(connection, trajectory_ids)
    return {trajectory.trajectory_id: trajectory for trajectory in _eligible(connection, rows, settings, None, True)}


def by_rows(episodes: Iterable[E]) -> Iterator[list[E]]:
    """Split episodes, in order, into lists of at most TEXTS_AT_ONCE trajectories.

    An episode with more trajectories forms its own list.
    """
    some: list[E] = []
    rows = 0
    for own in episodes:
        if some and rows + len(own.trajectory_ids) > TEXTS_AT_ONCE:
            yield some
            some, rows = [], 0
        some.append(own)
        rows += len(own.trajectory_ids)
    if some:
        yield some


def _checked(windows: Iterable[str]) -> list[str]:
    # window_start raises UsageError for anything that is no window id.
    ordered = sorted(set(windows))
    for window in ordered:
        window_start(window)
    return ordered


def _eligible(
    connection: Connection, rows: Iterable[TrajectoryRow], settings: TrainingSettings, on_row: OnRow | None, texts: bool
) -> Generator[Trajectory]:
    rules = SequenceRules.of(settings)
    without_calls: list[LoggedSteps] = []
    for row in rows:
        result = _decoded(row, rules, texts)
        if on_row is not None:
            on_row(row, result)
        if isinstance(result, Trajectory):
            yield result
        elif isinstance(result, LoggedSteps):
            without_calls.append(result)
    # Trajectories without calls in their steps wait until the row stream ends: the connection can answer no other query before.
    while without_calls:
        # Taken off the end, so that what has been completed is let go.
        portion, without_calls[-_LOG_CHUNK:] = without_calls[-_LOG_CHUNK:], []
        yield from _completed(connection, portion, rules, texts)


def _decoded(row: TrajectoryRow, rules: SequenceRules, texts: bool) -> Trajectory | LoggedSteps | Fault:
    # Texts are decoded only if they are requested.
    decoded: Decoded[Any] | Fault = decode(row) if texts else decode_numbers(row)
    if isinstance(decoded, Fault):
        return decoded
    trajectory = reduced(row, decoded, rules)
    # No call in the steps: the log is read later, for many trajectories at once.
    if trajectory.message_source != "embedded":
        return LoggedSteps(trajectory, StepPlaces.of(decoded.recorded))
    return embedded_sequences(trajectory, decoded.completed, rules) if texts else trajectory


def _completed(connection: Connection, portion: list[LoggedSteps], rules: SequenceRules, texts: bool) -> Iterator[Trajectory]:
    """Yield trajectories without calls in their steps, completed from other sources.

    With the calls of the log; else with texts made of their steps, if these train; else as they are.
    """
    remaining = {entry.trajectory.trajectory_id: entry for entry in portion}
    for trajectory_id, logs in groupby(call_log_rows(connection, list(remaining)), key=lambda log: log.trajectory_id):
        yield with_logs(remaining.pop(trajectory_id), list(logs), rules, texts=texts)
    # Their steps were not kept, so these rows are read once more; only TRAIN_SYNTHETIC costs that.
    if texts and rules.train_synthetic:
        for row in trajectories_by_id(connection, list(remaining)):
            decoded = decode(row)
            if not isinstance(decoded, Fault):
                yield synthetic_sequences(remaining.pop(row.trajectory_id).trajectory, decoded.completed)
    yield from (entry.trajectory for entry in remaining.values())


def _reading(window: str, hour: _WindowRows, settings: HourSettings) -> WindowReading:
    agents = by_agent(hour.trajectories)
    rejections = tuple(sorted(hour.rejections, key=lambda rejection: rejection.trajectory_id))
    return WindowReading(
        window=window,
        rows=hour.rows,
        episodes=tuple(episode(own, settings.min_actions_per_trajectory) for own in agents),
        rejections=rejections,
        min_agents=settings.min_agents_per_window,
        odd_hours=tuple(sorted(hour.odd_hours)),
        quality=hour_quality(agents, len(hour.odd_hours)),
    )


def sync_windows(connection: Connection, windows: Iterable[str], settings: Settings, now: datetime) -> dict[str, WindowSummary]:
    """Bring our tables up to date for ``windows``; unchanged rows are not touched.

    Hours are written whole or not at all: up to HOURS_READ_AT_ONCE of them in one transaction, under each hour's lock. An hour without rows
    leaves nothing behind, and scores of a changed group are marked stale. ``connection`` should not be inside a transaction, which would
    delay the commit.

    Returns:
        A summary per window, in order; ``changed`` says whether this call wrote it.

    Raises:
        UsageError: one of ``windows`` is not a window id.
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
