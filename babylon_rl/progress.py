"""Progress callbacks ``(label, done, total)``; the default ignores them."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def no_progress(what: str, done: int, total: int) -> None:
    """Ignore the progress of ``what``: ``done`` of ``total`` units."""
