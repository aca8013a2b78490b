"""Client of a judge: endpoint, concurrency limit, retries, circuit breaker, price.

OpenAI's protocol serves openai/, openpipe: and JUDGE_BASE_URL, litellm every other provider. Servers differ in the parameters that shape an
answer: one that refuses a JSON schema gets the request in a plainer form.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Self

from pydantic import SecretStr

from babylon_rl.chats import is_cut
from babylon_rl.errors import JudgeRefused, JudgeUnavailable
from babylon_rl.judge.answers import LASTING
from babylon_rl.llm.retries import CallFailed, CircuitBreaker, CircuitOpen, Retrier, Retries
from babylon_rl.llm.tokens import is_priced, litellm_quietly, price, table_entry
from babylon_rl.llm.transports import ChatCompletion, LitellmTransport, OpenAITransport, Transport, with_version
from babylon_rl.setting_sources import judge_key_variable, provider_key
from babylon_rl.settings import HEURISTIC, JudgeSettings, Settings
from babylon_rl.traces import span

OPENAI_URL = "https://api.openai.com/v1"
OPENPIPE_URL = "https://api.openpipe.ai/api/v1"
Structure = Literal["schema", "json", "free"]
_NEXT: dict[Structure, Structure] = {"schema": "json", "json": "free"}
_JSON = ("{", "[", "```")


@dataclass(frozen=True)
class JudgeEndpoint:
    """Address of a model at an OpenAI-compatible server, and its name there. ``base_url`` None: litellm's default for the provider.

    ``key_variable`` names the setting of the credential, ``address_variable`` the provider client's own variable of the address, if any.
    """

    wire_name: str
    base_url: str | None
    key: SecretStr | None = field(repr=False)
    key_variable: str
    address_variable: str = ""

    @property
    def where(self) -> str:
        """The address in words; settings reject one that holds a password."""
        where = self.base_url or "its provider"
        return f"{where} ({self.address_variable})" if self.address_variable else where

    @property
    def secret(self) -> str | None:
        return (None if self.key is None else self.key.get_secret_value().strip()) or None


def endpoint_of(settings: Settings, model: str) -> JudgeEndpoint:
    """The endpoint of ``model``. At JUDGE_BASE_URL where set; else at OPENAI_BASE_URL, of a model of OpenAI's; else its provider's own."""
    provider, name = _split_model(model)
    field_name = judge_key_variable(model)
    variable = field_name or f"{(provider or model).upper()}_API_KEY"
    key: SecretStr | None = getattr(settings, field_name.lower()) if field_name else provider_key(Settings, variable)
    # a server knows OpenAI's models without litellm's prefix, and OpenPipe's with one of its own
    wire_name = {"openai": name, "openpipe": f"openpipe:{name}"}.get(provider, model)
    url, named_by = _given_address(settings, model)
    return JudgeEndpoint(wire_name, url or _own_address(provider, model), key, variable, named_by)


def server_of(settings: JudgeSettings, model: str) -> str:
    """Address of a server that replaces the model's provider; empty if the provider answers, and for the heuristic.

    Answers are stored under it, so that answers of a trial server are never taken for those of the model
    whose name it used.
    """
    url = None if model == HEURISTIC else _given_address(settings, model)[0]
    return "" if url is None or url == _own_address(_split_model(model)[0], model) else url


def judge_addresses(settings: Settings, *models: str | None) -> str:
    """Text with the language models among ``models`` and their addresses; empty if there are none."""
    listed = [model for model in dict.fromkeys(models) if model is not None and model != HEURISTIC]
    return " and ".join(f"{model} at {endpoint_of(settings, model).where}" for model in listed)


def _given_address(settings: JudgeSettings, model: str) -> tuple[str | None, str]:
    """Address from the settings for ``model``, and the OpenAI variable that named it, else ""."""
    url, named_by = settings.judge_base_url, ""
    # OpenAI's own variables count for OpenAI's models only
    if url is None and _split_model(model)[0] == "openai":
        url, named_by = settings.openai_base_url, "OPENAI_BASE_URL" if settings.openai_base_url else ""
    return (None if url is None else with_version(url)), named_by


def _own_address(provider: str, model: str) -> str | None:
    """Address of the model's provider; None where litellm must choose."""
    if provider == "openpipe":
        return OPENPIPE_URL
    # models of the responses API do not speak chat completions; litellm translates
    speaks_chat = (table_entry(model) or {}).get("mode", "chat") == "chat" and "/responses/" not in model
    return OPENAI_URL if provider == "openai" and speaks_chat else None


def _split_model(model: str) -> tuple[str, str]:
    """Split a model name into (provider, name there). OpenAI's bare names belong to openai; a name without a provider has an empty one."""
    if model.startswith(("openpipe:", "openpipe/")):
        return "openpipe", model[len("openpipe:") :]
    if "/" in model:
        provider, _, name = model.partition("/")
        return provider, name
    return ("openai" if judge_key_variable(model) == "OPENAI_API_KEY" else ""), model


@dataclass(frozen=True)
class AnswerFormat:
    """Parameters that shape an answer. ``temperature`` None: not sent."""

    structure: Structure
    temperature: float | None = 0.0

    def parameters(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of a chat completion in OpenAI's names; ``schema`` is the answer's JSON schema."""
        parameters: dict[str, Any] = {} if self.temperature is None else {"temperature": self.temperature}
        if self.structure == "schema":
            parameters["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "scores", "schema": dict(schema), "strict": True},
            }
        elif self.structure == "json":
            parameters["response_format"] = {"type": "json_object"}
        return parameters

    def plainer(self, refusal: str) -> "AnswerFormat | None":
        """Next form after a server refused this one with the text ``refusal``. None when nothing is left to leave out."""
        # some models accept only their default temperature
        if self.temperature is not None and ("temperature" in refusal or self.structure == "free"):
            return replace(self, temperature=None)
        return replace(self, structure=_NEXT[self.structure]) if self.structure in _NEXT else None


@dataclass(frozen=True)
class JudgeReply:
    """A judge's answer as text. Tokens and ``usd`` are None where unknown.

    ``latency_s`` is that of the successful attempt. ``read_tokens`` are those of the prompt that the server read, cached ones included.
    ``fault`` says why there is no answer, where the model's thinking took its place.
    """

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    usd: float | None
    latency_s: float
    attempts: int
    read_tokens: int | None = None
    fault: str = ""


class JudgeClient:
    """Client of JUDGE_MODEL for one run; an async context manager. It holds the limit on requests in flight and the circuit breaker."""

    def __init__(
        self,
        settings: Settings,
        *,
        retries: Retries | None = None,
        breaker: CircuitBreaker | None = None,
        transport: Transport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: random.Random | None = None,
    ) -> None:
        self.model = settings.judge_model
        self._timeout_s = settings.judge_timeout_seconds
        # short failures are tried ten times, but a server that never answers only about three
        self._retrier = Retrier(retries or Retries(total_s=3 * self._timeout_s), clock, sleep, jitter)
        self._clock = clock
        self._breaker = breaker or CircuitBreaker(clock)
        self._endpoint = endpoint = endpoint_of(settings, self.model)
        if transport is not None:
            self._transport = transport
        elif endpoint.base_url is not None:
            self._transport = OpenAITransport(endpoint.base_url, endpoint.wire_name, endpoint.secret)
        else:
            self._transport = LitellmTransport(self.model, None, endpoint.secret, self._timeout_s)
        # a schema, unless litellm's table says the model takes none; a model that refuses it is asked without
        entry = table_entry(self.model)
        self._form = AnswerFormat("schema" if entry is None or entry.get("supports_response_schema") else "json")
        if is_priced(self.model):
            # the import blocks the loop for more than a second
            litellm_quietly()  # now rather than at the first answer, when it would keep the others waiting

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._transport.aclose()

    async def ask(self, messages: Sequence[dict[str, str]], schema: Mapping[str, Any]) -> JudgeReply:
        """Ask with retries; ``schema`` is the answer's JSON schema, sent where supported.

        Raises:
            JudgeUnavailable: down, or failing too often; later may be better.
            JudgeRefused: a wrong key, an unknown model, a request that is too long: a retry does not help.
        """
        probing = False
        try:
            probing = self._breaker.enter()
            with span("judge request", "client", model=self.model) as traced:
                reply = await self._retrier.run(partial(self._attempt, messages, schema), self._breaker.check)
                traced.note(attempts=reply.attempts, prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens)
        except CircuitOpen as open_:
            raise JudgeUnavailable(f"Not asked, as {open_.failures} requests failed in a row. The last: {open_.reason}") from None
        except CallFailed as failed:
            raise self._settled(failed) from None
        # cancelled: this says nothing about the judge, so the breaker only frees the probe
        except BaseException:
            self._breaker.cancelled(probing)
            raise
        self._breaker.succeeded()
        return reply

    async def _attempt(self, messages: Sequence[dict[str, str]], schema: Mapping[str, Any], number: int, left_s: float) -> JudgeReply:
        """Make one attempt, in plainer forms where the server refuses the form. The accepted form is kept for the rest of the run."""
        form, deadline = self._form, self._clock() + left_s
        while True:
            started = self._clock()
            # the attempt may not outlast the time for all attempts together
            limit_s = min(self._timeout_s, max(0.001, deadline - started))
            try:
                async with asyncio.timeout(limit_s):
                    completion = await self._transport.send(messages, form.parameters(schema))
            except TimeoutError:
                raise CallFailed(f"no answer within {limit_s:.3g} s") from None
            except CallFailed as refused:
                # the server refused the form alone, so a plainer one is sent at once and is no further attempt
                plainer = form.plainer(refused.reason) if refused.rejects_format else None
                if plainer is None:
                    raise
                form = plainer
            else:
                self._form = form
                return self._reply(completion, self._clock() - started, number)

    def _reply(self, completion: ChatCompletion, latency_s: float, attempts: int) -> JudgeReply:
        tokens = completion.prompt_tokens, completion.completion_tokens
        cached = completion.cached_tokens or 0
        usd = None if tokens[0] is None or tokens[1] is None else price(self.model, tokens[0], tokens[1], cached)
        # some servers count the cached tokens beside the others
        read = None if tokens[0] is None else tokens[0] + (cached if cached > tokens[0] else 0)
        text, fault = completion.text or "", ""
        if not text.strip() and is_cut(completion.finish_reason):
            where = f" ({completion.reasoning_field})" if completion.reasoning else ""
            fault = (
                f"{LASTING}it was cut while the judge was thinking{where}, finish_reason {completion.finish_reason}. Let its server "
                "give more tokens to an answer, or fewer to its thinking."
            )
        elif not text.strip() and completion.reasoning:
            # with structured output some servers take the JSON itself for thinking
            text = completion.reasoning
            if not text.strip().startswith(_JSON):
                fault = (
                    f"{LASTING}the content is empty, and {completion.reasoning_field} alone has a text. Set the server's reasoning parser."
                )
        return JudgeReply(text, *tokens, usd, latency_s, attempts, read, fault)

    def _settled(self, failed: CallFailed) -> JudgeUnavailable | JudgeRefused:
        """Report the failure to the breaker, and return the error to raise: refused for good, or unavailable for now."""
        judge = f"The judge {self.model} at {self._endpoint.where}"
        error: JudgeUnavailable | JudgeRefused
        if failed.is_worth_a_retry:
            wait = "" if failed.retry_after_s is None else f" It asks to wait {failed.retry_after_s:.0f} s."
            error = JudgeUnavailable(
                f"{judge} does not answer ({failed.attempts} tries): {failed}.{wait} Score again later: what is answered already is kept."
            )
        else:
            error = JudgeRefused(f"{judge} refused a request ({failed}). {self._advice(failed)}", for_all=failed.fails_all_requests)
        if failed.fails_all_requests:
            self._breaker.failed(str(error))
        else:
            self._breaker.succeeded()  # the judge answers; it refused this request only
        return error

    def _advice(self, failed: CallFailed) -> str:
        if failed.is_too_long:
            return "It does not fit into the model's context: lower JUDGE_REQUEST_TOKENS."
        if failed.is_bad_key:
            return f"Set {self._endpoint.key_variable} to a key that may use this model."
        if failed.is_out_of_credit:
            return "The account has no credit left: add some, or set JUDGE_MODEL to another judge."
        if failed.rejects_format:
            return "See that JUDGE_MODEL names a chat model; sending the same request again cures nothing."
        return "Set JUDGE_MODEL to a model that is there, or JUDGE_BASE_URL to the address that ends before /chat/completions."
