"""Spool: append-only segment files between servers and the database's writer.

Servers must not wait for the database. A record that ``append`` has taken survives the end of its process at once (it is in the kernel),
and a power failure after the writer's next ``sync``. A server holds a lock on the segment that it writes, so that a segment without one is
complete. Records are read again after a crash of the writer, never lost. call_writer.py takes them from there into the database.
"""

import errno
import fcntl
import logging
import os
import struct
import time
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.errors import first_clause
from babylon_rl.files.durable import fsync
from babylon_rl.serving.call_entry import CallEntry
from babylon_rl.settings import Settings

_SUFFIX = ".calls"
_HEAD = struct.Struct("<II")  # length and CRC-32 of a record
_STATUS = "status.json"
MOST_BYTES = 1024**3  # of recorded calls that wait on disk for the database, for each gateway process
_SEGMENT_BYTES = 16 * 1024**2
_SEGMENT_S = 10.0
_MEASURE_S = 1.0
_ENCODER = msgspec.msgpack.Encoder()
_LOG = logging.getLogger("babylon_rl.gateway")
# Numbers of refused calls at which a line is logged: a full disk must not fill the log as well.
_REPORTED = (1, 1_000, 1_000_000)


def spool_directory(settings: Settings) -> Path:
    """Directory of the segments of all gateways with this state directory."""
    return settings.home / "gateway" / "spool"


class SpoolStatus(msgspec.Struct, rename="camel"):
    """Progress of the writer: written offset of each segment, and counts since its start."""

    offsets: dict[str, int] = {}
    written: int = 0
    rejected: int = 0
    problem: str | None = None


class Spool:
    """One open segment of a gateway process; ``max_bytes`` limits all segments of the directory together."""

    def __init__(self, directory: Path, max_bytes: int = MOST_BYTES) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory, self._max_bytes = directory, max_bytes
        self._file: int | None = None
        # A descriptor that is freed for the next segment: connections may hold all others.
        self._reserve: int | None = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._size = self._number = self._others = 0
        self._opened_at = self._measured_at = -_SEGMENT_S
        self.refused, self.reason = 0, ""  # how many records were not taken, and why the last was not

    def record(self, entry: CallEntry) -> bool:
        """Take a call, which then survives this process; False if it cannot be written."""
        taken = self.append(_ENCODER.encode(entry))
        if not taken and self.refused in _REPORTED:
            _LOG.error("Calls are not recorded (%d so far) in %s: %s.", self.refused, self._directory, self.reason)
        return taken

    def report(self) -> dict[str, Any]:
        """Progress of recording: bytes waiting on disk; calls written, refused and rejected."""
        status = read_status(self._directory)
        # A segment may be removed between the two reads.
        waiting = max(0, stored_bytes(self._directory) - sum(status.offsets.values()))
        counts = {"written": status.written, "refused": self.refused, "rejected": status.rejected}
        return {"waitingBytes": waiting, **counts, "problem": status.problem}

    def append(self, record: bytes) -> bool:
        """Add a record; False if it cannot be written, for ``reason``."""
        frame = _HEAD.pack(len(record), zlib.crc32(record)) + record
        now = time.monotonic()
        # Only a complete segment can be removed.
        if self._size >= _SEGMENT_BYTES or now - self._opened_at >= _SEGMENT_S:
            self._complete()
        # Other processes' segments are looked at once in a while, as a look costs more than a record.
        if now - self._measured_at >= _MEASURE_S:
            self._measured_at = now
            with suppress(OSError):  # no descriptor is free: the last look counts
                self._others = stored_bytes(self._directory) - self._size
        if self._others + self._size + len(frame) > self._max_bytes:
            self.reason = f"{self._others + self._size} bytes wait for the database already"
        elif self._write(frame, now):
            return True
        self.refused += 1
        return False

    def close(self) -> None:
        """Complete the open segment, for the writer to finish."""
        self._complete()
        self._free_reserve()

    def _complete(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file, self._size = None, 0
        if self._reserve is None:
            with suppress(OSError):
                self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _free_reserve(self) -> None:
        if self._reserve is not None:
            os.close(self._reserve)
        self._reserve = None

    def _write(self, frame: bytes, now: float) -> bool:
        try:
            if self._file is None:
                self._open(now)
            assert self._file is not None
            written = os.write(self._file, frame)
            if written == len(frame):
                self._size += written
                return True
            self.reason = os.strerror(errno.ENOSPC)
            os.ftruncate(self._file, self._size)  # half a record must not hide later ones
        except OSError as failed:
            self.reason = first_clause(failed)
            self._complete()
        return False

    def _open(self, now: float) -> None:
        self._number += 1
        self._free_reserve()
        # Locked under a name that the writer does not look for, so that it never sees an open segment without its lock.
        name = f"{time.time_ns()}-{os.getpid()}-{self._number}"
        partial = self._directory / f".{name}"
        self._file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._file, fcntl.LOCK_SH)
        partial.rename(self._directory / f"{name}{_SUFFIX}")
        self._size, self._opened_at = 0, now


class SpoolReader:
    """The writer's side: all segments of a directory, and how far each has been handled."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.status = directory, SpoolStatus()
        self._synced: dict[str, int] = {}

    def segments(self) -> list[Path]:
        """Segments, oldest first."""
        return sorted(self.directory.glob(f"*{_SUFFIX}"))

    def read(self, segment: Path, max_records: int, max_bytes: int) -> tuple[list[bytes], int]:
        """Read the next whole records of a segment; returns them with the offset behind them."""
        at = offset = self.status.offsets.get(segment.name, 0)
        with segment.open("rb") as file:
            file.seek(offset)
            content = file.read(max_bytes)
            # A record longer than ``max_bytes`` is read whole, otherwise it would be in the way for ever.
            if len(content) >= _HEAD.size and (longest := _HEAD.unpack_from(content)[0]) + _HEAD.size > len(content):
                content += file.read(longest + _HEAD.size - len(content))
        records = list[bytes]()
        while len(records) < max_records and at - offset + _HEAD.size <= len(content):
            length, checksum = _HEAD.unpack_from(content, at - offset)
            start = at - offset + _HEAD.size
            record = content[start : start + length]
            # A power failure may leave zeros, which look like empty records.
            if not length or len(record) < length or zlib.crc32(record) != checksum:
                break
            records.append(record)
            at += _HEAD.size + length
        return records, at

    def is_complete(self, segment: Path) -> bool:
        """Return True if no process writes the segment; ask before its last records are read."""
        with segment.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def remove(self, segment: Path) -> int:
        """Delete a handled segment; return the bytes at its end that are no record."""
        left = segment.stat().st_size - self.status.offsets.pop(segment.name, 0)
        segment.unlink()
        self._synced.pop(segment.name, None)
        return left

    def sync(self) -> None:
        """Make all segments survive a power failure, in any thread. Raises OSError: one cannot be synced; the others are."""
        broken: OSError | None = None
        has_new = False
        for segment in self.segments():
            try:
                with segment.open("rb") as file:
                    if (size := os.fstat(file.fileno()).st_size) != self._synced.get(segment.name):
                        os.fsync(file.fileno())
                        has_new |= segment.name not in self._synced
                        self._synced[segment.name] = size
            except FileNotFoundError:
                self._synced.pop(segment.name, None)
            except OSError as failed:
                broken = failed
        if has_new:
            fsync(self.directory)  # of its name
        if broken is not None:
            raise broken

    def publish(self) -> None:
        """Let the servers see the status."""
        partial = self.directory / f".{_STATUS}"
        partial.write_bytes(msgspec.json.encode(self.status))
        partial.rename(self.directory / _STATUS)


def read_status(directory: Path) -> SpoolStatus:
    try:
        return msgspec.json.decode((directory / _STATUS).read_bytes(), type=SpoolStatus)
    except (FileNotFoundError, msgspec.MsgspecError):
        return SpoolStatus()


def stored_bytes(directory: Path) -> int:
    """Return the size of all segments, handled or not."""
    total = 0
    for segment in directory.glob(f"*{_SUFFIX}"):
        with suppress(FileNotFoundError):  # handled in this moment
            total += segment.stat().st_size
    return total
