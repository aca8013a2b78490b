"""Exact place and kind of the fault in a stepsJson.

The slow and strict half of decoding, for rows that the fast half refused.
"""

import json
import math
import re
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec

from babylon_rl.episodes.steps import EnvironmentState

_VALUE_CHARACTERS = 60
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# Parts of msgspec's messages: byte of a syntax error, bad escapes, index of the refused step.
_BYTE = re.compile(r"\(byte (\d+)\)")
_ESCAPE = re.compile("escape|surrogate")
_INDEX = re.compile(r"`\$\[(\d+)\]")
_ENTRIES = msgspec.json.Decoder(list[msgspec.Raw])
_NUMBERS = ("agentBalance", "agentPnL", "openPositions")


class _ActionShape(msgspec.Struct, gc=False):
    actionType: Annotated[str, msgspec.Meta(min_length=1)]


class _Shape(msgspec.Struct, gc=False):
    environmentState: EnvironmentState
    action: _ActionShape


_SHAPE = msgspec.json.Decoder(_Shape)


class NotJson(ValueError):
    """Text that is not standard JSON; the message names the place."""


class WrongShape(ValueError):
    """JSON that is not an array of steps; the message names path and value."""


def checked_steps(text: bytes, refused: Exception) -> list[dict[str, Any]]:
    """Parse the steps of a stepsJson, or raise the exact fault.

    ``refused`` is the error of the fast parser, which tells where to look first.

    Raises:
        NotJson: a syntax error anywhere in the text, NaN, Infinity or a lone surrogate.
        WrongShape: not an array of steps.
    """
    if not isinstance(refused, msgspec.ValidationError):
        _check_near(text, str(refused))
    try:
        entries = _ENTRIES.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as syntax:
        _check_near(text, str(syntax))
        parsed = strict_json(text)
        if not isinstance(parsed, list):
            raise WrongShape(f"$ is {_shown(parsed)}, not an array") from None
        return [_checked(index, entry) for index, entry in enumerate(parsed)]
    # The first faulty step is at or after the index in the message, so only those are checked strictly at first.
    index_match = _INDEX.search(str(refused))
    for index in range(int(index_match[1]) if index_match else 0, len(entries)):
        if not _is_step(entries[index]):
            _checked(index, strict_json(bytes(entries[index])))
    # No step rejects the row by its fields. All are read strictly, which may still find a fault of the text (a lone surrogate).
    return [_checked(index, strict_json(bytes(entry))) for index, entry in enumerate(entries)]


def _is_step(entry: msgspec.Raw) -> bool:
    try:
        _SHAPE.decode(entry)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def _check_near(text: bytes, refused: str) -> None:
    """Raise NotJson for a fault near the place named by the fast parser.

    Reads only from the step that holds it, because strict reading is ten times slower. Raises nothing if the preceding steps cannot be
    separated from the rest.
    """
    byte_match = _BYTE.search(refused)
    # Steps of one recorder begin with the same key, so this text stands between two of them. If it does not, all is read from the start.
    between = b"}," + text[1 : text.find(b'"', 3) + 1]  # such as },{"stepNumber"
    # The end of the last step before the fault.
    cut = text.rfind(between, 0, int(byte_match[1]) if byte_match else len(text)) if text.startswith(b'[{"') else -1
    if cut < 0:
        return
    try:
        before = len(_ENTRIES.decode(text[: cut + 1] + b"]"))
        skipped = len(text[: cut + 1].decode())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    end = text.find(between, cut + 1)  # end of the step: a wrong escape does not hide the start of the next one
    if end > 0 and _ESCAPE.search(refused):
        strict_json(b"[" + text[cut + 2 : end + 1] + b"]", skipped, before)
    strict_json(b"[" + text[cut + 2 :], skipped, before)


def strict_json(text: bytes, skipped: int = 0, steps_before: int = 0) -> Any:
    """Parse standard JSON: no NaN, no Infinity, no lone surrogates.

    ``skipped`` characters and ``steps_before`` steps precede this text and count in reported places.

    Raises:
        NotJson: the message names the place.
    """
    try:
        # The search for surrogates walks the whole value, so it is skipped unless the text escapes one.
        parsed = _parsed(text.decode("utf-8"))
        surrogate = _lone_surrogate("$", parsed, steps_before) if _SURROGATE.search(text) else None
    except json.JSONDecodeError as fault:
        near = fault.doc[max(0, fault.pos - 10) : fault.pos + 20]
        raise NotJson(f"not JSON at character {fault.pos + skipped}: {fault.msg}, near {near!r}") from None
    except UnicodeDecodeError as fault:
        raise NotJson(f"not JSON: {fault}") from None
    except RecursionError:
        raise NotJson("not readable as JSON: nested too deeply") from None
    if surrogate is not None:
        raise NotJson(surrogate)
    return parsed


def _parsed(text: str) -> Any:
    try:
        return _STRICT.decode(text)
    except (json.JSONDecodeError, NotJson):
        raise
    except ValueError:  # an integer with more digits than Python converts
        return _LONG.decode(text)


def _refuse(constant: str) -> Any:
    raise NotJson(f"not JSON: it holds {constant}, which JSON does not know")


def _integer(digits: str) -> int | float:
    # As a float it may become infinite; a field that counts refuses that, and any other may hold it.
    return int(digits) if len(digits) <= 300 else float(digits)


_STRICT = json.JSONDecoder(parse_constant=_refuse)
_LONG = json.JSONDecoder(parse_constant=_refuse, parse_int=_integer)


def _lone_surrogate(path: str, value: Any, first: int = 0) -> str | None:
    """Describe the first lone surrogate in ``value``; None if there is none."""
    if _encodes(value):
        return None
    entries: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        bad = next((key for key in value if not _encodes(key)), None)
        # A key has no path of its own: it is reported at its object.
        if bad is not None:
            return f"not JSON: a key of {path} holds a lone surrogate, {bad[:_VALUE_CHARACTERS]!r}"
        entries = ((f"{path}.{key}", entry) for key, entry in value.items())
    elif isinstance(value, list):
        entries = ((f"{path}[{index}]", entry) for index, entry in enumerate(value, first))
    inner = next((fault for where, entry in entries if (fault := _lone_surrogate(where, entry)) is not None), None)
    return inner or f"not JSON: {path} holds a lone surrogate, in {str(value)[:_VALUE_CHARACTERS]!r}"


def _encodes(value: Any) -> bool:
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        return False
    except OverflowError:  # an integer of more than 64 bits
        return _encodes(json.dumps(value, ensure_ascii=False))
    return True


def _checked(index: int, step: Any) -> dict[str, Any]:
    path = f"$[{index}]"
    if not isinstance(step, dict):
        raise WrongShape(f"{path} is {_shown(step)}, not an object")
    # The four fields that can reject a row: three numbers and the action type.
    state = step.get("environmentState")
    if not isinstance(state, dict):
        raise WrongShape(f"{path}.environmentState is {_missing_or(step, 'environmentState')}, not an object")
    for name in _NUMBERS:
        if not _finite(state.get(name)):
            raise WrongShape(f"{path}.environmentState.{name} is {_missing_or(state, name)}, not a finite number")
    action = step.get("action")
    if not isinstance(action, dict):
        raise WrongShape(f"{path}.action is {_missing_or(step, 'action')}, not an object")
    if not isinstance(action.get("actionType"), str) or not action["actionType"]:
        raise WrongShape(f"{path}.action.actionType is {_missing_or(action, 'actionType')}, not a non-empty string")
    return step


def _finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _missing_or(mapping: dict[str, Any], name: str) -> str:
    return _shown(mapping[name]) if name in mapping else "missing"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _VALUE_CHARACTERS else text[: _VALUE_CHARACTERS - 3] + "..."
