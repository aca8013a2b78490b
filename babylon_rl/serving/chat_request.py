"""Chat request and its answers: the fields that the gateway reads or asked for itself; all others keep their bytes."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from babylon_rl.api_errors import ApiError
from babylon_rl.http_server import refuse_nesting
from babylon_rl.recorder.calls import PURPOSES
from babylon_rl.serving.server_sent_events import Event
from babylon_rl.tolerant_json import NotJson, read_exactly

# Fields that the gateway adds if a request leaves them open; a server's refusal of them names none of the client's fields.
_ADDED = {"logprobs": True, "return_token_ids": True}
BODY_LIMIT = 4 * 1024**2  # a prompt has tens of kilobytes
_MAX_HEADER = 200
# Inside of a text the quotes would be escaped: these are keys.
_FIELD = rb'"(?:prompt_)?token_ids"\s*:\s*(?:null|\[[\d,\s]*\])'
_IDS = re.compile(rb",\s*" + _FIELD + rb"|" + _FIELD + rb"\s*,?")
_NAME = re.compile(rb'("token"\s*:\s*)"token_id:\d+"([^{}\[\]]*"bytes"\s*:\s*\[([\d,\s]*)\])')


def read_object(body: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON object of a body, and its bytes with U+FFFD for half surrogate pairs. Raises ApiError: it is none."""
    try:
        document, whole = read_exactly(body)
    except NotJson as invalid:
        raise ApiError(400, f"The body is not JSON: {invalid}.", "invalid_json") from None
    if not isinstance(document, dict):
        raise ApiError(400, "The body is not a JSON object.", "invalid_json")
    return document, whole


@dataclass(frozen=True)
class ChatRequest:
    """A decoded ``body``: without a ``model`` the gateway chooses; ``user`` is OpenAI's field, None where it is no name."""

    document: dict[str, Any]
    body: bytes
    model: str | None
    stream: bool
    user: str | None

    @classmethod
    def of(cls, body: bytes) -> "ChatRequest":
        """Decode a body. Raises ApiError: it is no chat request."""
        document, body = read_object(body)
        # Only fields that the gateway itself reads are checked; the model server judges the rest.
        model, messages, stream = document.get("model"), document.get("messages"), document.get("stream")
        if model is not None and not isinstance(model, str):
            raise ApiError(400, "model is not a text.", "invalid_type", "model")
        if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
            raise ApiError(400, "messages is not a list of at least one message.", "invalid_type", "messages")
        if stream is not None and not isinstance(stream, bool):
            raise ApiError(400, "stream is not true or false.", "invalid_type", "stream")
        user = document.get("user")
        return cls(document, body, model or None, bool(stream), user if isinstance(user, str) and is_name(user) else None)

    @property
    def choices(self) -> int:
        """Number of answers that the client asked for."""
        number = self.document.get("n")
        return number if isinstance(number, int) else 1

    @cached_property
    def open_fields(self) -> frozenset[str]:
        """Fields that the gateway may add: token log-probabilities, the tokens' ids, options for a stream's token counts."""
        given, options = self.document.get, self.document.get("stream_options")
        fields = {"logprobs"} if given("logprobs") is None else set()
        if given("logprobs") is not False and given("return_token_ids") is None:
            fields.add("return_token_ids")
        if self.stream and (options is None or (isinstance(options, dict) and options.get("include_usage") is None)):
            fields.add("stream_options")
        return frozenset(fields)

    def body_for(self, model_name: str, added: Collection[str]) -> bytes:
        """Encode the request for an upstream with the ``added`` of its open fields."""
        fields: dict[str, Any] = msgspec.json.decode(self.body, type=dict[str, msgspec.Raw])
        fields |= {"model": model_name} | {name: value for name, value in _ADDED.items() if name in added}
        if "stream_options" in added:
            fields["stream_options"] = (self.document.get("stream_options") or {}) | {"include_usage": True}
        return msgspec.json.encode(fields)

    def shown_events(self, events: Iterable[Event]) -> bytes:
        """Return the bytes of events as ``shown`` does, without one that holds only the counts of tokens which the gateway asked for."""
        if "stream_options" in self.open_fields:
            events = [event for event in events if event.chunk.get("choices") or not event.chunk.get("usage")]
        return self.shown(b"".join(event.raw for event in events))

    def shown(self, answer: bytes) -> bytes:
        """Return the bytes of an answer without the ids of tokens, if its client did not ask for them."""
        if "return_token_ids" in self.open_fields and b'token_ids"' in answer:
            answer = _IDS.sub(b"", answer)
        # A server may be started so that ids stand in the place of the tokens' texts.
        if not self.document.get("return_tokens_as_token_ids") and b'"token_id:' in answer:
            answer = _NAME.sub(_with_text, answer)
        return answer


@dataclass(frozen=True)
class CallContext:
    """Facts about a call in its headers: the agent, and the place in its trajectory."""

    agent_id: str | None
    trajectory_id: str | None
    step: str | None
    purpose: str
    action_type: str | None
    provider_accesses: list[Any]

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "CallContext":
        """Read the x-babylon headers of a request. Raises ApiError: a header that could not be recorded."""
        headers = {name: _as_text(value) for name, value in headers.items() if name.startswith("x-babylon-")}
        purpose = headers.get("x-babylon-purpose", "action")
        if purpose not in PURPOSES:
            raise ApiError(400, f"x-babylon-purpose is {purpose[:40]!r}: give one of {', '.join(PURPOSES)}.", "invalid_header")
        trajectory, step = _name(headers, "x-babylon-trajectory"), _name(headers, "x-babylon-step")
        if step is not None and trajectory is None:
            raise ApiError(400, "x-babylon-step needs x-babylon-trajectory.", "invalid_header")
        accesses = headers.get("x-babylon-provider-accesses")
        agent, action = _name(headers, "x-babylon-agent"), _name(headers, "x-babylon-action-type")
        return cls(agent, trajectory, step, purpose, action, [] if accesses is None else _decoded(accesses))


def _as_text(value: str) -> str:
    """A header's value as UTF-8, which is read as Latin-1; a value in Latin-1 is not UTF-8 and stays."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value


def _decoded(accesses: str) -> list[dict[str, Any]]:
    refuse_nesting(accesses.encode())
    try:
        decoded = msgspec.convert(read_exactly(accesses.encode())[0], list[dict[str, Any]])
        # The form in which the spool keeps it.
        msgspec.msgpack.encode(decoded)
    except (NotJson, msgspec.ValidationError, RecursionError) as invalid:
        message = f"x-babylon-provider-accesses is not a JSON list of {{providerName, data, purpose}}: {invalid}."
        raise ApiError(400, message, "invalid_header") from None
    # The spool holds no integers of more than 64 bits; they are recorded as JavaScript has them.
    except OverflowError:
        decoded = json.loads(accesses, parse_int=_number)
    return decoded


def _number(digits: str) -> float:
    # 18 digits fit into 64 bits, whatever they are.
    return int(digits) if len(digits) < 19 else float(digits)


def _name(headers: Mapping[str, str], name: str) -> str | None:
    value = headers.get(name)
    if value is not None and not is_name(value):
        raise ApiError(400, f"{name} has not 1 to {_MAX_HEADER} printable characters.", "invalid_header")
    return value


def is_name(value: str) -> bool:
    """True for what may name an agent, a trajectory or a step."""
    return 0 < len(value) <= _MAX_HEADER and value.isprintable()


def _with_text(entry: re.Match[bytes]) -> bytes:
    values = [int(value) for value in entry[3].split(b",") if value.strip()]
    if max(values, default=0) > 255:
        return entry[0]
    return entry[1] + json.dumps(bytes(values).decode(errors="replace")).encode() + entry[2]
