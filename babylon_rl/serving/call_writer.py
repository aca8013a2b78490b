"""Process that writes spooled calls into the database, beside the gateway.

An answer never waits for its work. A database that is away is tried again without limit; calls wait on disk. A call is written once, as
its id is unique. A row that the database refuses is kept in ``rejected.calls.json`` beside the spool, and the others go on. On a full disk
the segments are written and removed all the same, as that makes room; one with a refused row waits until the row can be kept.
"""

import errno
import fcntl
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from babylon_rl.errors import BabylonError, DatabaseError, first_line
from babylon_rl.project_files import import_root
from babylon_rl.serving.call_entry import CallEntry
from babylon_rl.serving.recorded_privacy import RecordedPrivacy
from babylon_rl.serving.spool import SpoolReader, read_status, spool_directory, stored_bytes
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.connection import ROW_FAULTS, Connection
from babylon_rl.store.database import Database, open_database
from babylon_rl.store.live_usage import write_calls

_LOG = logging.getLogger("babylon_rl.gateway")
_EVERY_S = 0.2
_LONGEST_PAUSE_S, _MOST_DOUBLINGS = 5.0, 10
_STOP_S = 10.0
_RESTART_S = 1.0
WRITTEN_S = 60.0
ANSWER_S = 30.0  # of one transaction
_MAX_RECORDS, _MAX_BYTES = 256, 4 * 1024**2
_ENTRY_FAULTS = (msgspec.MsgspecError, ValueError, TypeError, KeyError, AttributeError, RecursionError, ArithmeticError)
# Handed over to the writer's process, as the caller may have chosen others than the environment says (the demo does).
_PASSED_ON = ("database_url", "direct_database_url", "record_private_fields", "record_hash_key")
_UNPUBLISHED = "The status of recorded calls cannot be written"
Rows = list[tuple[dict[str, Any], dict[str, Any] | None]]


class CallWriter:
    """Writer of the calls of one spool directory until ``closing`` is set."""

    def __init__(self, settings: Settings, closing: threading.Event) -> None:
        self._closing = closing
        self._privacy = RecordedPrivacy.of(settings)
        self._spool = SpoolReader(spool_directory(settings))
        self._connection: Connection | None = None
        self._refused: list[tuple[str, Any]] = []  # of one batch, each with its reason
        self._failing = set[str]()  # steps that the calls do not wait for

    def run(self, database: Database) -> None:
        """Write until ``closing``, then the remaining calls, unless the database is away."""
        threading.Thread(target=self._sync, name="babylon-spool-sync", daemon=True).start()
        failures = 0
        while True:
            # Asked before writing: what came before the end is still written, and then nothing more.
            last = self._closing.is_set()
            try:
                self._write_all(database)
                if failures > 1:
                    _LOG.warning("Recorded calls are written again.")
                failures, self._spool.status.problem = 0, None
            except (psycopg.Error, BabylonError, OSError) as broken:
                failures += 1
                self._spool.status.problem = first_line(broken)
                self._drop_connection()
                # One failure is normal, as after a restart of the database, and is not logged.
                if failures == 2:
                    _LOG.warning("Recorded calls cannot be written (%s); they wait on disk.", self._spool.status.problem)
            self._try(self._spool.publish, _UNPUBLISHED)
            if last:
                break
            self._closing.wait(min(_EVERY_S * 2 ** min(failures, _MOST_DOUBLINGS), _LONGEST_PAUSE_S))
        self._drop_connection()

    def _sync(self) -> None:
        while not self._closing.wait(_EVERY_S):
            self._try(self._spool.sync, "Recorded calls may not survive a power failure")

    def _try(self, step: Callable[[], None], failure: str) -> None:
        """Log that a step fails, until it works again. The calls come first: they must leave a full disk."""
        try:
            step()
            self._failing.discard(failure)
        except OSError as failed:
            if failure not in self._failing:
                _LOG.warning("%s: %s. It is tried again.", failure, first_line(failed))
            self._failing.add(failure)

    def _write_all(self, database: Database) -> None:
        broken: OSError | None = None
        for segment in self._spool.segments():
            try:
                self._write_segment(segment, database)
            # DatabaseUnreachable is an OSError too, and concerns all segments.
            except BabylonError:
                raise
            except OSError as failed:  # of the disk; the other segments may go on
                broken = failed
        if broken is not None:
            raise broken

    def _write_segment(self, segment: Path, database: Database) -> None:
        # Asked before the last records are read, as more may follow until then.
        complete = self._spool.is_complete(segment)
        while True:
            records, end = self._spool.read(segment, _MAX_RECORDS, _MAX_BYTES)
            if not records:
                break
            self._refused = []
            self._write([rows for record in records if (rows := self._rows(record)) is not None], database)
            self._keep_refused()
            self._spool.status.offsets[segment.name] = end
            self._try(self._spool.publish, _UNPUBLISHED)
        if not complete:
            return
        if left := self._spool.remove(segment):
            _LOG.error("%s ended with %d bytes that are no call: a write was cut off.", segment, left)

    def _rows(self, record: bytes) -> tuple[dict[str, Any], dict[str, Any] | None] | None:
        try:
            entry = msgspec.msgpack.decode(record, type=CallEntry)
            call = entry.call_row()
        except _ENTRY_FAULTS as fault:
            self._refuse(f"A record of the spool is no call: {fault}", repr(record[:1000]))
            return None
        try:
            log = entry.log_row()
        except _ENTRY_FAULTS as fault:
            self._refuse(f"The texts of call {entry.call_id} cannot be recorded: {fault}", {"request": repr(entry.request)})
            log = None
        self._privacy.apply(call, log)
        return call, log

    def _refuse(self, reason: str, unread: Any) -> None:
        """Refuse a call that cannot be read; with private fields it is not kept."""
        self._refused.append((reason, None if self._privacy.fields else unread))

    def _write(self, rows: Rows, database: Database) -> None:
        """Write rows in one transaction; if the database refuses one, halves until it is alone."""
        if not rows:
            return
        try:
            if self._connection is None:
                self._connection = database.connect(autocommit=True)
            calls, logs = [call for call, _ in rows], [log for _, log in rows if log is not None]
            with self._connection.answering_within(ANSWER_S):
                self._spool.status.written += write_calls(self._connection, calls, logs)
        except ROW_FAULTS as fault:
            if len(rows) == 1:
                self._refused.append((f"The database refuses call {rows[0][0]['callId']}: {first_line(fault)}", rows[0]))
                return
            middle = len(rows) // 2
            self._write(rows[:middle], database)
            self._write(rows[middle:], database)

    def _keep_refused(self) -> None:
        """Append the refused rows of a batch to their file, all or none."""
        if not self._refused:
            return
        lines = "".join(json.dumps({"reason": reason, "row": row}, default=str) + "\n" for reason, row in self._refused).encode()
        path = self._spool.directory.parent / "rejected.calls.json"
        with open(path, "ab", buffering=0, opener=partial(os.open, mode=0o600)) as file:
            end = file.seek(0, os.SEEK_END)
            if file.write(lines) < len(lines):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        for reason, _ in self._refused:
            _LOG.error(reason)
        self._spool.status.rejected += len(self._refused)

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None


@contextmanager
def call_writer(settings: Settings) -> Iterator[None]:
    """Run the writer's process as long as the block; one that dies is started again.

    Its standard input is a pipe that only this process holds, so that it ends when this process does, after writing what is left.
    """
    RecordedPrivacy.of(settings)  # a wrong setting is reported here
    closing, child = threading.Event(), _started(settings)

    def keep_running() -> None:
        nonlocal child
        while child.wait() is not None and not closing.wait(_RESTART_S):
            _LOG.error("The writer of recorded calls ended with status %d and is started again.", child.returncode)
            _stop(child)
            try:
                child = _started(settings)
            except OSError as failed:  # no memory or no free file; the calls wait on disk
                _LOG.error("The writer of recorded calls cannot be started: %s. It is tried again.", first_line(failed))
            # The block has ended while the new process was started.
            if closing.is_set():
                _stop(child)

    thread = threading.Thread(target=keep_running, name="babylon-call-writer", daemon=True)
    thread.start()
    try:
        yield
    finally:
        closing.set()
        _stop(child)
        thread.join(_STOP_S)


def write_waiting(settings: Settings) -> None:
    """Write the calls that a killed gateway left on disk. Raises DatabaseError as ``wait_until_written``."""
    if stored_bytes(spool_directory(settings)):
        with call_writer(settings):
            wait_until_written(settings)


def wait_until_written(settings: Settings) -> None:
    """Wait until a writer has written all calls of ended gateways. Raises DatabaseError: not within WRITTEN_S."""
    directory, deadline = spool_directory(settings), time.monotonic() + WRITTEN_S
    while stored_bytes(directory):
        if time.monotonic() > deadline:
            problem = read_status(directory).problem or "another gateway may be using it"
            raise DatabaseError(f"Recorded calls wait in {directory} since {WRITTEN_S:g} s: {problem}. Run the command again.")
        time.sleep(0.05)


def _started(settings: Settings) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE, start_new_session=True, cwd=import_root())
    values = {name: getattr(settings, name) for name in _PASSED_ON}
    plain = {name: value.get_secret_value() if hasattr(value, "get_secret_value") else value for name, value in values.items()}
    assert child.stdin is not None
    # Through the pipe, as a command line can be read by others.
    child.stdin.write(json.dumps(plain | {"babylon_rl_home": str(settings.home)}).encode() + b"\n")
    child.stdin.flush()
    return child


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Close the pipe to a writer, and wait until it has ended."""
    assert child.stdin is not None
    child.stdin.close()
    try:
        child.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()


def main() -> None:
    """Run ``python -m babylon_rl.serving.call_writer``: settings on the first line of standard input, until it closes."""
    settings = load_settings(**json.loads(sys.stdin.buffer.readline()))
    directory, closing = spool_directory(settings), threading.Event()
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def end_with_stdin() -> None:
        sys.stdin.buffer.read()
        closing.set()

    threading.Thread(target=end_with_stdin, daemon=True).start()
    os.nice(5)  # answers come first
    with (directory / ".lock").open("w") as lock:
        # One writer a directory; another waits until this one has ended.
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if closing.wait(1):
                    return
        while True:
            try:
                with open_database(settings, prepare=False) as database:
                    CallWriter(settings, closing).run(database)
                return
            except BabylonError as away:  # an embedded server that does not start
                _LOG.warning("%s", away)
                if closing.wait(_LONGEST_PAUSE_S):
                    return


if __name__ == "__main__":
    main()
