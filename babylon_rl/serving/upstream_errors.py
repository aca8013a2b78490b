"""Errors of upstreams, and the fields of them that a client gets.

Type, param, code, message and all other fields stay as they came, but for keys.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import msgspec

from babylon_rl.api_errors import ApiError
from babylon_rl.llm.retries import without_keys
from babylon_rl.tolerant_json import NotJson, read_json, whole_text

_SHOWN = 1000  # of a page or another body that is no error of the API


@dataclass(frozen=True)
class ReportedError:
    """An error as a server reported it: its ``fields``, and those that stood ``beside`` it."""

    fields: Mapping[str, Any]
    beside: Mapping[str, Any]

    @classmethod
    def read(cls, body: bytes, secrets: Sequence[str] = ()) -> Self:
        """Read the body of an error; its text is the message where it has no such form."""
        try:
            return cls.of(read_json(body), secrets)
        except NotJson:
            return cls.of(body[:_SHOWN].decode(errors="replace"), secrets)

    @classmethod
    def of(cls, document: Any, secrets: Sequence[str] = ()) -> Self:
        """Take an error from its document, without ``secrets``."""
        try:
            document = _without_keys(document, secrets)
        except RecursionError:
            document = "an error that is nested too deeply"
        if not isinstance(document, dict):
            return cls({"message": str(document)}, {})
        # Some servers send the fields without the envelope.
        error = document.get("error", document)
        beside = {} if error is document else {name: value for name, value in document.items() if name != "error"}
        return cls(error if isinstance(error, dict) else {"message": str(error)}, beside)

    @property
    def message(self) -> str:
        """Its message, else all of its fields."""
        said = self.fields.get("message")
        return said if isinstance(said, str) and said else msgspec.json.encode(self.fields).decode()

    @property
    def status(self) -> int | None:
        """The status that its code stands for, as in the event of a stream; None without one."""
        code = str(self.fields.get("code"))
        return int(code) if code.isdecimal() and 400 <= int(code) < 600 else None

    def names(self, names: Collection[str]) -> bool:
        """True if it concerns one of these fields of a request."""
        param = self.fields.get("param")
        return isinstance(param, str) and param.partition(".")[0].partition("[")[0] in names

    def api_error(self, status: int, message: str, code: str = "upstream_error", headers: Mapping[str, str] | None = None) -> ApiError:
        """Our error with its fields, and another message."""
        kept = {name: value for name, value in self.fields.items() if name != "message" and value is not None}
        return ApiError(status, message, code, headers=headers or {}, fields=kept)

    def body(self, status: int) -> bytes:
        """The body of a response with this error."""
        envelope = ApiError(status, self.message, fields={**self.fields, "message": self.message}).body
        return msgspec.json.encode({**self.beside, **msgspec.json.decode(envelope)})


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that tell a client how long to wait, and how much it may still ask."""
    return {
        name.lower(): value
        for name, value in headers.items()
        if name.lower() in ("retry-after", "retry-after-ms") or name.lower().startswith("x-ratelimit-")
    }


def _without_keys(value: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, str):
        return without_keys(whole_text(value), secrets)
    if isinstance(value, list):
        return [_without_keys(entry, secrets) for entry in value]
    return {name: _without_keys(entry, secrets) for name, entry in value.items()} if isinstance(value, dict) else value
