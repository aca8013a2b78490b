import math

import numpy as np
import pytest

from babylon_rl.evaluation.statistics import brier, calibration_p, reliability_bins


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(13)


def test_the_parts_of_the_brier_score_add_up(rng: np.random.Generator) -> None:
    forecasts = rng.beta(1, 1, 300).round(2)
    outcomes = rng.random(300) < forecasts
    for clusters in (None, rng.integers(0, 40, 300).tolist()):
        found = brier(forecasts, outcomes, clusters=clusters)
        assert found.score.mean == pytest.approx(found.miscalibration - found.discrimination + found.uncertainty)
        assert 0 <= found.miscalibration < 0.03 and found.discrimination > 0.05
    assert found.skill is not None and 0 < found.skill < 1


def test_known_brier_scores() -> None:
    perfect = brier([1.0, 0.0, 1.0], [True, False, True])
    assert (perfect.score.mean, perfect.miscalibration, perfect.skill) == (0.0, 0.0, 1.0)
    base = brier([0.5] * 4, [True, False, True, False])
    assert (base.score.mean, base.miscalibration, base.discrimination, base.uncertainty, base.skill) == (0.25, 0.0, 0.0, 0.25, 0.0)
    wrong = brier([0.9, 0.9, 0.1, 0.1], [False, False, True, True])
    assert wrong.score.mean == pytest.approx(0.81) and wrong.discrimination == 0.0 and wrong.miscalibration == pytest.approx(0.56)
    assert brier([0.5, 0.5], [True, True]).skill is None
    assert str(base).startswith("a Brier score of 0.250 (95 % interval 0.250 to 0.250) = 0.000 miscalibration")


@pytest.mark.slow
def test_intervals_of_the_brier_score_hold_the_truth(rng: np.random.Generator) -> None:
    held = 0
    for run in range(400):
        questions = rng.beta(2, 2, 30)
        answers = rng.random(30) < questions
        forecasts = np.clip(np.repeat(questions, 4) + rng.normal(0, 0.05, 120), 0, 1)
        found = brier(forecasts, np.repeat(answers, 4), clusters=np.repeat(np.arange(30), 4).tolist(), seed=run).score
        held += found.low <= 0.2 + 0.0025 <= found.high  # E p(1-p) of Beta(2, 2), and the noise
    assert 0.93 <= held / 400 <= 0.97


def test_bins_say_what_came_true(rng: np.random.Generator) -> None:
    found = reliability_bins([0.05, 0.95, 1.0, 0.9, 0.31], [False, True, True, False, True])
    assert [(round(bin_.low, 1), bin_.count) for bin_ in found] == [(0.0, 1), (0.3, 1), (0.9, 3)]
    assert found[2].observed.mean == pytest.approx(2 / 3)
    assert str(found[2]).startswith("3 forecasts of 95% on average came true in 67% (95 % interval ")
    held = []
    for _ in range(300):
        forecasts = rng.random(400)
        held += [b.observed.low <= b.forecast <= b.observed.high for b in reliability_bins(forecasts, rng.random(400) < forecasts)]
    assert 0.93 <= np.mean(held) <= 0.97


def test_forecasts_of_one_question_are_one_observation() -> None:
    alone = reliability_bins([0.7] * 20, [True] * 20)[0].observed
    together = reliability_bins([0.7] * 20, [True] * 20, clusters=[number // 5 for number in range(20)])[0].observed
    assert together.count == 4 and together.low < alone.low


@pytest.mark.slow
def test_calibrated_forecasts_look_miscalibrated_in_5_percent(rng: np.random.Generator) -> None:
    found = []
    for run in range(250):
        forecasts = rng.beta(1, 1, 40)
        found.append(calibration_p(forecasts, rng.random(40) < forecasts, seed=run, resamples=79))
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.085


def test_overconfident_forecasts_are_found(rng: np.random.Generator) -> None:
    truths = rng.beta(4, 4, 200)
    outcomes = rng.random(200) < truths
    assert calibration_p((truths > 0.5) * 0.9 + 0.05, outcomes) < 0.01
    clusters = np.repeat(np.arange(5), 40).tolist()
    assert calibration_p([0.8] * 200, np.repeat([True, True, True, True, False], 40), clusters=clusters) > 0.05


def test_wrong_forecasts_are_refused() -> None:
    for forecasts, outcomes in (([1.2], [True]), ([math.nan], [True]), ([0.5], [True, False]), ([], []), ([0.5], [0.5])):
        for function in (brier, reliability_bins, calibration_p):
            with pytest.raises(ValueError, match="within|Finite|paired"):
                function(forecasts, outcomes)
    with pytest.raises(ValueError, match="one bin"):
        reliability_bins([0.5], [True], bins=0)
