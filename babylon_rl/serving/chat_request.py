"""Chat request: the fields that the gateway reads, all else unchanged."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from babylon_rl.api_errors import NOT_JSON, ApiError
from babylon_rl.recorder.calls import PURPOSES

_MAX_HEADER = 200


@dataclass(frozen=True)
class ChatRequest:
    """A decoded request. ``document`` is the whole body.

    ``model`` None leaves the choice to the gateway; ``user`` is OpenAI's field, None where it is no name.
    """

    document: dict[str, Any]
    model: str | None
    stream: bool
    user: str | None

    @classmethod
    def of(cls, body: bytes) -> "ChatRequest":
        """Decode a body.

        Raises:
            ApiError: it is no chat request.
        """
        try:
            document = msgspec.json.decode(body)
        except NOT_JSON as invalid:
            reason = "it is nested too deeply" if isinstance(invalid, RecursionError) else str(invalid)
            raise ApiError(400, f"The body is not JSON: {reason}.", "invalid_json") from None
        if not isinstance(document, dict):
            raise ApiError(400, "The body is not a JSON object.", "invalid_json")
        # Only what the gateway itself reads is checked; the rest is the model server's to judge.
        model, messages, stream = document.get("model"), document.get("messages"), document.get("stream")
        if model is not None and not isinstance(model, str):
            raise ApiError(400, "model is not a text.", "invalid_type", "model")
        if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
            raise ApiError(400, "messages is not a list of at least one message.", "invalid_type", "messages")
        if stream is not None and not isinstance(stream, bool):
            raise ApiError(400, "stream is not true or false.", "invalid_type", "stream")
        user = document.get("user")
        return cls(document, model or None, bool(stream), user if isinstance(user, str) and _is_name(user) else None)

    @cached_property
    def open_fields(self) -> set[str]:
        """Fields that the gateway may add.

        Token log-probabilities, and options for the token counts of a stream.
        """
        options = self.document.get("stream_options", {})
        counts = self.stream and (options is None or (isinstance(options, dict) and options.get("include_usage") is None))
        return ({"logprobs"} if "logprobs" not in self.document else set()) | ({"stream_options"} if counts else set())

    def body_for(self, model_name: str, added: Collection[str]) -> bytes:
        """Encode the request for an upstream with the ``added`` of its open fields."""
        document = self.document | {"model": model_name}
        if "logprobs" in added:
            document["logprobs"] = True
        if "stream_options" in added:
            document["stream_options"] = {**(document.get("stream_options") or {}), "include_usage": True}
        return msgspec.json.encode(document)


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
        """Read the x-babylon headers of a request.

        Raises:
            ApiError: a header that could not be recorded.
        """
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
    try:
        decoded = msgspec.json.decode(accesses, type=list[dict[str, Any]])
        # The form in which the spool keeps it.
        msgspec.msgpack.encode(decoded)
    except NOT_JSON:
        message = "x-babylon-provider-accesses is not a JSON list of {providerName, data, purpose}."
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
    if value is not None and not _is_name(value):
        raise ApiError(400, f"{name} has not 1 to {_MAX_HEADER} printable characters.", "invalid_header")
    return value


def _is_name(value: str) -> bool:
    return 0 < len(value) <= _MAX_HEADER and value.isprintable()
