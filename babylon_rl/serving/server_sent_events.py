"""Server-sent events of a streamed chat completion: split, decoded once, and followed to the end of the answer; its token counts."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import msgspec

from babylon_rl.chats import finish_reason
from babylon_rl.tolerant_json import NotJson, objects, part_of, read_json

# The line ends are atomic: a CRLF is one.
_BOUNDARY = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_END = b"[DONE]"
_LONGEST_BYTES = 4 * 1024**2  # of an event, all of which is kept until it ends
_BYTES_PER_TOKEN = 4
Count = Annotated[int, msgspec.Meta(ge=0, le=10_000_000)]  # others are no counts


class Event(NamedTuple):
    """One whole event. ``chunk`` is its object, empty where it says nothing; ``closes`` is True for the end of the stream."""

    raw: bytes
    chunk: Mapping[str, Any]
    closes: bool = False

    @property
    def choices(self) -> list[dict[str, Any]]:
        return objects(self.chunk.get("choices"))


DONE = Event(b"data: [DONE]\n\n", {}, closes=True)
NO_END = {"message": "The model's stream ended before its answer did."}


def place_of(choice: Mapping[str, Any]) -> int:
    """Return the place of a choice; servers leave out that of the only one."""
    place = choice.get("index")
    return place if isinstance(place, int) else 0


class StreamReader:
    """Reader of one stream, which is whole only if each of its ``choices`` ends with a reason that the API knows, and then the stream.

    ``begun``: a part of the answer or its end has come. ``fault`` is the error that ended the stream, else None. Events that say nothing,
    such as comments, pings and chunks without choices, are passed over.
    """

    def __init__(self, choices: int = 1) -> None:
        self.begun = self.closed = False
        self.fault: dict[str, Any] | None = None
        self.pending = b""
        self._choices, self._open, self._ended = choices, set[int](), set[int]()

    @property
    def finished(self) -> bool:
        """True once every choice has ended with its reason."""
        return not self._open and len(self._ended) >= self._choices

    def feed(self, received: bytes) -> list[Event]:
        """Take bytes; return the events that are whole by now, up to a fault or the end of the stream."""
        self.pending += received
        events, begin = [], 0
        for boundary in _BOUNDARY.finditer(self.pending):
            if self.closed or self.fault is not None:
                break
            raw, begin = self.pending[begin : boundary.end()], boundary.end()
            if (event := self._read(raw)) is not None:
                events.append(event)
        self.pending = self.pending[begin:]
        if len(self.pending) > _LONGEST_BYTES and self.fault is None and not self.closed:
            self.fault = {"message": f"The model's stream holds an event of more than {_LONGEST_BYTES // 1024**2} MB."}
        return events

    def rest(self) -> list[Event]:
        """Return what is left at the end of the connection: some servers leave out the last blank line."""
        return self.feed(b"\n\n") if self.pending.strip() else []

    def _read(self, raw: bytes) -> Event | None:
        name, payload = _fields(raw)
        if payload == _END:
            self.closed = self.finished
            self.fault = None if self.closed else NO_END
            return Event(raw, {}, closes=True) if self.closed else None
        try:
            document = read_json(payload, halves=True)
        except NotJson as damaged:
            document = payload.decode(errors="replace")
            # A word is a ping; half an object may have been a part of the answer.
            if payload.startswith(b"{"):
                self.fault = {"message": f"The model's stream holds a damaged event: {damaged}."}
                return None
        chunk = document if isinstance(document, dict) else {}
        # The name of the event or of the object stands for the field at some servers.
        error = chunk.get("error") or (document if name == b"error" or chunk.get("object") == "error" else None)
        if error:
            self.fault = error if isinstance(error, dict) else {"message": str(error)}
            return None
        event = Event(raw, chunk)
        for choice in event.choices:
            place = place_of(choice)
            if finish_reason(choice.get("finish_reason")) is not None:
                self._ended.add(place)
            elif place not in self._ended:
                self._open.add(place)
            self._open -= self._ended
            self.begun |= place in self._ended or has_content(choice)
        return event


def has_content(choice: Mapping[str, Any]) -> bool:
    """Return True if a piece of a choice holds more than the role."""
    return any(value for name, value in part_of(choice, "delta").items() if name != "role")


def _fields(raw: bytes) -> tuple[bytes, bytes]:
    """The name of an event, and its data; several data lines are joined."""
    name, data = b"", []
    for line in raw.removeprefix(b"\xef\xbb\xbf").splitlines():
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value.strip()
    return name, b"\n".join(data).strip()


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
