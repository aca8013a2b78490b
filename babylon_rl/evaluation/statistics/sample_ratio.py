"""Whether arms have the numbers of agents that were assigned: where they do not, nothing measured on them can be believed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from babylon_rl.evaluation.statistics.interval import Floats, finite

MISMATCH_BELOW = 0.001
FEWEST_EXPECTED = 5.0
_PRIOR_WEIGHT = 200.0


@dataclass(frozen=True)
class SampleRatio:
    """``counts`` beside what was ``expected``; a ``p`` below MISMATCH_BELOW is a mismatch."""

    counts: tuple[int, ...]
    expected: tuple[float, ...]
    p: float

    @property
    def mismatch(self) -> bool:
        """Whether the assignment is broken."""
        return self.p < MISMATCH_BELOW

    def __str__(self) -> str:
        found, wanted = " : ".join(f"{count:,}" for count in self.counts), " : ".join(f"{count:,.0f}" for count in self.expected)
        verdict = "the assignment is broken" if self.mismatch else "as assigned"
        return f"{found} where {wanted} were expected, {verdict} (p = {self.p:.2g})"


def sample_ratio(counts: Sequence[int], shares: Sequence[float]) -> SampleRatio:
    """Check the numbers of units in each arm against the assigned ``shares`` (any weights).

    Exact binomial for two arms, chi-square for more; for one look. The threshold of 0.001 is that of Fabijan and others (Diagnosing
    Sample Ratio Mismatch, KDD 2019).

    Raises:
        ValueError: fewer than two arms, lengths differ, a count below 0, a share not above 0, or fewer than FEWEST_EXPECTED in one of
            more than two arms.
    """
    from scipy.stats import binomtest, chisquare

    found, weights = _checked(counts, shares)
    expected = weights * found.sum()
    if found.size == 2:
        p = float(binomtest(int(found[0]), int(found.sum()), float(weights[0])).pvalue) if found.sum() else 1.0
    elif expected.min() < FEWEST_EXPECTED:
        raise ValueError(
            f"{FEWEST_EXPECTED:g} units are to be expected in every arm at least; with {int(found.sum())} it is {expected.min():.1f}."
        )
    else:
        p = float(chisquare(found, expected).pvalue)
    return SampleRatio(tuple(int(count) for count in found), tuple(expected.tolist()), p)


def live_sample_ratio(counts: Sequence[int], shares: Sequence[float]) -> SampleRatio:
    """``sample_ratio`` that may be looked at after every unit: false alarms stay below the threshold over all looks together.

    The Dirichlet mixture of multinomial likelihood ratios (Lindon and Malek, Anytime-Valid Inference for Multinomial Count Data, NeurIPS
    2022): exact for any number of units and arms.

    Raises:
        ValueError: fewer than two arms, lengths differ, a count below 0, or a share not above 0.
    """
    from scipy.special import gammaln

    found, weights = _checked(counts, shares)
    prior, total = _PRIOR_WEIGHT * weights, float(found.sum())
    mixed = gammaln(_PRIOR_WEIGHT) - gammaln(_PRIOR_WEIGHT + total) + (gammaln(prior + found) - gammaln(prior)).sum()
    evidence = float(mixed - (found * np.log(weights)).sum())
    p = min(1.0, math.exp(-max(min(evidence, 700.0), 0.0)))
    return SampleRatio(tuple(int(count) for count in found), tuple((weights * total).tolist()), p)


def _checked(counts: Sequence[int], shares: Sequence[float]) -> tuple[Floats, Floats]:
    if len(counts) != len(shares):
        raise ValueError(f"{len(counts)} counts and {len(shares)} shares are not of the same arms.")
    found, weights = finite(counts, "counts", 2), finite(shares, "shares", 2)
    if (found < 0).any() or (found != np.floor(found)).any() or (weights <= 0).any():
        raise ValueError(f"Counts are whole and 0 at least, shares above 0: {list(counts)}, {list(shares)}.")
    return found, np.asarray(weights / weights.sum(), dtype=np.float64)
