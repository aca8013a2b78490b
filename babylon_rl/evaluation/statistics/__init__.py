"""How sure a benchmark or a live comparison is; every statement here is checked by simulation in the tests.

Snapshots (markets) are the independent draws: repeats and seeds of one snapshot are a cluster and count once. ``bootstrap``,
``permutation``, ``effects``, ``pairs`` and ``power`` serve experiments of a fixed size, ``live`` and ``arms`` data that are looked
at while they come in, ``sample_ratio`` the assignment to arms, ``calibration`` and ``shares`` probabilities and rates.
"""

from babylon_rl.evaluation.statistics.arms import live_comparison
from babylon_rl.evaluation.statistics.bootstrap import FEWEST_TO_RESAMPLE, RESAMPLES, mean_interval, paired_interval
from babylon_rl.evaluation.statistics.calibration import Brier, ReliabilityBin, brier, calibration_p, reliability_bins
from babylon_rl.evaluation.statistics.effects import Effect, Superiority, paired_effect, superiority
from babylon_rl.evaluation.statistics.interval import CONFIDENCE, Interval
from babylon_rl.evaluation.statistics.live import LiveInterval, live_interval, live_intervals, live_p_values, live_paired, live_share
from babylon_rl.evaluation.statistics.pairs import PairedComparison, compare_pairs
from babylon_rl.evaluation.statistics.permutation import Adjusted, PermutationTest, holm, permutation_test
from babylon_rl.evaluation.statistics.power import (
    POWER,
    SampleSize,
    Spread,
    detectable_effect,
    markets_needed,
    snapshots_needed,
    snapshots_table,
    spread_of,
)
from babylon_rl.evaluation.statistics.sample_ratio import SampleRatio, live_sample_ratio, sample_ratio
from babylon_rl.evaluation.statistics.shares import share_by_snapshot, share_interval

__all__ = [
    "CONFIDENCE", "FEWEST_TO_RESAMPLE", "POWER", "RESAMPLES", "Adjusted", "Brier", "Effect", "Interval", "LiveInterval", "PairedComparison",
    "PermutationTest", "ReliabilityBin", "SampleRatio", "SampleSize", "Spread", "Superiority", "brier", "calibration_p", "compare_pairs",
    "detectable_effect", "holm", "live_comparison", "live_interval", "live_intervals", "live_p_values", "live_paired", "live_sample_ratio",
    "live_share", "markets_needed", "mean_interval", "paired_effect", "paired_interval", "permutation_test", "reliability_bins",
    "sample_ratio", "share_by_snapshot", "share_interval", "snapshots_needed", "snapshots_table", "spread_of", "superiority",
]  # fmt: skip
