"""How large a paired difference is, apart from its dollars: in standard deviations, and as a chance to do better."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from babylon_rl.evaluation.statistics.interval import CONFIDENCE, Values, cluster_means, finite, student_quantile, tail
from babylon_rl.evaluation.statistics.shares import wilson

FEWEST_FOR_EFFECT = 3


@dataclass(frozen=True)
class Effect:
    """A mean difference in standard deviations of the differences between snapshots (Cohen's d_z), with its interval."""

    size: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.size:+.2f} standard deviations (95 % interval {self.low:+.2f} to {self.high:+.2f}, {self.count} snapshots)"


@dataclass(frozen=True)
class Superiority:
    """The share of snapshots in which ours does better (an equal result counts half), with its interval."""

    share: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"better in {self.share:.0%} of {self.count} snapshots (95 % interval {self.low:.0%} to {self.high:.0%})"


def paired_effect(differences: Values, *, clusters: Sequence[Hashable] | None = None, confidence: float = CONFIDENCE) -> Effect:
    """Cohen's d_z (Statistical Power Analysis, 1988), freed of bias by the jackknife, with the jackknife's interval.

    The usual interval by the noncentral t distribution holds for normal differences alone (79 % instead of 95 % for skewed ones); the
    jackknife (Miller, Biometrika 61, 1974) needs no such thing and costs some width for few snapshots.

    Raises:
        ValueError: fewer than FEWEST_FOR_EFFECT snapshots, a value that is not finite, or differences without any spread.
    """
    x = cluster_means(finite(differences, "differences"), clusters)
    count = int(x.size)
    if count < FEWEST_FOR_EFFECT:
        raise ValueError(f"An effect size needs {FEWEST_FOR_EFFECT} snapshots at least, not {count}.")
    if np.ptp(x) == 0:
        raise ValueError(f"An effect size needs differences that vary; all {count} are {x[0]:g}.")
    size = float(x.mean() / x.std(ddof=1))
    means = (x.sum() - x) / (count - 1)
    squares = np.maximum(((x - x.mean()) ** 2).sum() - count / (count - 1) * (x - x.mean()) ** 2, 0.0)
    if (squares < 1e-12 * squares.max()).any():  # without one value there is no spread left
        return Effect(size, -math.inf, math.inf, count)
    without = means / np.sqrt(squares / (count - 2))
    size = count * size - (count - 1) * float(without.mean())
    error = math.sqrt((count - 1) / count * float(((without - without.mean()) ** 2).sum()))
    half = student_quantile(tail(confidence), count - 1) * error
    return Effect(size, size - half, size + half, count)


def superiority(differences: Values, *, clusters: Sequence[Hashable] | None = None, confidence: float = CONFIDENCE) -> Superiority:
    """The common-language effect size of pairs (McGraw and Wong, Psychological Bulletin 111, 1992), with Wilson's interval.

    Raises:
        ValueError: there is no difference, one is not finite, or there is not one cluster label each.
    """
    x = cluster_means(finite(differences, "differences"), clusters)
    share = float((np.sign(x) + 1).mean() / 2)
    return Superiority(share, *wilson(share, x.size, confidence), int(x.size))
