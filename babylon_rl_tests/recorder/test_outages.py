"""A database that goes away while agents record: nothing that was handed over is lost while the process lives, and nothing is twice."""

import asyncio
import subprocess
import sys

import pytest

from babylon_rl.errors import DatabaseUnreachable
from babylon_rl.recorder import AsyncTrajectoryRecorder, RecorderReport, TrajectoryRecorder
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.proxy import Proxy
from babylon_rl_tests.recorder.builders import AGENTS, connected, record_steps, stored, until
from babylon_rl_tests.store.servers import end_other_sessions

LOST = """
import sys
from babylon_rl.recorder import TrajectoryRecorder
recorder = TrajectoryRecorder.connect(sys.argv[1])
for number in range(50):
    with recorder.trajectory("agent-1") as begun:
        recorder.record_step(begun, environment_state={"balance": 1, "pnl": 0}, action={"type": "HOLD"}, reward=0)
"""

ENDS = """
import sys
from babylon_rl.recorder import TrajectoryRecorder
recorder = TrajectoryRecorder.connect(sys.argv[1], patience_s=0.5)
print("connected", flush=True)
sys.stdin.readline()
for number in range(7):
    recorder.end_trajectory(recorder.start_trajectory("agent-1"))
"""


def record_some(recorder: TrajectoryRecorder, number: int) -> list[str]:
    begun = []
    for index in range(number):
        with recorder.trajectory(AGENTS[index % len(AGENTS)]) as one:
            record_steps(recorder, one, 2)
            begun.append(one)
    return begun


def test_what_ends_during_an_outage_is_written_after_it(game: Database, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with Proxy(game.url) as proxy, connected(proxy.url, settings) as recorder:
        begun = record_some(recorder, 5)
        recorder.flush()
        proxy.cut(away=True)
        begun += record_some(recorder, 20)
        with pytest.raises(DatabaseUnreachable, match="20 recorded trajectories were not written within 0.5 s"):
            recorder.flush(0.5)
        until(lambda: "does not take recorded trajectories" in caplog.text)
        proxy.away = False
        recorder.flush(60)
        assert set(stored(game)) == set(begun)
        assert set(stored(game).values()) == {(agent, 2, 2) for agent in AGENTS}
        assert recorder.report() == RecorderReport(recorded=25)
    assert "does not take recorded trajectories" in caplog.text
    assert "takes recorded trajectories again" in caplog.text


def test_a_connection_that_was_cut_while_idle_is_not_noticed(game: Database, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with Proxy(game.url) as proxy, connected(proxy.url, settings) as recorder:
        for _ in range(5):
            record_some(recorder, 1)
            recorder.flush()
            proxy.cut(away=True)
            proxy.away = False
    assert recorder.report() == RecorderReport(recorded=5)
    assert caplog.text == ""


def test_a_transaction_whose_answer_was_lost_is_not_written_twice(game: Database, settings: Settings) -> None:
    with Proxy(game.url) as proxy, connected(proxy.url, settings) as recorder:
        begun = []
        for lost in (1, 2, 3):
            proxy.swallow_commits = lost
            begun += record_some(recorder, 10)
            recorder.flush(60)
    assert recorder.report() == RecorderReport(recorded=30)
    assert set(stored(game)) == set(begun)
    assert all(row[1:] == (2, 2) for row in stored(game).values())


def test_an_agent_that_is_no_user_is_told_apart_from_an_outage(game: Database, settings: Settings) -> None:
    with Proxy(game.url) as proxy:
        recorder = connected(proxy.url, settings)
        proxy.cut(away=True)
        begun = record_some(recorder, 3)
        recorder.end_trajectory(recorder.start_trajectory("stranger"))
        begun += record_some(recorder, 3)
        proxy.swallow_commits = 2
        proxy.away = False
        report = recorder.close()
    assert (report.recorded, report.rejected, report.lost) == (6, 1, 0)
    assert set(stored(game)) == set(begun)


def test_a_table_that_is_gone_for_a_while_loses_nothing(game: Database, settings: Settings) -> None:
    with connected(game.url, settings) as recorder:
        with game.connect() as connection:
            connection.execute("ALTER TABLE llm_call_logs RENAME TO away")
        begun = record_some(recorder, 3)
        with pytest.raises(DatabaseUnreachable, match="3 recorded"):
            recorder.flush(0.3)
        with game.connect() as connection:
            connection.execute("ALTER TABLE away RENAME TO llm_call_logs")
    assert set(stored(game)) == set(begun)


def test_closing_during_an_outage_gives_up_after_its_patience_and_says_how_many_were_lost(
    game: Database, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    with Proxy(game.url) as proxy:
        recorder = connected(proxy.url, settings, patience_s=0.5)
        record_some(recorder, 2)
        recorder.flush()
        proxy.cut(away=True)
        record_some(recorder, 4)
        report = recorder.close()
    assert report == RecorderReport(recorded=2, lost=4)
    assert "4 ended trajectories are lost" in caplog.text
    assert recorder.close() == report


@pytest.mark.slow
def test_closing_does_not_wait_for_a_server_that_never_answers(game: Database, settings: Settings) -> None:
    with game.connect() as held:
        held.execute("LOCK TABLE trajectories IN EXCLUSIVE MODE")
        recorder = connected(game.url, settings, patience_s=0.2)
        record_some(recorder, 3)
        assert recorder.close() == RecorderReport(lost=3)


@pytest.mark.slow
def test_a_program_that_ends_during_an_outage_says_what_it_lost(game: Database) -> None:
    with Proxy(game.url) as proxy:
        child = subprocess.Popen([sys.executable, "-c", ENDS, proxy.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE, text=True)  # fmt: skip
        assert child.stdout is not None and child.stdout.readline() == "connected\n"
        proxy.cut(away=True)
        _, said = child.communicate("go on\n", timeout=60)
    assert "7 ended trajectories are lost" in said


def test_tasks_go_on_during_an_outage(game: Database, settings: Settings) -> None:
    async def play(proxy: Proxy) -> RecorderReport:
        async with await AsyncTrajectoryRecorder.connect(proxy.url, settings=settings) as recorder:
            proxy.cut(away=True)
            for agent in AGENTS:
                async with recorder.trajectory(agent) as begun:
                    record_steps(recorder, begun, 2)
            assert recorder.report().waiting == len(AGENTS)
            proxy.away = False
        return recorder.report()

    with Proxy(game.url) as proxy:
        assert asyncio.run(play(proxy)) == RecorderReport(recorded=len(AGENTS))


@pytest.mark.slow
def test_a_program_that_forgets_to_close_still_writes_everything(game: Database) -> None:
    subprocess.run([sys.executable, "-c", LOST, game.url], check=True, timeout=60)
    assert len(stored(game)) == 50


def test_a_server_that_ends_the_connection_is_asked_again(game: Database, settings: Settings) -> None:
    with connected(game.url, settings) as recorder:
        record_some(recorder, 1)
        recorder.flush()
        with game.connect() as connection:
            end_other_sessions(connection)
        record_some(recorder, 1)
        until(lambda: recorder.report().waiting == 0)
    assert recorder.report() == RecorderReport(recorded=2)
