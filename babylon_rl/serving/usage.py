"""Token counts of answers.

As the server sends them, else counted from the events of a stream.
"""

import re
from typing import Annotated

import msgspec

from babylon_rl.api_errors import NOT_JSON
from babylon_rl.serving.server_sent_events import has_content, payloads

_EVENT = re.compile(rb".*?(?:\r\n\r\n|\n\n|\r\r)", re.DOTALL)
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
_BYTES_PER_TOKEN = 4


Count = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]  # others are no counts


class Usage(msgspec.Struct, frozen=True):
    """Token counts of an answer; ``prompt_tokens`` is None where the server did not count them."""

    prompt_tokens: Count | None = 0
    completion_tokens: Count = 0
    total_tokens: Count = 0


class _Logprobs(msgspec.Struct, frozen=True):
    content: list[msgspec.Raw] | None = None


class _Choice(msgspec.Struct, frozen=True):
    delta: dict[str, object] | None = None
    logprobs: _Logprobs | None = None


class _Chunk(msgspec.Struct, frozen=True):
    choices: list[_Choice] = []
    usage: Usage | None = None


_CHUNKS = msgspec.json.Decoder(_Chunk)
_USAGES: msgspec.json.Decoder[Usage | None] = msgspec.json.Decoder(Usage | None)


def read_usage(document: msgspec.Raw) -> Usage | None:
    """Return the counts of a whole answer, None where the server sent none that can be."""
    try:
        return _USAGES.decode(document)
    except NOT_JSON:
        return None


class StreamMeter:
    """Token counts of a stream while it passes.

    ``hides_usage``: the gateway asked for the event that holds the counts alone, and the client does not get it.
    """

    def __init__(self, hides_usage: bool) -> None:
        self._hides_usage = hides_usage
        self._sent: Usage | None = None
        self._tokens = 0

    @property
    def usage(self) -> Usage:
        """Counts up to now; those of the server if it has sent them."""
        return self._sent or Usage(None, self._tokens, 0)

    def for_client(self, events: bytes) -> bytes:
        """Return those of whole events that the client gets."""
        if not self._hides_usage or _NO_CHOICES.search(events) is None:
            return events
        return b"".join(event for event in _EVENT.findall(events) if not _is_usage(event))

    def count(self, events: bytes) -> None:
        """Count whole events, hidden ones included."""
        for payload in payloads(events):
            self._count(payload)

    def _count(self, payload: bytes) -> None:
        if payload == b"[DONE]":
            return
        try:
            chunk = _CHUNKS.decode(payload)
        except NOT_JSON:
            self._tokens += 1
            return
        self._sent = chunk.usage or self._sent
        for choice in chunk.choices:
            entries = choice.logprobs and choice.logprobs.content
            # An event may hold several tokens, which its log-probabilities count; without them it counts as one.
            self._tokens += len(entries) if entries else has_content(choice.delta)


def _is_usage(event: bytes) -> bool:
    """True for an event that holds the counts and no part of an answer."""
    try:
        chunks = [_CHUNKS.decode(payload) for payload in payloads(event)]
    except NOT_JSON:
        return False
    return bool(chunks) and all(chunk.usage is not None and not chunk.choices for chunk in chunks)


def spent_tokens(usage: Usage | None, request_bytes: int, answer_bytes: int) -> int:
    """Return the tokens that a call takes from its client's budget.

    What the server did not count is estimated from the sizes of request and answer.
    """
    if usage is None:
        return (request_bytes + answer_bytes) // _BYTES_PER_TOKEN
    prompt = request_bytes // _BYTES_PER_TOKEN if usage.prompt_tokens is None else usage.prompt_tokens
    return max(usage.total_tokens, prompt + usage.completion_tokens)
