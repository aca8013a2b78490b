"""How far a long step is: whoever works tells (what, done, total), and whoever is told may not be there."""

from collections.abc import Callable

Progress = Callable[[str, int, int], None]


def unheard(what: str, done: int, total: int) -> None:
    """Progress that nobody watches: of ``what``, ``done`` units of ``total``."""
