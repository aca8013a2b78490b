"""Snapshots on disk: JSON, compressed where the name ends in ``.gz``; the same snapshot gives the same file."""

import gzip
import io
import os
import zlib
from pathlib import Path

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.snapshot_file.schema import Snapshot, decode, encode
from babylon_rl.evaluation.snapshot_file.validation import validate

COMPRESSION = 6
_GZIP = b"\x1f\x8b"


def save(snapshot: Snapshot, path: Path) -> int:
    """Write a snapshot, all of it or nothing; returns the bytes of the file.

    The JSON is the same everywhere; its compressed form depends on the zlib that compresses.
    """
    raw = encode(snapshot)
    if path.name.endswith(".gz"):
        packed = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", compresslevel=COMPRESSION, fileobj=packed, mtime=0) as file:
            file.write(raw)
        raw = packed.getvalue()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(raw)
    os.replace(part, path)
    return len(raw)


def load(path: Path) -> Snapshot:
    """Read a snapshot, ours or the game's, and check it.

    Raises:
        MarketError: there is no such file, it is not a snapshot of this version, or it contradicts itself; a sentence per problem.
    """
    try:
        raw = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise MarketError(f"There is no snapshot {path}; `babylon-rl benchmark generate --out {path}` writes one.") from error
    try:
        snapshot = decode(gzip.decompress(raw) if raw.startswith(_GZIP) else raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise MarketError(f"The snapshot {path} is damaged or cut off: {error}. Copy or generate it again.") from error
    except MarketError as error:
        raise MarketError(f"The snapshot {path} cannot be read. {error}") from error
    errors, _ = validate(snapshot)
    if errors:
        raise MarketError("\n".join([f"The snapshot {path} contradicts itself:", *(f"- {error}" for error in errors)]))
    return snapshot
