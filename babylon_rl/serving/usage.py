"""Token counts of answers: those of the server, else of a stream's events."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from babylon_rl.serving.server_sent_events import Event, has_content, part_of

_BYTES_PER_TOKEN = 4


Count = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]  # others are no counts


class Usage(msgspec.Struct, frozen=True):
    """Token counts of an answer; ``prompt_tokens`` is None where the server did not count them."""

    prompt_tokens: Count | None = 0
    completion_tokens: Count = 0
    total_tokens: Count = 0


def read_usage(document: Mapping[str, Any]) -> Usage | None:
    """Return the counts of an answer or of an event, None where the server sent none that can be: none at all, or only zeros."""
    try:
        usage = msgspec.convert(document.get("usage"), Usage | None)
    except msgspec.ValidationError:
        return None
    counted = usage is not None and (usage.prompt_tokens or usage.completion_tokens or usage.total_tokens)
    return usage if counted else None


class StreamMeter:
    """Token counts of a stream while it passes."""

    def __init__(self) -> None:
        self._sent: Usage | None = None
        self._tokens = 0

    @property
    def usage(self) -> Usage:
        """Counts up to now; those of the server if it has sent them."""
        return self._sent or Usage(None, self._tokens, 0)

    def count(self, event: Event) -> None:
        self._sent = read_usage(event.chunk) or self._sent
        for choice in event.choices:
            entries = part_of(choice, "logprobs").get("content")
            # An event may hold several tokens, which its log-probabilities count; without them it counts as one.
            self._tokens += len(entries) if isinstance(entries, list) and entries else has_content(choice)


def spent_tokens(usage: Usage | None, request_bytes: int, answer_bytes: int) -> int:
    """Tokens that a call takes from its client's budget; what the server did not count is estimated from sizes."""
    if usage is None:
        return (request_bytes + answer_bytes) // _BYTES_PER_TOKEN
    prompt = request_bytes // _BYTES_PER_TOKEN if usage.prompt_tokens is None else usage.prompt_tokens
    return max(usage.total_tokens, prompt + usage.completion_tokens)
