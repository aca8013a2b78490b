"""Asking a judge: bounded in number, retried with jitter where a retry helps, stopped by a circuit breaker, priced.

An answer is text; whether it is a verdict is for others to read. OpenAI's wire (openai/, openpipe:, JUDGE_BASE_URL) is spoken
directly, every other provider through litellm.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from babylon_rl.errors import JudgeRefused, JudgeUnavailable
from babylon_rl.judge.breaker import CircuitBreaker, CircuitOpen
from babylon_rl.judge.calling.attempt import Answered, Form, Transport
from babylon_rl.judge.calling.endpoint import Endpoint, endpoint_of
from babylon_rl.judge.calling.failures import CallFailed
from babylon_rl.judge.calling.litellm_wire import LitellmWire
from babylon_rl.judge.calling.openai_wire import OpenAIWire
from babylon_rl.judge.pricing import is_priced, litellm_quietly, price, table_entry
from babylon_rl.settings import Settings

LATER = "Score again later: what is answered already is kept."


@dataclass(frozen=True)
class Retries:
    """Tries of one request. The wait before try n+1 is uniform in 0..first_wait_s * 2^(n-1), at most ``longest_wait_s``.

    A server's Retry-After is waited in full instead. All tries and waits together take at most ``total_s``.
    """

    attempts: int = 8
    first_wait_s: float = 0.5
    longest_wait_s: float = 20.0
    total_s: float = 360.0


@dataclass(frozen=True)
class Reply:
    """A judge's answer. Tokens and ``usd`` are None where unknown; ``latency_s`` is that of the attempt that was answered.

    ``finish_reason`` other than "stop" (length, content_filter) says that the text is not whole.
    """

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    usd: float | None
    latency_s: float
    attempts: int
    finish_reason: str | None = None
    cached_tokens: int | None = None


class JudgeCaller:
    """One judge for one run, an async context manager: holds the limit on requests in flight and the circuit breaker."""

    def __init__(
        self,
        settings: Settings,
        model: str,
        *,
        retries: Retries | None = None,
        breaker: CircuitBreaker | None = None,
        transport: Transport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: random.Random | None = None,
    ) -> None:
        self.model = model
        self._timeout_s = settings.judge_timeout_seconds
        self._retries = retries or Retries(total_s=3 * self._timeout_s)
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter or random.Random()
        self._breaker = breaker or CircuitBreaker(clock)
        self._slots = asyncio.Semaphore(settings.judge_concurrency)
        self._endpoint = endpoint_of(settings, model)
        self._transport = transport or _transport(self._endpoint, settings)
        self._form = _first_form(self._endpoint)
        if is_priced(model):
            litellm_quietly()  # now rather than at the first answer, when it would keep the others waiting

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.aclose()

    async def ask(self, messages: Sequence[dict[str, str]], schema: Mapping[str, Any]) -> Reply:
        """Ask once, with retries; ``schema`` is the JSON schema of an answer, asked for where the model can be held to one.

        Raises:
            JudgeUnavailable: down, or failing too often; later may be better.
            JudgeRefused: a wrong key, an unknown model, a request that is too long: retrying cures nothing.
        """
        async with self._slots:
            try:
                probing = self._breaker.enter()
            except CircuitOpen as open_:
                raise self._not_asked(open_) from None
            try:
                reply = await self._ask(messages, schema)
            except CircuitOpen as open_:
                raise self._not_asked(open_) from None
            except CallFailed as failed:
                raise self._settled(failed) from None
            except BaseException:
                self._breaker.left(probing)
                raise
            self._breaker.succeeded()
            return reply

    async def _ask(self, messages: Sequence[dict[str, str]], schema: Mapping[str, Any]) -> Reply:
        deadline = self._clock() + self._retries.total_s
        for number in range(1, self._retries.attempts + 1):
            try:
                return await self._attempt(number, messages, schema, deadline)
            except CallFailed as failed:
                wait_s = self._wait_s(number, failed)
                if not failed.is_worth_a_retry or number == self._retries.attempts or self._clock() + wait_s >= deadline:
                    failed.attempts = number
                    raise
            await self._sleep(wait_s)
            self._breaker.check()
        raise AssertionError("the last attempt raises")

    async def _attempt(self, number: int, messages: Sequence[dict[str, str]], schema: Mapping[str, Any], deadline: float) -> Reply:
        """One attempt, in plainer forms where the server refuses the form; the form that it took is kept for the run."""
        form = self._form
        while True:
            started = self._clock()
            try:
                async with asyncio.timeout(min(self._timeout_s, max(0.001, deadline - started))):
                    answered = await self._transport.send(messages, form.parameters(schema))
            except TimeoutError:
                raise CallFailed(f"no answer within {self._timeout_s:g} s (JUDGE_TIMEOUT_SECONDS)") from None
            except CallFailed as refused:
                plainer = form.plainer(refused.reason) if refused.is_of_the_form else None
                if plainer is None:
                    raise
                form = plainer
            else:
                self._form = form
                return self._reply(answered, self._clock() - started, number)

    def _wait_s(self, number: int, failed: CallFailed) -> float:
        if failed.retry_after_s is not None:
            return failed.retry_after_s
        return self._jitter.uniform(0, min(self._retries.longest_wait_s, self._retries.first_wait_s * 2.0 ** (number - 1)))

    def _reply(self, answered: Answered, latency_s: float, attempts: int) -> Reply:
        tokens = answered.prompt_tokens, answered.completion_tokens
        usd = None if tokens[0] is None or tokens[1] is None else price(self.model, tokens[0], tokens[1], answered.cached_tokens or 0)
        return Reply(answered.text, *tokens, usd, latency_s, attempts, answered.finish_reason, answered.cached_tokens)

    def _settled(self, failed: CallFailed) -> JudgeUnavailable | JudgeRefused:
        """Tell the breaker, and make the error."""
        error = self._error(failed)
        if failed.is_for_all:
            self._breaker.failed(str(error))
        else:
            self._breaker.succeeded()  # it is there; it was this request that it did not take
        return error

    def _error(self, failed: CallFailed) -> JudgeUnavailable | JudgeRefused:
        if not failed.is_worth_a_retry:
            return failed.refusal(self.model, self._endpoint.where, self._endpoint.key_variable)
        asked = "" if failed.retry_after_s is None else f" It asks to wait {failed.retry_after_s:.0f} s."
        return JudgeUnavailable(
            f"The judge {self.model} at {self._endpoint.where} does not answer ({failed.attempts} tries): {failed}.{asked} {LATER}"
        )

    def _not_asked(self, open_: CircuitOpen) -> JudgeUnavailable:
        return JudgeUnavailable(f"Not asked, as {open_.failures} requests failed in a row. The last: {open_.reason}")


def _transport(endpoint: Endpoint, settings: Settings) -> Transport:
    if endpoint.base_url is not None:
        return OpenAIWire(endpoint, settings.judge_concurrency)
    return LitellmWire(endpoint, settings.judge_timeout_seconds)


def _first_form(endpoint: Endpoint) -> Form:
    """A schema, except where litellm's table knows the model and no schema of it; who refuses one is asked without."""
    entry = table_entry(endpoint.model)
    return Form("schema" if entry is None or entry.get("supports_response_schema") else "json")
