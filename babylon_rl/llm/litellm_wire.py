"""Transport through litellm for all providers except OpenAI's wire.

Litellm's retries, logging and defaults stay off.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from babylon_rl.llm.failures import CallFailed, retry_after_s, scrubbed
from babylon_rl.llm.pricing import litellm_quietly
from babylon_rl.llm.wire import Answered, answered


class LitellmWire:
    """Transport for one model by litellm's name.

    ``timeout_s`` is passed to litellm; the caller limits the attempt besides. ``base_url`` None: litellm's default for the provider.

    ``base_url`` None: wherever litellm knows the model's provider to be.
    """

    _open: ClassVar[int] = 0

    def __init__(self, model: str, base_url: str | None, key: str | None, timeout_s: float) -> None:
        self._model = model
        self._base_url = base_url
        self._key = key
        self._timeout_s = timeout_s
        self._litellm = litellm_quietly()
        import openai  # after litellm is set up: all its errors are openai's

        # Litellm fails with such errors on an answer that is no chat completion.
        self._errors = (openai.OpenAIError, AttributeError, IndexError, KeyError, TypeError, ValueError)
        LitellmWire._open += 1

    async def send(self, messages: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]) -> Answered:
        """Make one request and read the answer.

        Raises:
            CallFailed: no chat completion came.
        """
        try:
            answer = await self._litellm.acompletion(
                model=self._model,
                messages=list(messages),
                api_key=self._key,
                base_url=self._base_url,
                timeout=self._timeout_s,
                num_retries=0,
                max_retries=0,
                fallbacks=[],  # none; naming them keeps litellm's logging worker, which serializes every answer again, from starting
                **parameters,
            )
        except self._errors as failed:
            raise self._failed(failed) from None
        return self._read(answer)

    async def aclose(self) -> None:
        """Close litellm's connections of this event loop, once the last wire is closed."""
        LitellmWire._open -= 1
        if LitellmWire._open == 0:
            # litellm keys its clients by the loop's id
            clients = self._litellm.in_memory_llm_clients_cache.cache_dict
            for key in [key for key in clients if str(key).endswith(f"-{id(asyncio.get_running_loop())}")]:
                await clients.pop(key).close()

    def _read(self, answer: Any) -> Answered:
        if not getattr(answer, "choices", None):
            raise CallFailed("answered without a chat completion")
        choice = answer.choices[0]
        usage = getattr(answer, "usage", None)
        return answered(
            choice.message.content or getattr(choice.message, "refusal", None),
            choice.finish_reason,
            getattr(usage, "prompt_tokens", None),
            getattr(usage, "completion_tokens", None),
            getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None),
        )

    def _failed(self, error: Exception) -> CallFailed:
        headers = getattr(getattr(error, "response", None), "headers", None) or getattr(error, "litellm_response_headers", None) or {}
        status = getattr(error, "status_code", None)
        wait_s = retry_after_s(headers.get("retry-after"), datetime.now(UTC))
        reason = scrubbed(str(error) or type(error).__name__, (self._key,) if self._key else ())
        return CallFailed(reason, status if isinstance(status, int) else None, wait_s)
