"""JSON of other programs: one tolerant decoder, and the exact one for what a client sends."""

import json
import re
import sys
from collections.abc import Mapping
from typing import Any

import msgspec

# An escape in a text: half of a surrogate pair is the only one that is changed, so that every byte keeps its place.
_ESCAPE = re.compile(rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL)
_HALF = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")
_ENCODED_HALF = re.compile(rb"\xed[\xa0-\xbf][\x80-\xbf]")
_REFUSALS = (msgspec.MsgspecError, ValueError, RecursionError)
_MOST = sys.float_info.max


class NotJson(ValueError):
    """Bytes that are no JSON; the message says at which byte and why."""


def objects(value: Any) -> list[dict[str, Any]]:
    """Return the objects of a list, none of anything else."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def part_of(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an object in an object, an empty one where there is none."""
    value = entry.get(name)
    return value if isinstance(value, dict) else {}


def read_json(data: bytes | str, *, halves: bool = False) -> Any:
    """Decode JSON of another program. The result can be written as JSON again, except with ``halves``.

    NaN is read as None, Infinity as the largest number; a byte order mark, control characters in texts and bytes that are no UTF-8 are
    taken. Half of a surrogate pair becomes U+FFFD; with ``halves`` it stays, as the other half may come with the next piece of a text.
    Raises NotJson: it is none.
    """
    try:
        return msgspec.json.decode(data)
    except _REFUSALS:
        raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    text = (raw if halves else _without_halves(raw)).decode("utf-8-sig", "replace")
    return _decoded(_TOLERANT, text)


def read_exactly(data: bytes) -> tuple[Any, bytes]:
    """Decode JSON of a client; return it, and its bytes with U+FFFD in the place of half surrogate pairs. Raises NotJson: it is none."""
    try:
        return msgspec.json.decode(data), data
    except _REFUSALS:
        whole = _without_halves(data)
    try:
        return msgspec.json.decode(whole), whole
    except _REFUSALS as error:
        refused = error
    try:
        value = _decoded(_STANDARD, whole.decode())
    except UnicodeDecodeError as coded:
        raise NotJson(f"{coded.reason} of UTF-8 at byte {coded.start}") from None
    # It holds a number that is larger than any float, or a word that is none.
    if not isinstance(refused, msgspec.ValidationError):
        raise NotJson(str(refused).removeprefix("JSON is malformed: ").replace(" (byte", " at byte").rstrip(")"))
    return value, whole


def _decoded(decoder: json.JSONDecoder, text: str) -> Any:
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as refused:
        reason = refused.msg[0].lower() + refused.msg[1:].removesuffix(" at")
        raise NotJson(f"{reason} at byte {len(text[: refused.pos].encode('utf-8', 'surrogatepass'))}") from None
    except RecursionError:
        raise NotJson("it is nested too deeply") from None


def joined(text: str, more: str) -> str:
    """Append a piece to a text, joining the halves of a character."""
    if text and more and "\ud800" <= text[-1] <= "\udbff" and "\udc00" <= more[0] <= "\udfff":
        return text[:-1] + (text[-1] + more[0]).encode("utf-16-le", "surrogatepass").decode("utf-16-le") + more[1:]
    return text + more


def whole_text(text: str) -> str:
    """Return a text with U+FFFD in the place of half surrogate pairs."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _without_halves(data: bytes) -> bytes:
    if _HALF.search(data) is None:
        return data
    return _ESCAPE.sub(lambda found: rb"\ufffd" if found[1] else found[0], _ENCODED_HALF.sub("\ufffd".encode(), data))


def _number(digits: str) -> float:
    value = float(digits)
    return max(-_MOST, min(value, _MOST))


def _integer(digits: str) -> float:
    return int(digits) if len(digits) < 4000 else _number(digits)


_CONSTANTS = {"NaN": None, "Infinity": _MOST, "-Infinity": -_MOST}
_TOLERANT = json.JSONDecoder(strict=False, parse_constant=_CONSTANTS.__getitem__, parse_float=_number, parse_int=_integer)
_STANDARD = json.JSONDecoder(parse_constant=_CONSTANTS.__getitem__, parse_float=_number, parse_int=_integer)
