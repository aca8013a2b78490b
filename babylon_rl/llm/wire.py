"""Interface of a transport: the request and the answer of one attempt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Answered:
    """A chat completion; ``text`` is None if it has none.

    Tokens are None where the server sent none or an absurd number.

    ``logprobs`` is [{"token", "logprob", "tokenId"}], None where none were asked for or given.
    """

    text: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    model: str | None = None
    logprobs: list[dict[str, Any]] | None = None


def answered(
    text: str | None,
    finish_reason: object,
    prompt: object,
    completion: object,
    cached: object,
    *,
    model: object = None,
    logprobs: list[dict[str, Any]] | None = None,
) -> Answered:
    """Build an answer from a server's values; implausible ones become None.

    A prompt of no tokens is one that was not counted.
    """
    prompt_tokens = plausible(prompt) or None
    completion_tokens = plausible(completion) if prompt_tokens else None
    finish, name = (value if isinstance(value, str) else None for value in (finish_reason, model))
    return Answered(text, finish, prompt_tokens, completion_tokens, plausible(cached), name, logprobs)


class Transport(Protocol):
    """Sends one attempt; raises CallFailed.

    It has no time limit: the caller cancels an attempt that takes too long.
    """

    async def send(self, messages: Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]) -> Answered: ...

    async def aclose(self) -> None: ...


def plausible(count: object) -> int | None:
    """A token count as sent by a server; None if it cannot be one."""
    if not isinstance(count, int) or isinstance(count, bool):
        return None
    return count if 0 <= count <= 10_000_000 else None
