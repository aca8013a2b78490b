"""Answer as its client gets it: without the fields that only the gateway asked for. All else keeps its bytes."""

import json
import re
from collections.abc import Iterable

from babylon_rl.serving.chat_request import ChatRequest
from babylon_rl.serving.server_sent_events import Event

# Inside of a text the quotes would be escaped: these are keys.
_FIELD = rb'"(?:prompt_)?token_ids"\s*:\s*(?:null|\[[\d,\s]*\])'
_IDS = re.compile(rb",\s*" + _FIELD + rb"|" + _FIELD + rb"\s*,?")
_NAME = re.compile(rb'("token"\s*:\s*)"token_id:\d+"([^{}\[\]]*"bytes"\s*:\s*\[([\d,\s]*)\])')


class ClientView:
    """Answers to one request as the client gets them."""

    def __init__(self, request: ChatRequest) -> None:
        self._hides_usage = "stream_options" in request.open_fields
        self._hides_ids = "return_token_ids" in request.open_fields
        self._hides_names = not request.document.get("return_tokens_as_token_ids")

    def events(self, events: Iterable[Event]) -> bytes:
        """Return the bytes of events; one that holds only the counts of tokens is left out."""
        return self.body(b"".join(event.raw for event in events if not (self._hides_usage and _is_usage(event))))

    def body(self, body: bytes) -> bytes:
        """Return the bytes of an answer without the ids of tokens, if its client did not ask for them."""
        if self._hides_ids and b'token_ids"' in body:
            body = _IDS.sub(b"", body)
        # A server may be started so that ids stand in the place of the tokens' texts.
        if self._hides_names and b'"token_id:' in body:
            body = _NAME.sub(_with_text, body)
        return body


def _is_usage(event: Event) -> bool:
    return bool(event.chunk.get("usage")) and not event.chunk.get("choices")


def _with_text(entry: re.Match[bytes]) -> bytes:
    values = [int(value) for value in entry[3].split(b",") if value.strip()]
    if max(values, default=0) > 255:
        return entry[0]
    return entry[1] + json.dumps(bytes(values).decode(errors="replace")).encode() + entry[2]
