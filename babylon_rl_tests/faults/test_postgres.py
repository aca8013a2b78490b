"""A Postgres that restarts, gives way to its replica, is full, or makes a statement wait: nothing is lost, twice or half written."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.instance import open_instance
from babylon_rl.automation.launch import QUIET, hours_part, job_definition
from babylon_rl.errors import DatabaseUnreachable
from babylon_rl.recorder import TrajectoryRecorder
from babylon_rl.serving.releases import deploy
from babylon_rl.settings import Settings
from babylon_rl.store.connection import address, database_sentence
from babylon_rl.store.database import Database
from babylon_rl.store.embedded.cluster import Cluster
from babylon_rl.store.releases import ReleaseAuthor
from babylon_rl_tests.faults.servers import fail_over, full_tablespace, own_server, replica_of
from babylon_rl_tests.faults.test_training_crashes import live
from babylon_rl_tests.faults.world import World, check, registry
from babylon_rl_tests.judge.model_judge import NOW, add_hours, count
from babylon_rl_tests.memory import quick_directory
from babylon_rl_tests.proxy import Proxy
from babylon_rl_tests.recorder.builders import AGENTS, add_users, record_steps, stored, until
from babylon_rl_tests.scored import score_windows
from babylon_rl_tests.serving.gateways import MESSAGES, add_version, rows, running_gateway, wait_for
from babylon_rl_tests.serving.model_stand_in import model_stand_in

HOURS, AGENTS_AN_HOUR = 2, 5
IN_THE_ROWS = 5_000  # bytes from the server, in the midst of an hour's trajectories


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[Path]:
    with quick_directory(tmp_path) as made:
        yield made


@pytest.fixture
def own(homes: Path) -> Iterator[Cluster]:
    (homes / "primary").mkdir()
    with own_server(homes / "primary") as made:
        yield made


def database_of(cluster: Cluster) -> Database:
    url = cluster.url(cluster.running_port() or 0)
    return Database(url, url)


def hours_of(database: Database) -> list[str]:
    with database.connect() as connection:
        add_users(connection, *AGENTS)
        return add_hours(connection, HOURS, AGENTS_AN_HOUR)


def score(database: Database, windows: list[str], settings: Settings) -> None:
    with database.connect(autocommit=True) as connection:
        score_windows(connection, windows, settings, NOW)


def run_hour(database: Database, settings: Settings, window: str) -> dg.ExecuteInProcessResult:
    """A run of Dagster that reads an hour, and tries again soon."""

    def now() -> datetime:
        return NOW

    babylon = Babylon(settings, database, now, retry_after_s=0.2)
    with dg.DagsterInstance.ephemeral() as instance:
        return hours_part(job_definition("hours", babylon), ["window_groups"]).execute_in_process(
            instance=instance, partition_key=window, run_config=QUIET, raise_on_error=False
        )


def retries(result: dg.ExecuteInProcessResult) -> int:
    return len([event for event in result.all_events if event.is_step_up_for_retry])


def require_whole(database: Database) -> None:
    for table in ("babylon_rl.episodes", "babylon_rl.episode_scores", "reward_judgments"):
        assert count(database.url, f"SELECT count(*) FROM {table}") == HOURS * AGENTS_AN_HOUR


def record(recorder: TrajectoryRecorder) -> set[str]:
    begun = set()
    for agent in AGENTS:
        with recorder.trajectory(agent) as trajectory:
            record_steps(recorder, trajectory, 2)
            begun.add(trajectory)
    return begun


def require_recorded(database: Database, begun: set[str]) -> None:
    found = {name: row for name, row in stored(database).items() if name in begun}
    assert set(found) == begun and set(found.values()) == {(agent, 2, 2) for agent in AGENTS}


@pytest.mark.long
def test_a_replica_takes_over_in_the_middle_and_nothing_that_was_acknowledged_is_lost(
    own: Cluster, homes: Path, settings: Settings
) -> None:
    (homes / "replica").mkdir()
    windows = hours_of(database_of(own))
    with replica_of(own, homes / "replica") as replica, Proxy(database_of(own).url) as proxy:
        second = f",127.0.0.1:{replica.running_port()}/babylon?target_session_attrs=read-write"
        pair, direct = (url.replace("/babylon", second) for url in (proxy.url, database_of(own).url))
        both = Database(pair, direct)
        assert address(pair) == pair.partition("@")[2].partition("?")[0]
        with TrajectoryRecorder.connect(pair, settings=settings) as recorder:
            begun = record(recorder)
            recorder.flush()
            # The replica alone refuses to write, and says which setting finds the primary.
            alone = database_of(replica)
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction) as refused:
                score(alone, windows, settings)
            assert "target_session_attrs=read-write" in (database_sentence(refused.value) or "")
            proxy.after(IN_THE_ROWS, lambda: fail_over(own, replica))
            result = run_hour(both, settings, windows[0])
            assert result.success and retries(result) == 1 and proxy.fired == 1
            begun |= record(recorder)
            recorder.flush()
        score(both, windows, settings)
        require_whole(database_of(replica))
        require_recorded(database_of(replica), begun)
        both.prepare_dagster_schema()
        with open_instance(both, settings) as instance:  # Dagster's storage finds the new primary, too
            assert instance.get_runs_count() == 0


@pytest.mark.long
def test_a_server_that_restarts_in_the_middle_and_one_without_free_connections(own: Cluster, settings: Settings) -> None:
    database = database_of(own)
    windows = hours_of(database)
    with Proxy(database.url) as proxy, TrajectoryRecorder.connect(proxy.url, settings=settings) as recorder:
        begun = record(recorder)
        recorder.flush()

        def restart() -> None:
            own.stop()
            begun.update(record(recorder))
            assert own.url(own.start()) == database.url

        proxy.after(IN_THE_ROWS, restart)
        result = run_hour(Database(proxy.url, database.url), settings, windows[0])
        assert result.success and retries(result) >= 1 and proxy.fired == 1
        recorder.flush()
        require_recorded(database, begun)
        with ExitStack() as taken:
            with pytest.raises(psycopg.OperationalError, match="too many clients"):
                while True:
                    taken.enter_context(psycopg.connect(database.url))
            with pytest.raises(DatabaseUnreachable, match="too many clients already. All of its connections are in use: .* pooler"):
                score(database, windows, settings)
            proxy.cut()  # the recorder's own place is gone as well
            begun |= record(recorder)
        recorder.flush()
        score(database, windows, settings)
    require_recorded(database, begun)
    require_whole(database)


@pytest.fixture
def small_disk(server: str, tmp_path: Path) -> Iterator[str]:
    directory = Path(tmp_path / "small")
    directory.mkdir()
    with full_tablespace(server, directory) as name:
        yield name


@pytest.mark.slow
def test_a_disk_that_is_full_is_a_sentence_and_once_there_is_room_all_is_written(
    small_disk: str, database: Database, settings: Settings
) -> None:
    windows = hours_of(database)
    with database.connect(autocommit=True) as connection:
        for table in ("babylon_rl.episodes", "trajectories"):
            connection.execute(f"ALTER TABLE {table} SET TABLESPACE {small_disk}")
        connection.execute(f"CREATE TABLE filler (text TEXT) TABLESPACE {small_disk}")
        with pytest.raises(psycopg.errors.DiskFull):
            while True:
                connection.execute("INSERT INTO filler SELECT repeat('x', 2000) FROM generate_series(1, 4)")
        with TrajectoryRecorder.connect(database.url, settings=settings) as recorder:
            begun = set[str]()
            with pytest.raises(DatabaseUnreachable, match="were not written"):  # what is free in pages takes some
                while len(begun) < 1000:
                    begun |= record(recorder)
                    recorder.flush(0.5)
            with pytest.raises(psycopg.errors.DiskFull) as refused:
                score(database, windows, settings)
            assert "disk is full" in (database_sentence(refused.value) or "")
            connection.execute("DROP TABLE filler")
            recorder.flush()
        score(database, windows, settings)
    require_recorded(database, begun)
    require_whole(database)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("lock_timeout", r"holds a lock for longer than lock_timeout: .* pg_blocking_pids"),
        ("statement_timeout", "statement_timeout, raise it"),
    ],
)
def test_a_lock_that_somebody_holds_for_long_ends_an_hour_with_a_sentence_and_loses_no_recording(
    database: Database, settings: Settings, setting: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("babylon_rl.recorder.writer.ANSWER_S", 0.3)
    windows = hours_of(database)
    limited = f"{database.url}?options=-c{setting}%3D200"
    with TrajectoryRecorder.connect(database.url, settings=settings) as recorder, database.connect() as somebody:
        somebody.execute("LOCK TABLE babylon_rl.episodes, trajectories IN SHARE MODE")
        begun = record(recorder)
        with pytest.raises(psycopg.OperationalError) as refused:
            score(Database(limited, database.url), windows, settings)
        found = database_sentence(refused.value)
        assert found is not None and re.search(said, found)
        with pytest.raises(DatabaseUnreachable, match="8 recorded trajectories were not written"):
            recorder.flush(0.8)
        somebody.rollback()
        recorder.flush()
        score(database, windows, settings)
    require_recorded(database, begun)
    require_whole(database)


ONCE = """
    CREATE SEQUENCE tries;
    CREATE FUNCTION fail_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('tries') = 1 THEN RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '{code}'; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER fails BEFORE {statement} FOR EACH ROW EXECUTE FUNCTION fail_once();
"""
# Of a transaction that the server gives up for another, twice, and of statement_timeout.
GIVEN_UP = ("serialization_failure", "deadlock_detected", "query_canceled")


@pytest.mark.slow
@pytest.mark.parametrize("code", ["serialization_failure", "deadlock_detected", "read_only_sql_transaction"])
def test_a_transaction_that_the_server_gives_up_for_another_or_while_it_is_replaced_is_tried_again(
    database: Database, settings: Settings, code: str
) -> None:
    windows = hours_of(database)
    with database.connect(autocommit=True) as connection:
        connection.execute(ONCE.format(code=code, statement="INSERT ON babylon_rl.episodes"))
    result = run_hour(database, settings, windows[0])
    assert result.success and retries(result) == 1
    score(database, windows, settings)
    require_whole(database)


@pytest.mark.slow
@pytest.mark.parametrize("code", GIVEN_UP)
@pytest.mark.parametrize(
    "statement", ["INSERT ON babylon_rl.batch_items", "INSERT ON babylon_rl.training_steps", "INSERT ON trained_models"]
)
def test_a_batch_that_the_server_gives_up_at_a_statement_is_trained_once_by_the_next_run(world: World, statement: str, code: str) -> None:
    live(world, None)
    expected = registry(world)
    assert len(expected["models"]) > 1
    world.reset()
    world.connection.execute(ONCE.format(code=code, statement=statement))
    world.connection.commit()
    with pytest.raises(psycopg.OperationalError) as failed:
        live(world, None)
    assert database_sentence(failed.value) is not None
    check(world)
    live(world, None)
    check(world, at_rest=True)
    assert registry(world) == expected


@pytest.mark.slow
@pytest.mark.parametrize("code", GIVEN_UP)
@pytest.mark.parametrize("statement", ["UPDATE ON trained_models", "INSERT ON babylon_rl.rollouts"])
def test_a_release_that_the_server_gives_up_at_a_statement_is_undone_and_may_be_repeated(
    database: Database, settings: Settings, statement: str, code: str
) -> None:
    add_version(database, "v1.0.0", "ready")
    left = "SELECT status, (SELECT count(*) FROM babylon_rl.rollouts) AS rollouts FROM trained_models WHERE version = 'v1.0.0'"
    with database.connect() as connection:
        connection.execute(ONCE.format(code=code, statement=statement))
        connection.commit()
        author = ReleaseAuthor("tester", "passed", NOW)
        with pytest.raises(psycopg.OperationalError) as failed:
            deploy(connection, "v1.0.0", settings, author, strategy="immediate")
        assert database_sentence(failed.value) is not None
        connection.rollback()
        assert rows(database, left) == [{"status": "ready", "rollouts": 0}]
        deploy(connection, "v1.0.0", settings, author, strategy="immediate")
        connection.commit()
    assert rows(database, left) == [{"status": "deployed", "rollouts": 1}]


@pytest.mark.slow
@pytest.mark.parametrize("code", GIVEN_UP)
def test_a_call_whose_recording_the_server_gives_up_is_recorded_once(database: Database, settings: Settings, code: str) -> None:
    add_version(database, "v1.0.0")
    with database.connect() as connection:
        connection.execute(ONCE.format(code=code, statement="INSERT ON llm_call_logs"))
    with model_stand_in() as upstream:
        chosen = settings.model_copy(update={"local_endpoint": upstream.url})
        with running_gateway(chosen, database, writes=True) as gateway:
            gateway.client().chat.completions.create(model="v1.0.0", messages=MESSAGES)
            wait_for(lambda: rows(database, "SELECT 1 FROM llm_call_logs"), "the call")
    assert rows(database, "SELECT last_value > 1 AS again FROM tries") == [{"again": True}]
    for table in ("llm_call_logs", "babylon_rl.gateway_calls"):
        assert count(database.url, f"SELECT count(*) FROM {table}") == 1


@pytest.mark.slow
def test_a_line_that_falls_silent_is_given_up_by_the_recorder_which_writes_through_another(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("babylon_rl.recorder.writer.ANSWER_S", 0.5)
    hours_of(database)
    with Proxy(database.url) as proxy, TrajectoryRecorder.connect(proxy.url, settings=settings) as recorder:
        begun = record(recorder)
        recorder.flush()
        proxy.silence()  # this line alone, and for ever: a firewall that forgot it
        begun |= record(recorder)
        until(lambda: recorder.report().waiting == 0)
    require_recorded(database, begun)
