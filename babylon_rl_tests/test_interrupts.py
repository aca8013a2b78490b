"""An interrupt ends a coroutine wherever it comes, after the coroutine has cleaned up."""

import asyncio
import os
import signal
from types import FrameType

import pytest

from babylon_rl.interrupts import handling, run_coroutine


class Interrupted(BaseException):
    """What a signal's handler raises."""


def test_an_interrupt_inside_of_a_callback_of_the_loop_is_raised() -> None:
    seen: list[str] = []

    async def work() -> None:
        # a signal that comes while a callback runs: asyncio.run would hand the exception to the loop's handler, and wait on
        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGUSR1)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    with handling({signal.SIGUSR1: interrupt}), pytest.raises(Interrupted):
        run_coroutine(work())
    assert seen == ["cleaned up"]


def test_results_and_errors_are_those_of_the_work() -> None:
    async def work(fail: bool) -> int:
        await asyncio.sleep(0)
        if fail:
            raise LookupError("lost")
        return 7

    assert run_coroutine(work(False)) == 7
    with pytest.raises(LookupError, match="lost"):
        run_coroutine(work(True))
