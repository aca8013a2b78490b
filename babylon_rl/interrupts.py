"""Event loops that an interrupt ends.

An event loop swallows an exception that a signal's handler raises inside one of its callbacks, as Dagster's and Python's own do.
"""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_coroutine(work: Coroutine[Any, Any, Result]) -> Result:
    """``asyncio.run`` in a thread; an interrupt of the caller cancels the work, waits for its end, and is raised."""
    begun: Future[Callable[[], object]] = Future()

    async def main() -> Result:
        task = asyncio.ensure_future(work)
        begun.set_result(partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel))
        return await task

    with ThreadPoolExecutor(1, "event-loop") as thread:
        ended = thread.submit(contextvars.copy_context().run, asyncio.run, main())
        try:
            return ended.result()
        except BaseException:
            if not ended.done():
                with suppress(RuntimeError):  # it ended meanwhile
                    begun.result()()
            raise
