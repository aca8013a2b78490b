"""Which database the settings mean, what is said when it does not answer, and that Dagster can live in it."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
from pydantic import SecretStr
from sqlalchemy import create_engine

from babylon_rl.errors import DatabaseError, DatabaseUnreachable, SettingsError
from babylon_rl.settings import Settings
from babylon_rl.store.connection import _say_dropped, address, connect
from babylon_rl.store.database import Database, open_database, process_database
from babylon_rl.store.embedded.cluster import Cluster
from babylon_rl_tests.store.servers import ROOT


def with_url(settings: Settings, url: str, direct: str | None = None) -> Settings:
    return settings.model_copy(update={"database_url": SecretStr(url), "direct_database_url": direct and SecretStr(direct)})


def tables(database: Database, schema: str) -> set[str]:
    with database.connect() as connection:
        return {name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", (schema,))}


@pytest.mark.long
def test_without_a_url_the_embedded_server_runs_while_it_is_used(settings: Settings) -> None:
    with open_database(settings) as database:
        with database.connect() as connection:
            assert connection.execute("SELECT to_regnamespace('babylon_dagster') IS NOT NULL").fetchone() == (True,)
        assert database.address.startswith("127.0.0.1:")
        assert database.address.endswith("/babylon")
    assert Cluster(settings.home).running_port() is None
    with pytest.raises(DatabaseUnreachable, match="127.0.0.1"):
        database.connect()


def test_with_a_url_that_server_is_used_and_nothing_is_written_at_home(settings: Settings, database: Database) -> None:
    with open_database(with_url(settings, database.url)) as opened:
        assert opened == database
    assert not settings.home.exists()


def test_direct_url_is_used_past_the_pooler(settings: Settings, database: Database) -> None:
    with open_database(with_url(settings, "postgresql://pooler:1/x", database.url)) as opened:
        with opened.connect_directly() as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        assert database.url.split("@")[1] in opened.dagster_url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://game:s3cret@127.0.0.1:1/babylon", "127.0.0.1:1/babylon.*[Cc]onnection refused"),
        ("postgresql://game:s3cret@no-such-host.invalid/babylon", "no-such-host.invalid:5432/babylon"),
        ("postgresql://game:s3cret@127.0.0.1:port/babylon", "127.0.0.1:port/babylon"),
    ],
)
def test_unreachable_server_is_named_without_the_password(settings: Settings, url: str, said: str) -> None:
    with pytest.raises(DatabaseUnreachable, match=said) as raised, open_database(with_url(settings, url)):
        pass
    assert "s3cret" not in str(raised.value)
    assert "DATABASE_URL" in str(raised.value)


def test_refused_password_and_missing_database_are_told_apart(server: str) -> None:
    password = server.split(":")[2].split("@")[0]
    with pytest.raises(DatabaseUnreachable, match="password authentication failed") as raised:
        connect(server.replace(password, "wr0ng"))
    assert "wr0ng" not in str(raised.value)
    with pytest.raises(DatabaseUnreachable, match='database "nowhere" does not exist') as raised:
        connect(server.replace("/babylon", "/nowhere"))
    assert password not in str(raised.value)


def test_text_that_is_no_connection_string_is_not_repeated() -> None:
    with pytest.raises(SettingsError, match="is not a connection string") as raised:
        connect("postgresql://user:s3cret@[host/x")
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("schema=public", ""),
        ("pgbouncer=true&connection_limit=1", ""),
        ("sslmode=disable&schema=public", "?sslmode=disable"),
        ("connect_timeout=10&pool_timeout=5", "?connect_timeout=10"),
        ("sslaccept=accept_invalid_certs", ""),
        ("socket_timeout=3&application_name=a%26b&statement_cache_size=0", "?application_name=a%26b"),
        ("pgbouncer", ""),
        ("channel_binding=prefer", "?channel_binding=prefer"),
    ],
)
def test_parameters_of_prisma_are_left_out_of_an_address_with_a_word(
    settings: Settings, database: Database, query: str, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    _say_dropped.cache_clear()
    plain = database.url.partition("?")[0]
    with open_database(with_url(settings, f"{plain}?{query}", f"{plain}?{query}")) as opened:
        assert (opened.url, opened.direct_url) == (plain + kept, plain + kept)
        opened.connect().close()
        create_engine(opened.dagster_url).connect().close()
    # Once for each variable that holds the address.
    left_out = [part.partition("=")[0] for part in query.split("&") if part not in kept]
    words = [record.getMessage() for record in caplog.records]
    assert [all(name in word for name in left_out) for word in words] == [True] * (2 if left_out else 0)
    assert not any(secret in word for word in words for secret in (plain.split(":")[2].split("@")[0],))


@pytest.mark.parametrize(
    ("query", "said"),
    [("schema=game", "a schema other than public"), ("sslmod=require", "the parameter sslmod"), ("ssl", "not a connection string")],
)
@pytest.mark.parametrize("variable", ["DATABASE_URL", "DIRECT_DATABASE_URL"])
def test_a_fault_of_an_address_names_the_variable_that_holds_it(
    settings: Settings, database: Database, query: str, said: str, variable: str
) -> None:
    urls = [f"{database.url}?{query}" if variable == name else database.url for name in ("DATABASE_URL", "DIRECT_DATABASE_URL")]
    with pytest.raises(SettingsError, match=said) as raised, open_database(with_url(settings, *urls)) as opened:
        opened.connect()
    assert str(raised.value).startswith(variable)


def test_an_unreachable_server_behind_the_pooler_is_named_by_its_variable(settings: Settings, database: Database) -> None:
    changed = with_url(settings, database.url, "postgresql://game:s3cret@127.0.0.1:1/babylon")
    with pytest.raises(DatabaseUnreachable, match="Check DIRECT_DATABASE_URL .* unset it to use DATABASE_URL"), open_database(changed):
        pass


def test_a_database_does_not_show_its_password() -> None:
    database = Database("postgresql://u:s3cret@h/d", "postgresql://u:s3cret@h/d")
    assert "s3cret" not in f"{database!r} {database.address}"
    assert address("postgresql://u:s3cret@h:6543/d") == "h:6543/d"
    assert address("postgresql://u:s3cret@h:6543,k/d") == "h:6543,k:5432/d"
    assert address("host=h,k port=6543 dbname=d") == "h:6543,k:6543/d"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://u:p@h:5/d", "postgresql+psycopg2://u:p@h:5/d?options=-csearch_path%3Dbabylon_dagster"),
        ("postgresql://h/d?sslmode=require", "postgresql+psycopg2://h/d?sslmode=require&options=-csearch_path%3Dbabylon_dagster"),
        (
            "postgresql://h/d?options=-cwork_mem%3D8MB",
            "postgresql+psycopg2://h/d?options=-cwork_mem%3D8MB%20-csearch_path%3Dbabylon_dagster",
        ),
        (
            "postgresql://u:p@h:5,k:6/d?target_session_attrs=read-write",
            "postgresql+psycopg2://u:p@/d?target_session_attrs=read-write&options=-csearch_path%3Dbabylon_dagster&host=h%3A5&host=k%3A6",
        ),
    ],
)
def test_dagsters_address_names_driver_and_schema(url: str, expected: str) -> None:
    assert re.sub(r"(keepalives_\w+|tcp_user_timeout)=\d+&", "", Database(url, url).dagster_url) == expected


def test_role_that_may_not_create_schemas_gets_the_statement_to_run(empty_database: Database) -> None:
    with empty_database.connect(autocommit=True) as connection:
        connection.execute("CREATE ROLE limited LOGIN PASSWORD 'x'")
    try:
        user = empty_database.url.split("//")[1].split("@")[0]
        limited = Database(empty_database.url, empty_database.url.replace(user, "limited:x"))
        with pytest.raises(DatabaseError, match='CREATE SCHEMA "babylon_dagster" AUTHORIZATION "limited"'):
            limited.prepare_dagster_schema()
        with empty_database.connect(autocommit=True) as connection:
            connection.execute("CREATE SCHEMA babylon_dagster AUTHORIZATION limited")
        limited.prepare_dagster_schema()
    finally:
        with empty_database.connect(autocommit=True) as connection:
            connection.execute("DROP SCHEMA IF EXISTS babylon_dagster")
            connection.execute("DROP ROLE limited")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the options of a socket have other names there")
def test_a_server_that_vanished_is_noticed_in_a_minute_unless_the_address_says_otherwise(
    database: Database,
) -> None:
    def options(connection: Any) -> list[int]:
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            return [line.getsockopt(socket.IPPROTO_TCP, name) for name in names]

    with database.connect() as connection:
        assert options(connection) == [30, 10, 3, 60_000]
    with connect(f"{database.url}?keepalives_idle=7") as connection:
        assert options(connection) == [7, 10, 3, 60_000]
    database.prepare_dagster_schema()
    with create_engine(database.dagster_url).connect() as dagster:
        assert options(dagster.connection.driver_connection) == [30, 10, 3, 60_000]


@pytest.mark.slow
def test_dagster_keeps_its_storage_in_its_own_schema(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dagster.yaml").write_text(
        "storage:\n  postgres:\n    postgres_url: {env: BABYLON_RL_DAGSTER_URL}\ntelemetry: {enabled: false}\n"
    )
    monkeypatch.setenv("BABYLON_RL_DAGSTER_URL", database.dagster_url)
    database.prepare_dagster_schema()
    before = tables(database, "public")

    @dg.asset
    def seven() -> int:
        return 7

    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert dg.materialize([seven], instance=instance).success
        assert instance.get_latest_materialization_event(seven.key) is not None
        assert instance.get_runs_count() == 1
    assert {"runs", "event_logs", "alembic_version"} <= tables(database, "babylon_dagster")
    assert tables(database, "public") == before


@pytest.mark.long
def test_process_database_is_one_for_a_process_and_ends_with_it(settings: Settings) -> None:
    code = f"""
from pathlib import Path
from babylon_rl.settings import Settings
from babylon_rl.store.database import process_database
settings = Settings(_env_file=None, babylon_rl_home=Path({str(settings.home)!r}))
assert process_database(settings) is process_database(settings)
print(process_database(settings).url)
"""
    environment = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("postgresql://")
    assert Cluster(settings.home).running_port() is None


def test_process_database_with_a_url_is_that_server(settings: Settings, database: Database) -> None:
    assert process_database(with_url(settings, database.url)) == database


def test_connections_prepare_nothing_on_the_server(database: Database) -> None:
    with database.connect() as connection:
        for number in range(10):
            connection.execute("SELECT %s::int", (number,))
        assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
        assert isinstance(connection, psycopg.Connection)
