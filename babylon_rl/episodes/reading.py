"""Hours out of the database: every row counted, decoded or rejected, and stitched into episodes.

Rows are reduced as they stream in, so that an hour needs the memory of its results, not of its texts (unless the texts
are asked for). ``sync_windows`` keeps babylon_rl.windows, episodes and rejections equal to that reading.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from babylon_rl.episodes import messages
from babylon_rl.episodes.decode import Fault, Step, decode
from babylon_rl.episodes.reduce import UNSTORABLE, digest, log_bytes, reduced
from babylon_rl.episodes.stitch import stitch
from babylon_rl.episodes.summary import group_version, state, summary
from babylon_rl.episodes.types import Episode, MessageSource, Rejection, Trajectory, WindowReading, WindowSummary
from babylon_rl.settings import Settings
from babylon_rl.store import scores, window_groups
from babylon_rl.store.trajectories import CallLogRow, Connection, TrajectoryRow, call_log_rows, trajectory_rows
from babylon_rl.store.window_groups import StoredEpisode, StoredRejection, StoredWindow, chunks, lock_windows

_LOG_CHUNK = 500  # trajectories whose log rows are held at once


@dataclass
class _Gathered:
    """What has been seen of one window so far."""

    rows: int = 0
    trajectories: list[Trajectory] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    odd_hours: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Silent:
    """An eligible row whose steps hold no call; its calls may be in llm_call_logs."""

    row: TrajectoryRow
    steps: list[Step]


def read_window(connection: Connection, window: str, settings: Settings, *, texts: bool = True) -> WindowReading:
    """Read one hour; ``texts=False`` leaves the sequences out (they are still counted).

    Raises:
        UsageError: ``window`` is not a window id.
    """
    return read_windows(connection, [window], settings, texts=texts)[window]


def read_windows(connection: Connection, windows: Iterable[str], settings: Settings, *, texts: bool = False) -> dict[str, WindowReading]:
    """Read many hours with one query for all of them; the keys are ``windows`` in order, empty hours included.

    Raises:
        UsageError: one of them is not a window id.
    """
    wanted = sorted(set(windows))
    gathered: dict[str, _Gathered] = {window: _Gathered() for window in wanted}
    silent: list[_Silent] = []
    for row in trajectory_rows(connection, wanted):
        _take(row, gathered[row.window], silent, settings, texts)
    for start in range(0, len(silent), _LOG_CHUNK):
        _take_logged(connection, silent[start : start + _LOG_CHUNK], gathered, settings, texts)
    return {window: _reading(window, found, settings) for window, found in gathered.items()}


def _reading(window: str, found: _Gathered, settings: Settings) -> WindowReading:
    episodes = stitch(found.trajectories, settings.min_actions_per_trajectory)
    rejections = tuple(sorted(found.rejections, key=lambda rejection: rejection.trajectory_id))
    return WindowReading(window, found.rows, episodes, rejections, settings.min_agents_per_window, tuple(sorted(found.odd_hours)))


def _take(row: TrajectoryRow, found: _Gathered, silent: list[_Silent], settings: Settings, texts: bool) -> None:
    found.rows += 1
    if row.window_hours != 1:
        found.odd_hours.append(row.trajectory_id)
    steps = decode(row)
    if isinstance(steps, Fault):
        found.rejections.append(Rejection(row.trajectory_id, row.window, steps.reason, steps.detail.replace("\0", UNSTORABLE)))
        return
    calls = [messages.embedded_calls(step) for step in steps]
    if any(calls):
        found.trajectories.append(reduced(row, steps, calls, "embedded", digest(row.steps_json), settings, texts))
    else:
        silent.append(_Silent(row, steps))


def _take_logged(connection: Connection, silent: list[_Silent], gathered: dict[str, _Gathered], settings: Settings, texts: bool) -> None:
    logs: defaultdict[str, list[CallLogRow]] = defaultdict(list)
    for log in call_log_rows(connection, [entry.row.trajectory_id for entry in silent]):
        logs[log.trajectory_id].append(log)
    for entry in silent:
        row, rows = entry.row, logs.get(entry.row.trajectory_id, [])
        source: MessageSource = "llm_call_logs" if rows else "synthetic"
        calls = messages.logged_calls(rows, row.trajectory_id, entry.steps)
        content = digest(row.steps_json, *(log_bytes(log) for log in sorted(rows, key=lambda log: (log.timestamp, log.call_id))))
        gathered[row.window].trajectories.append(reduced(row, entry.steps, calls, source, content, settings, texts))


def sync_windows(connection: Connection, windows: Iterable[str], settings: Settings, now: datetime) -> dict[str, WindowSummary]:
    """Bring our tables up to date for some hours; unchanged rows are not touched.

    Hours are written whole or not at all: up to a week of them in one transaction, under each hour's lock. An hour without
    rows leaves nothing behind, and scores of a group that changed are marked stale. ``connection`` should not be inside a
    transaction, which would put off the commit.

    Returns:
        A summary per window, in order; ``changed`` says whether this call wrote it.

    Raises:
        UsageError: one of ``windows`` is not a window id.
    """
    summaries: dict[str, WindowSummary] = {}
    for some in chunks(windows):
        with connection.transaction():
            lock_windows(connection, some)
            readings = read_windows(connection, some, settings)
            judged = scores.input_versions(connection, some)
            stored = [_stored(reading, judged.get(window), now) for window, reading in readings.items()]
            written = window_groups.replace(connection, stored, now)
            scores.mark_stale(connection, {window: group_version(reading) for window, reading in readings.items()})
            summaries |= {window: summary(reading, now, changed=window in written) for window, reading in readings.items()}
    return summaries


def _stored(reading: WindowReading, judged: str | None, now: datetime) -> StoredWindow:
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
        data_version=facts.data_version,
        group_version=version,
        episodes=[_stored_episode(episode) for episode in reading.episodes],
        rejections=[StoredRejection(found.trajectory_id, found.reason, found.detail) for found in reading.rejections],
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
