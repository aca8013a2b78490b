"""Event loops that an interrupt ends.

An event loop swallows an exception that a signal's handler raises inside one of its callbacks, as Dagster's and Python's own do.
"""

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_coroutine(work: Coroutine[Any, Any, Result]) -> Result:
    """``asyncio.run`` in a thread; an interrupt of the caller cancels the work, waits for its end, and is raised."""
    ended: Future[Result] = Future()
    cancel: Callable[[], object] | None = None
    interrupted = False

    async def main() -> Result:
        nonlocal cancel
        task = asyncio.ensure_future(work)
        cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel)
        if interrupted:  # while the thread started
            task.cancel()
        return await task

    def run() -> None:
        try:
            ended.set_result(asyncio.run(main()))
        except BaseException as failed:
            ended.set_exception(failed)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="event-loop", daemon=True)
    try:
        thread.start()
        return ended.result()
    except BaseException:
        interrupted = True
        if cancel is not None and not ended.done():
            with suppress(RuntimeError):  # it ended meanwhile
                cancel()
        raise
    finally:
        if thread.ident is not None:
            thread.join()
