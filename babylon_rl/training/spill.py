"""Training sequences on disk: a batch's texts may be more than memory holds, and are looked at one after another."""

import os
import pickle
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, overload

from babylon_rl.training.trainer import TrainSequence

Place = tuple[int, int]  # offset and length in bytes


class Spill:
    """A nameless file under ``home`` that takes sequences; it goes when nobody holds a sequence of it, however the process ends."""

    def __init__(self, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=home)  # noqa: SIM115 - closed when it is collected
        self._end = 0
        weakref.finalize(self, _close, self._file)

    def write(self, sequences: Iterable[TrainSequence]) -> list[Place]:
        """Write some sequences, and give the place of each."""
        places = []
        for sequence in sequences:
            written = self._file.write(pickle.dumps(sequence, pickle.HIGHEST_PROTOCOL))
            places.append((self._end, written))
            self._end += written
        self._file.flush()
        return places

    def read(self, place: Place) -> TrainSequence:
        """The sequence that was written at ``place``; several threads may read."""
        start, length = place
        found: TrainSequence = pickle.loads(os.pread(self._file.fileno(), length, start))
        return found


def _close(file: IO[bytes]) -> None:
    with suppress(OSError):  # on a full disk what is buffered cannot be written, and nobody wants it any more
        file.close()


class Spilled(Sequence[TrainSequence]):
    """Sequences of a spill in their order, each read when it is looked at."""

    def __init__(self, spill: Spill, places: Sequence[Place]) -> None:
        self._spill, self._places = spill, places

    def __len__(self) -> int:
        """How many."""
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> TrainSequence: ...
    @overload
    def __getitem__(self, place: slice) -> "Spilled": ...
    def __getitem__(self, place: int | slice) -> "TrainSequence | Spilled":
        """One sequence, or some of them still on disk."""
        return Spilled(self._spill, self._places[place]) if isinstance(place, slice) else self._spill.read(self._places[place])
