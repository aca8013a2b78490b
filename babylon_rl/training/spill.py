"""Training sequences on disk.

A batch's texts may exceed memory, and they are read one after another.
"""

import os
import pickle
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, overload

from babylon_rl.training.backends.protocol import TrainSequence

Place = tuple[int, int]  # offset and length in bytes


class Spill:
    """Nameless file under ``home`` for sequences.

    It is removed with its last reference, however the process ends.
    """

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=home)  # noqa: SIM115 - closed when it is collected
        self._end = 0
        weakref.finalize(self, _close, self._file)

    def write(self, sequences: Iterable[TrainSequence]) -> list[Place]:
        """Write some sequences and return the place of each."""
        places = []
        for sequence in sequences:
            written = self._file.write(pickle.dumps(sequence, pickle.HIGHEST_PROTOCOL))
            places.append((self._end, written))
            self._end += written
        self._file.flush()
        return places

    def read(self, place: Place) -> TrainSequence:
        """Read the sequence at ``place``; several threads may read."""
        start, length = place
        sequence: TrainSequence = pickle.loads(os.pread(self._file.fileno(), length, start))
        return sequence


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):  # on a full disk what is buffered cannot be written, and nobody wants it any more
        file.close()


class Spilled(Sequence[TrainSequence]):
    """Sequences of a spill in order, each read on access."""

    def __init__(self, spill: Spill, places: Sequence[Place]) -> None:
        self._spill, self._places = spill, places

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> TrainSequence: ...
    @overload
    def __getitem__(self, place: slice) -> "Spilled": ...
    def __getitem__(self, place: int | slice) -> "TrainSequence | Spilled":
        """Read one sequence, or slice without reading."""
        return Spilled(self._spill, self._places[place]) if isinstance(place, slice) else self._spill.read(self._places[place])
