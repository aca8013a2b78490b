"""Checks of recorded values at the call that gives them.

One bad value then costs that call only. Numbers are finite, names fit their column, payloads are JSON. A text of a model or a provider
is never refused: parts that Postgres cannot hold (NUL, half a surrogate pair) are recorded as U+FFFD.
"""

import contextlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from babylon_rl.errors import UsageError

MOST_IN_INTEGER = 2**31 - 1
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# After an even number of backslashes; after an odd one it is a text of six characters.
_ESCAPED_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


def dump(value: Any, name: str) -> str:
    """Encode a payload as compact JSON text that Postgres can hold. Raises UsageError: ``name`` has no form in JSON."""
    try:
        encoded = _JSON.encode(value)
    except (ValueError, TypeError, RecursionError) as refused:
        raise UsageError(f"{name} is not JSON ({refused}): give finite numbers, texts, lists and dicts.") from None
    return _UNSTORABLE.sub("\ufffd", _ESCAPED_NUL.sub("\\1\ufffd", encoded))


def _plain(value: Any) -> Any:
    """Scalars and arrays of numpy, and objects of client libraries, in terms that JSON has."""
    if callable(convert := getattr(value, "tolist", None)):
        return convert()
    if callable(convert := getattr(value, "model_dump", None)) and not isinstance(value, type):
        return convert(mode="json")
    raise TypeError(f"an object of type {type(value).__name__}")


_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain)


def mapping(value: Any, name: str) -> dict[str, Any]:
    """Return a mapping, or the fields of an object of a client library, as a dict. Raises UsageError: anything else."""
    if not isinstance(value, Mapping) and hasattr(value, "model_dump"):
        with contextlib.suppress(TypeError):  # a class of such objects
            value = _plain(value)
    if not isinstance(value, Mapping):
        raise UsageError(f"{name} is {shown(value)}: give a dict.")
    return dict(value)


def text(value: Any, name: str) -> str:
    """Return a text with unstorable characters replaced. Raises UsageError: not a text."""
    if not isinstance(value, str):
        raise UsageError(f"{name} is {shown(value)}, not a text.")
    return _UNSTORABLE.sub("\ufffd", value)


def label(value: Any, name: str, longest: int = 1000) -> str:
    """Check an id or a name of at most ``longest`` characters, and return it. Raises UsageError: another value."""
    if not isinstance(value, str) or not value or len(value) > longest or _UNSTORABLE.search(value):
        raise UsageError(f"{name} is {shown(value)}: give a text of 1 to {longest} characters, without NUL and lone surrogates.")
    return value


def number(value: Any, name: str) -> float:
    """Return a finite number: ints and floats, numpy's included, as they are, others (Decimal) as floats.

    Raises:
        UsageError: not a finite number.
    """
    value = _scalar(value)
    # float() would accept booleans and numerals.
    if isinstance(value, bool | str) or value is None:
        raise UsageError(f"{name} is {shown(value)}, not a number.")
    try:
        as_float = float(value)
    except (TypeError, ValueError, OverflowError):
        as_float = math.nan
    if not math.isfinite(as_float):
        raise UsageError(f"{name} is {shown(value)}, not a finite number.")
    return value if isinstance(value, int | float) else as_float


def count(value: Any, name: str) -> int:
    """Check a whole number that fits an INTEGER column, from 0. Raises UsageError: another value."""
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_IN_INTEGER:
        raise UsageError(f"{name} is {shown(value)}, not a whole number from 0 to {MOST_IN_INTEGER}.")
    return value


def _scalar(value: Any) -> Any:
    """Return a number or truth value of numpy as Python's own; anything else as it is."""
    return value.tolist() if getattr(value, "ndim", None) == 0 else value


def shown(value: Any) -> str:
    """Return a value as text for an error message."""
    try:
        return repr(value)[:60]
    except ValueError:  # Python refuses to print an integer of more than 4,300 digits
        return f"a {type(value).__name__} too long to show"


def truth(value: Any, name: str) -> bool:
    """Check that a value is True or False: readers accept no other as success. Raises UsageError: another value."""
    value = _scalar(value)
    if not isinstance(value, bool):
        raise UsageError(f"{name} is {shown(value)}, not True or False.")
    return value
