"""A circuit breaker: after some failures in a row nobody asks for a while, then one probe decides.

It knows no loop and no judge: the clock comes in, and callers say how their requests ended.
"""

from collections.abc import Callable
from dataclasses import dataclass

THRESHOLD = 5
OPEN_S = 30.0


@dataclass(eq=False)
class CircuitOpen(Exception):
    """Nobody may ask for ``wait_s`` seconds; ``failures`` in a row, the last for the ``reason`` in words."""

    reason: str
    failures: int
    wait_s: float


class CircuitBreaker:
    """Closed: all may ask; open: nobody; half open: one probe. One event loop owns it; it is not for threads."""

    def __init__(self, clock: Callable[[], float], threshold: int = THRESHOLD, open_s: float = OPEN_S) -> None:
        self._clock = clock
        self._threshold = threshold
        self._open_s = open_s
        self._failures = 0
        self._reason = ""
        self._opened_at: float | None = None
        self._probing = False

    def enter(self) -> bool:
        """Begin a request; True when it is the probe. One of ``succeeded``, ``failed`` and ``left`` follows. Raises CircuitOpen."""
        if self._opened_at is None:
            return False
        self.check()
        if self._probing:
            raise CircuitOpen(self._reason, self._failures, 0.0)
        self._probing = True
        return True

    def check(self) -> None:
        """Raise CircuitOpen while nobody may ask; for a request that has begun and is about to try again."""
        if self._opened_at is not None and (wait_s := self._opened_at + self._open_s - self._clock()) > 0:
            raise CircuitOpen(self._reason, self._failures, wait_s)

    def succeeded(self) -> None:
        """A request was answered: all may ask."""
        self._failures, self._opened_at, self._probing = 0, None, False

    def failed(self, reason: str) -> None:
        """A request failed for good, for the ``reason`` in words."""
        self._failures += 1
        self._reason = reason
        if self._opened_at is not None or self._failures >= self._threshold:
            self._opened_at, self._probing = self._clock(), False

    def left(self, was_probe: bool) -> None:
        """A request ended without saying anything of the other side (it was cancelled); after a probe, another may probe."""
        self._probing = self._probing and not was_probe
