"""A database that is lost in the middle of an hour: the hour is as before, the run tries again, and nobody waits for ever."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime

import dagster as dg
import psycopg
import pytest

from babylon_rl.assets import resources
from babylon_rl.assets.resources import CONNECTION_RETRIES, ENDED_TAG, WAITS, Babylon, given, tagging_end
from babylon_rl.automation.instance import open_instance
from babylon_rl.automation.launch import QUIET, hours_part, job_definition, run_hours
from babylon_rl.errors import DatabaseError
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.windows import lock_windows
from babylon_rl_tests.proxy import Proxy
from babylon_rl_tests.store.pipeline import content
from babylon_rl_tests.store.servers import ROOT
from babylon_rl_tests.training.sample import NOW

pytestmark = pytest.mark.slow

HOUR = "2025-10-29T14:00"
# Bytes from the server: in the midst of the texts of the hour's trajectories (megabytes of them), and in that of its prices.
IN_THE_ROWS, IN_THE_MARKET = 100_000, 4_000
Content = dict[str, list[str]]


@pytest.fixture
def proxy(every_hour: Database) -> Iterator[Proxy]:
    """Before the database in which all hours have been run, and then one price and one P&L of HOUR have changed."""
    with every_hour.connect() as connection:
        connection.execute(
            """UPDATE trajectories SET "stepsJson" = regexp_replace("stepsJson", '"agentPnL":', '"agentPnL":1') WHERE "windowId" = %s""",
            (HOUR,),
        )
        connection.execute("""UPDATE "StockPrice" SET price = price * 1.5 WHERE "timestamp" >= '2025-10-29 14:30'""")
    with Proxy(every_hour.url) as opened:
        yield opened


def kill_backends(database: Database) -> None:
    """What an administrator, or a server that shuts down, does to the sessions of the pipeline."""
    with database.connect(autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'babylon-rl' AND pid <> pg_backend_pid()"
        )


def run(
    proxy: Proxy, database: Database, settings: Settings, asset: str, *, retry_after_s: float = 0.01
) -> tuple[dg.ExecuteInProcessResult, list[Content]]:
    """One run of an asset through the proxy, and what the hour held each time that an attempt began."""
    seen: list[Content] = []

    def now() -> datetime:  # the run asks once whether the hour has ended, and each try once it has a connection
        seen.append(content(database, [HOUR]))
        return NOW

    babylon = Babylon(settings, Database(proxy.url, database.url), now, retry_after_s=retry_after_s)
    with dg.DagsterInstance.ephemeral() as instance:
        result = hours_part(job_definition("hours", babylon), [asset]).execute_in_process(
            instance=instance, partition_key=HOUR, run_config=QUIET, raise_on_error=False
        )
    return result, seen


@pytest.mark.long
@pytest.mark.parametrize("asset, received", [("window_groups", IN_THE_ROWS), ("market_outcomes", IN_THE_MARKET)])
@pytest.mark.parametrize("ends_it", ["the line is cut", "the server ends the session"])
def test_the_hour_is_as_before_and_the_run_tries_again(
    proxy: Proxy, every_hour: Database, settings: Settings, asset: str, received: int, ends_it: str
) -> None:
    before = content(every_hour, [HOUR])
    proxy.after(received, None if ends_it == "the line is cut" else lambda: kill_backends(every_hour))
    result, seen = run(proxy, every_hour, settings, asset)
    assert proxy.fired == 1
    assert len([event for event in result.all_events if event.is_step_up_for_retry]) == 1
    assert seen == [before] * 3
    assert result.success
    after = content(every_hour, [HOUR])
    assert after != before
    again, _ = run(proxy, every_hour, settings, asset)
    assert again.success and content(every_hour, [HOUR]) == after


def test_a_line_cut_while_an_hour_is_being_written_leaves_nothing_of_it(proxy: Proxy, every_hour: Database, settings: Settings) -> None:
    """The commit itself is held up by a lock on one table, when the hour's other tables are written already."""
    before = content(every_hour, [HOUR])
    with every_hour.connect() as blocker:
        blocker.execute("LOCK TABLE babylon_rl.rejections IN SHARE MODE")
        waiting = threading.Thread(target=cut_when_waiting, args=(proxy, every_hour, blocker))
        waiting.start()
        result, seen = run(proxy, every_hour, settings, "window_groups")
        waiting.join()
    assert result.success
    assert seen == [before] * 3
    assert content(every_hour, [HOUR]) != before


def cut_when_waiting(proxy: Proxy, database: Database, blocker: psycopg.Connection) -> None:
    query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with database.connect(autocommit=True) as connection:
        while not (waiting := connection.execute(query).fetchall()):
            threading.Event().wait(0.01)
        proxy.cut()
        for pid in waiting:  # the server finds the line of a waiting session cut only once it writes to it: here it is told at once
            connection.execute("SELECT pg_terminate_backend(%s)", pid)
    blocker.rollback()


def test_a_database_that_stays_away_fails_the_run_and_leaves_the_hour(proxy: Proxy, every_hour: Database, settings: Settings) -> None:
    before = content(every_hour, [HOUR])

    def cut_and_go_on() -> None:
        proxy.cut()
        proxy.after(IN_THE_ROWS, cut_and_go_on)

    proxy.after(IN_THE_ROWS, cut_and_go_on)
    result, seen = run(proxy, every_hour, settings, "window_groups")
    assert not result.success
    assert seen == [before] * (2 + CONNECTION_RETRIES)
    assert content(every_hour, [HOUR]) == before
    (failed,) = (event for event in result.all_events if event.is_step_failure)
    described = failed.step_failure_data.user_failure_data  # what the UI shows first
    assert described is not None and described.description is not None
    assert described.description.startswith("The database broke off: ") and described.description.endswith("run the same command again.")


def test_a_command_whose_database_stays_away_ends_with_a_sentence(
    proxy: Proxy, every_hour: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "CONNECTION_RETRIES", 0)
    every_hour.prepare_dagster_schema()
    proxy.after(IN_THE_ROWS)
    with pytest.raises(DatabaseError, match=r"^The database broke off: .*run the same command again\.$"):
        run_hours(Database(proxy.url, every_hour.url), settings, [HOUR], ["window_groups"], now=lambda: NOW)
    assert proxy.fired == 1


FULL = """
    CREATE FUNCTION babylon_dagster.full() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN RAISE EXCEPTION ''could not extend file: No space left on device'' USING ERRCODE = ''disk_full''; END';
    CREATE TRIGGER full_disk BEFORE INSERT ON babylon_dagster.event_logs FOR EACH ROW
        WHEN (NEW.dagster_event_type = 'STEP_OUTPUT') EXECUTE FUNCTION babylon_dagster.full();
"""


def test_a_full_disk_under_dagsters_storage_is_said_without_pages_of_sql(
    every_hour: Database, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_instance(every_hour, settings):  # makes Dagster's tables
        pass
    with every_hour.connect(autocommit=True) as connection:
        connection.execute(FULL)
    with pytest.raises(DatabaseError, match="No space left on device.*run the same command again"):
        run_hours(every_hour, settings, [HOUR], ["window_groups"], now=lambda: NOW)
    said = capfd.readouterr().err
    assert "INSERT INTO" not in said and "parameters" not in said and len(said) < 2000


def test_a_server_that_is_away_when_the_run_begins_is_waited_for(every_hour: Database, settings: Settings) -> None:
    with Proxy(every_hour.url) as proxy:

        def stay_away() -> None:
            proxy.cut()
            if proxy.connections < 3:  # one attempt may take two connections, with encryption and without
                proxy.after(1, stay_away)

        proxy.after(1, stay_away)
        result, _ = run(proxy, every_hour, settings, "window_groups")
    assert result.success
    assert [event for event in result.all_events if event.is_step_up_for_retry]


def test_a_run_of_hours_whose_process_died_is_run_again_and_no_other(database: Database, settings: Settings) -> None:
    """When Dagster's own records are lost with the database nothing can be tried again within the run."""
    database.prepare_dagster_schema()
    with open_instance(database, settings) as instance:
        assert instance.run_retries_enabled
        for job, tags, again in [("hours", {"dagster/partition": HOUR}, True), ("train", {}, False)]:
            definition = job_definition(job, Babylon(settings, database))
            run = instance.create_run_for_job(definition, tags={**definition.tags, **tags})
            instance.report_run_failed(run)
            failed = instance.get_run_by_id(run.run_id)
            assert failed is not None and failed.tags["dagster/will_retry"] == str(again).lower()


HOLD = f"""
import sys
from babylon_rl.store.connection import connect
from babylon_rl.store.windows import lock_windows
connection = connect(sys.argv[1])
lock_windows(connection, [{HOUR!r}])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """``holder(url)``: a process that has an hour's lock in an open transaction."""
    started: list[subprocess.Popen[str]] = []

    def start(url: str) -> subprocess.Popen[str]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen([sys.executable, "-c", HOLD, url], cwd=ROOT, text=True, **pipes)  # type: ignore[call-overload]
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for_the_lock(database: Database) -> None:
    """Raises LockNotAvailable when the hour is not free within half a minute."""
    with database.connect() as connection:
        connection.execute("SET LOCAL lock_timeout = '30s'")
        lock_windows(connection, [HOUR])


def test_the_transaction_of_a_killed_run_is_gone_with_it(database: Database, holder: Callable[[str], subprocess.Popen[str]]) -> None:
    process = holder(database.url)
    with pytest.raises(psycopg.errors.LockNotAvailable), database.connect() as connection:
        connection.execute("SET LOCAL lock_timeout = '100ms'")
        lock_windows(connection, [HOUR])
    process.send_signal(signal.SIGKILL)
    wait_for_the_lock(database)


def test_the_transaction_of_a_machine_that_vanished_is_ended_by_the_roles_time_limit(
    database: Database, holder: Callable[[str], subprocess.Popen[str]]
) -> None:
    """Nothing tells the server that such a client is gone; docs/howto/least-privilege.sql sets the limit for the role."""
    name = database.url.rpartition("/")[2]
    with database.connect(autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '1s'")
    assert "idle_in_transaction_session_timeout" in (ROOT / "docs" / "howto" / "least-privilege.sql").read_text()
    with Proxy(database.url) as proxy:
        holder(proxy.url)
        proxy.deaf = True
        wait_for_the_lock(database)


def test_a_session_that_was_idle_too_long_is_tried_again(every_hour: Database, settings: Settings) -> None:
    babylon = Babylon(settings, every_hour, lambda: NOW, retry_after_s=0)
    with pytest.raises(dg.RetryRequested), babylon.connection() as connection, connection.transaction():
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = '50ms'")
        threading.Event().wait(2.0)
        connection.execute("SELECT 1")


@pytest.mark.parametrize("ends_it", ["the run's own connection, then the storage's", "the storage's"])
def test_a_step_is_tried_again_if_a_line_to_dagsters_storage_is_cut(proxy: Proxy, settings: Settings, ends_it: str) -> None:
    """Also while the end of the run is noted there: that does not hide what ended it."""
    tries: list[int] = []

    @dg.asset
    def interrupted(context: dg.AssetExecutionContext, babylon: dg.ResourceParam[Babylon]) -> None:
        with babylon.connection(), tagging_end(context):
            tries.append(context.retry_number)
            if not context.retry_number:
                proxy.after(1)
                if ends_it == "the storage's":
                    context.instance.get_run_by_id(context.run.run_id)
                raise psycopg.OperationalError("the connection of the training was lost just before")

    database = Database(proxy.url, proxy.url)
    babylon = given(Babylon(settings, database, retry_after_s=0.01))
    with open_instance(database, settings) as instance:
        result = dg.materialize([interrupted], instance=instance, resources={"babylon": babylon}, raise_on_error=False)
        run = instance.get_run_by_id(result.run_id)
    assert result.success and tries == [0, 1] and proxy.fired == 1
    # The tag was stored if the storage answered again by then.
    assert run is not None and (ends_it != "the storage's" or run.tags[ENDED_TAG] == WAITS)


@pytest.mark.long
def test_a_storage_of_dagsters_that_stays_away_is_named_in_a_sentence(database: Database, settings: Settings) -> None:
    """Dagster tries for some seconds, and then says only that it tried too often."""
    database.prepare_dagster_schema()
    with Proxy(database.url) as proxy:
        said = pytest.raises(DatabaseError, match=r"Dagster cannot use its storage at 127\.0\.0\.1:\d+/.*connection")
        with said, open_instance(Database(proxy.url, proxy.url), settings) as instance:
            proxy.cut(away=True)
            instance.get_runs_count()
