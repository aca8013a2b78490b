import math
from functools import cache

import numpy as np
import pytest
from scipy import stats

from babylon_rl.evaluation.statistics.live import live_comparison, live_share


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
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="expected effect"):
            live_comparison(agents, agents, expected_effect=bad)
    with pytest.raises(ValueError, match="No agent of theirs"):
        live_comparison(agents, [[]], expected_effect=1.0)
    with pytest.raises(ValueError, match="values of ours"):
        live_comparison([[math.nan]], agents, expected_effect=1.0)
