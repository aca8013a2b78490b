"""Content hashes: data versions that identify an unchanged re-run, and shares that are drawn by a seed.

The hash is SHA-256 over canonical JSON (sorted keys, no blanks, shortest floats), cut to 16 hex digits. Observed sources have readable
versions that people can compare: ``52 rows #0f3c9a41d2e7, 906 logged calls #8812f0a3b4c5``.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
_HASHED_IN_PARTS = 2  # lists of lists: the content of an hour has all its texts in the second
_FEW = 100  # elements of an inner list that are encoded at once: each call of the encoder costs what some ten elements do
_COUNTED = re.compile(r"(\d+) ([a-z ]+) #([0-9a-f]+)")


def content_version(content: Any) -> str:
    """The 16-digit hash of JSON-able ``content``, the same on every machine. Raises ValueError: a NaN or infinite number."""
    digest = hashlib.sha256()
    for part in _canonical_json(content, _HASHED_IN_PARTS):
        digest.update(part.encode())
    return digest.hexdigest()[:16]


def seeded_share(seed: int, *parts: str) -> float:
    """Pseudorandom number in [0, 1) derived from the seed and the parts alone."""
    digest = hashlib.sha256("/".join([str(seed), *parts]).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _canonical_json(content: Any, depth: int) -> Iterator[str]:
    """Yield the JSON text, long lists down to ``depth`` an element at a time."""
    if depth == 0 or not isinstance(content, list | tuple) or (depth < _HASHED_IN_PARTS and len(content) <= _FEW):
        yield _ENCODER.encode(content)
        return
    before = "["
    for element in content:
        yield before
        yield from _canonical_json(element, depth - 1)
        before = ","
    yield "]" if content else "[]"


def files_version(directory: Path, pattern: str) -> str:
    """The 16-digit hash of the names and bytes of files that match a pattern."""
    found = hashlib.sha256()
    for path in sorted(directory.rglob(pattern)):
        content = path.read_bytes()
        # With its length, so that one file's end cannot be taken for the next one's name.
        found.update(f"{path.relative_to(directory).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()[:16]


def counted_version(**kinds: tuple[int, int]) -> str:
    """A version from (row count, sum of row hashes) per kind of rows. Underscores in the names are shown as blanks."""
    return ", ".join(f"{rows} {kind.replace('_', ' ')} #{content % 2**48:012x}" for kind, (rows, content) in kinds.items())


def change_in_words(before: str | None, after: str) -> str:
    """The difference of two counted versions: ``rows: 3 more; logged calls: changed``."""
    if before is None:
        return "seen for the first time"
    was, now = ({kind: (int(rows), content) for rows, kind, content in _COUNTED.findall(version)} for version in (before, after))
    if not was or not now:
        return f"{before}; now {after}"
    changes = {kind: (was.get(kind, (0, "")), entry) for kind, entry in now.items() if was.get(kind) != entry}
    return "; ".join(f"{kind}: {_difference(then[0], entry[0])}" for kind, (then, entry) in changes.items())


def _difference(before: int, after: int) -> str:
    return f"{after - before} more" if after > before else f"{before - after} fewer" if after < before else "changed"
