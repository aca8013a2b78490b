"""Calls to a judge: limited in number, retried, guarded by a circuit breaker, priced.

An answer is text; parsing it is left to others. OpenAI's wire (openai/, openpipe:, JUDGE_BASE_URL) is spoken by OpenAI's client, every
other by litellm.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

from babylon_rl.errors import JudgeRefused, JudgeUnavailable
from babylon_rl.judge.answer_form import Form
from babylon_rl.judge.endpoints import Endpoint, endpoint_of
from babylon_rl.llm.retries import CallFailed, CircuitBreaker, CircuitOpen, Retrier, Retries
from babylon_rl.llm.tokens import is_priced, litellm_quietly, price, table_entry
from babylon_rl.llm.transports import ChatCompletion, LitellmTransport, OpenAITransport, Transport
from babylon_rl.settings import Settings

LATER = "Score again later: what is answered already is kept."


@dataclass(frozen=True)
class Reply:
    """A judge's answer as text. Tokens and ``usd`` are None where unknown.

    ``latency_s`` is that of the successful attempt. ``finish_reason`` other than "stop" (length, content_filter) says that the text is
    not whole.
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
    """Client of one judge for one run; an async context manager.

    It holds the limit on requests in flight and the circuit breaker.
    """

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
        self._retrier = Retrier(retries or Retries(total_s=3 * self._timeout_s), clock, sleep, jitter)
        self._clock = clock
        self._breaker = breaker or CircuitBreaker(clock)
        self._slots = asyncio.Semaphore(settings.judge_concurrency)
        self._endpoint = endpoint_of(settings, model)
        self._transport = transport or _transport(self._endpoint, settings)
        self._form = _first_form(self._endpoint)
        if is_priced(model):
            # the import blocks the loop for more than a second
            litellm_quietly()  # now rather than at the first answer, when it would keep the others waiting

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.aclose()

    async def ask(self, messages: Sequence[dict[str, str]], schema: Mapping[str, Any]) -> Reply:
        """Ask with retries; ``schema`` is the answer's JSON schema, sent where supported.

        Raises:
            JudgeUnavailable: down, or failing too often; later may be better.
            JudgeRefused: a wrong key, an unknown model, a request that is too long: a retry does not help.
        """
        async with self._slots:
            try:
                probing = self._breaker.enter()
            except CircuitOpen as open_:
                raise self._not_asked(open_) from None
            try:
                reply = await self._retrier.run(partial(self._attempt, messages, schema), self._breaker.check)
            except CircuitOpen as open_:
                raise self._not_asked(open_) from None
            except CallFailed as failed:
                raise self._settled(failed) from None
            # cancelled: this says nothing about the judge, so the breaker only frees the probe
            except BaseException:
                self._breaker.cancelled(probing)
                raise
            self._breaker.succeeded()
            return reply

    async def _attempt(self, messages: Sequence[dict[str, str]], schema: Mapping[str, Any], number: int, left_s: float) -> Reply:
        """Make one attempt, in plainer forms where the server refuses the form.

        The accepted form is kept for the rest of the run.
        """
        form, deadline = self._form, self._clock() + left_s
        while True:
            started = self._clock()
            # the attempt may not outlast the time for all attempts together
            limit_s = min(self._timeout_s, max(0.001, deadline - started))
            try:
                async with asyncio.timeout(limit_s):
                    completion = await self._transport.send(messages, form.parameters(schema))
            except TimeoutError:
                variable = " (JUDGE_TIMEOUT_SECONDS)" if limit_s == self._timeout_s else ""
                raise CallFailed(f"no answer within {limit_s:.3g} s{variable}") from None
            except CallFailed as refused:
                plainer = form.plainer(refused.reason) if refused.rejects_format else None
                if plainer is None:
                    raise
                form = plainer
            else:
                self._form = form
                return self._reply(completion, self._clock() - started, number)

    def _reply(self, completion: ChatCompletion, latency_s: float, attempts: int) -> Reply:
        """An answer with its price, latency and number of attempts."""
        tokens = completion.prompt_tokens, completion.completion_tokens
        usd = None if tokens[0] is None or tokens[1] is None else price(self.model, tokens[0], tokens[1], completion.cached_tokens or 0)
        return Reply(completion.text or "", *tokens, usd, latency_s, attempts, completion.finish_reason, completion.cached_tokens)

    def _settled(self, failed: CallFailed) -> JudgeUnavailable | JudgeRefused:
        """Report the failure to the breaker, and return the error to raise."""
        error = self._error(failed)
        if failed.fails_all_requests:
            self._breaker.failed(str(error))
        else:
            self._breaker.succeeded()  # it is there; it was this request that it did not take
        return error

    def _error(self, failed: CallFailed) -> JudgeUnavailable | JudgeRefused:
        """The error for a failed call: refused for good, or unavailable for now."""
        if not failed.is_worth_a_retry:
            said = f"The judge {self.model} at {self._endpoint.where} refused a request ({failed}). {self._advice(failed)}"
            return JudgeRefused(said, for_all=failed.fails_all_requests)
        asked = "" if failed.retry_after_s is None else f" It asks to wait {failed.retry_after_s:.0f} s."
        return JudgeUnavailable(
            f"The judge {self.model} at {self._endpoint.where} does not answer ({failed.attempts} tries): {failed}.{asked} {LATER}"
        )

    def _advice(self, failed: CallFailed) -> str:
        """Advice on a failure that no retry cures."""
        if failed.is_too_long:
            return "It does not fit into the model's context: lower JUDGE_REQUEST_TOKENS or JUDGE_GROUP_SIZE."
        if failed.is_bad_key:
            return f"Set {self._endpoint.key_variable} to a key that may use this model."
        if failed.is_out_of_credit:
            return "The account has no credit left: add some, or set JUDGE_MODEL to another judge."
        if failed.rejects_format:
            return "See that JUDGE_MODEL names a chat model; sending the same request again cures nothing."
        return "Set JUDGE_MODEL to a model that is there, or JUDGE_BASE_URL to the address that ends before /chat/completions."

    def _not_asked(self, open_: CircuitOpen) -> JudgeUnavailable:
        return JudgeUnavailable(f"Not asked, as {open_.failures} requests failed in a row. The last: {open_.reason}")


def _transport(endpoint: Endpoint, settings: Settings) -> Transport:
    """The transport for an endpoint: OpenAI's client where an address is known, else litellm."""
    if endpoint.base_url is not None:
        return OpenAITransport(endpoint.base_url, endpoint.wire_name, endpoint.secret)
    return LitellmTransport(endpoint.model, endpoint.base_url, endpoint.secret, settings.judge_timeout_seconds)


def _first_form(endpoint: Endpoint) -> Form:
    """The first form to try: a schema, unless litellm's table says the model takes none.

    A model that refuses the schema is asked without.
    """
    entry = table_entry(endpoint.model)
    return Form("schema" if entry is None or entry.get("supports_response_schema") else "json")
