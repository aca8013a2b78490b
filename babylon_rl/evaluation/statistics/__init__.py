"""Statistics of benchmarks and live comparisons, checked by simulation in the tests.

Snapshots (markets) are the independent draws: repeats and seeds of one snapshot are a cluster and count once. ``intervals`` and
``paired`` serve experiments of a fixed size, ``live`` data that are looked at while they come in, ``calibration`` probabilities.
"""

from babylon_rl.evaluation.statistics.calibration import Brier, ReliabilityBin, brier, calibration_p, reliability_bins
from babylon_rl.evaluation.statistics.intervals import (
    CONFIDENCE,
    FEWEST_TO_RESAMPLE,
    RESAMPLES,
    Interval,
    mean_interval,
    paired_interval,
    share_by_snapshot,
    share_interval,
)
from babylon_rl.evaluation.statistics.live import (
    LiveInterval,
    SampleRatio,
    live_comparison,
    live_interval,
    live_intervals,
    live_p_values,
    live_paired,
    live_sample_ratio,
    live_share,
    sample_ratio,
)
from babylon_rl.evaluation.statistics.paired import (
    POWER,
    Adjusted,
    Effect,
    PairedComparison,
    PermutationTest,
    SampleSize,
    Spread,
    Superiority,
    compare_pairs,
    detectable_effect,
    holm,
    markets_needed,
    paired_effect,
    permutation_test,
    snapshots_needed,
    snapshots_table,
    spread_of,
    superiority,
)

__all__ = [
    "CONFIDENCE", "FEWEST_TO_RESAMPLE", "POWER", "RESAMPLES", "Adjusted", "Brier", "Effect", "Interval", "LiveInterval", "PairedComparison",
    "PermutationTest", "ReliabilityBin", "SampleRatio", "SampleSize", "Spread", "Superiority", "brier", "calibration_p", "compare_pairs",
    "detectable_effect", "holm", "live_comparison", "live_interval", "live_intervals", "live_p_values", "live_paired", "live_sample_ratio",
    "live_share", "markets_needed", "mean_interval", "paired_effect", "paired_interval", "permutation_test", "reliability_bins",
    "sample_ratio", "share_by_snapshot", "share_interval", "snapshots_needed", "snapshots_table", "spread_of", "superiority",
]  # fmt: skip
