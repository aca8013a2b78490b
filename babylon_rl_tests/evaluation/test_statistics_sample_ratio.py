from functools import cache

import numpy as np
import pytest

from babylon_rl.evaluation.statistics.live import live_sample_ratio


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(9)


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
    with pytest.raises(ValueError, match="same arms"):
        live_sample_ratio([1, 2], [1])
    for counts, shares in (([-1, 2], [1, 1]), ([1.5, 2], [1, 1]), ([1, 2], [0, 1]), ([1], [1])):
        with pytest.raises(ValueError, match="Counts are whole|Finite"):
            live_sample_ratio(counts, shares)  # type: ignore[arg-type]
