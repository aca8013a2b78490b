"""Background writer of finished trajectories: a bounded queue and one thread.

Many trajectories are written in one transaction. A trajectory and its calls are in the database together or not at all. Queued
trajectories are kept while the process lives: a database that does not answer is tried again without limit. A row that the database
refuses costs that trajectory only.
"""

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import psycopg
from pydantic import SecretStr

from babylon_rl.errors import BabylonError, DatabaseUnreachable, UsageError, first_clause
from babylon_rl.recorder.rows import Recording
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.connection import ROW_FAULTS, Connection
from babylon_rl.store.database import open_database
from babylon_rl.store.recording import copy_rows, require_recording_tables, stored_rows

_LOG = logging.getLogger("babylon_rl.recorder")
# Limits of one transaction: trajectories and bytes. Pauses between attempts double from the first to the longest.
_BATCH = 256
_BATCH_BYTES = 8_000_000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _LAST_PAUSE_S = 0.1, 5.0, 0.2
_REASONS = 20
ANSWER_S = 60.0  # of one transaction


@dataclass(frozen=True)
class RecorderReport:
    """Counts of the trajectories that ended; ``unfinished`` ones never did.

    ``waiting`` are not written yet; ``lost`` were still waiting when the recorder was closed; ``rejected`` were refused by the database,
    for the ``reasons`` (the first 20).
    """

    recorded: int = 0
    waiting: int = 0
    rejected: int = 0
    lost: int = 0
    unfinished: int = 0
    reasons: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        why = f" First: {self.reasons[0]}" if self.reasons else ""
        return (
            f"{self.recorded} trajectories recorded, {self.waiting} waiting, {self.rejected} rejected, {self.lost} lost, "
            f"{self.unfinished} never ended.{why}"
        )


class BackgroundWriter:
    """Writer of recordings in the order in which they come, from any thread.

    Args:
        connect: opens a connection in autocommit mode; called again whenever the last one broke.
        room: trajectories that may wait; beyond that, ``put`` waits.
        patience_s: time limit of waiting for room, and of ``close`` for a database that does not answer, in seconds.
    """

    def __init__(self, connect: Callable[[], Connection], *, room: int, patience_s: float) -> None:
        self._connect, self._room, self.patience_s = connect, room, patience_s
        self._connection: Connection | None = None
        self._waiting: deque[Recording] = deque()
        self._changed = threading.Condition()
        self._handed = self._recorded = self._rejected = 0
        self._reasons: list[str] = []
        self._closing, self._closed, self._give_up_at = threading.Event(), False, 0.0
        # A fork inherits the queue but not the thread, so a child must not use this writer.
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="babylon-recorder", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def offer(self, recording: Recording) -> bool:
        """Take a trajectory if there is room, without waiting; False if there is none. Raises UsageError as ``put``."""
        with self._changed:
            self._require_open()
            if len(self._waiting) >= self._room:
                return False
            self._waiting.append(recording)
            self._handed += 1
            self._changed.notify_all()
            return True

    def put(self, recording: Recording) -> None:
        """Take a trajectory, waiting for room.

        Raises:
            DatabaseUnreachable: no room within ``patience_s``; the trajectory was not taken.
            UsageError: closed, or made in another process.
        """
        with self._changed:
            self._require_open()
            self._changed.wait_for(lambda: len(self._waiting) < self._room or self._closing.is_set(), self.patience_s)
            if not self.offer(recording):
                raise self.full()

    def full(self) -> DatabaseUnreachable:
        return DatabaseUnreachable(
            f"{self._room} recorded trajectories have waited {self.patience_s:g} s for the database. Check that it runs; "
            "this trajectory is still open, so end it again when it does."
        )

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until every earlier trajectory is written or rejected, at most ``patience_s`` by default.

        Raises:
            DatabaseUnreachable: not in time; the writer goes on trying.
        """
        with self._changed:
            # Counts, not the queue: the thread has taken its batch off the queue already.
            handed = self._handed
            wait_s = self.patience_s if timeout_s is None else timeout_s
            if not self._changed.wait_for(lambda: self._recorded + self._rejected >= handed, wait_s):
                waiting = handed - self._recorded - self._rejected
                raise DatabaseUnreachable(f"{waiting} recorded trajectories were not written within {wait_s:g} s. Check the database.")

    def report(self) -> RecorderReport:
        with self._changed:
            waiting = self._handed - self._recorded - self._rejected
            lost = waiting if self._closed else 0
            return RecorderReport(self._recorded, waiting - lost, self._rejected, lost, 0, tuple(self._reasons))

    def close(self) -> None:
        """Write waiting trajectories and stop; a database that does not answer is tried for at most ``patience_s``."""
        if os.getpid() != self._process:
            return
        with self._changed:
            if not self._closing.is_set():
                self._give_up_at = time.monotonic() + self.patience_s
                self._closing.set()
            self._changed.notify_all()
        # One second more than the limit, for an attempt that is just under way.
        self._thread.join(max(0.0, self._give_up_at - time.monotonic()) + 1)
        atexit.unregister(self.close)
        with self._changed:
            lost = 0 if self._closed else self._handed - self._recorded - self._rejected
            self._closed = True
        if lost:
            _LOG.error("%d ended trajectories are lost: the database did not take them within %g s.", lost, self.patience_s)

    def _require_open(self) -> None:
        if os.getpid() != self._process:
            raise UsageError("This recorder was made in another process: make it in the process that records.")
        if self._closing.is_set():
            raise UsageError("The recorder is closed: what ends now is not recorded.")
        if not self._thread.is_alive():
            raise DatabaseUnreachable("The recorder's thread has died; its error was printed. Make a new recorder.")

    def _run(self) -> None:
        while batch := self._next_batch():
            if not self._write_out(batch):
                break
        if self._connection is not None:
            self._connection.close()

    def _next_batch(self) -> list[Recording]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing.is_set())
            # An empty batch means closing with nothing left, and ends the thread.
            batch, size = list[Recording](), 0
            while self._waiting and len(batch) < _BATCH and size < _BATCH_BYTES:
                batch.append(self._waiting.popleft())
                size += batch[-1].size
            self._changed.notify_all()
            return batch

    def _write_out(self, batch: Sequence[Recording]) -> bool:
        """Write a batch, retrying as long as needed; False once ``close`` has timed out."""
        # ``_settle`` removes each recording that is written or rejected; the rest is tried again.
        unsettled, failures = {id(recording): recording for recording in batch}, 0
        while unsettled:
            try:
                self._settle(list(unsettled.values()), unsettled, again=failures > 0)
            except (psycopg.Error, BabylonError) as broken:
                self._drop_connection()
                failures += 1
                # One broken connection is normal and silent; the second failure is reported.
                if failures == 2:
                    _LOG.warning(
                        "The database does not take recorded trajectories (%s); they wait and are tried again.",
                        first_clause(broken),
                    )
                if not self._pause(failures):
                    return False
        if failures > 1:
            _LOG.warning("The database takes recorded trajectories again.")
        return True

    def _settle(self, part: list[Recording], unsettled: dict[int, Recording], *, again: bool) -> None:
        """Write ``part`` in one transaction, halved until a refused row is alone; remove it from ``unsettled``."""
        reason = None
        try:
            self._write(part, again)
        except ROW_FAULTS as fault:
            if len(part) > 1:
                middle = len(part) // 2
                for half in (part[:middle], part[middle:]):
                    self._settle(half, unsettled, again=again)
                return
            # An earlier attempt whose answer was lost may have been committed while this one waited for it.
            reason = None if self._stored(part) else _reason(part[0], fault)
        for recording in part:
            del unsettled[id(recording)]
        if reason is not None:
            _LOG.error(reason)
        with self._changed:
            if reason is None:
                self._recorded += len(part)
            else:
                self._rejected += len(part)
                # The report keeps the first reasons only; the log has all.
                self._reasons += [reason] if len(self._reasons) < _REASONS else []
            self._changed.notify_all()

    def _write(self, part: Sequence[Recording], again: bool) -> None:
        connection = self._connected()
        with connection.answering_within(ANSWER_S), connection.transaction():
            # After a failed attempt some may be committed already: the answer can be lost, not the commit.
            stored = self._stored(part) if again else frozenset()
            rest = [recording for recording in part if recording.columns["id"] not in stored]
            copy_rows(connection, "trajectories", [recording.columns for recording in rest])
            copy_rows(connection, "llm_call_logs", [call for recording in rest for call in recording.calls])

    def _stored(self, part: Sequence[Recording]) -> frozenset[str]:
        return stored_rows(self._connected(), [recording.columns["id"] for recording in part])

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _pause(self, failures: int) -> bool:
        """Wait before the next attempt, but for the first; False once ``close`` has timed out."""
        if failures > 1:
            pause_s = min(_FIRST_PAUSE_S * 2 ** min(failures - 2, 10), _LONGEST_PAUSE_S)
            # While closing the event is set and wait() returns at once, so a short fixed pause replaces it.
            if self._closing.wait(pause_s):
                time.sleep(_LAST_PAUSE_S)
        return not self._closing.is_set() or time.monotonic() < self._give_up_at


def _reason(recording: Recording, fault: psycopg.Error) -> str:
    agent, trajectory = recording.columns["agentId"], recording.trajectory_id
    if isinstance(fault, psycopg.errors.ForeignKeyViolation):
        return f'Agent {agent} is not in "User", so its trajectory {trajectory} was not recorded: create the agent first.'
    return f"Trajectory {trajectory} of agent {agent} was not recorded: {first_clause(fault)}."


def open_writer(
    url: str | None, settings: Settings | None, *, room: int, patience_s: float, stack: ExitStack
) -> tuple[BackgroundWriter | None, float]:
    """Return (writer, sampling rate), or (None, 0) without a database if the settings disable recording.

    ``url`` replaces DATABASE_URL; without either the embedded database is held until ``stack`` closes. Raises as
    ``TrajectoryRecorder.connect``.
    """
    # The off switch comes first: without recording nothing needs a database.
    chosen = settings if settings is not None else load_settings()
    if url is not None:
        chosen = chosen.model_copy(update={"database_url": SecretStr(url)})
    if not chosen.record_agent_trajectories or chosen.trajectory_sampling_rate == 0:
        return None, 0.0
    database = stack.enter_context(open_database(chosen, prepare=False))
    # Fail at once, not when the first trajectory ends.
    with database.connect() as connection:
        require_recording_tables(connection)
    writer = BackgroundWriter(partial(database.connect, autocommit=True), room=room, patience_s=patience_s)
    return writer, chosen.trajectory_sampling_rate
