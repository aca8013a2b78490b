"""Recorder for agents in an event loop.

Only the calls that may wait for the database are awaited.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self

from babylon_rl.recorder.core import PATIENCE_S, ROOM, RecorderCalls, new_uuid, require_all, status_after
from babylon_rl.recorder.rows import Recording
from babylon_rl.recorder.writer import BackgroundWriter, RecorderReport, open_writer
from babylon_rl.settings import Settings
from babylon_rl.windows import utc_now

_LOOK_AGAIN_S = 0.01


class AsyncTrajectoryRecorder(RecorderCalls):
    """TrajectoryRecorder for tasks of an event loop, which it never blocks.

    Made by ``await AsyncTrajectoryRecorder.connect()``.
    """

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
        recording = self._finished(trajectory_id, balance, pnl, status, evaluation, game_knowledge)
        if recording is not None and self._writer is not None:
            await self._hand_over(recording, self._writer)
        self._open.pop(trajectory_id, None)

    async def _hand_over(self, recording: Recording, writer: BackgroundWriter) -> None:
        # Polls, because the writer's condition belongs to threads and would block the event loop.
        deadline = time.monotonic() + writer.patience_s
        while not writer.offer(recording):
            if time.monotonic() > deadline:
                raise writer.full()
            await asyncio.sleep(_LOOK_AGAIN_S)

    @contextlib.asynccontextmanager
    async def trajectory(self, agent_id: str, *, window: str | None = None, scenario: str | None = None) -> AsyncIterator[str]:
        """As ``TrajectoryRecorder.trajectory``, for ``async with``.

        The trajectory of a cancelled task is terminated.
        """
        # Ended in an exit callback, which sees the kind of exception.
        begun = self.start_trajectory(agent_id, window=window, scenario=scenario)

        async def end_if_open(kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
            if begun in self._open:
                await self.end_trajectory(begun, status=status_after(kind))

        async with contextlib.AsyncExitStack() as ending:
            ending.push_async_exit(end_if_open)
            yield begun

    async def flush(self, timeout_s: float | None = None) -> None:
        """Wait until every ended trajectory is in the database.

        Raises:
            DatabaseUnreachable: not within the time.
        """
        if self._writer is not None:
            await asyncio.to_thread(self._writer.flush, timeout_s)

    async def close(self) -> RecorderReport:
        """As ``TrajectoryRecorder.close``."""
        if self._writer is not None:
            await asyncio.to_thread(self._writer.close)
        await asyncio.to_thread(self._held.close)
        return self._last_report()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        report = await self.close()
        if kind is None:
            require_all(report)
