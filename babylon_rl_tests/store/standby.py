"""A server of its own with a streaming replica, by the programs of the embedded server: initdb, pg_basebackup -R, pg_ctl."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from babylon_rl.store.embedded.cluster import NOBODY, Cluster
from babylon_rl_tests.store.servers import free_port

_SETTINGS = "-c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c shared_buffers=16MB -c max_wal_size=64MB"


@dataclass(frozen=True)
class Server:
    """A server in ``directory``; ``url`` is that of its database ``postgres``."""

    programs: Path
    directory: Path
    port: int

    @property
    def url(self) -> str:
        """Its address; nobody else is on this machine's loopback for a password to keep out."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def run(self, program: str, *arguments: str) -> None:
        """Run one of its programs as the owner of its files: it refuses to run as root."""
        owner = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        subprocess.run([self.programs / program, *arguments], check=True, capture_output=True, cwd="/", timeout=120, **owner)  # type: ignore[call-overload]

    def start(self) -> None:
        """Start it, and wait until it answers."""
        log = str(self.directory / "server.log")
        self.run("pg_ctl", "-w", "-D", str(self.directory), "-l", log, "-o", f"{_SETTINGS} -c port={self.port}", "start")

    def stop(self) -> None:
        """End it at once."""
        self.run("pg_ctl", "-w", "-D", str(self.directory), "-m", "immediate", "stop")


@contextmanager
def server_with_replica(parent: Path) -> Iterator[tuple[Server, Server]]:
    """A server, and one that follows it by streaming replication; ``parent`` must be open to the owner of their files."""
    programs = Cluster(parent).programs
    primary, replica = (Server(programs, parent / name, free_port()) for name in ("primary", "replica"))
    started = []
    for server in (primary, replica):
        server.directory.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(server.directory, NOBODY, NOBODY)
    try:
        primary.run("initdb", "-D", str(primary.directory), "-U", "postgres", "-A", "trust", "-N")
        primary.start()
        started.append(primary)
        source = f"host=127.0.0.1 port={primary.port} user=postgres"
        primary.run("pg_basebackup", "-D", str(replica.directory), "-d", source, "-R", "-X", "stream", "-c", "fast", "-N")
        replica.start()
        started.append(replica)
        yield primary, replica
    finally:
        for server in reversed(started):
            server.stop()
        shutil.rmtree(parent, ignore_errors=True)
