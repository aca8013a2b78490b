"""Progress callbacks ``(label, done, total)``; the default ignores them."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def no_progress(what: str, done: int, total: int) -> None:
    """A progress callback that does nothing.

    ``what`` is the label; ``done`` of ``total`` units are finished.
    """
