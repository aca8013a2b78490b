"""A benchmark that grows until something shows: what its looks cost, and when it stops."""

import numpy as np
import pytest

from babylon_rl.evaluation.gate import ANALYSES, FEWEST_MARKETS, analysis_sizes, confidence_of, needed_markets, next_analysis
from babylon_rl.evaluation.statistics.intervals import Interval, mean_interval
from babylon_rl_tests.evaluation.results import compared

SEEDS = 2000
STEADY = [(-1) ** index * 100.0 for index in range(96)]  # differences without an effect


def effect(usd: float, markets: int) -> list[float]:
    return [usd + difference for difference in STEADY[:markets]]


DRAWS = {  # differences of two players, equal on average
    "normal": lambda rng, count: rng.normal(0, 100, count),
    "skewed": lambda rng, count: 60 * (rng.exponential(1, count) - 1),
    "pennies": lambda rng, count: np.where(rng.random(count) < 0.1, -600, 600 / 9) + rng.normal(0, 20, count),
}


def looked_at(draw: str, seeds: int = SEEDS) -> list[list[Interval]]:
    """What a benchmark of 24 markets sees at its looks, for each of many pairs of equal players."""
    rng, confidence = np.random.default_rng(11), confidence_of(len(ANALYSES))
    drawn = [DRAWS[draw](rng, analysis_sizes(24)[-1]) for _ in range(seeds)]
    return [[mean_interval(x[:size], resamples=999, confidence=confidence) for size in analysis_sizes(24)] for x in drawn]


@pytest.mark.long
@pytest.mark.parametrize("draw", ["normal", "skewed"])
def test_two_equal_players_are_told_apart_in_at_most_5_percent_over_all_looks(draw: str) -> None:
    found = looked_at(draw)
    assert np.mean([any(look.low > 0 or look.high < 0 for look in looks) for looks in found]) <= 0.05
    assert np.mean([any(look.low > 0 for look in looks) for looks in found]) <= 0.025


@pytest.mark.long
def test_who_collects_pennies_and_loses_it_all_in_a_tenth_of_the_markets_does_not_pass_before_that_shows() -> None:
    """Its gains alone look like a sure thing: the first look lies above 0 far too often, and no version may pass there."""
    found, nominal = looked_at("pennies"), (1 - confidence_of(len(ANALYSES))) / 2
    assert np.mean([looks[0].low > 0 for looks in found]) > 5 * nominal
    assert np.mean([any(look.low > 0 for look in looks if look.count >= FEWEST_MARKETS) for looks in found]) <= len(ANALYSES) * nominal


def test_a_benchmark_grows_only_while_what_was_seen_would_pass_in_the_end() -> None:
    near, half, far, none = (compared(effect(usd, 24), analyses=3) for usd in (45, 30, 15, -5))
    assert needed_markets(near, 0.0) in range(49, 97) and next_analysis(near, 0.0, 24) == 48
    assert needed_markets(half, 0.0) > 96 and next_analysis(half, 0.0, 24) == 48, "in about half of the cases it passes"
    assert needed_markets(far, 0.0) > 96 and next_analysis(far, 0.0, 24) is None
    assert needed_markets(none, 0.0) is None and next_analysis(none, 0.0, 24) is None


def test_the_last_analysis_is_worth_playing_for_just_what_would_pass_in_it() -> None:
    seen = {usd: compared(effect(usd, 24), analyses=3) for usd in range(1, 60)}
    least = min(usd for usd, comparison in seen.items() if next_analysis(comparison, 0.0, 24) is not None)
    # The same differences, as often as the last analysis has markets: their interval lies above 0 from there on.
    passes = {usd: compared(np.resize(effect(usd, 24), 96), analyses=3).compared[0].improvement.low > 0 for usd in seen}
    assert least == pytest.approx(min(usd for usd, passed in passes.items() if passed), abs=1)


def test_the_looks_are_fixed_and_end_at_the_cap() -> None:
    assert analysis_sizes(24) == (24, 48, 96)
    assert next_analysis(compared(effect(35, 48), analyses=3), 0.0, 24) == 96
    assert next_analysis(compared(effect(30, 96), analyses=3), 0.0, 24) is None


def test_too_few_markets_grow_to_what_a_pass_needs_if_the_cap_allows() -> None:
    assert next_analysis(compared(effect(200, 12), analyses=3), 0.0, 12) == 24
    assert next_analysis(compared(effect(200, 24), analyses=3), 0.0, 12) == 48
    assert next_analysis(compared(effect(200, 48), analyses=3), 0.0, 12) is None
    assert next_analysis(compared(effect(-50, 24), analyses=3), 0.0, 24) is None, "nobody waits for what is not expected"
    assert next_analysis(compared(effect(200, 11), analyses=3), 0.0, 11) is None, "44 markets let nobody pass"


def test_what_is_wanted_counts() -> None:
    comparison = compared(effect(60, 24), analyses=3)
    assert needed_markets(comparison, 30.0) > needed_markets(comparison, 0.0)
    assert needed_markets(comparison, 60.0) is None


def test_more_looks_ask_for_wider_intervals_and_smaller_p_values() -> None:
    once, thrice = (compared(effect(45, 24), analyses=looks) for looks in (1, 3))
    low = [comparison.row("v1.0.1").improvement.low for comparison in (once, thrice)]
    assert low[1] < low[0]
    assert thrice.pairs[0].adjusted_p == pytest.approx(3 * once.pairs[0].adjusted_p)
