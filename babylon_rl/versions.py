"""Content hashes: the data versions by which an unchanged re-run is recognised.

The hash is SHA-256 over canonical JSON (sorted keys, no blanks, shortest floats), cut to 16 hex digits. What is only looked at is
versioned in words that people can compare: ``52 rows #0f3c9a41d2e7, 906 logged calls #8812f0a3b4c5``.
"""

import hashlib
import json
import re
from typing import Any

_COUNTED = re.compile(r"(\d+) ([a-z ]+) #([0-9a-f]+)")


def content_version(content: Any) -> str:
    """The 16-digit hash of JSON-able ``content``; equal content gives the same hash on every machine.

    Raises:
        ValueError: a NaN or infinite number.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def counted_version(**found: tuple[int, int]) -> str:
    """A version of kinds of rows, each as (how many, the sum of their hashes); the names are shown with blanks."""
    return ", ".join(f"{rows} {kind.replace('_', ' ')} #{content % 2**48:012x}" for kind, (rows, content) in found.items())


def change_in_words(before: str | None, after: str) -> str:
    """What differs between two counted versions: ``rows: 3 more; logged calls: changed``."""
    if before is None:
        return "seen for the first time"
    was, now = ({kind: (int(rows), content) for rows, kind, content in _COUNTED.findall(version)} for version in (before, after))
    if not was or not now:
        return f"{before}; now {after}"
    changes = {kind: (was.get(kind, (0, "")), found) for kind, found in now.items() if was.get(kind) != found}
    return "; ".join(f"{kind}: {_difference(then[0], found[0])}" for kind, (then, found) in changes.items())


def _difference(before: int, after: int) -> str:
    return f"{after - before} more" if after > before else f"{before - after} fewer" if after < before else "changed"
