"""The recorder for programs without an event loop; agents in any number of threads share one."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from babylon_rl.errors import DatabaseError
from babylon_rl.recorder.core import RecorderCalls, new_uuid, status_after
from babylon_rl.recorder.opening import open_writer
from babylon_rl.recorder.rows import Recording
from babylon_rl.recorder.writer import BackgroundWriter, RecorderReport
from babylon_rl.settings import Settings
from babylon_rl.windows import utc_now

ROOM = 1000
PATIENCE_S = 30.0
_LOG = logging.getLogger("babylon_rl.recorder")


class TrajectoryRecorder(RecorderCalls):
    """Records what agents saw, were asked, answered and did; a trajectory is written whole when it ends, or never.

    Make one with ``connect``; made directly it hands finished trajectories to ``write``, whatever that is.

    Args:
        write: takes a finished Recording; called once per kept trajectory.
        new_id: gives decimal snowflake or uuid ids, never the same twice.
        clock: naive UTC now; simulated agents pass simulated time.
        sampling_rate: share of trajectories kept, 0..1, decided by a hash of the id.
    """

    def __init__(
        self,
        write: Callable[[Recording], None],
        new_id: Callable[[], str] = new_uuid,
        clock: Callable[[], datetime] = utc_now,
        sampling_rate: float = 1.0,
    ) -> None:
        super().__init__(new_id, clock, sampling_rate)
        self._write = write
        self._writer: BackgroundWriter | None = None
        self._held = contextlib.ExitStack()

    @classmethod
    def connect(
        cls,
        url: str | None = None,
        *,
        settings: Settings | None = None,
        new_id: Callable[[], str] = new_uuid,
        clock: Callable[[], datetime] = utc_now,
        room: int = ROOM,
        patience_s: float = PATIENCE_S,
    ) -> Self:
        """A recorder that writes into the database of ``url``, else of the settings, by a thread of its own.

        RECORD_AGENT_TRAJECTORIES=false gives one that takes the same calls and does nothing.

        Args:
            room: finished trajectories that may wait to be written.
            patience_s: seconds that ``end_trajectory`` waits for room, ``flush`` for the writer, and ``close`` for a database
                that does not answer.

        Raises:
            DatabaseUnreachable, SchemaMismatch, SettingsError: nothing could be recorded there.
        """
        with contextlib.ExitStack() as stack:
            writer, sampling_rate = open_writer(url, settings, room=room, patience_s=patience_s, stack=stack)
            recorder = cls(_nowhere if writer is None else writer.put, new_id, clock, sampling_rate)
            recorder._writer, recorder._held = writer, stack.pop_all()
            return recorder

    def end_trajectory(
        self,
        trajectory_id: str,
        *,
        balance: float | None = None,
        pnl: float | None = None,
        status: str | None = None,
        evaluation: bool = False,
        game_knowledge: Mapping[str, Any] | None = None,
    ) -> None:
        """End the trajectory and hand it over; a step that was started and not completed is left out.

        Args:
            balance: at the end, in dollars.
            pnl: the agent's lifetime P&L at the end, in dollars; without it readers take the last step's.
            status: completed, completed_with_errors, terminated, error or timeout; None is completed, or completed_with_errors
                when a step failed.
            evaluation: of a benchmark, never to be trained on.
            game_knowledge: {"trueProbabilities", "actualOutcomes", "futureOutcomes"}: for judges, never shown to the policy.

        Raises:
            UsageError: not open, or something cannot be recorded; the trajectory is still open.
            DatabaseUnreachable: the database has been away for so long that there is no room; the trajectory is still open.
        """
        recording = self._finished(trajectory_id, balance, pnl, status, evaluation, game_knowledge)
        if recording is not None:
            self._write(recording)
        self._open.pop(trajectory_id, None)

    @contextlib.contextmanager
    def trajectory(self, agent_id: str, *, window: str | None = None, scenario: str | None = None) -> Iterator[str]:
        """A trajectory for the length of a ``with`` block, which gets its id; the block may end it with its own words.

        A block that is left by an exception ends it as error, timeout or terminated, with the steps that were completed.
        """
        begun = self.start_trajectory(agent_id, window=window, scenario=scenario)
        with contextlib.ExitStack() as ending:
            ending.push(lambda kind, _error, _trace: self._end_if_open(begun, kind))
            yield begun

    def _end_if_open(self, begun: str, kind: type[BaseException] | None) -> None:
        if begun in self._open:
            self.end_trajectory(begun, status=status_after(kind))

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything that has ended is in the database. Raises DatabaseUnreachable: not within the time."""
        if self._writer is not None:
            self._writer.flush(timeout_s)

    def report(self) -> RecorderReport:
        """What became of the trajectories so far."""
        return reported(self._writer, self._unfinished())

    def close(self) -> RecorderReport:
        """Write what waits and stop; trajectories that never ended are not written. What was lost is in the report and the log."""
        if self._writer is not None:
            self._writer.close()
        self._held.close()
        return told(self.report())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        report = self.close()
        if kind is None:
            require_all(report)


def _nowhere(recording: Recording) -> None:
    raise AssertionError("a recorder that keeps nothing writes nothing")


def reported(writer: BackgroundWriter | None, unfinished: int) -> RecorderReport:
    """The writer's report with the trajectories that are still open."""
    return dataclasses.replace(RecorderReport() if writer is None else writer.report(), unfinished=unfinished)


def told(report: RecorderReport) -> RecorderReport:
    """The report, in the log when trajectories never ended; what was lost or rejected is there already."""
    if report.unfinished:
        _LOG.warning(report.sentence)
    return report


def require_all(report: RecorderReport) -> None:
    """Raises DatabaseError: a trajectory that ended is not in the database."""
    if report.lost or report.rejected:
        raise DatabaseError(report.sentence)
