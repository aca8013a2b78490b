"""Circuit breaker: after some failures in a row requests pause, then one probe decides.

It knows no loop and no judge: the clock is an argument, and callers report how their requests ended.
"""

from collections.abc import Callable
from dataclasses import dataclass

THRESHOLD = 5
OPEN_S = 30.0


@dataclass(eq=False)
class CircuitOpen(Exception):
    """No request is allowed for ``wait_s`` seconds.

    ``failures`` is the number of failures in a row, ``reason`` the text of the last.
    """

    reason: str
    failures: int
    wait_s: float


class CircuitBreaker:
    """Circuit breaker of one event loop; not thread-safe.

    Closed: all requests pass; open: none; half open: one probe.
    """

    def __init__(self, clock: Callable[[], float], threshold: int = THRESHOLD, open_s: float = OPEN_S) -> None:
        self._clock = clock
        self._threshold = threshold
        self._open_s = open_s
        self._failures = 0
        self._reason = ""
        self._opened_at: float | None = None
        self._probing = False

    def enter(self) -> bool:
        """Begin a request; True when it is the probe.

        One of ``succeeded``, ``failed`` and ``left`` must follow.

        Raises:
            CircuitOpen: no request is allowed now.
        """
        if self._opened_at is None:
            return False
        self.check()
        # half open: the probe is under way, all others wait
        if self._probing:
            raise CircuitOpen(self._reason, self._failures, 0.0)
        self._probing = True
        return True

    def check(self) -> None:
        """Raise CircuitOpen while no request is allowed; called before a retry."""
        if self._opened_at is not None and (wait_s := self._opened_at + self._open_s - self._clock()) > 0:
            raise CircuitOpen(self._reason, self._failures, wait_s)

    def succeeded(self) -> None:
        """Record an answered request: the circuit closes."""
        self._failures, self._opened_at, self._probing = 0, None, False

    def failed(self, reason: str) -> None:
        """Record a request that failed for good, with the ``reason`` in words."""
        self._failures += 1
        self._reason = reason
        # a failed probe opens the circuit again at once
        if self._opened_at is not None or self._failures >= self._threshold:
            self._opened_at, self._probing = self._clock(), False

    def left(self, was_probe: bool) -> None:
        """Record a request that was cancelled and says nothing about the judge.

        If it was the probe, another request may probe.
        """
        self._probing = self._probing and not was_probe
