"""How often the gate may look at a benchmark while it grows, and when the next look is worth its markets.

The looks are fixed beforehand: the benchmark as it is set, twice and four times as large. Each is at a confidence that keeps 95 % over
all of them (Bonferroni over looks at fixed sizes; stopping early only makes it more careful), so that playing on until something shows
is no way through the gate. Left out: sizes chosen from what was seen, which no such correction covers.
"""

import math

import numpy as np

from babylon_rl.evaluation.comparison import Comparison
from babylon_rl.evaluation.statistics import FEWEST_TO_RESAMPLE, POWER, markets_needed

LOOKS = (1, 2, 4)  # times the benchmark as it is set
FEWEST_MARKETS = 48  # no version passes below: losses in a tenth of all markets are seen in 48 but for 0.6 %


def look_sizes(first: int) -> tuple[int, ...]:
    """How many markets are played at each look."""
    return tuple(first * times for times in LOOKS)


def next_look(comparison: Comparison, min_improvement: float, first: int) -> int | None:
    """How many markets to look at next when this look has decided nothing; None when no more are worth playing."""
    larger = [size for size in look_sizes(first) if size > comparison.markets]
    if not larger or larger[-1] < FEWEST_MARKETS:
        return None
    if comparison.markets < FEWEST_TO_RESAMPLE:  # too few to expect anything from
        return larger[0]
    needed = needed_markets(comparison, min_improvement)
    return larger[0] if needed is not None and needed <= larger[-1] else None


def needed_markets(comparison: Comparison, min_improvement: float) -> int | None:
    """In how many markets an improvement of the size seen shows with 80 % power; None when it is not above ``min_improvement``."""
    if comparison.candidate is None or comparison.reference is None:
        return None
    ours, theirs = comparison.standing(comparison.candidate), comparison.standing(comparison.reference)
    differences = np.subtract(ours.pnls_usd, theirs.pnls_usd)
    effect, spread = float(differences.mean()) - min_improvement, float(differences.std(ddof=1))
    needed = markets_needed(effect, spread, POWER, comparison.confidence)
    return needed if needed is not None and math.isfinite(needed) else None
