"""Transport through OpenAI's client, whose retries and parsing of answers stay off.

An answer is parsed from its bytes: the client builds its objects from any JSON, even from a proxy's page.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from babylon_rl.llm.failures import CallFailed, retry_after_s, scrubbed
from babylon_rl.llm.wire import Answered, answered


class OpenAIWire:
    """Transport to ``base_url``, which ends before /chat/completions.

    The caller limits the time of an attempt by cancelling it.
    """

    def __init__(self, base_url: str, model: str, key: str | None) -> None:
        import openai

        self._errors = openai.APIStatusError, openai.APIError
        self._model = model
        self._secrets = (key,) if key else ()
        # The client's variables in the environment are meant for OpenAI, and this may be another server.
        unsaid = {"OpenAI-Organization": openai.omit, "OpenAI-Project": openai.omit}
        self._unauthorized = {} if key else {"Authorization": openai.omit}
        self._client = openai.AsyncOpenAI(
            api_key=key or "none",  # an empty one is looked for in the environment
            base_url=base_url,
            max_retries=0,
            default_headers=unsaid,
            http_client=openai.DefaultAsyncHttpxClient(timeout=None, follow_redirects=False),
        )

    async def send(self, messages: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]) -> Answered:
        """Post one request and read the answer.

        Raises:
            CallFailed: the server refused, did not answer, or sent no chat completion.
        """
        refused, failed = self._errors
        try:
            raw = await self._client.chat.completions.with_raw_response.create(
                model=self._model,
                messages=[_sendable(message) for message in messages],
                extra_headers=self._unauthorized,
                **parameters,
            )
        except refused as error:
            wait_s = retry_after_s(error.response.headers.get("retry-after"), datetime.now(UTC))
            raise self._failed(_error_message(error.response.content), error.status_code, wait_s) from None
        except failed as error:
            cause = error.__cause__ or error
            raise self._failed(f"{type(cause).__name__} {cause}".strip()) from None
        return self._read(raw.http_response.content)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    def _read(self, content: bytes) -> Answered:
        """Parse a completion; anything else is a failed attempt."""
        try:
            document = json.loads(content)
            choice = document["choices"][0]
            message = choice["message"]
            text = message.get("content")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise self._failed(f"answered without a chat completion: {_shown(content)}") from None
        # a refusal is the answer's text; an empty answer needs a finish reason
        if text is None:
            text = message.get("refusal")
        if not (isinstance(text, str) or (text is None and choice.get("finish_reason"))):
            raise self._failed(f"answered with a message that has no text: {_shown(content)}")
        usage = _object(document.get("usage"))
        cached = _object(usage.get("prompt_tokens_details")).get("cached_tokens")
        return answered(
            text, choice.get("finish_reason"), usage.get("prompt_tokens"), usage.get("completion_tokens"), cached,
            model=document.get("model"), logprobs=self._logprobs(choice, content),
        )  # fmt: skip

    def _logprobs(self, choice: Mapping[str, Any], content: bytes) -> list[dict[str, Any]] | None:
        """Log-probabilities of the answer's tokens, None without any."""
        entries = _object(choice.get("logprobs")).get("content")
        if entries is None:
            return None
        try:
            return [_logprob(entry) for entry in entries]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self._failed(f"answered without a chat completion that can be read, as to its logprobs: {_shown(content)}") from None

    def _failed(self, reason: str, status: int | None = None, wait_s: float | None = None) -> CallFailed:
        return CallFailed(scrubbed(reason, self._secrets), status, wait_s)


def with_version(base_url: str) -> str:
    """Append OpenAI's version to an address without a path."""
    bare = base_url.rstrip("/")
    return bare if "/" in bare.partition("://")[2] else f"{bare}/v1"


def _sendable(message: Mapping[str, Any]) -> dict[str, Any]:
    """Message without lone surrogates, which no request can encode.

    One in a text must not end the run.
    """
    return {name: value.encode(errors="replace").decode() if isinstance(value, str) else value for name, value in message.items()}


def _logprob(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One token's log-probability; some servers write the id into the token's text."""
    token, token_id = entry["token"], entry.get("token_id")
    if token_id is None and token.startswith("token_id:"):
        token_id = int(token.removeprefix("token_id:"))
    return {"token": token, "logprob": float(entry["logprob"]), "tokenId": token_id}


def _error_message(body: bytes) -> str:
    """Message and code of an error document, else the body."""
    try:
        error = json.loads(body)["error"]
        return " ".join(str(error[name]) for name in ("message", "code") if error.get(name))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return _shown(body)


def _shown(body: bytes) -> str:
    return body.decode(errors="replace") if body else "nothing"


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
