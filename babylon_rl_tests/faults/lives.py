"""Processes of one interpreter, of which one runs at a time.

Each is a thread. It meets faults at numbered boundaries (boundaries.py), and one that pauses there lets another run to its end: so two of
everything interleave, and the same numbers give the same interleaving. ``killed`` runs one in a process of its own, which ends by SIGKILL.
"""

import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import psycopg
from psycopg.conninfo import make_conninfo

from babylon_rl.evaluation.play import MARKETS
from babylon_rl.store.database import Database
from babylon_rl_tests.faults.boundaries import FUSE, Died, MortalConnection

FaultKind = Literal["dies", "pauses", "loses its connections", "loses a commit's answer", "finds the disk full"]
_LASTING = ("write ", "os.mkdir", "os.rename", "os.link")
_ASKS_FOR_A_LEASE = "INSERT INTO babylon_rl.judge_leases"
_HANGS_S = 120.0
PROCESSES = multiprocessing.get_context("forkserver")


class LifeConnection(MortalConnection):
    """A connection of a life, which may also end after a commit by itself."""

    def commit(self) -> None:
        super().commit()
        FUSE.reach("committed")


@dataclass(frozen=True)
class Fault:
    """A fault at the ``at``-th boundary, or at the first after it that it can happen at, and that begins with ``before``."""

    kind: FaultKind
    at: int
    before: str = ""

    def fits(self, boundary: str) -> bool:
        if self.kind == "loses a commit's answer":
            return boundary == "committed"
        if not boundary.startswith(self.before):
            return False
        return self.kind != "finds the disk full" or boundary.startswith(_LASTING)


class Life:
    """One run of ``work``, with its connections.

    ``beside``: another is paused, so a lock that is held will not be free soon, and a statement that waits for it fails.
    """

    def __init__(self, name: str, work: Callable[["Life"], None], url: str, faults: list[Fault], *, beside: bool = False) -> None:
        self.name, self._work, self._faults, self.beside = name, work, list(faults), beside
        self.url = make_conninfo(url, options=f"-c lock_timeout={'200ms' if beside else '30s'}")
        self.passed, self.met, self.kept = list[str](), list[FaultKind](), list[str]()
        self.dead, self.ended, self.error = False, False, None
        self.connections = list[LifeConnection]()
        self._stopped, self._resumed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.error: BaseException | None

    def connect(self, autocommit: bool = False) -> LifeConnection:
        """A connection that is closed with the life."""
        self.connections.append(LifeConnection.connect(self.url, autocommit=autocommit, prepare_threshold=None))
        return self.connections[-1]

    def go_on(self) -> None:
        """Run to the end or to the next pause."""
        FUSE.burning, FUSE.watch = True, self.reach
        self._stopped.clear()
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._resumed.set()
        stopped = self._stopped.wait(_HANGS_S)
        FUSE.burning, FUSE.watch = False, None
        assert stopped, f"{self.name} hangs after {self.passed[-3:]}"

    def end(self) -> None:
        """Let a paused one die, as its threads would keep the interpreter from its end."""
        self.dead = True
        self.go_on()

    def reach(self, boundary: str) -> None:
        """Pass a boundary, or meet a fault there."""
        if threading.current_thread().name.startswith(MARKETS):
            return  # many at once: the order of their files of decisions is the scheduler's, not the seed's
        if self.dead:
            raise Died(boundary)
        waits = self.beside and boundary.startswith(_ASKS_FOR_A_LEASE) and _ASKS_FOR_A_LEASE in "".join(self.passed[-8:])
        self.passed.append(boundary)
        if waits:
            self._pause()
        fault = next((one for one in self._faults if one.at <= len(self.passed) and one.fits(boundary)), None)
        if fault is None:
            return
        self._faults.remove(fault)
        self.met.append(fault.kind)
        if fault.kind == "dies":
            self._die(boundary)
        elif fault.kind == "pauses":
            self._pause()
        elif fault.kind == "loses its connections":
            self._cut()
        elif fault.kind == "loses a commit's answer":
            for connection in self.connections:
                connection.pgconn.finish()
            raise psycopg.OperationalError("the server committed, and its answer was lost")
        else:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), boundary)

    def _die(self, boundary: str) -> None:
        self.dead = True
        raise Died(boundary)

    def _pause(self) -> None:
        self._resumed.clear()
        self._stopped.set()
        self._resumed.wait()
        if self.dead:
            raise Died("paused")

    def _cut(self) -> None:
        """The server ends the sessions; the next statement of each notices."""
        pids = [connection.info.backend_pid for connection in self.connections if not connection.closed]
        with psycopg.connect(self.url, autocommit=True) as server:
            for pid in pids:
                server.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    def _run(self) -> None:
        try:
            self._work(self)
        except Died:
            pass
        except BaseException as error:
            self.error = error
        finally:
            for connection in self.connections:
                connection.pgconn.finish()
            self.ended = True
            self._stopped.set()


class LifeDatabase(Database):
    """A database whose connections are a life's."""

    def __init__(self, life: Life) -> None:
        super().__init__(life.url, life.url)
        object.__setattr__(self, "_life", life)

    def connect(self, autocommit: bool = False) -> LifeConnection:
        return self._life.connect(autocommit)  # type: ignore[attr-defined, no-any-return]


class _Killed(Life):
    """A life that ends its process at its first fault."""

    def _die(self, boundary: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def _live_once(work: Callable[..., None], arguments: tuple[Any, ...], url: str, at: int) -> None:
    threading.excepthook = lambda _: None
    life = _Killed("a process", lambda life: work(life, *arguments), url, [Fault("dies", at)])
    life.go_on()
    os._exit(0 if life.error is None else 1)


def killed(work: Callable[..., None], arguments: tuple[Any, ...], url: str, at: int) -> bool:
    """Run ``work(life, *arguments)`` in a process that is killed at a boundary; False if it came to its end first."""
    process = PROCESSES.Process(target=_live_once, args=(work, arguments, url, at))
    process.start()
    process.join(_HANGS_S)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the process of {work} hangs")
    return process.exitcode == -signal.SIGKILL
