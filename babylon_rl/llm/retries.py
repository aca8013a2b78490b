"""Failed attempts: their classification, retries run by tenacity, and a circuit breaker.

A Retry-After holds back all requests to an endpoint, not only the one that received it. No text here repeats a credential. Clock, sleep and
jitter are arguments.
"""

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tenacity import RetryCallState

SHOWN = 200
_RETRIED = {408, 409, 425, 429}
_OF_THE_FORM = {400, 415, 422, 501}
_TOO_LONG = re.compile(
    r"context.{0,3}(length|window)|maximum context|(prompt|input) is too long|too many (input )?tokens|reduce the length", re.I
)
_NO_SUCH_MODEL = re.compile(
    r"LLM Provider NOT provided|model_not_found|\b(invalid|unknown|no such) model\b|\bmodel\b[^.]{0,80}\b(does not exist|not found)\b", re.I
)
_NO_CREDIT = re.compile(
    r"insufficient_quota|exceeded your current quota|credit balance|insufficient (credit|balance|funds)"
    r"|budget has been exceeded|budget_exceeded|ExceededBudget|billing.hard.limit|billing_not_active",
    re.I,
)
_NO_KEY = re.compile(
    r"\b(invalid|incorrect|expired|missing|no)[ _]api[ _]?key|\bapi[ _]?key( is| has)? (not valid|not found|invalid|expired|missing)"
    r"|api_key_invalid|organization has been disabled",
    re.I,
)
_KEY_LIKE = re.compile(
    r"\b(?:sk|pk|rk|opk|xai|gsk)[-_][\w*.-]{6,}|\bAIza[\w-]{10,}|(?i:\bbearer)\s+\S+|(?i:api[-_ ]?key)['\"]?\s*[:=]\s*['\"]?[\w*.-]+"
)
T = TypeVar("T")


@dataclass(eq=False)
class CallFailed(Exception):
    """One attempt failed. ``status`` is HTTP's.

    It is None when no whole answer came, or one that is no chat completion. ``attempts`` is the number of attempts once retries have ended.
    """

    reason: str
    status: int | None = None
    retry_after_s: float | None = None
    attempts: int = 1

    @property
    def is_too_long(self) -> bool:
        """True if the request does not fit into the model's context."""
        return self.status == 413 or (self.status in _OF_THE_FORM and _TOO_LONG.search(self.reason) is not None)

    @property
    def rejects_format(self) -> bool:
        """True if the server rejects the form of a request, not its model or account."""
        if self.status not in _OF_THE_FORM or self.is_too_long:
            return False
        return not any(words.search(self.reason) for words in (_NO_SUCH_MODEL, _NO_CREDIT, _NO_KEY))

    @property
    def is_worth_a_retry(self) -> bool:
        """True if the same request may succeed later."""
        if self.status is None:
            return True
        # OpenAI reports an empty account as a rate limit
        if self.status == 429 and _NO_CREDIT.search(self.reason):
            return False
        return self.status in _RETRIED or (self.status >= 500 and self.status not in _OF_THE_FORM)

    @property
    def fails_all_requests(self) -> bool:
        """True if other requests to this model would fail in the same way."""
        return self.is_worth_a_retry or not (self.is_too_long or self.rejects_format)

    @property
    def is_bad_key(self) -> bool:
        """True if the credential is wrong or may not use the model."""
        return self.status in {401, 403} or _NO_KEY.search(self.reason) is not None

    @property
    def is_out_of_credit(self) -> bool:
        """True if the account has no credit left."""
        return self.status in {402, 429} or _NO_CREDIT.search(self.reason) is not None

    def __str__(self) -> str:
        return self.reason if self.status is None else f"status {self.status}: {self.reason}"


def without_keys(text: str, secrets: Iterable[str] = ()) -> str:
    """``text`` without ``secrets`` and anything that looks like a key."""
    for secret in secrets:
        text = text.replace(secret, "[key]")
    return _KEY_LIKE.sub("[key]", text)


def scrubbed(text: str, secrets: Iterable[str] = ()) -> str:
    """One short line of ``text`` without ``secrets`` and anything that looks like a key."""
    text = without_keys(" ".join(text.split()), secrets)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds of a Retry-After header (a number or a date); None without a readable one."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except (ValueError, OverflowError):
            return None
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now.timestamp()
    return max(0.0, seconds) if isfinite(seconds) else None


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
        """Result of ``attempt(number, seconds left)``, tried until it succeeds, or ``check`` raises before a further try.

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
                try:
                    return await attempt(number.retry_state.attempt_number, max(0.001, deadline - self._clock()))
                except CallFailed as failed:
                    failed.attempts = number.retry_state.attempt_number
                    if failed.is_worth_a_retry:
                        self._not_before = max(self._not_before, self._clock() + (failed.retry_after_s or 0.0))
                    raise
        raise AssertionError("the last attempt raises")

    def _wait_s(self, state: "RetryCallState") -> float:
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


@dataclass(eq=False)
class CircuitOpen(Exception):
    """No request is allowed for ``wait_s`` seconds. ``failures`` is the number of failures in a row, ``reason`` the text of the last."""

    reason: str
    failures: int
    wait_s: float


class CircuitBreaker:
    """Circuit breaker of one event loop; not thread-safe. Closed: all requests pass; open: none; half open: one probe."""

    def __init__(self, clock: Callable[[], float], threshold: int = 5, open_s: float = 30.0) -> None:
        self._clock = clock
        self._threshold = threshold
        self._open_s = open_s
        self._failures = 0
        self._reason = ""
        self._opened_at: float | None = None
        self._probing = False

    def enter(self) -> bool:
        """Begin a request; True when it is the probe. One of ``succeeded``, ``failed`` and ``cancelled`` must follow.

        Raises:
            CircuitOpen: no request is allowed now.
        """
        if self._opened_at is None:
            return False
        self.check()
        # half open: the probe is under way, all others wait
        if self._probing:
            raise CircuitOpen(self._reason, self._failures, 0.0)
        self._probing = True
        return True

    @property
    def at_threshold(self) -> bool:
        """True if one more failure opens the circuit, or keeps it open."""
        return self._opened_at is not None or self._failures + 1 >= self._threshold

    def check(self) -> None:
        """Raise CircuitOpen while no request is allowed; called before a retry."""
        if self._opened_at is not None and (wait_s := self._opened_at + self._open_s - self._clock()) > 0:
            raise CircuitOpen(self._reason, self._failures, wait_s)

    def succeeded(self) -> None:
        """Record an answered request: the circuit closes."""
        self._failures, self._opened_at, self._probing = 0, None, False

    def failed(self, reason: str) -> None:
        """Record a request that failed for good, with the ``reason`` in words."""
        self._failures += 1
        self._reason = reason
        # a failed probe opens the circuit again at once
        if self._opened_at is not None or self._failures >= self._threshold:
            self._opened_at, self._probing = self._clock(), False

    def cancelled(self, was_probe: bool) -> None:
        """Record a request that was cancelled and says nothing about the endpoint. If it was the probe, another request may probe."""
        self._probing = self._probing and not was_probe
