"""Server-sent events of a streamed chat completion, split and classified without decoding more than needed."""

import re

import msgspec

_BOUNDARY = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_FINISHED = re.compile(rb'"finish_reason"\s*:\s*"')
# At the beginning of a line: an answer's text may hold the same words.
_CLOSED = re.compile(rb"^data: ?\[DONE\]", re.MULTILINE)
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
DONE = b"data: [DONE]\n\n"


class _EventChoice(msgspec.Struct, frozen=True):
    delta: dict[str, object] | None = None
    finish_reason: str | None = None


class _EventChunk(msgspec.Struct, frozen=True):
    choices: list[_EventChoice] | None = None
    error: object = None


_CHUNKS = msgspec.json.Decoder(_EventChunk)


class EventBuffer:
    """Buffer of whole events: half an event never reaches a client."""

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, received: bytes) -> bytes:
        """Add bytes and return all events that are complete by now."""
        self._partial += received
        end = max((at + len(mark) for mark in _ENDS if (at := self._partial.rfind(mark)) >= 0), default=0)
        whole, self._partial = self._partial[:end], self._partial[end:]
        return whole

    @property
    def pending(self) -> int:
        """Bytes of an event that is not complete."""
        return len(self._partial)


def payloads(events: bytes) -> list[bytes]:
    """Return the data of whole events; several data lines of one event are joined."""
    found = []
    for event in _BOUNDARY.split(events):
        lines = [line[5:].removeprefix(b" ") for line in event.splitlines() if line.startswith(b"data:")]
        if lines:
            found.append(b"\n".join(lines))
    return found


def has_token(events: bytes) -> bool:
    """Return True if the events hold part or end of the answer or stream.

    Raises:
        ValueError, RecursionError: an event reports an error or is no chunk of a chat completion.
    """
    for payload in payloads(events):
        if payload == b"[DONE]":
            return True
        chunk = _CHUNKS.decode(payload)
        if chunk.error is not None or chunk.choices is None:
            raise ValueError("the stream begins with an error")
        # A first chunk with the role alone is no token.
        if any(choice.finish_reason or has_content(choice.delta) for choice in chunk.choices):
            return True
    return False


def has_content(delta: dict[str, object] | None) -> bool:
    """Return True if a chunk's delta holds more than the role."""
    return delta is not None and any(value for name, value in delta.items() if name != "role")


def is_finished(events: bytes) -> bool:
    """Return True if the events end a choice or the stream."""
    return is_closed(events) or _FINISHED.search(events) is not None


def is_closed(events: bytes) -> bool:
    """Return True if the events hold the end of the stream."""
    return _CLOSED.search(events) is not None
