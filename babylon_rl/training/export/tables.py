"""Arrow tables of records with typed columns, and Parquet files whose row groups never span windows."""

from collections.abc import Callable, Sequence
from io import BufferedWriter
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from babylon_rl.training.export.files import Destination
from babylon_rl.training.export.hours import Hour
from babylon_rl.training.export.records import COLUMNS, Record, encode

if TYPE_CHECKING:
    import pyarrow

ROWS_IN_A_GROUP = 1024


def schema() -> "pyarrow.Schema":
    """Arrow schema of COLUMNS."""
    import pyarrow

    text = pyarrow.string()
    message = pyarrow.struct([("role", text), ("content", text)])
    token = pyarrow.struct([("token", text), ("tokenId", pyarrow.int64()), ("logprob", pyarrow.float64())])
    types = {
        "string": text,
        "json": text,
        "int64": pyarrow.int64(),
        "float64": pyarrow.float64(),
        "bool": pyarrow.bool_(),
        "strings": pyarrow.list_(text),
        "messages": pyarrow.list_(message),
        "logprobs": pyarrow.list_(token),
    }
    return pyarrow.schema([(column.name, types[column.kind]) for column in COLUMNS])


def row(record: Record) -> dict[str, Any]:
    """Convert a record to a row: nested values unchanged, ``json`` columns as text."""
    plain: dict[str, Any] = msgspec.to_builtins(record)
    if record.response_format is not None:
        plain["responseFormat"] = encode(record.response_format).decode()
    return plain


class TableFiles:
    """Parquet files by split, written hour by hour; ``examples`` and ``table_bytes`` are totals per split.

    Args:
        name: gives the name of a split's file of a number, from 0.
        file_bytes: a file that has reached this size is followed by the next one; None: a split is one file.
    """

    def __init__(self, destination: Destination, name: Callable[[str, int], str], file_bytes: int | None = None) -> None:
        self.examples: dict[str, int] = {}
        self.table_bytes: dict[str, int] = {}
        self.file_bytes: dict[str, int] = {}
        self._destination = destination
        self._name = name
        self._most = file_bytes
        self._numbers: dict[str, int] = {}
        self._open: dict[str, tuple[str, BufferedWriter, Any]] = {}

    def add(self, hour: Hour) -> None:
        """Write an hour's records into its split's file."""
        records = hour.records()
        for first in records:
            self._write(hour.split, self._writer(hour.split)[2], [first, *islice(records, ROWS_IN_A_GROUP - 1)])
        # A full file is closed between hours; the next hour opens a new one.
        if self._most is not None and hour.split in self._open and self._open[hour.split][1].tell() >= self._most:
            self._finish(hour.split)

    def close(self) -> None:
        """Finish every file."""
        for split in list(self._open):
            self._finish(split)

    def abandon(self) -> None:
        """Close the files without finishing them."""
        for _, file, _ in self._open.values():
            file.close()

    def _write(self, split: str, writer: Any, records: Sequence[Record]) -> None:
        import pyarrow

        table = pyarrow.Table.from_pylist([row(record) for record in records], schema=schema())
        writer.write_table(table, row_group_size=ROWS_IN_A_GROUP)
        self.examples[split] = self.examples.get(split, 0) + table.num_rows
        self.table_bytes[split] = self.table_bytes.get(split, 0) + table.nbytes

    def _writer(self, split: str) -> tuple[str, BufferedWriter, Any]:
        from pyarrow import parquet

        if split not in self._open:
            number = self._numbers.get(split, 0)
            self._numbers[split] = number + 1
            name = self._name(split, number)
            file = self._destination.new(name).open("wb")
            self._open[split] = (name, file, parquet.ParquetWriter(file, schema(), compression="zstd"))
        return self._open[split]

    def _finish(self, split: str) -> None:
        name, file, writer = self._open[split]
        writer.close()
        self.file_bytes[split] = self.file_bytes.get(split, 0) + file.tell()
        file.close()
        del self._open[split]
        self._destination.finished(name)
