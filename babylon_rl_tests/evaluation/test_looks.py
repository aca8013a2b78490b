"""A benchmark that grows until something shows: what its looks cost, and when it stops."""

import numpy as np
import pytest

from babylon_rl.evaluation.comparison import confidence_of
from babylon_rl.evaluation.looks import LOOKS, look_sizes, needed_markets, next_look
from babylon_rl.evaluation.statistics import paired_interval
from babylon_rl_tests.evaluation.results import compared

SEEDS = 600
STEADY = [(-1) ** index * 100.0 for index in range(96)]  # differences without an effect


def effect(usd: float, markets: int) -> list[float]:
    return [usd + difference for difference in STEADY[:markets]]


@pytest.mark.parametrize("draw", ["normal", "skewed"])
def test_two_equal_players_are_told_apart_in_at_most_5_percent_over_all_looks(draw: str) -> None:
    rng, confidence = np.random.default_rng(11), confidence_of(len(LOOKS))
    better = differ = 0
    for _ in range(SEEDS):
        values = rng.normal(0, 100, 48) if draw == "normal" else 60 * (rng.exponential(1, 48) - 1)
        looks = [paired_interval(values[:count], np.zeros(count), resamples=999, confidence=confidence) for count in look_sizes(12)]
        better += any(look.low > 0 for look in looks)
        differ += any(look.low > 0 or look.high < 0 for look in looks)
    chance = 2 * (0.05 * 0.95 / SEEDS) ** 0.5
    assert differ / SEEDS <= 0.05 + chance
    assert better / SEEDS <= 0.05


def test_a_benchmark_grows_only_while_that_can_be_expected_to_decide() -> None:
    near, far, none = (compared(effect(usd, 24), looks=3) for usd in (45, 15, -5))
    assert needed_markets(near, 0.0) in range(49, 97) and next_look(near, 0.0, 24) == 48
    assert needed_markets(far, 0.0) > 96 and next_look(far, 0.0, 24) is None
    assert needed_markets(none, 0.0) is None and next_look(none, 0.0, 24) is None


def test_the_looks_are_fixed_and_end_at_the_cap() -> None:
    assert look_sizes(24) == (24, 48, 96)
    assert next_look(compared(effect(35, 48), looks=3), 0.0, 24) == 96
    assert next_look(compared(effect(30, 96), looks=3), 0.0, 24) is None


def test_too_few_markets_grow_to_what_a_pass_needs_if_the_cap_allows() -> None:
    assert next_look(compared(effect(-50, 3), looks=3), 0.0, 3) == 6
    assert next_look(compared(effect(-50, 6), looks=3), 0.0, 3) == 12
    assert next_look(compared(effect(50, 2), looks=3), 0.0, 2) is None


def test_what_is_wanted_counts() -> None:
    comparison = compared(effect(60, 24), looks=3)
    assert needed_markets(comparison, 30.0) > needed_markets(comparison, 0.0)
    assert needed_markets(comparison, 60.0) is None


def test_more_looks_ask_for_wider_intervals_and_smaller_p_values() -> None:
    once, thrice = (compared(effect(45, 24), looks=looks) for looks in (1, 3))
    low = [comparison.standing("v1.0.1").improvement.low for comparison in (once, thrice)]
    assert low[1] < low[0]
    assert thrice.contests[0].adjusted_p == pytest.approx(3 * once.contests[0].adjusted_p)
