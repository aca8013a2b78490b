"""Ranks and rank correlation without slow imports: the checks of every hour use them too."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

FEWEST_RANKED = 3  # values whose ranks are correlated: two always agree wholly or not at all


def centred_ranks(values: Sequence[float]) -> list[float]:
    """Ranks from -1/2 (least) to 1/2, ties sharing their mean rank.

    Groups of any size count alike.
    """
    ordered, most = sorted(values), max(1, len(values) - 1)
    return [(bisect_left(ordered, value) + bisect_right(ordered, value) - 1) / 2 / most - 0.5 for value in values]


def spearman(one: Sequence[float], two: Sequence[float]) -> float | None:
    """Spearman's rank correlation, -1..1; None for few values or a side without ranks.

    Few: less than FEWEST_RANKED.
    """
    if len(one) < FEWEST_RANKED or min(len(set(one)), len(set(two))) < 2:
        return None
    a, b = centred_ranks(one), centred_ranks(two)  # the mean of ranks is that of places, so these are centred whatever the ties
    across = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return across / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))
