"""Signals that end a command: their handlers for a time, and event loops that they end.

An event loop swallows an exception that a signal's handler raises inside one of its callbacks, as Dagster's and Python's own do.
"""

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

Result = TypeVar("Result")
Handler = Callable[[int, FrameType | None], Any] | int | None


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
def handling(handlers: Mapping[int, Handler]) -> Iterator[None]:
    """Set handlers of signals, and those from before again at the end, whatever the block set. Only the main thread gets signals."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
