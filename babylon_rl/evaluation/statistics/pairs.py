"""Everything that is said about two players of the same snapshots, in one object."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from babylon_rl.evaluation.statistics.bootstrap import RESAMPLES, mean_interval
from babylon_rl.evaluation.statistics.effects import FEWEST_FOR_EFFECT, Effect, Superiority, paired_effect, superiority
from babylon_rl.evaluation.statistics.interval import CONFIDENCE, Interval, Values, cluster_means, differences
from babylon_rl.evaluation.statistics.permutation import PermutationTest, permutation_test
from babylon_rl.evaluation.statistics.power import Spread, spread_of


@dataclass(frozen=True)
class PairedComparison:
    """``effect`` is None where differences do not vary or are too few, ``spread`` where there is one snapshot only."""

    difference: Interval
    test: PermutationTest
    superiority: Superiority
    effect: Effect | None
    spread: Spread | None

    def __str__(self) -> str:
        parts = [str(self.difference), str(self.test), str(self.superiority), *([str(self.effect)] if self.effect else [])]
        return ", ".join(parts)


def compare_pairs(
    ours: Values,
    theirs: Values,
    *,
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> PairedComparison:
    """Compare two players over the same snapshots and seeds, pair by pair; ``clusters`` names the snapshot of every pair.

    Raises:
        ValueError: lengths differ, there is no pair, or a value is not finite.
    """
    gains = differences(ours, theirs)
    means = cluster_means(gains, clusters)
    varied = means.size >= FEWEST_FOR_EFFECT and np.ptp(means) > 0
    return PairedComparison(
        mean_interval(gains, clusters=clusters, seed=seed, resamples=resamples, confidence=confidence),
        permutation_test(gains, clusters=clusters, seed=seed),
        superiority(gains, clusters=clusters, confidence=confidence),
        paired_effect(gains, clusters=clusters, confidence=confidence) if varied else None,
        spread_of(gains, clusters) if means.size > 1 else None,
    )
