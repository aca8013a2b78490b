"""What a paired interval costs: 1,000 resamples of 1,000 pairs, beside scipy's bootstrap: `python benchmarks/bootstrap.py` prints JSON.

All run in one process, the best of ROUNDS. The bound is 1 s. Ours studentizes every resample (it needs its spread as well as its mean);
scipy's percentile interval needs the mean alone, its BCa interval a jackknife beside.
"""

import json
import time
from collections.abc import Callable

import numpy as np
from scipy import stats

from babylon_rl.evaluation.statistics.intervals import compare_pairs, mean_interval, permutation_test

PAIRS, RESAMPLES, REPEATS, ROUNDS = 1_000, 1_000, 4, 5
BOUND_SECONDS = 1.0


def best_seconds(run: Callable[[], object]) -> float:
    """The fastest of ROUNDS, after one that warms up."""
    run()
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def main() -> None:
    """Measure and print."""
    rng = np.random.default_rng(7)
    markets = rng.normal(0, 500, PAIRS)
    ours, theirs = markets + rng.standard_t(4, PAIRS) * 100 + 10, markets
    repeated_ours = np.repeat(ours, REPEATS) + rng.normal(0, 50, PAIRS * REPEATS)
    repeated_theirs, clusters = np.repeat(theirs, REPEATS), np.repeat(np.arange(PAIRS), REPEATS).tolist()

    def scipys(method: str) -> None:
        stats.bootstrap(((ours - theirs),), np.mean, n_resamples=RESAMPLES, method=method, rng=np.random.default_rng(0))

    seconds = {
        "paired_interval": best_seconds(lambda: mean_interval(ours - theirs, resamples=RESAMPLES)),
        "scipy_percentile": best_seconds(lambda: scipys("percentile")),
        "scipy_bca": best_seconds(lambda: scipys("BCa")),
        "paired_interval_of_4_repeats": best_seconds(
            lambda: mean_interval(repeated_ours - repeated_theirs, clusters=clusters, resamples=RESAMPLES)
        ),
        "permutation_test_of_20000_flips": best_seconds(lambda: permutation_test(ours - theirs)),
        "compare_pairs_of_10000_resamples": best_seconds(lambda: compare_pairs(ours, theirs)),
    }
    ours_seconds = seconds["paired_interval"]
    ratios = {f"{name}_over_ours": round(seconds[name] / ours_seconds, 2) for name in ("scipy_percentile", "scipy_bca")}
    rounded = {name: round(value, 4) for name, value in seconds.items()}
    print(json.dumps({"seconds": rounded, "ratios": ratios, "bound_seconds": BOUND_SECONDS}, indent=2))
    if ours_seconds > BOUND_SECONDS:
        raise SystemExit(f"{ours_seconds:.2f} s is above the bound of {BOUND_SECONDS} s.")


if __name__ == "__main__":
    main()
