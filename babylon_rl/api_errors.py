"""Errors of servers, in OpenAI's envelope."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

# Raised by a decoder of JSON for bytes or texts of any kind.
NOT_JSON = (msgspec.MsgspecError, UnicodeError, RecursionError)
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(eq=False)
class ApiError(Exception):
    """A response with an error status.

    The official clients raise their error class of that status. ``fields`` are those of another server's error, which keep their values.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """The envelope as JSON."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error | dict(self.fields)})

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"
