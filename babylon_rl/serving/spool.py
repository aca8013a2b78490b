"""Spool: append-only segment files on disk, between a process that must not wait and a writer that may have to.

A record that ``append`` has taken survives the end of its process at once (it is in the kernel), and a power failure after the next
``sync``. Each segment is locked by the process that writes it, so that another takes over only those of processes that have ended.
A record may be read twice, after a crash; it is never lost. The reader removes a segment once it is told that all of it was handled.
"""

import fcntl
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SUFFIX = ".calls"
_HEAD = struct.Struct("<II")  # length and CRC-32 of a record
SEGMENT_BYTES = 16 * 1024**2
SEGMENT_S = 10.0


@dataclass(frozen=True)
class SpoolPart:
    """Records read in one go. ``end`` is the offset behind them; ``torn`` counts bytes behind it that are no whole record."""

    segment: Path
    records: list[bytes]
    end: int
    torn: int = 0


class Spool:
    """Segments of one process in a directory; ``append`` and ``sync`` may be called from different threads.

    Args:
        directory: made if it is absent, for its owner alone.
        max_bytes: of all segments of this process together; beyond, records are refused.
    """

    def __init__(self, directory: Path, max_bytes: int) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory, self._max_bytes = directory, max_bytes
        self._lock = threading.Lock()
        self._file: int | None = None
        self._path: Path | None = None
        self._size = self._number = self._closed_bytes = 0
        self._opened_at = 0.0
        self._dirty = False
        # Closed segments of this process: the open file holds the lock until the segment is removed.
        self._own: dict[Path, tuple[int, int]] = {}
        self.refused = 0

    @property
    def waiting_bytes(self) -> int:
        """Bytes of this process's segments that are not handled yet."""
        return self._closed_bytes + self._size

    def append(self, record: bytes) -> bool:
        """Add a record; False if there is no room for it on disk."""
        frame = _HEAD.pack(len(record), zlib.crc32(record)) + record
        with self._lock:
            if self.waiting_bytes + len(frame) > self._max_bytes or not self._write(frame):
                self.refused += 1
                return False
            self._dirty = True
            return True

    def sync(self) -> None:
        """Make everything that was appended so far survive a power failure."""
        with self._lock:
            if self._file is None or not self._dirty:
                return
            # A duplicate stays valid if another thread closes the segment meanwhile.
            copy, self._dirty = os.dup(self._file), False
        try:
            os.fsync(copy)
        finally:
            os.close(copy)

    def rotate(self, handled: int, older_than_s: float) -> None:
        """Close the open segment if it is that old and has been handled up to its end, so that it can be removed."""
        with self._lock:
            if self._size and self._size == handled and time.monotonic() - self._opened_at >= older_than_s:
                self._close_segment()

    def segments(self) -> list[Path]:
        """Segments of this process, oldest first; the last may still be open."""
        with self._lock:
            return [*self._own, *([self._path] if self._path is not None else [])]

    def is_open(self, segment: Path) -> bool:
        """Return True for the segment that is written at the moment."""
        return segment == self._path

    def remove(self, segment: Path) -> None:
        """Delete a closed segment all of whose records were handled."""
        with self._lock:
            file, size = self._own.pop(segment, (None, 0))
            self._closed_bytes -= size
            segment.unlink(missing_ok=True)
            if file is not None:
                os.close(file)

    def orphans(self) -> Iterator[Path]:
        """Yield the segments of processes that have ended; each is locked while the caller handles it."""
        for segment in sorted(self._directory.glob(f"*{_SUFFIX}")):
            if segment in self._own or segment == self._path:
                continue
            try:
                file = os.open(segment, os.O_RDONLY)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                yield segment
            finally:
                os.close(file)

    def close(self) -> None:
        """Give up all segments; what is not handled stays on disk for the next process."""
        self.sync()
        with self._lock:
            self._close_segment()
            for file, _ in self._own.values():
                os.close(file)
            self._own.clear()

    def _write(self, frame: bytes) -> bool:
        if self._file is not None and self._size >= SEGMENT_BYTES:
            self._close_segment()
        try:
            if self._file is None:
                self._open_segment()
            assert self._file is not None
            written = os.write(self._file, frame)
            if written == len(frame):
                self._size += written
                return True
            os.ftruncate(self._file, self._size)  # the disk is full: half a record must not hide later ones
        except OSError:
            self._close_segment()
        return False

    def _open_segment(self) -> None:
        self._number += 1
        path = self._directory / f"{time.time_ns()}-{os.getpid()}-{self._number}{_SUFFIX}"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(file, fcntl.LOCK_SH)
        self._file, self._path, self._size, self._opened_at = file, path, 0, time.monotonic()

    def _close_segment(self) -> None:
        if self._file is None or self._path is None:
            return
        self._own[self._path] = (self._file, self._size)
        self._closed_bytes += self._size
        self._file, self._path, self._size, self._dirty = None, None, 0, False


def read_segment(segment: Path, offset: int, max_records: int, max_bytes: int) -> SpoolPart:
    """Read whole records from ``offset`` on; at a record that is not whole it ends."""
    with segment.open("rb") as file:
        file.seek(offset)
        content = file.read(max_bytes)
        if len(content) >= _HEAD.size and (longest := _HEAD.unpack_from(content)[0]) + _HEAD.size > len(content):
            content += file.read(longest + _HEAD.size - len(content))
    records, at = list[bytes](), 0
    while len(records) < max_records and at + _HEAD.size <= len(content):
        length, checksum = _HEAD.unpack_from(content, at)
        record = content[at + _HEAD.size : at + _HEAD.size + length]
        if len(record) < length or zlib.crc32(record) != checksum:
            break
        records.append(record)
        at += _HEAD.size + length
    return SpoolPart(segment, records, offset + at, 0 if records else len(content) - at)
