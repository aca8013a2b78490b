"""Our own exp, log and normal deviates are as good as the C library's."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.market.simulation.arithmetic import exp, growth, log, log_growth, normal, stream
from babylon_rl_tests.repeatable import repeatable

small = st.floats(-0.9, 3.0).filter(lambda x: abs(x) > 1e-9)


@repeatable(100)
@given(x=st.floats(-50.0, 50.0))
def test_exp_is_exp(x: float) -> None:
    assert exp(x) == pytest.approx(math.exp(x), rel=1e-13)


@repeatable(100)
@given(x=st.floats(1e-300, 1e300))
def test_log_is_log(x: float) -> None:
    assert log(x) == pytest.approx(math.log(x), rel=1e-14, abs=1e-15)


@repeatable(100)
@given(x=small)
def test_growth_and_its_inverse(x: float) -> None:
    assert growth(x) == pytest.approx(math.expm1(x) / x, rel=1e-13)
    assert log_growth(x) == pytest.approx(math.log1p(x) / x, rel=1e-13)


def test_growth_of_nothing_is_one() -> None:
    assert growth(0.0) == log_growth(0.0) == 1.0


def test_normal_deviates_have_the_moments_of_a_normal_distribution() -> None:
    rng = stream(0, "moments")
    drawn = [normal(rng) for _ in range(50_000)]
    assert statistics.mean(drawn) == pytest.approx(0.0, abs=0.02)
    assert statistics.pvariance(drawn) == pytest.approx(1.0, abs=0.02)
    assert statistics.mean(x**4 for x in drawn) == pytest.approx(3.0, abs=0.12)
    assert statistics.mean(abs(x) > 1.96 for x in drawn) == pytest.approx(0.05, abs=0.004)


def test_streams_of_different_concerns_differ_and_a_seed_may_be_a_number_or_its_digits() -> None:
    assert stream(0, "a").random() != stream(0, "b").random()
    assert stream(0, "a").random() == stream("0", "a").random() != stream(1, "a").random()
