"""How long a judge is asked that answers nothing usable: some answers in a row, about several groups, and a run asks no more.

One group alone may use up all its tries or be refused, as it may be the group; many groups of which none comes to scores are the judge.
"""

from collections.abc import Sequence

from babylon_rl.errors import JudgeUnavailable

GROUPS = 3  # so many may be given up before it is the judge


class Patience:
    """Of one run; ``tries`` are those of a request."""

    def __init__(self, model: str, tries: int) -> None:
        self._model = model
        self._tries = tries
        self._unusable = 0
        self._windows: set[str] = set()
        self._faults: Sequence[str] = ()

    def check(self) -> None:
        """Raises JudgeUnavailable once the judge is not worth asking."""
        if self._unusable >= GROUPS * self._tries and len(self._windows) > GROUPS:
            raise JudgeUnavailable(
                f"Not asked: the last answers of {self._model}, about {len(self._windows)} hours, could not be used or were refusals, the "
                f"last because: {' '.join(self._faults)} See whether JUDGE_MODEL can answer in JSON (babylon-rl judge quarantine)."
            )

    def heard(self, window: str, faults: Sequence[str]) -> None:
        """An answer about an hour came, with these faults; none is a usable one."""
        if not faults:
            self._unusable = 0
            self._windows.clear()
            return
        self._unusable += 1
        self._windows.add(window)
        self._faults = faults

    def refused(self, window: str, reason: str) -> None:
        """A request about an hour was refused, which is the end of all its tries."""
        self._unusable += self._tries
        self._windows.add(window)
        self._faults = [reason]
