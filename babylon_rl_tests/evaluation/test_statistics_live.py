import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from babylon_rl.evaluation.statistics.live import ERROR_RATE, live_comparison, live_sample_ratio, live_share, next_level

GENERATIONS, RUNS = 100, 2000


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_shares_hold_the_truth_at_every_look(rng: np.random.Generator) -> None:
    p_value = cache(lambda wins, look: live_share(wins, look, null=0.03).p)
    alarms = 0
    for wins in (rng.random((1000, 500)) < 0.03).cumsum(axis=1):
        alarms += any(p_value(int(wins[look - 1]), look) <= 0.05 for look in range(5, 501, 5))
    assert alarms / 1000 <= 0.05


@pytest.mark.parametrize(("wins", "count"), [(0, 40), (3, 40), (40, 40), (700, 1200)])
def test_the_ends_of_a_live_share_are_where_its_p_value_is_5_percent(wins: int, count: int) -> None:
    found = live_share(wins, count)
    assert found.low == 0.0 if wins == 0 else live_share(wins, count, null=found.low).p == pytest.approx(0.05, rel=1e-6)
    assert found.high == 1.0 if wins == count else live_share(wins, count, null=found.high).p == pytest.approx(0.05, rel=1e-6)


def test_edges_of_live_shares() -> None:
    nothing = live_share(0, 0)
    assert (nothing.low, nothing.high, nothing.p) == (0.0, 1.0, 1.0)
    assert live_share(3, 50, null=0.0).p < 1e-100


def arms(rng: np.random.Generator, ours: int, theirs: int, hours: int, late: bool, effect: float = 0.0) -> tuple[list, list, np.ndarray]:
    """Every agent's dollars an hour: agents differ for good, hours have heavy tails, and some agents begin ``late``."""
    values = [rng.normal(effect * (number < ours), 3) + 6 * rng.standard_t(3, hours) for number in range(ours + theirs)]
    begins = rng.integers(0, int(0.8 * hours), ours + theirs) if late else np.zeros(ours + theirs, dtype=int)
    begins[[*range(6), *range(ours, ours + 6)]] = 0
    return values[:ours], values[ours:], begins


def any_alarm(ours: list, theirs: list, begins: np.ndarray, looks: list[int], effect: float) -> bool:
    everyone = [*ours, *theirs]
    for look in looks:
        seen = [values[begin:look] for values, begin in zip(everyone, begins, strict=True) if begin < look]
        split = sum(begin < look for begin in begins[: len(ours)])
        if live_comparison(seen[:split], seen[split:], expected_effect=effect).p <= 0.05:
            return True
    return False


@pytest.mark.long
@pytest.mark.parametrize(("ours", "theirs", "late"), [(15, 15, False), (30, 10, True)])
def test_equal_arms_of_agents_raise_an_alarm_in_at_most_5_percent(ours: int, theirs: int, late: bool, rng: np.random.Generator) -> None:
    looks = list(range(6, 201, 8))
    alarms = [any_alarm(*arms(rng, ours, theirs, 200, late), looks, effect=2.0) for _ in range(300)]
    assert np.mean(alarms) <= 0.05


def test_hours_taken_for_independent_would_mislead(rng: np.random.Generator) -> None:
    ours, theirs, _ = arms(rng, 15, 15, 200, False)
    rates = []
    for _ in range(200):
        ours, theirs, _ = arms(rng, 15, 15, 200, False)
        rates.append(stats.ttest_ind(np.concatenate(ours), np.concatenate(theirs)).pvalue <= 0.05)
    assert np.mean(rates) > 0.3


def test_a_better_arm_is_found(rng: np.random.Generator) -> None:
    found = [any_alarm(*arms(rng, 40, 40, 100, False, effect=4.0), [20, 60, 100], effect=3.0) for _ in range(60)]
    assert np.mean(found) >= 0.9


def test_edges_of_arms() -> None:
    few = live_comparison([[1.0, 2.0]] * 3, [[1.0, 3.0]] * 9, expected_effect=1.0)
    assert (few.low, few.high, few.count) == (-math.inf, math.inf, 12)
    agents = [[float(number), number + 1.0] for number in range(8)]
    same = live_comparison(agents, agents, expected_effect=1.0)
    assert same.mean == 0 and same.p == 1.0 and same.low == -same.high
    limit = live_comparison([[value - same.low for value in agent] for agent in agents], agents, expected_effect=1.0)
    assert limit.p == pytest.approx(0.05)
    with pytest.raises(ValueError, match="No agent of theirs"):
        live_comparison(agents, [[]], expected_effect=1.0)
    with pytest.raises(ValueError, match="values of ours"):
        live_comparison([[math.nan]], agents, expected_effect=1.0)


def test_a_broken_assignment_is_found(rng: np.random.Generator) -> None:
    """Of 1,000 agents one arm loses every fourth."""
    live = [live_sample_ratio([int(kept), 500], [1, 1]).mismatch for kept in rng.binomial(500, 0.7, 500)]
    assert np.mean(live) >= 0.9


def test_looking_after_every_agent_gives_no_more_false_alarms(rng: np.random.Generator) -> None:
    p_value = cache(lambda count, total: live_sample_ratio([count, total - count], [0.3, 0.7]).p)
    alarms = 0
    for arrived in rng.random((2000, 1000)) < 0.3:
        ours = arrived.cumsum()[9::10].tolist()  # 100 looks
        alarms += min(p_value(count, 10 * look) for look, count in enumerate(ours, 1)) < 0.02
    assert alarms / 2000 <= 0.02


def test_results_are_words_and_wrong_counts_are_refused() -> None:
    assert str(live_sample_ratio([412, 388], [0.5, 0.5])) == "412 : 388 where 400 : 400 were expected, as assigned (p = 1)"
    assert "the assignment is broken" in str(live_sample_ratio([500, 300], [0.5, 0.5]))
    assert live_sample_ratio([0, 0], [1, 1]).p == 1.0


def simulated(share_better: float, effect: float, seed: int = 7) -> tuple[float, float, float]:
    """(share of false ones among discoveries, chance of any false one, power) over all runs; effects in standard errors of a test."""
    from scipy.special import ndtr

    rng = np.random.default_rng(seed)
    false_shares, any_false, found, better_ones = 0.0, 0, 0, 0
    for _ in range(RUNS):
        better = rng.random(GENERATIONS) < share_better
        p_values = ndtr(-(rng.standard_normal(GENERATIONS) + effect * better))
        outcomes: list[bool] = []
        for p in p_values:
            outcomes.append(bool(p <= next_level(outcomes)))
        discovered = np.array(outcomes)
        false = int((discovered & ~better).sum())
        false_shares += false / max(1, int(discovered.sum()))
        any_false += false > 0
        found += int((discovered & better).sum())
        better_ones += int(better.sum())
    return false_shares / RUNS, any_false / RUNS, found / max(1, better_ones)


@pytest.mark.long
def test_levels_are_those_of_the_source() -> None:
    weights = [next_level([False] * number) / (ERROR_RATE / 2) for number in range(10_000)]
    assert 0.99 < sum(weights) < 1
    assert all(later < earlier for earlier, later in pairwise(weights))
    # The first discovery gives the rest of the wealth, each later one a whole error rate.
    assert next_level([True]) - next_level([False]) == pytest.approx(ERROR_RATE / 2 * weights[0])
    assert next_level([True, True]) - next_level([True, False]) == pytest.approx(ERROR_RATE * weights[0])


@pytest.mark.slow
def test_a_hundred_versions_that_are_no_better_promote_any_with_a_twentieth_at_most() -> None:
    shares, any_false, _ = simulated(0.0, 0.0)
    assert shares == any_false < ERROR_RATE


@pytest.mark.long
@pytest.mark.parametrize(("share_better", "effect", "least_power"), [(0.1, 4.0, 0.5), (0.3, 4.0, 0.7), (0.5, 3.0, 0.4), (0.9, 3.0, 0.4)])
def test_among_promotions_of_a_hundred_generations_a_twentieth_is_false_at_most(share_better, effect, least_power) -> None:
    shares, _, power = simulated(share_better, effect)
    assert shares < ERROR_RATE and power > least_power


def test_without_the_procedure_a_hundred_generations_would_promote_what_is_no_better() -> None:
    rng = np.random.default_rng(1)
    assert (rng.random((RUNS, GENERATIONS)) <= ERROR_RATE / 2).any(axis=1).mean() > 0.9
