"""Shared use of the embedded server: first user starts it, last one stops it.

Each user holds a shared lock on ``use.lock``; starting and stopping happen under an exclusive lock on ``start.lock``. The kernel
drops the locks of a process that dies, so the next start finds and uses a server that a crash left, and stops it afterwards.

A server that ends by itself while it is used, as on a full disk, is started again by one of its users.
"""

import contextlib
import fcntl
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from babylon_rl.errors import EmbeddedServerError, UsageError
from babylon_rl.store.embedded.cluster import START_TIMEOUT_S, Cluster

_LOG = logging.getLogger(__name__)
LOOK_S = 5.0  # how often a user looks whether the server has ended
STOPPED = "postgres.stopped"  # its users see by this file that a server is not to be started again


@contextlib.contextmanager
def use_server(home: Path, *, alone: bool = False) -> Iterator[str]:
    """Yield the connection string of the server under ``home``, started if needed.

    It runs until its last user has left. ``alone``: others wait until this user has left.

    Raises:
        EmbeddedServerError: it cannot be created, started or stopped; the message says what to do.
        UsageError: ``alone``, and it is in use.
    """
    with _polite_termination():
        cluster = Cluster(home)
        lease, leaving = _open_lock(home / "use.lock"), threading.Event()
        try:
            with _start_locked(home):
                # Before the server is looked for: a user that leaves next finds this lease, and lets the server run.
                _take(lease, fcntl.LOCK_SH, home)
                port = _ensure_running(cluster, lease)
                url = cluster.url(port)
                if alone and not _is_last(lease):
                    raise UsageError("Other commands use the embedded database. Stop them (such as `babylon-rl dev`), then run it again.")
            threading.Thread(target=_start_again, args=(cluster, port, leaving), name="embedded-server", daemon=True).start()
            yield url
        finally:
            leaving.set()
            # Under start.lock, so that no new user appears between the check and the stop.
            with lease, _start_locked(home):
                if _is_last(lease):
                    cluster.stop()


def stop_server(home: Path) -> list[str]:
    """Stop the server under ``home`` even if it is in use. Returns one sentence for each thing stopped."""
    if not (home / "postgres").exists():
        return []
    with _start_locked(home):
        cluster = Cluster(home)
        port = cluster.running_port()
        (home / STOPPED).touch()
        return [f"Stopped the embedded database on port {port} ({cluster.directory})."] if cluster.stop() else []


def running_url(home: Path) -> str | None:
    """Return the connection string of a running server under ``home``, or None. Does not count as a user."""
    cluster = Cluster(home)
    port = cluster.running_port()
    return None if port is None else cluster.url(port)


def _ensure_running(cluster: Cluster, lease: IO[bytes]) -> int:
    """Return the port of the running server; create or start it first if needed. The caller holds start.lock."""
    cluster.create()
    deadline = time.monotonic() + START_TIMEOUT_S
    if not cluster.has_password and cluster.running_port() is not None and _is_last(lease):
        cluster.stop()  # left by a crash; a new password needs a stopped server
        # ``_is_last`` has left the lease exclusive: the next user would wait for the end of this one.
        _take(lease, fcntl.LOCK_SH, cluster.home)
    # A live server may still be starting or recovering: wait until it answers or is gone.
    while (port := cluster.running_port()) is not None:
        if cluster.answers(port):
            return port
        if time.monotonic() > deadline:
            raise EmbeddedServerError(f"The embedded server on port {port} does not answer. Run `babylon-rl stop`, then the command again.")
        time.sleep(0.1)
    (cluster.home / STOPPED).unlink(missing_ok=True)
    return cluster.start()


def _start_again(cluster: Cluster, port: int, leaving: threading.Event) -> None:
    """Start a server that has ended by itself, until ``leaving`` is set. One that ``stop_server`` has stopped stays so."""
    told = False
    while not leaving.wait(LOOK_S):
        if not _has_ended(cluster):
            continue
        try:
            with _start_locked(cluster.home):
                # A user that leaves stops the server under this lock; so does stop_server.
                if leaving.is_set() or not _has_ended(cluster):
                    continue
                now = cluster.start()
        except (EmbeddedServerError, OSError) as failed:
            if not told:
                _LOG.warning("The embedded database has ended; its start is tried every %g seconds. %s", LOOK_S, failed)
            told = True
            continue
        told = False
        _LOG.warning("The embedded database had ended, and was started again in %s.", cluster.directory)
        if now != port:
            _LOG.error("It is on port %d, as another program has taken %d: stop this command and start it again.", now, port)


def _has_ended(cluster: Cluster) -> bool:
    """True if the server has ended by itself."""
    with contextlib.suppress(OSError):  # no free descriptor to look with: the next look tells
        return cluster.running_port() is None and cluster.directory.is_dir() and not (cluster.home / STOPPED).exists()
    return False


def _open_lock(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115 (held beyond this function; close-on-exec, so no program that we start inherits it)
    except OSError as failed:
        raise EmbeddedServerError(
            f"The state directory {path.parent} cannot be used: {failed.strerror} ({path.name}). "
            "Run as the user who made it, or set BABYLON_RL_HOME to another one."
        ) from None
    _opened_locks.add(file)
    return file


@contextlib.contextmanager
def _start_locked(home: Path) -> Iterator[None]:
    with _open_lock(home / "start.lock") as lock:
        _take(lock, fcntl.LOCK_EX, home)
        yield


def _take(lock: IO[bytes], kind: int, home: Path) -> None:
    try:
        fcntl.flock(lock, kind)
    except OSError as failed:
        raise EmbeddedServerError(f"Files in {home} cannot be locked: {failed.strerror}. Set BABYLON_RL_HOME to a local disk.") from None


def _is_last(lease: IO[bytes]) -> bool:
    """Release the shared lock and return True if no other process holds one. On True the exclusive lock is held."""
    # The caller holds start.lock, without which nobody takes a lease: none can come in between these two calls.
    fcntl.flock(lease, fcntl.LOCK_UN)
    try:
        fcntl.flock(lease, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


_opened_locks: weakref.WeakSet[IO[bytes]] = weakref.WeakSet()


def _close_in_child() -> None:
    """Close the inherited locks in a forked child. The child shares them with its parent and would hold them as long as it lives."""
    for file in tuple(_opened_locks):
        file.close()
    _opened_locks.clear()


os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def _polite_termination() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit, so that a started server is stopped. Handlers set by others stay."""
    # Python allows signal handlers in the main thread only.
    possible = (signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    ours = [number for number in possible if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in ours:
            if signal.getsignal(number) is _leave:
                signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
