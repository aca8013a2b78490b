"""Heavy reads at a real streaming replica: only when it has everything, and never those that decide."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from babylon_rl.cli.data import windows as windows_command
from babylon_rl.settings import Settings
from babylon_rl.store import replica
from babylon_rl.store.database import Database, open_database
from babylon_rl.store.migrate import migrate
from babylon_rl.store.replica import read_connection
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.proxy import Proxy
from babylon_rl_tests.rows import AFTER, insert, make_trajectory
from babylon_rl_tests.store.standby import Server, server_with_replica

COUNT = "SELECT count(*), pg_is_in_recovery() FROM public.trajectories"


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Server, Server]]:
    """A migrated server, and its replica."""
    parent = Path(tempfile.mkdtemp(prefix="babylon-rl-replica-"))
    parent.chmod(0o755)
    with ExitStack() as stack:
        try:
            primary, replica = stack.enter_context(server_with_replica(parent))
        except PermissionError:  # as root it is another user's
            pytest.skip("the clone lies where another user cannot read it")
        migrate(Database(primary.url, primary.url))
        yield primary, replica


@pytest.fixture
def settings_of(pair: tuple[Server, Server], tmp_path: Path) -> Settings:
    """Settings that name both."""
    primary, replica = pair
    return Settings(
        _env_file=None, babylon_rl_home=tmp_path, database_url=SecretStr(primary.url), read_database_url=SecretStr(replica.url),
        read_wait_seconds=0.2,
    )  # fmt: skip


def write(primary: Server, trajectory_id: str) -> int:
    """One more row; how many there are."""
    with Database(primary.url, primary.url).connect(autocommit=True) as connection:
        insert(connection, "trajectories", [make_trajectory(trajectory_id)])
        (number,) = connection.execute("SELECT count(*) FROM public.trajectories").fetchone() or (0,)
    return int(number)


def read(settings: Settings) -> tuple[tuple[int, bool] | None, list[str]]:
    """Rows, whether a replica counted them, and what was said."""
    said: list[str] = []
    with open_database(settings, prepare=False) as database, read_connection(database, said.append) as connection:
        return connection.execute(COUNT).fetchone(), said  # type: ignore[return-value]


def replay(standby: Server, what: str) -> None:
    with psycopg.connect(standby.url, autocommit=True) as connection:
        connection.execute(f"SELECT pg_wal_replay_{what}()")


@pytest.mark.long
def test_a_read_has_all_that_was_written_before_it(pair: tuple[Server, Server], settings_of: Settings) -> None:
    patient = settings_of.model_copy(update={"read_wait_seconds": 30.0})
    for number in range(5):
        rows = write(pair[0], f"row-{number}")
        assert read(patient) == ((rows, True), [])


def test_a_replica_that_lags_is_not_read(pair: tuple[Server, Server], settings_of: Settings) -> None:
    primary, replica = pair
    replay(replica, "pause")
    try:
        rows = write(primary, "late")
        seen, said = read(settings_of)
        assert seen == (rows, False)
        assert [sentence.partition(" was ")[2] for sentence in said] == ["more than 0.2 s behind. Reading from the database itself."]
    finally:
        replay(replica, "resume")


def test_what_decides_is_never_read_from_the_replica(pair: tuple[Server, Server], settings_of: Settings) -> None:
    with open_database(settings_of, prepare=False) as database, database.connect() as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (False,)
        dry = settings_of.model_copy(update={"train_rl_local": True, "local_base_model": "dry"})
        assert freeze(connection, dry, AFTER).batch is None  # it locks and may write: a replica would refuse


def test_another_server_is_no_replica(pair: tuple[Server, Server], settings_of: Settings, database: Database) -> None:
    seen, said = read(settings_of.model_copy(update={"read_database_url": SecretStr(database.url)}))
    assert seen is not None and not seen[1] and "is no streaming replica of" in said[0]
    seen, said = read(settings_of.model_copy(update={"read_database_url": settings_of.database_url}))
    assert seen is not None and not seen[1] and "is no streaming replica of" in said[0]
    seen, said = read(settings_of.model_copy(update={"read_database_url": SecretStr("postgresql://x@127.0.0.1:9/x")}))
    assert seen is not None and not seen[1] and "does not answer" in said[0]


@pytest.mark.slow
def test_a_replica_that_goes_silent_is_left_after_a_bound(
    pair: tuple[Server, Server], settings_of: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "ANSWER_S", 0.5)
    with Proxy(pair[1].url) as proxy:
        proxy.after(10**9)
        psycopg.connect(proxy.url).close()
        greeting = 10**9 - (proxy._left or 0)
        proxy.after(greeting + 1, lambda: setattr(proxy, "deaf", True))
        seen, said = read(settings_of.model_copy(update={"read_database_url": SecretStr(proxy.url)}))
    assert seen is not None and not seen[1] and "did not answer within 0.7 s" in said[0]


def test_a_role_that_may_not_read_positions_reads_the_database_itself(pair: tuple[Server, Server], settings_of: Settings) -> None:
    with Database(pair[0].url, pair[0].url).connect(autocommit=True) as connection:
        connection.execute("CREATE ROLE plain LOGIN")
        connection.execute("GRANT USAGE ON SCHEMA public TO plain")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO plain")
        connection.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    plain = re.sub("//[^@]*@", "//plain@", pair[0].url)
    seen, said = read(settings_of.model_copy(update={"database_url": SecretStr(plain)}))
    assert seen is not None and not seen[1] and "may not read how far" in said[0]


def test_commands_read_the_replica(
    pair: tuple[Server, Server], settings_of: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("DATABASE_URL", pair[0].url), ("READ_DATABASE_URL", pair[1].url), ("READ_WAIT_SECONDS", "30")):
        monkeypatch.setenv(name, value)
    windows_command(as_json=True)
    printed = capsys.readouterr()
    assert '"windows"' in printed.out and "Reading from" not in printed.err
    monkeypatch.setenv("READ_DATABASE_URL", "postgresql://x@127.0.0.1:9/x")
    windows_command(as_json=True)
    again = capsys.readouterr()
    assert again.out == printed.out and "Reading from the database itself." in again.err
