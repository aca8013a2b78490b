"""The recorder and a real database: whole trajectories from threads and tasks, the settings, and rows that it will not take."""

import asyncio
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import psycopg
import pytest

from babylon_rl.episodes.reading import read_window
from babylon_rl.errors import DatabaseError, DatabaseUnreachable, SchemaMismatch, UsageError
from babylon_rl.recorder import AsyncTrajectoryRecorder, RecorderReport, TrajectoryRecorder
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.recorder.builders import AGENTS, ASKED, connected, record_steps, stored, until
from babylon_rl_tests.rows import WINDOW


def test_a_trajectory_is_in_the_database_with_its_calls_when_the_block_is_left(game: Database, settings: Settings) -> None:
    with connected(game.url, settings) as recorder:
        with recorder.trajectory("agent-1") as begun:
            record_steps(recorder, begun, 3)
        with recorder.trajectory("agent-2", window="2025-11-15T09:00", scenario="benchmark-7") as other:
            recorder.end_trajectory(other, balance=1.0, pnl=2.0, evaluation=True, game_knowledge={"futureOutcomes": {"q": True}})
    assert stored(game) == {begun: ("agent-1", 3, 3), other: ("agent-2", 0, 0)}
    with game.connect() as connection:
        (row,) = connection.execute(
            'SELECT "windowId", "scenarioId", "isEvaluation", "finalPnL", "metadataJson" FROM trajectories WHERE "trajectoryId" = %s',
            (other,),
        ).fetchall()
        assert read_window(connection, WINDOW, settings).eligible == 1
    assert row[:4] == ("2025-11-15T09:00", "benchmark-7", True, 2.0)
    assert json.loads(row[4])["gameKnowledge"]["futureOutcomes"] == {"q": True}


def test_flush_returns_once_what_ended_is_in_the_database(game: Database, settings: Settings) -> None:
    with connected(game.url, settings) as recorder:
        with recorder.trajectory("agent-1") as begun:
            record_steps(recorder, begun, 1)
        recorder.flush()
        assert list(stored(game)) == [begun]
        assert recorder.report() == RecorderReport(recorded=1)


def test_agents_in_many_threads_share_one_recorder(game: Database, settings: Settings) -> None:
    expected = {}

    def agent(number: int) -> None:
        for turn in range(20):
            with recorder.trajectory(AGENTS[number]) as begun:
                record_steps(recorder, begun, 1 + (number + turn) % 3, prompt=f"{number} {turn}")
                expected[begun] = (AGENTS[number], 1 + (number + turn) % 3, 1 + (number + turn) % 3)

    with connected(game.url, settings, room=10) as recorder, ThreadPoolExecutor(len(AGENTS)) as pool:
        list(pool.map(agent, range(len(AGENTS))))
    assert len(expected) == 160
    assert stored(game) == expected


def test_agents_in_many_tasks_share_one_recorder(game: Database, settings: Settings) -> None:
    expected = {}

    async def agent(recorder: AsyncTrajectoryRecorder, number: int) -> None:
        for turn in range(20):
            async with recorder.trajectory(AGENTS[number]) as begun:
                record_steps(recorder, begun, 1 + turn % 2)
                await asyncio.sleep(0)
                expected[begun] = (AGENTS[number], 1 + turn % 2, 1 + turn % 2)

    async def play() -> RecorderReport:
        async with await AsyncTrajectoryRecorder.connect(game.url, settings=settings, room=5) as recorder:
            await asyncio.gather(*(agent(recorder, number) for number in range(len(AGENTS))))
            await recorder.flush()
            return recorder.report()

    assert asyncio.run(play()) == RecorderReport(recorded=160)
    assert stored(game) == expected


@pytest.mark.parametrize(
    ("raised", "status"), [(ValueError, "error"), (TimeoutError, "timeout"), (KeyboardInterrupt, "terminated"), (None, "completed")]
)
def test_a_block_left_by_an_exception_keeps_the_completed_steps(
    game: Database, settings: Settings, raised: type[BaseException] | None, status: str
) -> None:
    with connected(game.url, settings) as recorder:
        try:
            with recorder.trajectory("agent-1") as begun:
                record_steps(recorder, begun, 2)
                recorder.start_step(begun, balance=1.0, pnl=0.0, open_positions=0)
                if raised is not None:
                    raise raised
        except (ValueError, TimeoutError, KeyboardInterrupt):
            assert raised is not None
    assert stored(game) == {begun: ("agent-1", 2, 2)}
    with game.connect() as connection:
        assert connection.execute('SELECT "finalStatus", "finalPnL" FROM trajectories').fetchall() == [(status, None)]
        assert read_window(connection, WINDOW, settings).episodes[0].window_pnl == 1.0


def test_a_cancelled_task_ends_its_trajectory_as_terminated(game: Database, settings: Settings) -> None:
    async def agent(recorder: AsyncTrajectoryRecorder) -> None:
        async with recorder.trajectory("agent-1") as begun:
            record_steps(recorder, begun, 1)
            await asyncio.Event().wait()

    async def play() -> None:
        async with await AsyncTrajectoryRecorder.connect(game.url, settings=settings) as recorder:
            task = asyncio.create_task(agent(recorder))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(play())
    with game.connect() as connection:
        assert connection.execute('SELECT "finalStatus" FROM trajectories').fetchall() == [("terminated",)]


def test_an_agent_that_is_no_user_costs_its_own_trajectories_alone(
    game: Database, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = connected(game.url, settings)
    with game.connect() as held:
        held.execute("LOCK TABLE trajectories IN EXCLUSIVE MODE")  # so that all of them come to be one batch
        for number in range(60):
            with recorder.trajectory("stranger" if number in (7, 33, 34) else AGENTS[number % 8]) as begun:
                record_steps(recorder, begun, 1)
        held.rollback()
    report = recorder.close()
    assert (report.recorded, report.rejected, report.lost, report.unfinished) == (57, 3, 0, 0)
    assert len(stored(game)) == 57
    assert 'Agent stranger is not in "User"' in report.reasons[0] and 'Agent stranger is not in "User"' in caplog.text


def test_leaving_the_block_raises_when_something_was_not_recorded(game: Database, settings: Settings) -> None:
    with (
        pytest.raises(DatabaseError, match='0 trajectories recorded, 0 waiting, 1 rejected.*Agent stranger is not in "User"'),
        connected(game.url, settings) as recorder,
        recorder.trajectory("stranger") as begun,
    ):
        record_steps(recorder, begun, 1)


def test_an_error_of_the_agent_is_not_hidden_behind_what_was_not_recorded(game: Database, settings: Settings) -> None:
    with pytest.raises(ZeroDivisionError), connected(game.url, settings) as recorder, recorder.trajectory("stranger"):
        raise ZeroDivisionError


def test_an_id_that_comes_twice_is_rejected_and_the_first_row_stays(game: Database, settings: Settings) -> None:
    ids = iter(["t", "row-1", "t", "row-2"])
    with game.connect() as held:
        recorder = connected(game.url, settings, new_id=lambda: next(ids))
        held.execute("LOCK TABLE trajectories IN EXCLUSIVE MODE")
        for agent in ("agent-1", "agent-2"):
            recorder.end_trajectory(recorder.start_trajectory(agent))
        held.rollback()
    report = recorder.close()
    assert (report.recorded, report.rejected) == (1, 1)
    assert stored(game) == {"t": ("agent-1", 0, 0)}


def test_recording_switched_off_asks_no_database_and_takes_every_call(settings: Settings) -> None:
    off = settings.model_copy(update={"record_agent_trajectories": False})
    with TrajectoryRecorder.connect("postgresql://nobody@127.0.0.1:1/none", settings=off) as recorder:
        with recorder.trajectory("agent-1") as begun:
            record_steps(recorder, begun, 2)
            recorder.record_step(begun, environment_state={"balance": 1, "pnl": 1}, action={"type": "HOLD"}, reward=0, llm_calls=[ASKED])
        with pytest.raises(UsageError, match="is not open"):
            recorder.end_trajectory(begun)
        recorder.flush()
    assert recorder.report() == RecorderReport()


def test_the_sampling_rate_of_the_settings_is_kept(game: Database, settings: Settings) -> None:
    sampled = settings.model_copy(update={"trajectory_sampling_rate": 0.25})
    with connected(game.url, sampled) as recorder:
        for _ in range(200):
            with recorder.trajectory("agent-1") as begun:
                record_steps(recorder, begun, 1)
    assert 20 < len(stored(game)) < 90
    assert recorder.report().recorded == len(stored(game))


@pytest.mark.slow
def test_without_an_address_the_embedded_database_is_used(settings: Settings) -> None:
    with pytest.raises(SchemaMismatch, match="trajectories and llm_call_logs.*babylon-rl migrate"):
        TrajectoryRecorder.connect(settings=settings)


def test_an_address_where_nobody_answers_is_told_at_once(settings: Settings) -> None:
    with pytest.raises(DatabaseUnreachable, match="cannot be used"):
        TrajectoryRecorder.connect("postgresql://nobody@127.0.0.1:1/none", settings=settings)


def test_what_never_ended_is_counted_and_not_written(game: Database, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    recorder = connected(game.url, settings)
    record_steps(recorder, recorder.start_trajectory("agent-1"), 1)
    assert recorder.close() == RecorderReport(unfinished=1)
    assert "1 never ended" in caplog.text
    assert stored(game) == {}
    with pytest.raises(UsageError, match="closed"):
        recorder.end_trajectory(recorder.start_trajectory("agent-1"))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_told_to_make_its_own_recorder(game: Database, settings: Settings) -> None:
    recorder = connected(game.url, settings)
    begun = recorder.start_trajectory("agent-1")
    child = os.fork()
    if child == 0:
        try:
            recorder.end_trajectory(begun)
        except UsageError as told:
            os._exit(7 if "another process" in str(told) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    recorder.close()


def test_agents_wait_for_room_and_go_on_when_there_is_some(game: Database, settings: Settings) -> None:
    recorder = connected(game.url, settings, room=2, patience_s=60)
    with game.connect() as held:
        held.execute("LOCK TABLE trajectories IN EXCLUSIVE MODE")
        agent = threading.Thread(target=lambda: [recorder.end_trajectory(recorder.start_trajectory("agent-1")) for _ in range(10)])
        agent.start()
        until(lambda: recorder.report().waiting >= 3)
        assert agent.is_alive()
        held.rollback()
    agent.join(60)
    assert recorder.close() == RecorderReport(recorded=10)


@pytest.mark.slow
def test_a_trajectory_that_found_no_room_is_still_open_and_can_end_later(game: Database, settings: Settings) -> None:
    async def play() -> RecorderReport:
        recorder = await AsyncTrajectoryRecorder.connect(game.url, settings=settings, room=1, patience_s=1.5)
        begun = [recorder.start_trajectory("agent-1") for _ in range(10)]
        with game.connect() as held:
            held.execute("LOCK TABLE trajectories IN EXCLUSIVE MODE")
            with pytest.raises(DatabaseUnreachable, match="still open"):
                for one in begun:
                    await recorder.end_trajectory(one)
            held.rollback()
        for one in begun:
            if one in recorder._open:
                await recorder.end_trajectory(one)
        return await recorder.close()

    assert asyncio.run(play()) == RecorderReport(recorded=10)


def test_the_rows_of_one_trajectory_come_and_go_together(game: Database, settings: Settings) -> None:
    with game.connect() as connection:
        connection.execute('ALTER TABLE llm_call_logs ADD CONSTRAINT short CHECK (length("userPrompt") < 100)')
    recorder = connected(game.url, settings)
    for words in ("x", "x" * 200, "y"):
        with recorder.trajectory("agent-1") as begun:
            record_steps(recorder, begun, 1)
            record_steps(recorder, begun, 1, prompt=words)
    report = recorder.close()
    assert (report.recorded, report.rejected) == (2, 1)
    assert all(row == ("agent-1", 2, 2) for row in stored(game).values())
    with psycopg.connect(game.url) as connection:
        assert connection.execute("SELECT count(*) FROM llm_call_logs").fetchone() == (4,)


def test_a_role_that_may_only_insert_and_select_can_record(game: Database, settings: Settings) -> None:
    with game.connect() as connection:
        connection.execute("CREATE ROLE recorder_of_agents LOGIN PASSWORD 'recorder'")
        connection.execute("GRANT SELECT, INSERT ON trajectories, llm_call_logs TO recorder_of_agents")
    address = urlsplit(game.url)
    url = address._replace(netloc=f"recorder_of_agents:recorder@{address.netloc.rpartition('@')[2]}").geturl()
    try:
        with connected(url, settings) as recorder, recorder.trajectory("agent-1") as begun:
            record_steps(recorder, begun, 2)
        assert stored(game) == {begun: ("agent-1", 2, 2)}
    finally:
        with game.connect() as connection:
            connection.execute("DROP OWNED BY recorder_of_agents")
            connection.execute("DROP ROLE recorder_of_agents")
