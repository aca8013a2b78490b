"""Values too many for the memory, written to disk and read one by one."""

import os
import pickle
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Generic, TypeVar, overload

T = TypeVar("T")
Place = tuple[int, int]  # offset and length in bytes


class Spill(Generic[T]):
    """Nameless file under ``home`` for values, removed with its last reference."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=home)  # noqa: SIM115 - closed when it is collected
        self._end = 0
        weakref.finalize(self, _close, self._file)

    def write(self, values: Iterable[T]) -> list[Place]:
        """Write some values and return the place of each."""
        places = []
        for value in values:
            written = self._file.write(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
            places.append((self._end, written))
            self._end += written
        # ``read`` goes to the descriptor, past this object's buffer.
        self._file.flush()
        return places

    def read(self, place: Place) -> T:
        """Read the value at ``place``; several threads may read."""
        start, length = place
        # At a given place, as threads would move a common position under each other.
        value: T = pickle.loads(os.pread(self._file.fileno(), length, start))
        return value


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):  # on a full disk the buffer cannot be written, and is not needed any more
        file.close()


class Spilled(Sequence[T]):
    """Values of a spill in order, each read on access."""

    def __init__(self, spill: Spill[T], places: Sequence[Place]) -> None:
        self._spill, self._places = spill, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> "Spilled[T]": ...
    def __getitem__(self, place: int | slice) -> "T | Spilled[T]":
        """Read one value, or slice without reading."""
        return Spilled(self._spill, self._places[place]) if isinstance(place, slice) else self._spill.read(self._places[place])
