"""Over a hundred generations at most a twentieth of promotions is false, whatever versions come, and real progress is found."""

from itertools import pairwise

import numpy as np
import pytest

from babylon_rl.evaluation.statistics.live import ERROR_RATE, next_level

GENERATIONS, RUNS = 100, 2000


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
