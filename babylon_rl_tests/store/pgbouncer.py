"""A real pgbouncer in transaction mode in front of a server, with fewer connections to it than it has clients."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from babylon_rl_tests.store.servers import free_port

CONFIG = """
[databases]
{name} = host={host} port={port} dbname={name} user={user} password={password}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = any
admin_users = admin
pool_mode = transaction
default_pool_size = {pool_size}
max_client_conn = 200
server_reset_query =
query_wait_timeout = 60
{more}
"""
# Debian's package puts it where only root's PATH leads
PLACES = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin", "/opt/homebrew/bin"))


def program() -> str | None:
    """Where pgbouncer is, or None."""
    return shutil.which("pgbouncer", path=PLACES)


@contextmanager
def pgbouncer(url: str, directory: Path, pool_size: int, more: str = "") -> Iterator[str]:
    """The address of the pooler for the database of ``url``; it holds at most ``pool_size`` connections to the server. ``more`` is
    more of its configuration.

    Nothing is reset between two clients of a connection, so that what one leaves behind meets the next.
    """
    binary = program()
    assert binary is not None
    parts = re.fullmatch(r"postgresql://(?P<user>[^:]+):(?P<password>[^@]+)@(?P<host>[^:]+):(?P<port>\d+)/(?P<name>\w+)", url)
    assert parts is not None
    own_port = free_port()
    config = directory / "pgbouncer.ini"
    config.write_text(CONFIG.format(**parts.groupdict(), own_port=own_port, pool_size=pool_size, more=more))
    as_user = ["-u", "nobody"] if os.geteuid() == 0 else []  # it refuses to run as root; it reads the file before it changes
    process = subprocess.Popen([binary, "-q", *as_user, str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    pooled = f"postgresql://{parts['user']}@127.0.0.1:{own_port}/{parts['name']}"
    try:
        _wait(process, pooled)
        yield pooled
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def _wait(process: subprocess.Popen[str], url: str) -> None:
    for _ in range(1000):
        assert process.poll() is None and process.stderr is not None, process.stderr.read() if process.stderr else ""
        try:
            psycopg.connect(url, prepare_threshold=None).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.05)
    raise AssertionError("pgbouncer takes no connection")
