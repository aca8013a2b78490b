"""The paired permutation test over snapshots, and Holm's correction for several of them.

When neither is better, a market's difference could as well have had the other sign. Left out: stratified and rank versions.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from babylon_rl.evaluation.statistics.interval import Floats, Values, cluster_means, finite

EXACT_UP_TO = 18  # 262,144 ways to set the signs: milliseconds
FLIPS = 20_000
_CHUNK = 250_000  # signs drawn at once: 2 MB


@dataclass(frozen=True)
class PermutationTest:
    """``p`` of a mean difference of 0 over ``count`` snapshots, from all ways to set the signs (``exact``) or ``flips`` random ones."""

    p: float
    mean: float
    count: int
    flips: int
    exact: bool

    def __str__(self) -> str:
        how = f"all {self.flips:,}" if self.exact else f"{self.flips:,} random"
        return f"p = {self.p:.2g} by {how} sign flips of {self.count} snapshots"


@dataclass(frozen=True)
class Adjusted:
    """One of several comparisons: its own ``p`` and that which accounts for all ``comparisons``."""

    name: str
    p: float
    adjusted: float
    comparisons: int

    def __str__(self) -> str:
        return f"{self.name}: p = {self.adjusted:.2g} after Holm's correction for {self.comparisons} comparisons ({self.p:.2g} alone)"


def permutation_test(
    differences: Values,
    *,
    clusters: Sequence[Hashable] | None = None,
    alternative: Literal["two-sided", "greater"] = "two-sided",
    seed: int = 0,
    flips: int = FLIPS,
) -> PermutationTest:
    """Test whether the mean difference is 0, by flipping the sign of whole snapshots (Fisher, The Design of Experiments, 1935).

    Exact for differences that are symmetric about 0 when nothing is better, as those of two players that could change names are.
    Random flips count the observed one too, so that p is never 0 and never too small (Phipson and Smyth, 2010).

    Raises:
        ValueError: there is no difference, one is not finite, or there is not one cluster label each.
    """
    x = cluster_means(finite(differences, "differences"), clusters)
    exact = x.size <= EXACT_UP_TO
    sums = _all_sums(x) if exact else _random_sums(x, seed, flips)
    observed = float(x.sum())
    near = 1e-9 * float(np.abs(x).sum())  # sums in another order differ in their last digits
    extreme = np.abs(sums) >= abs(observed) - near if alternative == "two-sided" else sums >= observed - near
    more = 0 if exact else 1
    return PermutationTest((int(extreme.sum()) + more) / (sums.size + more), observed / x.size, int(x.size), int(sums.size), exact)


def holm(p_values: Mapping[str, float]) -> tuple[Adjusted, ...]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979), in the order given.

    The probability of any false alarm among all comparisons stays below the level at which the adjusted p-values are read.

    Raises:
        ValueError: a p-value is not within 0..1.
    """
    wrong = {name: p for name, p in p_values.items() if not 0 <= p <= 1}
    if wrong:
        raise ValueError(f"A p-value lies within 0 and 1, unlike {wrong}.")
    count, largest, adjusted = len(p_values), 0.0, {}
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (count - rank) * p))
        adjusted[name] = largest
    return tuple(Adjusted(name, p, adjusted[name], count) for name, p in p_values.items())


def _all_sums(x: Floats) -> Floats:
    sums = np.zeros(1)
    for value in x:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _random_sums(x: Floats, seed: int, flips: int) -> Floats:
    rng, rows = np.random.default_rng(seed), max(1, _CHUNK // x.size)
    total, parts = float(x.sum()), []
    for start in range(0, flips, rows):
        bits = rng.integers(0, 2, (min(rows, flips - start), x.size), dtype=np.int8)
        parts.append(2 * (bits.astype(np.float64) @ x) - total)
    return np.concatenate(parts)
