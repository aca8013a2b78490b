from functools import cache

import numpy as np
import pytest
from scipy import stats

from babylon_rl.evaluation.statistics import live_sample_ratio, sample_ratio


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(9)


def test_the_sample_ratio_is_tested_exactly_for_two_arms_and_by_chi_square_for_more() -> None:
    assert sample_ratio([45, 155], [0.3, 0.7]).p == pytest.approx(stats.binomtest(45, 200, 0.3).pvalue)
    assert sample_ratio([45, 60, 95], [1, 1, 2]).p == pytest.approx(stats.chisquare([45, 60, 95], [50, 50, 100]).pvalue)


@pytest.mark.slow
def test_a_working_assignment_is_called_broken_in_1_of_1000(rng: np.random.Generator) -> None:
    counts, times = np.unique(rng.binomial(500, 0.1, 20_000), return_counts=True)
    alarms = sum(int(number) for count, number in zip(counts, times, strict=True) if sample_ratio([count, 500 - count], [10, 90]).mismatch)
    assert alarms / 20_000 <= 0.0015
    arms = rng.multinomial(900, [1 / 3] * 3, 1500)
    assert np.mean([sample_ratio(found.tolist(), [1, 1, 1]).mismatch for found in arms]) <= 0.003


def test_a_broken_assignment_is_found(rng: np.random.Generator) -> None:
    """Of 1,000 agents one arm loses every fourth."""
    found = [sample_ratio([int(kept), 500], [1, 1]).mismatch for kept in rng.binomial(500, 0.75, 500)]
    assert np.mean(found) >= 0.9
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
    assert str(sample_ratio([412, 388], [0.5, 0.5])) == "412 : 388 where 400 : 400 were expected, as assigned (p = 0.42)"
    assert "the assignment is broken" in str(sample_ratio([500, 388], [0.5, 0.5]))
    assert sample_ratio([0, 0], [1, 1]).p == live_sample_ratio([0, 0], [1, 1]).p == 1.0
    with pytest.raises(ValueError, match="same arms"):
        sample_ratio([1, 2], [1])
    with pytest.raises(ValueError, match="to be expected"):
        sample_ratio([1, 2, 3], [1, 1, 1])
    for counts, shares in (([-1, 2], [1, 1]), ([1.5, 2], [1, 1]), ([1, 2], [0, 1]), ([1], [1])):
        with pytest.raises(ValueError, match="Counts are whole|Finite"):
            live_sample_ratio(counts, shares)  # type: ignore[arg-type]
