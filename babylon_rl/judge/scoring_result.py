"""What a scoring came to: scores by window, and which hours have none and why."""

from collections.abc import Iterable
from dataclasses import dataclass

from babylon_rl.judge.groups import GroupScores


@dataclass(frozen=True)
class Asked:
    """What one hour took this time: answers that were asked for, and answers that the cache gave."""

    asked: int
    cached: int


class Scored(dict[str, GroupScores]):
    """The groups with scores by window, in order; a mapping, as most callers want nothing else.

    ``pending`` (window -> reason) wait for another run, ``quarantined`` are set aside until somebody asks for another try; neither is
    in the mapping. ``asked`` has the hours that a language model judged in this call. ``notes`` are sentences on the whole.
    """

    def __init__(self, groups: Iterable[tuple[str, GroupScores]] = ()) -> None:
        super().__init__(groups)
        self.pending: dict[str, str] = {}
        self.quarantined: dict[str, str] = {}
        self.asked: dict[str, Asked] = {}
        self.notes: list[str] = []

    def in_order(self) -> "Scored":
        """The same with all windows in order."""
        found = Scored(sorted(self.items()))
        found.pending, found.quarantined = dict(sorted(self.pending.items())), dict(sorted(self.quarantined.items()))
        found.asked, found.notes = dict(sorted(self.asked.items())), self.notes
        return found
