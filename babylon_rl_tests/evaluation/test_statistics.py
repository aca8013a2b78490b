import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from babylon_rl.evaluation.markets import Contestant, play_benchmark
from babylon_rl.evaluation.snapshots import benchmark_snapshots
from babylon_rl.evaluation.statistics import markets_needed, mean_interval, paired_interval, share_interval

Draw = Callable[[int], np.ndarray]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def coverage(draw: Draw, truth: float, count: int, runs: int = 1500) -> tuple[float, float]:
    """How often the interval holds the truth, and how often it lies above it altogether."""
    found = [mean_interval(draw(count), seed=run, resamples=800) for run in range(runs)]
    return np.mean([i.low <= truth <= i.high for i in found]), np.mean([i.low > truth for i in found])


@pytest.mark.parametrize("count", [4, 12, 24, 48])
def test_95_percent_intervals_hold_the_truth_in_93_to_97_percent(count: int, rng: np.random.Generator) -> None:
    held, above = coverage(lambda n: rng.normal(20.0, 130.0, n), 20.0, count)
    assert 0.93 <= held <= 0.97
    assert above <= 0.04


def test_intervals_of_real_benchmark_differences_hold_the_truth(rng: np.random.Generator) -> None:
    one, other = (play_benchmark(Contestant(name), benchmark_snapshots(400)) for name in ("balanced", "momentum"))
    differences = np.array([a.pnl_usd - b.pnl_usd for a, b in zip(one, other, strict=True)])
    held, above = coverage(lambda n: rng.choice(differences, n), differences.mean(), 24)
    assert 0.93 <= held <= 0.97
    assert above <= 0.04


def test_equal_players_pass_the_gate_in_no_more_than_4_percent(rng: np.random.Generator) -> None:
    """The gate passes when the lower end is above 0: of an A/A comparison that is half of 5 %."""
    passed = sum(paired_interval(rng.normal(0, 100, 24), rng.normal(0, 100, 24), seed=run).low > 0 for run in range(500))
    assert passed / 500 <= 0.04


@pytest.mark.parametrize("count", [12, 24, 200])
def test_the_bootstrap_agrees_with_students_interval(count: int, rng: np.random.Generator) -> None:
    values = rng.normal(5, 40, count)
    interval = mean_interval(values)
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert interval.mean == pytest.approx(values.mean())
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.08 * (high - low))


def test_few_values_get_students_interval() -> None:
    values = [1.0, 4.0, 2.0]
    interval = mean_interval(values)
    assert (interval.low, interval.high) == pytest.approx(stats.t.interval(0.95, 2, np.mean(values), stats.sem(values)))


def test_pairing_takes_the_market_out(rng: np.random.Generator) -> None:
    markets = rng.normal(0, 1000, 24)
    interval = paired_interval(markets + 10 + rng.normal(0, 5, 24), markets)
    assert interval.low > 5 and interval.high < 15


def test_the_same_seed_gives_the_same_interval(rng: np.random.Generator) -> None:
    values = rng.normal(0, 1, 30)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_edges() -> None:
    assert mean_interval([5.0, 5.0, 5.0]).low == mean_interval([5.0, 5.0, 5.0]).high == 5.0
    assert (mean_interval([5.0]).low, mean_interval([5.0]).high) == (-math.inf, math.inf)
    for wrong in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="finite"):
            mean_interval(wrong)
    with pytest.raises(ValueError, match="paired"):
        paired_interval([1.0], [1.0, 2.0])


def test_shares_have_wilsons_interval() -> None:
    for successes, count in ((0, 10), (3, 10), (10, 10), (140, 288)):
        want = stats.binomtest(successes, count).proportion_ci(0.95, "wilson")
        found = share_interval(successes, count)
        assert (found.low, found.high) == pytest.approx((want.low, want.high))
    assert (share_interval(0, 0).low, share_interval(0, 0).high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="not a share"):
        share_interval(4, 3)


@pytest.mark.parametrize("effect", [150.0, 80.0, 20.0])
def test_the_markets_said_to_be_needed_give_the_wanted_power(effect: float) -> None:
    spread = 130.0
    needed = markets_needed(effect, spread)

    def power(count: int) -> float:
        return 1 - stats.nct.cdf(stats.t.ppf(0.975, count - 1), count - 1, effect / spread * math.sqrt(count))

    assert needed is not None
    assert power(needed) >= 0.79
    assert power(needed - 2) < 0.82
    assert markets_needed(0.0, spread) is None and markets_needed(-5.0, spread) is None


def test_a_thousand_resamples_of_a_thousand_pairs_take_less_than_a_second(rng: np.random.Generator) -> None:
    values = rng.normal(0, 1, 1000)
    began = time.process_time()
    mean_interval(values, resamples=1000)
    assert time.process_time() - began < 1
