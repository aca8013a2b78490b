import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from scipy import stats

from babylon_rl.evaluation.statistics import live_comparison, live_interval, live_intervals, live_p_values, live_paired, live_share

LOOKS = np.linspace(30, 1500, 100).astype(int).tolist()
Draw = Callable[[np.random.Generator, int], np.ndarray]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def false_alarms(draw: Draw, rng: np.random.Generator, runs: int) -> float:
    """How often one of 100 looks finds a mean of 0 excluded."""
    return float(np.mean([live_p_values(draw(rng, LOOKS[-1]), LOOKS).min() <= 0.05 for _ in range(runs)]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw",
    [
        lambda rng, n: rng.normal(0, 100, n) - rng.normal(0, 100, n),
        lambda rng, n: rng.lognormal(0, 1.5, n) - rng.lognormal(0, 1.5, n),
        lambda rng, n: rng.standard_t(1.5, n),
    ],
    ids=["normal", "lognormal", "without a variance"],
)
def test_equal_players_raise_an_alarm_in_at_most_5_percent_of_2000_seeds_with_100_looks(draw: Draw, rng: np.random.Generator) -> None:
    assert false_alarms(draw, rng, 2000) <= 0.05


def test_skewed_values_raise_an_alarm_in_at_most_5_percent_with_100_looks(rng: np.random.Generator) -> None:
    """No symmetry: the limit theorem has to do."""
    assert false_alarms(lambda rng, n: rng.gamma(2, 100, n) - 200, rng, 2000) <= 0.05
    assert false_alarms(lambda rng, n: 200 - rng.gamma(2, 100, n), rng, 2000) <= 0.05


def test_looking_often_misleads_an_interval_for_one_look(rng: np.random.Generator) -> None:
    """Why there are these sequences at all."""
    sums = rng.normal(0, 1, (1000, LOOKS[-1])).cumsum(axis=1)[:, np.array(LOOKS) - 1]
    assert np.mean((np.abs(sums) > 1.96 * np.sqrt(LOOKS)).any(axis=1)) > 0.2


def test_the_interval_and_the_p_value_say_the_same(rng: np.random.Generator) -> None:
    for _ in range(100):
        values = rng.standard_t(3, 300) + rng.normal(0, 0.4)
        for found in live_intervals(values, [30, 31, 80, 300]):
            assert (found.p <= 0.05) == (not found.low <= 0 <= found.high)
            assert found.low < found.mean < found.high
    ends = live_interval(values)
    for null in (ends.low, ends.high):
        assert live_p_values(values, [300], null=null)[0] == pytest.approx(0.05, rel=1e-3)


def test_the_interval_holds_the_mean_at_every_look(rng: np.random.Generator) -> None:
    found = [live_intervals(7 + rng.standard_t(4, 600), range(30, 600, 30)) for _ in range(120)]
    assert np.mean([all(look.low <= 7 <= look.high for look in looks) for looks in found]) >= 0.95


def test_an_effect_is_found_and_intervals_are_not_much_wider_than_for_one_look(rng: np.random.Generator) -> None:
    shares = [live_p_values(rng.normal(0.3, 1, 300), [50, 100, 200, 300]).min() <= 0.05 for _ in range(300)]
    assert np.mean(shares) >= 0.95
    values = rng.normal(0, 1, 200)
    found = live_interval(values)
    assert (found.high - found.low) / (2 * 1.96 * stats.sem(values)) < 1.8


def test_scale_and_place_do_not_matter(rng: np.random.Generator) -> None:
    values = rng.standard_t(3, 100)
    plain, scaled = live_interval(values), live_interval(values * 1e6 + 5e6)
    assert (scaled.low, scaled.high) == pytest.approx((plain.low * 1e6 + 5e6, plain.high * 1e6 + 5e6))


def test_pairs_are_their_differences() -> None:
    ours, theirs = [float(number % 7) for number in range(60)], [float(number % 5) for number in range(60)]
    assert live_paired(ours, theirs) == live_interval([a - b for a, b in zip(ours, theirs, strict=True)])
    with pytest.raises(ValueError, match="paired"):
        live_paired(ours, theirs[1:])


def test_nothing_is_said_too_early() -> None:
    early = live_interval([1.0, 2.0] * 10)
    assert (early.low, early.high, early.p) == (-math.inf, math.inf, 1.0)
    assert str(early) == "+1.5, too early to say after 20"
    still = live_interval([0.0] * 100)
    assert (still.low, still.high, still.p) == (-math.inf, math.inf, 1.0)
    late = live_interval([0.0] * 60 + [1.0, -1.0, 2.0] * 30)
    assert -math.inf < late.low < 0.4 < late.high < math.inf
    for wrong, looks in (([], [1]), ([1.0, math.inf], [1]), ([1.0], [2]), ([1.0], [])):
        with pytest.raises(ValueError, match="finite|Finite|within"):
            live_intervals(wrong, looks)
    with pytest.raises(ValueError, match="first look"):
        live_interval([1.0, 2.0], first=1)


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
    with pytest.raises(ValueError, match="not a share"):
        live_share(3, 2)


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


@pytest.mark.slow
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
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="expected effect"):
            live_comparison(agents, agents, expected_effect=bad)
    with pytest.raises(ValueError, match="No agent of theirs"):
        live_comparison(agents, [[]], expected_effect=1.0)
    with pytest.raises(ValueError, match="values of ours"):
        live_comparison([[math.nan]], agents, expected_effect=1.0)
