"""Retry policy for every caller and every transport, run by tenacity.

failures.py classifies the failures. A Retry-After holds back all requests to an endpoint, not only the one that received it.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from babylon_rl.llm.failures import CallFailed

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")


@dataclass(frozen=True)
class Retries:
    """Limits of the tries of one request.

    The wait before try n+1 is uniform in 0..first_wait_s * 2^(n-1), at most ``longest_wait_s``. A longer Retry-After is waited in full
    instead. All tries and waits together take at most ``total_s``: where a wait would end beyond it, the request fails at once.
    """

    attempts: int = 10
    first_wait_s: float = 0.5
    longest_wait_s: float = 20.0
    total_s: float = 360.0


class Retrier:
    """Retries requests to one endpoint, within one event loop."""

    def __init__(
        self,
        retries: Retries,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: random.Random | None = None,
    ) -> None:
        self._retries = retries
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter or random.Random()
        self._not_before = 0.0

    async def run(self, attempt: Callable[[int, float], Awaitable[T]], check: Callable[[], None] = lambda: None) -> T:
        """Result of ``attempt(number, seconds left)``, tried until it succeeds.

        An error that ``check`` raises before a further try ends the tries.

        Raises:
            CallFailed: the last failure, with the number of attempts.
        """
        from tenacity import AsyncRetrying, retry_if_exception

        deadline = self._clock() + self._retries.total_s
        await self._wait_for_the_endpoint(deadline)

        async def sleep(seconds: float) -> None:
            await self._sleep(seconds)
            await self._wait_for_the_endpoint(deadline)  # another request may have been asked to wait meanwhile
            check()

        tries = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, CallFailed) and error.is_worth_a_retry),
            wait=self._wait_s,
            stop=lambda state: state.attempt_number >= self._retries.attempts or self._clock() + state.upcoming_sleep >= deadline,
            sleep=sleep,
            reraise=True,
        )
        async for number in tries:
            with number:
                return await self._noted(attempt, number.retry_state.attempt_number, deadline)
        raise AssertionError("the last attempt raises")

    async def _noted(self, attempt: Callable[[int, float], Awaitable[T]], number: int, deadline: float) -> T:
        """Make one attempt; a failure notes its number and holds back further requests."""
        try:
            return await attempt(number, max(0.001, deadline - self._clock()))
        except CallFailed as failed:
            failed.attempts = number
            if failed.is_worth_a_retry:
                self._not_before = max(self._not_before, self._clock() + (failed.retry_after_s or 0.0))
            raise

    def _wait_s(self, state: "RetryCallState") -> float:
        """Seconds to wait before the next try."""
        bound = min(self._retries.longest_wait_s, self._retries.first_wait_s * 2.0 ** (state.attempt_number - 1))
        return max(self._jitter.uniform(0, bound), self._not_before - self._clock())

    async def _wait_for_the_endpoint(self, deadline: float) -> None:
        """Wait for a Retry-After of any request, or fail if the deadline comes first."""
        held_s = self._not_before - self._clock()
        if held_s <= 0:
            return
        if self._clock() + held_s >= deadline:
            raise CallFailed("not asked, as it asked to be left alone before", retry_after_s=held_s, attempts=0)
        await self._sleep(held_s)
