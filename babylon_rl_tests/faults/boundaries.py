"""A process that dies at the n-th thing it does outside itself: a statement, a commit, a file or folder made, linked, renamed or removed.

Interposed from outside, by a connection class and by the interpreter's own audit events; nothing of the package is replaced. Once dead,
a process does nothing more: every later boundary of it, such as those of its ``finally`` blocks, dies too.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from babylon_rl.store.connection import Connection

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FILE_EVENTS = {"os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}


class Died(BaseException):
    """Stands for kill -9: nothing in the package handles it."""


class Fuse:
    """Counts boundaries while it burns, and dies at the ``at``-th; None never dies.

    ``watch`` gets every boundary instead, for faults of other kinds (lives.py).
    """

    def __init__(self) -> None:
        self.burning, self.dead = False, False
        self.at: int | None = None
        self.passed: list[str] = []
        self.watch: Callable[[str], None] | None = None

    @contextmanager
    def lit(self, at: int | None) -> Iterator[list[str]]:
        """One life of a process; gives what it passes, in order."""
        self.burning, self.dead, self.at, self.passed = True, False, at, []
        try:
            yield self.passed
        finally:
            self.burning = False

    def reach(self, boundary: str) -> None:
        """Pass a boundary, or die before what is behind it."""
        if not self.burning:
            return
        if self.watch is not None:
            self.watch(boundary)
            return
        if not self.dead:
            self.passed.append(boundary)
            self.dead = len(self.passed) == self.at
        if self.dead:
            raise Died(boundary)


FUSE = Fuse()  # one for the interpreter, as audit hooks cannot be taken away


def _hear(event: str, arguments: Sequence[Any]) -> None:
    if not FUSE.burning:
        return
    if event in FILE_EVENTS:
        FUSE.reach(f"{event} {arguments[0]}")
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING and isinstance(arguments[0], str):
        try:
            FUSE.reach(f"write {arguments[0]}")
        except Died:
            _tear(Path(arguments[0]))
            raise


def _tear(path: Path) -> None:
    """What a process leaves that dies in the midst of writing a file; one without a name, opened by its directory, goes with it."""
    if path.is_dir():
        return
    FUSE.burning = False
    path.write_bytes(b"{torn")
    FUSE.burning = True


sys.addaudithook(_hear)


class MortalCursor(psycopg.Cursor[Any]):
    """Reaches a boundary before each statement."""

    def execute(self, query: Any, *arguments: Any, **named: Any) -> Any:
        FUSE.reach(" ".join(str(query).split())[:80])
        return super().execute(query, *arguments, **named)

    def executemany(self, query: Any, *arguments: Any, **named: Any) -> None:
        FUSE.reach(" ".join(str(query).split())[:80])
        super().executemany(query, *arguments, **named)


class MortalConnection(Connection):
    """A connection of a process that may die: before a statement, and before and after a commit."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.cursor_factory = MortalCursor

    def commit(self) -> None:
        FUSE.reach("commit")
        super().commit()

    @contextmanager
    def transaction(self, *arguments: Any, **named: Any) -> Iterator[psycopg.Transaction]:
        with super().transaction(*arguments, **named) as opened:
            yield opened
            FUSE.reach("commit")
        FUSE.reach("committed")


@contextmanager
def process(url: str, dies_at: int | None) -> Iterator[tuple[MortalConnection, list[str]]]:
    """One life of a process with a connection: what it has not committed when it dies is undone by the server, as for any client.

    Swallows its death; the list tells which boundaries it passed, the last being where it died.
    """
    connection = MortalConnection.connect(url, prepare_threshold=None)
    try:
        with FUSE.lit(dies_at) as passed:
            yield connection, passed
    except Died:
        pass
    finally:
        connection.pgconn.finish()
