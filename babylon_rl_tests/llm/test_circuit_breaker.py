"""The circuit breaker on a clock of the test's."""

import pytest

from babylon_rl.llm.retries import CircuitBreaker, CircuitOpen


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    """Open for 30 seconds after 3 failures in a row."""
    return CircuitBreaker(clock, threshold=3, open_s=30)


def fail(breaker: CircuitBreaker, times: int) -> None:
    for number in range(times):
        breaker.enter()
        breaker.failed(f"failure {number + 1}")


def test_it_opens_at_the_threshold_and_says_why_and_for_how_long(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 2)
    assert breaker.enter() is False
    breaker.failed("failure 3")
    clock.now += 10
    with pytest.raises(CircuitOpen) as refused:
        breaker.enter()
    assert (refused.value.reason, refused.value.failures, refused.value.wait_s) == ("failure 3", 3, 20)


def test_a_success_between_failures_keeps_it_closed(breaker: CircuitBreaker) -> None:
    for _ in range(5):
        fail(breaker, 2)
        breaker.enter()
        breaker.succeeded()
    breaker.enter()


def test_requests_that_were_cancelled_count_neither_way(breaker: CircuitBreaker) -> None:
    fail(breaker, 2)
    breaker.cancelled(breaker.enter())
    fail(breaker, 1)
    with pytest.raises(CircuitOpen):
        breaker.enter()


def test_one_probe_goes_through_after_the_wait(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 30
    assert breaker.enter() is True
    with pytest.raises(CircuitOpen):
        breaker.enter()
    breaker.succeeded()
    assert [breaker.enter(), breaker.enter()] == [False, False]


def test_a_probe_that_fails_opens_it_again(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 30
    breaker.enter()
    breaker.failed("still down")
    clock.now += 29
    with pytest.raises(CircuitOpen) as refused:
        breaker.enter()
    assert (refused.value.reason, refused.value.wait_s) == ("still down", 1)
    clock.now += 1
    assert breaker.enter() is True


def test_a_cancelled_probe_leaves_its_place_to_another(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 30
    breaker.cancelled(breaker.enter())
    assert breaker.enter() is True


def test_another_request_that_is_cancelled_leaves_the_probe_alone(breaker: CircuitBreaker, clock: Clock) -> None:
    earlier = breaker.enter()
    fail(breaker, 3)
    clock.now += 30
    assert breaker.enter() is True
    breaker.cancelled(earlier)
    with pytest.raises(CircuitOpen):
        breaker.enter()


def test_a_request_begun_before_stops_trying_while_it_is_open(breaker: CircuitBreaker, clock: Clock) -> None:
    breaker.check()
    fail(breaker, 3)
    with pytest.raises(CircuitOpen):
        breaker.check()
    clock.now += 30
    breaker.check()
