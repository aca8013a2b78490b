"""Reading needs the memory of its results, whatever the texts are, and hands out the same trajectories one at a time."""

import tracemalloc
from datetime import timedelta
from typing import Any

import pytest

from babylon_rl.episodes.reading import read_window, read_windows, stream_trajectories, sync_windows
from babylon_rl.errors import UsageError
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.windows import HOURS_READ_AT_ONCE, ROWS_READ_AT_ONCE, reading_chunks
from babylon_rl.windows import window_of
from babylon_rl_tests.rows import AFTER, START, WINDOW, insert, make_call, make_log, make_step, make_trajectory

ROWS = 3000
PEAK_BYTES = 12_000_000  # the texts are 78 MB

_COPIES = """
    INSERT INTO trajectories (id, "trajectoryId", "agentId", "startTime", "endTime", "durationMs", "windowId", "stepsJson",
        "rewardComponentsJson", "metricsJson", "metadataJson", "totalReward", "episodeLength", "finalStatus", "updatedAt")
    SELECT 'copy-' || n, 'copy-' || n, "agentId", "startTime", "endTime", "durationMs", "windowId", "stepsJson",
        "rewardComponentsJson", "metricsJson", "metadataJson", "totalReward", "episodeLength", "finalStatus", "updatedAt"
    FROM trajectories, generate_series(1, %s) n WHERE "trajectoryId" = 't1'
"""


@pytest.mark.long
@pytest.mark.parametrize("calls", [(), (make_call(),)])
@pytest.mark.parametrize("streamed", [False, True])
def test_memory_does_not_grow_with_the_texts(connection: Connection, settings: Settings, calls: Any, streamed: bool) -> None:
    insert(connection, "trajectories", [make_trajectory(steps=[make_step(calls=calls, observation="x" * 26_000)])])
    connection.execute(_COPIES, (ROWS,))
    tracemalloc.start()
    try:
        if streamed:
            rows = sum(1 for _ in stream_trajectories(connection, [WINDOW], settings))
        else:
            rows = sync_windows(connection, [WINDOW], settings, AFTER)[WINDOW].eligible
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == ROWS + 1
    assert peak < PEAK_BYTES


def mixture(connection: Connection) -> None:
    """Two hours with every message source, rejected rows, and a step that never ended."""
    silent = [make_step(0), make_step(1, action="pending"), make_step(2, action="CREATE_POST")]
    rows = []
    for number in range(40):
        kinds = [{}, {"steps": silent}, {"steps": "["}, {"isEvaluation": True}, {"steps": silent, "windowId": None, "minute": 70.0}]
        rows.append(make_trajectory(f"t{number:02}", f"agent-{number % 3}", **kinds[number % 5]))
    insert(connection, "trajectories", rows)
    insert(connection, "llm_call_logs", [make_log(f"t{number:02}", call) for number in range(0, 40, 3) for call in range(2)])


@pytest.mark.parametrize("train_synthetic", [False, True])
def test_a_stream_is_what_the_hours_hold(connection: Connection, settings: Settings, train_synthetic: bool) -> None:
    mixture(connection)
    chosen = settings.model_copy(update={"train_synthetic": train_synthetic})
    windows = [WINDOW, "2025-11-15T11:00", "2025-11-15T12:00"]
    streamed = sorted(
        stream_trajectories(connection, windows, chosen), key=lambda found: (found.agent_id, found.start_time, found.trajectory_id)
    )
    readings = read_windows(connection, windows, chosen, texts=True)
    episodes = [episode for reading in readings.values() for episode in reading.episodes]
    for episode in episodes:
        own = [found for found in streamed if (found.window, found.agent_id) == (episode.window, episode.agent_id)]
        assert tuple(found.trajectory_id for found in own) == episode.trajectory_ids
        assert tuple(sequence for found in own for sequence in found.sequences) == episode.sequences
    assert len(streamed) == sum(reading.eligible for reading in readings.values()) == 24
    assert {found.message_source for found in streamed} == {"embedded", "llm_call_logs", "synthetic"}


@pytest.mark.parametrize("train_synthetic", [False, True])
def test_numbers_are_the_same_with_and_without_texts(connection: Connection, settings: Settings, train_synthetic: bool) -> None:
    mixture(connection)
    chosen = settings.model_copy(update={"train_synthetic": train_synthetic})
    told, counted = (read_window(connection, WINDOW, chosen, texts=texts) for texts in (True, False))
    assert [e.trainable_sequences for e in counted.episodes] == [len(e.sequences) for e in told.episodes]
    assert [e.content for e in counted.episodes] == [e.content for e in told.episodes]
    assert (counted.rejections, counted.quality) == (told.rejections, told.quality)
    assert all(episode.sequences == () for episode in counted.episodes)


@pytest.mark.parametrize(
    "calls", [{"purpose": "other"}, {"purpose": ["action"]}, {"response": ""}, {"userPrompt": None}, {"response": 5}, {}]
)
@pytest.mark.parametrize("action", ["HOLD", "CREATE_POST"])
def test_what_is_counted_is_what_would_train(connection: Connection, settings: Settings, calls: dict[str, Any], action: str) -> None:
    steps = [
        make_step(0, action=action, calls=[make_call(**calls)]),
        make_step(1, action=action, calls=[make_call(purpose="other"), make_call(**calls)]),
    ]
    insert(connection, "trajectories", [make_trajectory(steps=steps)])
    (counted,) = read_window(connection, WINDOW, settings, texts=False).episodes
    (told,) = read_window(connection, WINDOW, settings).episodes
    assert counted.trainable_sequences == len(told.sequences)


def test_what_a_log_row_says_is_counted_as_it_would_train(connection: Connection, settings: Settings) -> None:
    insert(connection, "trajectories", [make_trajectory(steps=[make_step(action="CREATE_POST")])])
    messages = '[{"role": "user", "content": "U"}]'
    kinds = [{}, {"response": ""}, {"userPrompt": ""}, {"userPrompt": "", "messagesJson": messages}, {"purpose": "other"}]
    insert(connection, "llm_call_logs", [make_log("t1", number, **columns) for number, columns in enumerate(kinds)])
    (counted,) = read_window(connection, WINDOW, settings, texts=False).episodes
    (told,) = read_window(connection, WINDOW, settings).episodes
    assert counted.trainable_sequences == len(told.sequences) == 2


def test_a_stream_that_is_left_early_costs_the_transaction_and_no_more(connection: Connection, settings: Settings) -> None:
    mixture(connection)
    stream = stream_trajectories(connection, [WINDOW], settings)
    next(stream)
    stream.close()
    connection.rollback()
    assert connection.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("read", [read_windows, stream_trajectories])
def test_every_window_is_checked_before_anything_is_read(connection: Connection, settings: Settings, read: Any) -> None:
    with pytest.raises(UsageError, match="is not a window"):
        read(connection, ["2025-11-15T10:00", "2025-11-15T1x:00", "2025-11-15T12:00"], settings)


@pytest.mark.slow
def test_hours_are_read_in_runs_bounded_by_hours_and_rows(connection: Connection) -> None:
    insert(connection, "trajectories", [make_trajectory()])
    hours = [window_of(START + timedelta(hours=number)) for number in range(HOURS_READ_AT_ONCE + 5)]
    assert [len(chunk) for chunk in reading_chunks(connection, reversed(hours))] == [HOURS_READ_AT_ONCE, 5]
    assert reading_chunks(connection, hours[:720] * 2) == [hours[:720]]
    insert(connection, "trajectories", [make_trajectory(f"u{n}", windowId=hours[n]) for n in (1, 3)])
    connection.execute(_COPIES.replace("'t1'", "'u1'"), (ROWS_READ_AT_ONCE - 2,))
    assert [len(chunk) for chunk in reading_chunks(connection, hours[:5])] == [3, 2]
    assert reading_chunks(connection, []) == []


def test_a_profit_that_is_no_amount_of_dollars_is_rejected_and_loses_nothing_else(connection: Connection, settings: Settings) -> None:
    rows = [
        make_trajectory("t1", steps=[make_step(pnl=5)], finalPnL=1.7e308),
        make_trajectory("t2", "agent-2", steps=[make_step(pnl=-1.01e12)], finalPnL=20),
        make_trajectory("t5", "agent-5", steps=[make_step(pnl=-1e12)], finalPnL=1e12),
        make_trajectory("t3", "agent-3", steps=[make_step(timestamp=10**400)], startTime="-infinity", endTime="infinity"),
        make_trajectory("t4", "agent-4", finalPnL=float("inf")),
    ]
    insert(connection, "trajectories", rows)
    found = sync_windows(connection, [WINDOW], settings, AFTER)[WINDOW]
    assert (found.eligible, found.rejected) == (3, {"malformed_shape": 2})
    assert found.avg_pnl == pytest.approx(2e12 / 3, rel=0.01)
    details = connection.execute('SELECT "detail" FROM babylon_rl.rejections ORDER BY "trajectoryId"').fetchall()
    assert details == [("a P&L of 1.7e+308 dollars, more than 1e+12",), ("a P&L of -1.01e+12 dollars, more than 1e+12",)]
