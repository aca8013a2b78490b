"""Result of a scoring: scores by window, and hours without scores with the reason."""

from collections.abc import Iterable
from dataclasses import dataclass

from babylon_rl.judge.groups import GroupScores


@dataclass(frozen=True)
class Asked:
    """Answers of one hour in this call: asked for, and from the cache."""

    asked: int
    cached: int


class Scored(dict[str, GroupScores]):
    """Scored groups by window, in order; a mapping.

    ``pending`` (window -> reason) wait for another run, ``quarantined`` are set aside until another try is requested; neither is in the
    mapping. ``asked`` has the hours that a language model judged in this call. ``notes`` are sentences on the whole.
    """

    def __init__(self, groups: Iterable[tuple[str, GroupScores]] = ()) -> None:
        super().__init__(groups)
        self.pending: dict[str, str] = {}
        self.quarantined: dict[str, str] = {}
        self.asked: dict[str, Asked] = {}
        self.notes: list[str] = []

    def in_order(self) -> "Scored":
        """The same result with all windows in order."""
        ordered = Scored(sorted(self.items()))
        ordered.pending, ordered.quarantined = dict(sorted(self.pending.items())), dict(sorted(self.quarantined.items()))
        ordered.asked, ordered.notes = dict(sorted(self.asked.items())), self.notes
        return ordered
