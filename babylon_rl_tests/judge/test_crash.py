"""A scoring that is killed or interrupted at any moment: what was answered is kept, and the next run pays only for what was in flight.

ROUNDS=5 in the environment kills forty runs instead of eight.
"""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import timedelta

import pytest

from babylon_rl.settings import Settings
from babylon_rl.store.connection import connect
from babylon_rl.store.database import Database
from babylon_rl_tests.judge.crash_run import INTERRUPTED, run_interruptible, run_scoring, run_until_ctrl_c
from babylon_rl_tests.judge.model_judge import NOW, asking, count, filled
from babylon_rl_tests.judge.scripted_server import Judge, judging
from babylon_rl_tests.repeatable import ROUNDS
from babylon_rl_tests.scored import score_windows
from babylon_rl_tests.scripted_judge.judge import ScriptedJudge
from babylon_rl_tests.store.servers import end_other_sessions

pytestmark = pytest.mark.long

CONCURRENCY = 4
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["babylon_rl.judge.group_judge", "babylon_rl_tests.judge.crash_run", "scipy.stats", "psycopg"])
ANSWERS = "SELECT count(*) FROM babylon_rl.judge_requests"
ALONE = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def quiet(judge: Judge, database: Database) -> int:
    """Requests that were made, once nobody asks or writes any more."""
    with connect(database.url, autocommit=True) as connection:
        while judge.stats()["inFlight"] or connection.execute(ALONE).fetchone() != (0,):
            time.sleep(0.01)
    return int(judge.stats()["requests"])


def test_a_killed_run_repeats_at_most_what_was_in_flight(database: Database, settings: Settings) -> None:
    kills, hours = 8 * ROUNDS, 32 * ROUNDS
    windows = filled(database, hours)
    chance = random.Random(kills)
    with judging(ScriptedJudge(latency_s=0.05)) as judge:
        chosen = asking(settings, judge.url, judge_concurrency=CONCURRENCY)
        lost, killed = 0, 0
        while killed < kills:
            process = PROCESSES.Process(target=run_scoring, args=(database.url, windows, chosen, NOW))
            process.start()
            asked = quiet_until_asking(judge, process)
            time.sleep(chance.uniform(0.0, 0.12))
            process.kill()
            process.join()
            assert process.exitcode != 0, "all was judged before the last kill: it takes more hours"
            made = quiet(judge, database)
            assert made - count(database.url, ANSWERS) - lost <= CONCURRENCY
            lost = made - count(database.url, ANSWERS)
            killed += made > asked
            check_whole(database)
        with connect(database.url, autocommit=True) as connection:
            found = score_windows(connection, windows, chosen, NOW)
            assert sorted(found) == windows and judge.stats()["requests"] == 2 * hours + lost
            again = score_windows(connection, windows, chosen, NOW + timedelta(hours=1))
            assert judge.stats()["requests"] == 2 * hours + lost and not any(group.changed for group in again.values())
    assert all([score.agent_id for score in group.scores] == [f"agent-{n}" for n in (4, 3, 2, 1, 0)] for group in found.values())
    assert count(database.url, "SELECT count(*) FROM reward_judgments") == 5 * hours


def quiet_until_asking(judge: Judge, process: multiprocessing.process.BaseProcess) -> int:
    """Wait for the process to ask something, or to have nothing left to ask; the requests before."""
    before = int(judge.stats()["requests"])
    while judge.stats()["requests"] == before and process.is_alive():
        time.sleep(0.005)
    return before


def check_whole(database: Database) -> None:
    """Every hour with scores has them everywhere."""
    halves = """SELECT count(*) FROM babylon_rl.group_scores g
        WHERE (SELECT count(*) FROM reward_judgments j WHERE j."groupId" = g."window") <> g."groupSize"
           OR (SELECT count(*) FROM babylon_rl.episode_scores s WHERE s."window" = g."window") <> g."groupSize" """
    assert count(database.url, halves) == 0
    assert count(database.url, 'SELECT count(DISTINCT "groupId") FROM reward_judgments') == count(
        database.url, "SELECT count(*) FROM babylon_rl.group_scores"
    )


@pytest.mark.parametrize(
    ("target", "number"),
    [(run_interruptible, signal.SIGTERM), (run_interruptible, signal.SIGINT), (run_until_ctrl_c, signal.SIGINT)],
    ids=["dagster SIGTERM", "dagster SIGINT", "Ctrl-C"],
)
def test_an_interrupted_run_ends_its_requests_and_keeps_what_was_answered(
    database: Database, settings: Settings, target: Callable[..., None], number: int
) -> None:
    windows = filled(database, 4)
    with judging() as judge:
        with connect(database.url, autocommit=True) as connection:
            score_windows(connection, windows[:1], asking(settings, judge.url), NOW)
        judge.reset(latency_s=3600.0)
        chosen = asking(settings, judge.url, judge_timeout_seconds=3600.0)
        process = PROCESSES.Process(target=target, args=(database.url, windows, chosen, NOW))
        process.start()
        while judge.stats()["inFlight"] < 6:
            time.sleep(0.01)
        assert process.pid is not None
        os.kill(process.pid, number)
        process.join(60)
        assert process.exitcode == INTERRUPTED
    assert count(database.url, ANSWERS) == 2
    assert count(database.url, "SELECT count(*) FROM babylon_rl.judge_leases") == 0


def test_a_run_whose_database_goes_away_ends_and_the_next_goes_on(database: Database, settings: Settings) -> None:
    windows = filled(database, 8)
    with judging(ScriptedJudge(latency_s=0.3)) as judge, connect(database.url, autocommit=True) as somebody:
        chosen = asking(settings, judge.url, judge_concurrency=1)
        process = PROCESSES.Process(target=run_scoring, args=(database.url, windows, chosen, NOW))
        process.start()
        while judge.stats()["answered"] < 2:
            time.sleep(0.01)
        end_other_sessions(somebody)
        process.join(60)
        assert process.exitcode == 1
        with connect(database.url, autocommit=True) as connection:
            assert sorted(score_windows(connection, windows, chosen, NOW)) == windows
        # One was in flight; what waited for it is not asked when its answer cannot be stored.
        assert judge.stats()["requests"] <= 2 * 8 + 1
