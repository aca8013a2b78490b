"""Split of an hour, by a seeded hash of its window id.

No window is in two splits, and none changes its split as the data grow, because the hash does not depend on other hours.
"""

from dataclasses import dataclass

from babylon_rl.errors import UsageError
from babylon_rl.training.freezing import seeded_share

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)


@dataclass(frozen=True)
class Splits:
    """Shares of windows, 0..1: ``train`` and ``validation``, the rest is test.

    Raises:
        UsageError: a share is outside 0..1, or both together exceed 1.
    """

    train: float = 0.9
    validation: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, share in (("--split", self.train), ("--validation", self.validation)):
            if not 0 <= share <= 1:
                raise UsageError(f"{name} is {share:g}: write a share of the windows between 0 and 1, such as 0.9.")
        if self.train + self.validation > 1 + 1e-9:
            raise UsageError(f"--split {self.train:g} and --validation {self.validation:g} are more than all windows: lower one of them.")

    def of(self, window: str) -> str:
        """Return the split of a window: ``train``, ``validation`` or ``test``."""
        share = seeded_share(self.seed, "split", window)
        if share < self.train:
            return TRAIN
        return VALIDATION if share < self.train + self.validation else TEST
