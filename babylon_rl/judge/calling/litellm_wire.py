"""Every other provider, through litellm: it knows their wires; its retries, logging and defaults stay off."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from babylon_rl.judge.calling.attempt import Answered, answered
from babylon_rl.judge.calling.endpoint import Endpoint
from babylon_rl.judge.calling.failures import CallFailed, retry_after_s, scrubbed
from babylon_rl.judge.pricing import litellm_quietly


class LitellmWire:
    """A transport for one model by litellm's name. ``timeout_s`` is told to litellm; the caller bounds the attempt besides."""

    _open: ClassVar[int] = 0

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._litellm = litellm_quietly()
        import openai  # after litellm is set up: all its errors are openai's

        # Some answers that are none end in an error of the code that reads them.
        self._errors = (openai.OpenAIError, AttributeError, IndexError, KeyError, TypeError, ValueError)
        LitellmWire._open += 1

    async def send(self, messages: Sequence[dict[str, str]], parameters: Mapping[str, Any]) -> Answered:
        """Ask once and read the answer. Raises CallFailed."""
        key = self._endpoint.key
        try:
            answer = await self._litellm.acompletion(
                model=self._endpoint.model,
                messages=list(messages),
                api_key=None if key is None else key.get_secret_value(),
                base_url=self._endpoint.base_url,
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
        """Close the connections that litellm keeps for this event loop, once no wire is open that may use them."""
        LitellmWire._open -= 1
        if LitellmWire._open == 0:
            kept = self._litellm.in_memory_llm_clients_cache.cache_dict
            for key in [key for key in kept if str(key).endswith(f"-{id(asyncio.get_running_loop())}")]:
                await kept.pop(key).close()

    def _read(self, answer: Any) -> Answered:
        if not getattr(answer, "choices", None):
            raise CallFailed("answered without a chat completion")
        choice = answer.choices[0]
        usage = getattr(answer, "usage", None)
        return answered(
            choice.message.content or getattr(choice.message, "refusal", None) or "",
            choice.finish_reason,
            getattr(usage, "prompt_tokens", None),
            getattr(usage, "completion_tokens", None),
            getattr(getattr(usage, "prompt_tokens_details", None), "cached_tokens", None),
        )

    def _failed(self, error: Exception) -> CallFailed:
        headers = getattr(getattr(error, "response", None), "headers", None) or getattr(error, "litellm_response_headers", None) or {}
        status = getattr(error, "status_code", None)
        wait_s = retry_after_s(headers.get("retry-after"), datetime.now(UTC))
        return CallFailed(
            scrubbed(str(error) or type(error).__name__, self._endpoint.secrets), status if isinstance(status, int) else None, wait_s
        )
