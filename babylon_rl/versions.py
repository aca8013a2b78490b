"""Content hashes: the data versions by which an unchanged re-run is recognised.

The hash is SHA-256 over canonical JSON (sorted keys, no blanks, shortest floats), cut to 16 hex digits.
"""

import hashlib
import json
from typing import Any


def content_version(content: Any) -> str:
    """The 16-digit hash of JSON-able ``content``; equal content gives the same hash on every machine.

    Raises:
        ValueError: a NaN or infinite number.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
