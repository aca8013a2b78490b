"""Postgres clusters that a test may stop, fill and replace: a primary, and a replica that streams from it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from babylon_rl.store.database import Database
from babylon_rl.store.embedded import cluster
from babylon_rl.store.embedded.cluster import Cluster
from babylon_rl.store.migrate import migrate
from babylon_rl_tests.full_disk import small_disk
from babylon_rl_tests.serving.gateways import wait_for

# Few connections, so that a test can use them up; each commit waits for a replica where there is one.
_CHANGED = {
    "max_connections": "12", "superuser_reserved_connections": "0", "wal_level": "replica", "max_wal_senders": "3", "fsync": "off",
    "hot_standby": "on",
}  # fmt: skip


@contextmanager
def own_server(home: Path) -> Iterator[Cluster]:
    """A migrated cluster of its own, running."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cluster, "_SETTINGS", cluster._SETTINGS | _CHANGED)
        made = Cluster(home)
        made.create()
        url = made.url(made.start())
        migrate(Database(url, url))
        try:
            yield made
        finally:
            made.stop()


@contextmanager
def replica_of(primary: Cluster, home: Path) -> Iterator[Cluster]:
    """A running copy that streams from the primary, which from now on acknowledges a commit when the copy has it."""
    url = primary.url(primary.running_port() or 0)
    replica = Cluster(home)
    replica.directory.mkdir(mode=0o700)
    owner = primary.directory.stat()
    os.chown(replica.directory, owner.st_uid, owner.st_gid)
    shutil.copy(primary.password_file, replica.password_file)
    copied = replica._run("pg_basebackup", "-D", str(replica.directory), "-R", "-c", "fast", "-d", f"{url}?application_name=copy")
    assert copied.returncode == 0, copied.stderr
    (replica.directory / "postmaster.pid").unlink(missing_ok=True)
    try:
        replica.start()
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
            in_step = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"
            wait_for(lambda: connection.execute(in_step).fetchone(), "the replica to be in step")
        yield replica
    finally:
        replica.stop()


def fail_over(primary: Cluster, replica: Cluster) -> None:
    """Let the primary crash, and promote its replica, which has every commit that the primary acknowledged."""
    primary._run("pg_ctl", "-w", "-D", str(primary.directory), "-m", "immediate", "stop")
    promoted = replica._run("pg_ctl", "promote", "-w", "-D", str(replica.directory))
    assert promoted.returncode == 0, promoted.stderr
    port = replica.running_port() or 0
    with psycopg.connect(replica.url(port), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
        connection.execute("SELECT pg_reload_conf()")


@contextmanager
def full_tablespace(server: str, directory: Path) -> Iterator[str]:
    """A tablespace of the server on a file system of 2 MB; yields its name.

    Skips the test where this process may not mount one.
    """
    with small_disk(directory, 2), psycopg.connect(server, autocommit=True) as connection:
        (data,) = connection.execute("SHOW data_directory").fetchone() or ("",)
        owner = os.stat(data)
        os.chown(directory, owner.st_uid, owner.st_gid)
        connection.execute(f"CREATE TABLESPACE small LOCATION '{directory}'")
        try:
            yield "small"
        finally:
            connection.execute("DROP TABLESPACE small")
