"""Chat client for any OpenAI-compatible endpoint, for event loops and for threads.

It uses the one retry policy (retries.py). A 200 without a chat completion is an error: proxies answer so.
"""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from babylon_rl.errors import ModelUnavailable
from babylon_rl.llm.retries import CallFailed, Retrier, Retries
from babylon_rl.llm.transports import OpenAITransport, with_version

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

TIMEOUT_S = 120.0
ATTEMPTS = 6
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 10.0


@dataclass(frozen=True)
class ChatAnswer:
    """An answer of the endpoint, with the latency of the attempt that succeeded.

    ``logprobs`` is [{"token", "logprob", "tokenId"}], None without any; ``tokenId`` is None where the endpoint does not report it.
    """

    text: str
    logprobs: list[dict[str, Any]] | None
    prompt_tokens: int
    completion_tokens: int
    latency_ms: float
    model: str
    finish_reason: str | None = None


class ChatClient:
    """Client of one model at one endpoint.

    ``base_url`` is OpenAI's, ending in /v1; a bare host gets it appended. ``timeout_s`` limits a whole call, tries and waits together.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        model: str,
        *,
        timeout_s: float = TIMEOUT_S,
        attempts: int = ATTEMPTS,
        logprobs: bool = True,
    ) -> None:
        self.base_url = with_version(base_url)
        self.model = model
        self._key = api_key
        self._retries = Retries(attempts, FIRST_WAIT_S, LONGEST_WAIT_S, timeout_s)
        self._logprobs = logprobs
        self._open: dict[asyncio.AbstractEventLoop, tuple[OpenAITransport, Retrier]] = {}
        self._portal: BlockingPortal | None = None
        self._portal_thread: threading.Thread | None = None
        self._opening = threading.Lock()

    async def complete(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        response_format: dict[str, Any] | None = None,
        temperature: float = 1.0,
        seed: int | None = None,
        max_tokens: int = 64,
        headers: Mapping[str, str] | None = None,
    ) -> ChatAnswer:
        """Request one completion, with retries; ``headers`` are sent besides the usual ones.

        Raises:
            ModelUnavailable: the endpoint refuses, keeps failing, or answers something else than a chat completion.
        """
        wire, retrier = self._of_this_loop()
        sent: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens, "logprobs": self._logprobs}
        sent |= {name: value for name, value in (("seed", seed), ("response_format", response_format)) if value is not None}

        async def attempt(_: int, left_s: float) -> ChatAnswer:
            started = time.monotonic()
            try:
                async with asyncio.timeout(left_s):
                    answer = await wire.send(messages, sent, headers)
            except TimeoutError:
                raise CallFailed(f"no answer within {left_s:g} s") from None
            if answer.text is None:
                raise CallFailed("answered with a message that has no text")
            latency_ms = (time.monotonic() - started) * 1000
            tokens = answer.prompt_tokens or 0, answer.completion_tokens or 0
            return ChatAnswer(answer.text, answer.logprobs, *tokens, latency_ms, answer.model or self.model, answer.finish_reason)

        try:
            return await retrier.run(attempt)
        except CallFailed as failed:
            url = f"{self.shown_url}/chat/completions"
            if not failed.is_worth_a_retry:
                raise ModelUnavailable(f"{url} refused the request with {failed}") from None
            reason = f"{url} does not answer ({failed.attempts} tries): {str(failed).rstrip('.')}."
            raise ModelUnavailable(f"{reason} Check the address and that the server runs.") from None

    def complete_now(self, messages: Sequence[dict[str, Any]], **options: Any) -> ChatAnswer:
        """``complete`` for callers without an event loop; concurrent threads share one loop."""
        return self._started().call(partial(self.complete, messages, **options))

    async def aclose(self) -> None:
        if opened := self._open.pop(asyncio.get_running_loop(), None):
            await opened[0].aclose()

    def close(self) -> None:
        """Close the connections of ``complete_now``; requests under way are cancelled."""
        with self._opening:
            portal, thread = self._portal, self._portal_thread
            self._portal = self._portal_thread = None
        # outside the lock, as this waits for the loop
        if portal is not None and thread is not None:
            portal.call(partial(portal.stop, cancel_remaining=True))
            thread.join()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _of_this_loop(self) -> tuple[OpenAITransport, Retrier]:
        # Connections belong to the loop that opened them, and threads may use a loop each.
        loop = asyncio.get_running_loop()
        if loop not in self._open:
            for ended in [other for other in list(self._open) if other.is_closed()]:
                self._open.pop(ended, None)
            self._open[loop] = OpenAITransport(self.base_url, self.model, self._key), Retrier(self._retries)
        return self._open[loop]

    def _started(self) -> "BlockingPortal":
        """Event loop in a thread of its own, started at the first use."""
        with self._opening:
            if self._portal is None:
                started: Future[BlockingPortal] = Future()
                self._portal_thread = threading.Thread(target=self._run_loop, args=[started], name=f"chat-{self.model}", daemon=True)
                self._portal_thread.start()
                self._portal = started.result()
            return self._portal

    def _run_loop(self, started: "Future[BlockingPortal]") -> None:
        """Run the loop of ``complete_now`` until ``close`` stops its portal."""
        from anyio.from_thread import BlockingPortal

        async def serve() -> None:
            # The connections outlive the portal's requests: one that is cancelled, or that comes late, can leave none open.
            async with self, BlockingPortal() as portal:
                started.set_result(portal)
                await portal.sleep_until_stopped()

        asyncio.run(serve())

    @property
    def shown_url(self) -> str:
        """Its base URL without a user and password."""
        parts = urlsplit(self.base_url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
