"""Signals that end a command: in event loops, and after Dagster's runs.

An event loop swallows an exception that a signal's handler raises inside one of its callbacks, as Dagster's and Python's own do.
"""

import asyncio
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

Result = TypeVar("Result")


def run_coroutine(work: Coroutine[Any, Any, Result]) -> Result:
    """``asyncio.run`` in a thread; an interrupt of the caller cancels the work, waits for its end, and is raised."""
    runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
    loop = runner.get_loop()
    task, ended = loop.create_task(work), threading.Event()

    def run() -> None:
        with suppress(BaseException), runner:  # the task keeps its error
            loop.run_until_complete(task)
        ended.set()

    thread = threading.Thread(target=run, name="event-loop", daemon=True)
    try:
        thread.start()
        ended.wait()
    except BaseException:
        with suppress(RuntimeError):  # it ended meanwhile
            loop.call_soon_threadsafe(task.cancel)
        raise
    finally:
        if thread.ident is not None:
            thread.join()
    return task.result()


@contextmanager
def keeping_termination() -> Iterator[None]:
    """Leave the handler of SIGTERM as it was before the block.

    A run of Dagster in this process leaves that of SIGINT for both. A script's background jobs ignore SIGINT, so that they could no longer
    be ended.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
