"""The recorder for programs without an event loop, and the one for tasks of an event loop.

Agents in any number of threads share one; of the other, only the calls that may wait for the database are awaited.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, Self

from babylon_rl.recorder.core import RecorderCalls, new_uuid, require_all, status_after
from babylon_rl.recorder.rows import Recording
from babylon_rl.recorder.writer import RecorderReport, open_writer
from babylon_rl.settings import Settings
from babylon_rl.windows import utc_now

ROOM = 1000
PATIENCE_S = 30.0
_LOOK_AGAIN_S = 0.01


class TrajectoryRecorder(RecorderCalls):
    """Recorder of observations, model requests, answers and actions of agents.

    A trajectory is written whole when it ends, or never. Create one with ``connect``; created directly, it passes finished trajectories to
    ``write``.

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
        """Create a recorder that writes to a database in a background thread.

        The database is that of ``url``, else of the settings. With RECORD_AGENT_TRAJECTORIES=false the recorder accepts the same calls and
        does nothing.

        Args:
            room: finished trajectories that may wait to be written.
            patience_s: seconds that ``end_trajectory`` waits for room, ``flush`` for the writer, and ``close`` for a database
                that does not answer.

        Raises:
            DatabaseUnreachable, SchemaMismatch, SettingsError: nothing could be recorded there.
        """
        # On success the recorder keeps the stack open until close(); on an error it closes here.
        with contextlib.ExitStack() as stack:
            writer, sampling_rate = open_writer(url, settings, room=room, patience_s=patience_s, stack=stack)
            recorder = cls(writer.put if writer is not None else lambda _: None, new_id, clock, sampling_rate)
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
        """End the trajectory and queue it for writing; an uncompleted step is left out.

        Args:
            balance: at the end, in dollars.
            pnl: the agent's lifetime P&L at the end, in dollars; without it readers take the last step's.
            status: completed, completed_with_errors, terminated, error or timeout; None is completed, or completed_with_errors
                when a step failed.
            evaluation: of a benchmark, never to be trained on.
            game_knowledge: {"trueProbabilities", "actualOutcomes", "futureOutcomes"}: for judges, never shown to the policy.

        Raises:
            UsageError: not open, or something cannot be recorded; the trajectory is still open.
            DatabaseUnreachable: the database did not answer for so long that the queue is full; the trajectory is still open.
        """
        recording = self._recording(
            trajectory_id, balance=balance, pnl=pnl, status=status, evaluation=evaluation, game_knowledge=game_knowledge
        )
        if recording is not None:
            self._write(recording)
        # Only after the hand-over: if that fails, the trajectory stays open and can be ended again.
        self._open.pop(trajectory_id, None)

    @contextlib.contextmanager
    def trajectory(self, agent_id: str, *, window: str | None = None, scenario: str | None = None) -> Iterator[str]:
        """Record a trajectory over a ``with`` block, which receives its id.

        The block may end the trajectory itself. An exception ends it as error, timeout or terminated, with the steps that were completed.
        """
        begun, status = self.start_trajectory(agent_id, window=window, scenario=scenario), None
        try:
            yield begun
        except BaseException as failed:
            status = status_after(failed)
            raise
        finally:
            if begun in self._open:
                self.end_trajectory(begun, status=status)

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until every ended trajectory is in the database. Raises DatabaseUnreachable: not within the time."""
        if self._writer is not None:
            self._writer.flush(timeout_s)

    def close(self) -> RecorderReport:
        """Write waiting trajectories and stop; those that never ended are not written. Losses are in the report and the log."""
        if self._writer is not None:
            self._writer.close()
        self._held.close()
        return self._last_report()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        report = self.close()
        if kind is None:
            require_all(report)


class AsyncTrajectoryRecorder(RecorderCalls):
    """TrajectoryRecorder for tasks of an event loop, which it never blocks."""

    @classmethod
    async def connect(
        cls,
        url: str | None = None,
        *,
        settings: Settings | None = None,
        new_id: Callable[[], str] = new_uuid,
        clock: Callable[[], datetime] = utc_now,
        room: int = ROOM,
        patience_s: float = PATIENCE_S,
    ) -> Self:
        """As ``TrajectoryRecorder.connect``."""
        with contextlib.ExitStack() as stack:
            writer, sampling_rate = await asyncio.to_thread(open_writer, url, settings, room=room, patience_s=patience_s, stack=stack)
            recorder = cls(new_id, clock, sampling_rate)
            recorder._writer, recorder._held = writer, stack.pop_all()
            return recorder

    async def end_trajectory(
        self,
        trajectory_id: str,
        *,
        balance: float | None = None,
        pnl: float | None = None,
        status: str | None = None,
        evaluation: bool = False,
        game_knowledge: Mapping[str, Any] | None = None,
    ) -> None:
        """As ``TrajectoryRecorder.end_trajectory``; waits only while the queue is full."""
        recording = self._recording(
            trajectory_id, balance=balance, pnl=pnl, status=status, evaluation=evaluation, game_knowledge=game_knowledge
        )
        if recording is not None and (writer := self._writer) is not None:
            # Polls, because the writer's condition belongs to threads and would block the event loop.
            deadline = time.monotonic() + writer.patience_s
            while not writer.offer(recording):
                if time.monotonic() > deadline:
                    raise writer.full()
                await asyncio.sleep(_LOOK_AGAIN_S)
        self._open.pop(trajectory_id, None)

    @contextlib.asynccontextmanager
    async def trajectory(self, agent_id: str, *, window: str | None = None, scenario: str | None = None) -> AsyncIterator[str]:
        """As ``TrajectoryRecorder.trajectory``, for ``async with``; that of a cancelled task is terminated."""
        begun, status = self.start_trajectory(agent_id, window=window, scenario=scenario), None
        try:
            yield begun
        except BaseException as failed:
            status = status_after(failed)
            raise
        finally:
            if begun in self._open:
                await self.end_trajectory(begun, status=status)

    async def flush(self, timeout_s: float | None = None) -> None:
        """As ``TrajectoryRecorder.flush``."""
        if self._writer is not None:
            await asyncio.to_thread(self._writer.flush, timeout_s)

    async def close(self) -> RecorderReport:
        """As ``TrajectoryRecorder.close``."""
        if self._writer is not None:
            await asyncio.to_thread(self._writer.close)
        # It may stop the embedded server, which takes a while.
        await asyncio.to_thread(self._held.close)
        return self._last_report()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        report = await self.close()
        if kind is None:
            require_all(report)
