"""OpenAI's chat completions spoken directly: a sixth of litellm's work per request, and an answer that is none is not believed."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from babylon_rl.judge.calling.attempt import Answered, answered
from babylon_rl.judge.calling.endpoint import Endpoint
from babylon_rl.judge.calling.failures import CallFailed, retry_after_s, scrubbed


class OpenAIWire:
    """A transport for one endpoint with a ``base_url``. The caller bounds the time of an attempt by cancelling it."""

    def __init__(self, endpoint: Endpoint, connections: int) -> None:
        import httpx2

        self._request_error = httpx2.RequestError
        self._endpoint = endpoint
        self._url = f"{(endpoint.base_url or '').rstrip('/')}/chat/completions"
        headers = {"Content-Type": "application/json"}
        if endpoint.key is not None:
            headers["Authorization"] = f"Bearer {endpoint.key.get_secret_value().strip()}"
        limits = httpx2.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._client = httpx2.AsyncClient(headers=headers, timeout=None, limits=limits)

    async def send(self, messages: Sequence[dict[str, str]], parameters: Mapping[str, Any]) -> Answered:
        """Post once and read the answer. Raises CallFailed."""
        body = {"model": self._endpoint.wire_name, "messages": list(messages), **parameters}
        content = json.dumps(body, ensure_ascii=False).encode(errors="replace")  # half a surrogate pair in a text must not end the run
        try:
            response = await self._client.post(self._url, content=content)
        except self._request_error as broken:
            raise self._failed(f"{type(broken).__name__} {broken}".strip()) from None
        if not response.is_success:
            wait_s = retry_after_s(response.headers.get("retry-after"), datetime.now(UTC))
            raise self._failed(_error_message(response.content), response.status_code, wait_s)
        return self._read(response.content)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def _read(self, content: bytes) -> Answered:
        try:
            document = json.loads(content)
            choice = document["choices"][0]
            text = choice["message"].get("content")
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            raise self._failed(f"answered without a chat completion: {_shown(content)}") from None
        message = choice["message"]
        if text is None:
            text = message.get("refusal") or ("" if choice.get("finish_reason") else None)
        if not isinstance(text, str):
            raise self._failed(f"answered with a message that has no text: {_shown(content)}")
        usage = _object(document.get("usage"))
        cached = _object(usage.get("prompt_tokens_details")).get("cached_tokens")
        return answered(text, choice.get("finish_reason"), usage.get("prompt_tokens"), usage.get("completion_tokens"), cached)

    def _failed(self, reason: str, status: int | None = None, wait_s: float | None = None) -> CallFailed:
        return CallFailed(scrubbed(reason, self._endpoint.secrets), status, wait_s)


def _error_message(body: bytes) -> str:
    try:
        error = json.loads(body)["error"]
        return " ".join(str(error[name]) for name in ("message", "code") if error.get(name))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return _shown(body)


def _shown(body: bytes) -> str:
    return body.decode(errors="replace") if body else "nothing"


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
