"""Stop rule: ends a run after many unusable answers in a row over several groups.

One group alone may use up all its tries or be refused, as the group may be the cause; many groups without scores point to the judge.
"""

from collections.abc import Sequence

from babylon_rl.errors import JudgeUnavailable

GROUPS = 3  # so many may be given up before it is the judge


class Patience:
    """Count of unusable answers of one run; ``tries`` is the number allowed per request."""

    def __init__(self, model: str, tries: int) -> None:
        self._model = model
        self._tries = tries
        self._unusable = 0
        self._windows: set[str] = set()
        self._faults: Sequence[str] = ()

    def check(self) -> None:
        """Raise once the judge is not worth asking any more.

        Raises:
            JudgeUnavailable: too many answers in a row, about too many groups, were unusable.
        """
        if self._unusable >= GROUPS * self._tries and len(self._windows) > GROUPS:
            raise JudgeUnavailable(
                f"Not asked: the last answers of {self._model}, about {len(self._windows)} hours, could not be used or were refusals, the "
                f"last because: {' '.join(self._faults)} See whether JUDGE_MODEL can answer in JSON (babylon-rl judge quarantine)."
            )

    def heard(self, window: str, faults: Sequence[str]) -> None:
        """Record an answer about an hour with its faults; one without faults resets the count."""
        if not faults:
            self._unusable = 0
            self._windows.clear()
            return
        self._unusable += 1
        self._windows.add(window)
        self._faults = faults

    def refused(self, window: str, reason: str) -> None:
        """Record a refused request, which counts as all its tries."""
        self._unusable += self._tries
        self._windows.add(window)
        self._faults = [reason]
