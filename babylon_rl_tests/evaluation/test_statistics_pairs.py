import itertools
import math

import numpy as np
import pytest
from scipy import stats

from babylon_rl.evaluation.statistics.intervals import (
    Spread,
    cluster_means,
    compare_pairs,
    detectable_effect,
    holm,
    markets_needed,
    mean_interval,
    paired_effect,
    permutation_test,
    spread_of,
    superiority,
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def test_few_snapshots_are_permuted_in_every_way() -> None:
    values = [3.0, -1.0, 2.5, 4.0, 0.5]
    means = [abs(np.mean(np.multiply(signs, values))) for signs in itertools.product((1, -1), repeat=5)]
    found = permutation_test(values)
    assert found == np.mean(np.array(means) >= np.mean(values) - 1e-12)
    assert permutation_test(values, alternative="greater") == found / 2


def test_the_permutation_test_agrees_with_scipys(rng: np.random.Generator) -> None:
    values = rng.normal(0.3, 1, 40)
    theirs = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(1))
    found = permutation_test(values)
    assert found == pytest.approx(theirs.pvalue, abs=0.01)
    assert permutation_test(values + 100) == 1 / 20_001  # never 0


@pytest.mark.parametrize("count", [8, 24])
@pytest.mark.parametrize("heavy", [False, True])
def test_the_permutation_test_has_its_size(count: int, heavy: bool, rng: np.random.Generator) -> None:
    draws = rng.standard_t(2, (1500, count)) if heavy else rng.normal(0, 1, (1500, count))
    share = np.mean([permutation_test(values, seed=run, flips=399) <= 0.05 for run, values in enumerate(draws)])
    assert 0.035 <= share <= 0.065


def test_the_permutation_test_flips_whole_snapshots(rng: np.random.Generator) -> None:
    clusters = np.repeat(np.arange(15), 4).tolist()
    draws = [np.repeat(rng.normal(0, 1, 15), 4) + rng.normal(0, 0.3, 60) for _ in range(800)]
    clustered = np.mean([permutation_test(cluster_means(values, clusters)) <= 0.05 for values in draws])
    careless = np.mean([permutation_test(values, flips=199) <= 0.05 for values in draws[:300]])
    assert 0.035 <= clustered <= 0.065
    assert careless > 0.2


def test_holms_correction_is_that_of_the_textbook() -> None:
    found = holm({"base": 0.01, "parent": 0.04, "idle": 0.03, "random": 0.005})
    assert found == pytest.approx({"base": 0.03, "parent": 0.06, "idle": 0.06, "random": 0.02})
    assert holm({}) == {}


def test_holms_correction_bounds_any_false_alarm(rng: np.random.Generator) -> None:
    alarms = [any(p <= 0.05 for p in holm(dict(enumerate(drawn))).values()) for drawn in rng.random((3000, 6))]
    assert 0.035 <= np.mean(alarms) <= 0.062


@pytest.mark.parametrize("skewed", [False, True])
@pytest.mark.parametrize(("count", "most"), [(12, 0.99), (24, 0.98), (100, 0.97)])
def test_effect_sizes_hold_the_truth(count: int, most: float, skewed: bool, rng: np.random.Generator) -> None:
    draws = 0.5 + (4 - rng.gamma(4, 1, (1500, count))) / 2 if skewed else rng.normal(0.5, 1, (1500, count))
    found = [effect for values in draws if (effect := paired_effect(values)) is not None]
    assert 0.93 <= np.mean([effect.low <= 0.5 <= effect.high for effect in found]) <= most
    assert np.mean([effect.mean for effect in found]) == pytest.approx(0.5, abs=0.03)


def test_the_effect_size_leaves_one_out_as_the_jackknife_does(rng: np.random.Generator) -> None:
    values = rng.normal(1, 2, 9)
    without = [np.delete(values, place) for place in range(9)]
    sizes = np.array([rest.mean() / rest.std(ddof=1) for rest in without])
    error = math.sqrt(8 / 9 * ((sizes - sizes.mean()) ** 2).sum())
    found = paired_effect(values)
    assert found is not None and found.mean == pytest.approx(9 * values.mean() / values.std(ddof=1) - 8 * sizes.mean())
    assert found.high - found.mean == pytest.approx(stats.t.ppf(0.975, 8) * error)


def test_edges_of_effects() -> None:
    assert paired_effect([1.0, 1.0, 1.0]) is None and paired_effect([1.0, 2.0]) is None
    unbounded = paired_effect([1.0, 1.0, 1.0, 2.0])
    assert unbounded is not None and unbounded.high == math.inf
    assert superiority([1.0, 2.0, 0.0, -1.0]).mean == 0.625
    assert compare_pairs([1.0, -3.0, 2.0, 2.0], [0.0] * 4, clusters=["a", "a", "b", "b"]).superiority.mean == 0.5
    with pytest.raises(ValueError, match="nan"):
        superiority([math.nan])


@pytest.mark.parametrize("count", [12, 24, 100])
def test_the_chance_to_do_better_holds_the_truth(count: int, rng: np.random.Generator) -> None:
    truth = stats.norm.cdf(0.4)
    found = [superiority(values) for values in rng.normal(0.4, 1, (2000, count))]
    assert 0.93 <= np.mean([chance.low <= truth <= chance.high for chance in found]) <= 0.975  # a count's steps do not allow 95


@pytest.mark.parametrize("effect", [150.0, 80.0, 20.0])
def test_the_markets_said_to_be_needed_give_the_wanted_power(effect: float) -> None:
    spread = 130.0
    needed = markets_needed(effect, spread)

    def power(count: int) -> float:
        return 1 - stats.nct.cdf(stats.t.ppf(0.975, count - 1), count - 1, effect / spread * math.sqrt(count))

    assert needed is not None
    assert power(needed) >= 0.8 > power(needed - 1)
    assert markets_needed(0.0, spread) is None and markets_needed(-5.0, spread) is None
    assert markets_needed(1.0, spread) == pytest.approx(((1.96 + 0.8416) * 130) ** 2, rel=1e-3)
    assert markets_needed(1000.0, spread) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("effect", "heavy"), [(100.0, False), (60.0, False), (60.0, True)])
def test_intervals_find_an_effect_in_4_of_5_benchmarks_of_the_needed_size(effect: float, heavy: bool, rng: np.random.Generator) -> None:
    needed = markets_needed(effect, 100.0)
    assert needed is not None
    shape = (1000, needed)
    draws = effect + 100 * (rng.standard_t(5, shape) / math.sqrt(5 / 3) if heavy else rng.normal(0, 1, shape))
    share = np.mean([mean_interval(values, seed=run, resamples=400).low > 0 for run, values in enumerate(draws)])
    assert 0.74 <= share <= 0.88


def test_the_spread_is_taken_apart_by_snapshots_and_repeats(rng: np.random.Generator) -> None:
    found = []
    for _ in range(200):
        clusters = np.repeat(np.arange(40), rng.integers(1, 6, 40))
        found.append(spread_of(rng.normal(0, 30, 40)[clusters] + rng.normal(0, 50, clusters.size), clusters.tolist()))
    assert np.mean([spread.between**2 for spread in found]) == pytest.approx(900, rel=0.1)
    assert np.mean([spread.within**2 for spread in found]) == pytest.approx(2500, rel=0.05)
    assert spread_of([1.0, 5.0, 9.0]) == Spread(4.0)


def test_repeats_save_snapshots_as_far_as_repeats_differ() -> None:
    once, four_times = (markets_needed(20.0, Spread(30.0, 50.0).of_means(repeats)) for repeats in (1, 4))
    assert (once, four_times) == (markets_needed(20.0, math.sqrt(900 + 2500)), 32)


@pytest.mark.parametrize("snapshots", [4, 24, 500])
def test_a_number_of_snapshots_shows_the_effect_that_needs_it(snapshots: int) -> None:
    effect = detectable_effect(snapshots, Spread(100.0))
    assert markets_needed(effect * 1.0001, 100.0) == snapshots


def test_two_players_of_the_same_snapshots_are_compared_in_one_object(rng: np.random.Generator) -> None:
    clusters = [f"market-{number // 3}" for number in range(72)]
    markets = np.repeat(rng.normal(0, 500, 24), 3)
    found = compare_pairs(markets + 50 + rng.normal(0, 40, 72), markets, clusters=clusters)
    assert found.difference.count == found.superiority.count == 24
    assert found.difference.low > 0 and found.p < 0.01 and found.effect is not None and found.effect.low > 0
    assert found.spread is not None and found.spread.within == pytest.approx(40, rel=0.3)
    assert found.superiority.mean == 1.0
    alike = compare_pairs([1.0, 2.0], [1.0, 2.0])
    assert alike.effect is None and alike.p == 1.0 and alike.superiority.mean == 0.5
    assert compare_pairs([1.0], [0.0]).spread is None
