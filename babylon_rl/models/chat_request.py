"""Request to ``serve model``: its fields, each served or refused by name.

A field that would change the answer is never passed over in silence: an agent whose ``stop`` is ignored acts on another text than it asked
for. Refusals have the shape of OpenAI's errors.
"""

import json
import re
import secrets
from collections.abc import Mapping
from typing import Any

import msgspec

from babylon_rl.chats import plain_messages
from babylon_rl.errors import RequestRefused
from babylon_rl.models.base_model import BASE_MODEL_NAME
from babylon_rl.models.policy import CompletionRequest
from babylon_rl.tolerant_json import NotJson, read_exactly

DEFAULT_MAX_TOKENS = 256
MOST_STOPS = 4
MOST_TOP_LOGPROBS = 20
# Fields that change no answer of this server. Token ids are given with all log-probabilities.
_WITHOUT_EFFECT = frozenset({
    "user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "parallel_tool_calls",
    "return_token_ids", "return_tokens_as_token_ids",
})  # fmt: skip
# Fields of OpenAI's API that are served at these values alone, which ask for nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,), "top_p": (1,), "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "modalities": (["text"],), "reasoning_effort": ("none",),
    "verbosity": ("medium",),
}  # fmt: skip


class StreamOptions(msgspec.Struct, frozen=True):
    """``include_usage`` asks for an event with the counts of tokens at the end; padding is not sent."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatBody(msgspec.Struct, frozen=True):
    """The fields that are served; null is the same as absent."""

    model: str
    messages: list[dict[str, Any]]
    temperature: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def with_usage(self) -> bool:
        """True if a stream ends with the counts of tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def completion_request(self) -> CompletionRequest:
        """Return the completion request for the policy. Raises RequestRefused: a value that is not served; it names the field."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MOST_STOPS or not all(stops):
            raise RequestRefused(f"stop holds {len(stops)} texts: give up to {MOST_STOPS}, none of them empty.", "stop")
        top = self.top_logprobs or 0
        if not 0 <= top <= MOST_TOP_LOGPROBS:
            raise RequestRefused(f"top_logprobs is {top}: it is 0 to {MOST_TOP_LOGPROBS}.", "top_logprobs")
        if top and not self.logprobs:
            raise RequestRefused("top_logprobs is given with logprobs alone: set logprobs to true.", "top_logprobs")
        if self.stream_options is not None and not self.stream:
            raise RequestRefused("stream_options is allowed in a stream alone: set stream to true.", "stream_options")
        if not self.messages:
            raise RequestRefused("messages is empty.", "messages")
        # max_tokens is the older name of the same limit in OpenAI's API; 1 is its default temperature.
        limit = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return CompletionRequest(
            messages=plain_messages(self.messages),
            response_format=_served_format(self.response_format),
            temperature=1.0 if self.temperature is None else self.temperature,
            seed=secrets.randbits(32) if self.seed is None else self.seed,
            max_tokens=DEFAULT_MAX_TOKENS if limit is None else limit,
            adapter=None if self.model == BASE_MODEL_NAME else self.model,
            stop=stops,
            top_logprobs=top,
        )


def read_request(body: bytes) -> ChatBody:
    """Decode a request; half of a surrogate pair, as JavaScript's slice leaves it for ever in a history, becomes U+FFFD.

    Raises:
        RequestRefused: no JSON, a field of another type, or one that is not served.
    """
    try:
        document, _ = read_exactly(body)
    except NotJson as refused:
        raise RequestRefused(f"The body is not JSON: {refused}.", "body") from None
    if not isinstance(document, dict):
        raise RequestRefused("The body is not a JSON object.", "body")
    given = {name: value for name, value in document.items() if value is not None}
    for name in given.keys() - set(ChatBody.__struct_fields__) - _WITHOUT_EFFECT:
        if name not in _NEUTRAL:
            raise RequestRefused(f"Unrecognized request argument supplied: {name[:100]}", name[:100], "unknown_parameter")
        if given[name] not in _NEUTRAL[name] or isinstance(given[name], bool):
            served = " or ".join(json.dumps(value) for value in _NEUTRAL[name])
            raise RequestRefused(f"{name} is served as {served} alone: leave it out.", name, "unsupported_value")
    try:
        return msgspec.convert(given, ChatBody)
    except msgspec.ValidationError as refused:
        named = re.search(r"at `\$\.?([^`]*)`|field `(\w+)`", str(refused))
        raise RequestRefused(f"The request is not a chat completion: {refused}", (named and (named[1] or named[2])) or "messages") from None


def _served_format(response_format: dict[str, Any] | None) -> dict[str, Any] | None:
    if response_format is None or response_format.get("type") == "text":
        return None
    if response_format.get("type") == "json_object":
        raise RequestRefused(
            "response_format json_object is not served here: name the answers by a json_schema of finitely many, or ask in free text.",
            "response_format",
        )
    return response_format
