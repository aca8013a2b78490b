"""Parquet formats: files by split, alone or as a Hugging Face dataset.

Row groups never span windows. A dataset directory holds Parquet files under data/, and a card with splits and types for ``datasets``.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from io import BufferedWriter
from itertools import islice
from textwrap import indent
from typing import TYPE_CHECKING, Any

from babylon_rl.training.export.destination import Destination
from babylon_rl.training.export.hours import SPLITS, ExportHour
from babylon_rl.training.export.records import COLUMNS, Record, row

if TYPE_CHECKING:
    import pyarrow

ROWS_IN_A_GROUP = 1024
CARD = "README.md"
FILE_BYTES = 500_000_000
# Of the card; other kinds are types themselves.
_TYPES = {
    "json": "  dtype: string",
    "strings": "  list: string",
    "messages": "  list:\n  - name: role\n    dtype: string\n  - name: content\n    dtype: string",
    "logprobs": "  list:\n  - name: token\n    dtype: string\n  - name: tokenId\n    dtype: int64\n  - name: logprob\n    dtype: float64",
}
_TEXT = """
# Recorded trading agents, grouped by window

Each row is one LLM call of a trading agent exactly as it was served, with what the agent's hour came to. Rows of one `window`
(an hour in UTC) are one group: the agents of that hour were scored against one another. Splits are by window: no window is in two.

```python
from datasets import load_dataset

dataset = load_dataset("path/to/this/directory")
```

{facts}

{columns}
"""


def schema() -> "pyarrow.Schema":
    import pyarrow

    text = pyarrow.string()
    message = pyarrow.struct([("role", text), ("content", text)])
    token = pyarrow.struct([("token", text), ("tokenId", pyarrow.int64()), ("logprob", pyarrow.float64())])
    types = {"json": text, "strings": pyarrow.list_(text), "messages": pyarrow.list_(message), "logprobs": pyarrow.list_(token)}
    return pyarrow.schema([(column.name, types.get(column.kind) or pyarrow.type_for_alias(column.kind)) for column in COLUMNS])


class ParquetWriter:
    """Parquet files by split, written hour by hour; ``name`` gives the name of a split's file of a number, from 0.

    A file that has reached ``file_bytes`` is followed by the next one; None: a split is one file.
    """

    def __init__(self, destination: Destination, name: Callable[[str, int], str], file_bytes: int | None = None) -> None:
        self.examples, self.table_bytes, self.file_bytes = Counter[str](), Counter[str](), Counter[str]()
        self._destination = destination
        self._name = name
        self._most = file_bytes
        self._numbers = Counter[str]()
        self._open: dict[str, tuple[str, BufferedWriter, Any]] = {}

    def add(self, hour: ExportHour) -> None:
        records = hour.records()
        # Some rows at a time, so that memory does not grow with the hour.
        for first in records:
            self._write(hour.split, [first, *islice(records, ROWS_IN_A_GROUP - 1)])
        if self._most is not None and hour.split in self._open and self._open[hour.split][1].tell() >= self._most:
            self._finish(hour.split)

    def close(self) -> None:
        for split in list(self._open):
            self._finish(split)

    def _write(self, split: str, records: Sequence[Record]) -> None:
        import pyarrow
        from pyarrow import parquet

        if split not in self._open:
            name = self._name(split, self._numbers[split])
            self._numbers[split] += 1
            file = self._destination.new(name)
            self._open[split] = (name, file, parquet.ParquetWriter(file, schema(), compression="zstd"))
        table = pyarrow.Table.from_pylist([row(record) for record in records], schema=schema())
        self._open[split][2].write_table(table, row_group_size=ROWS_IN_A_GROUP)
        self.examples[split] += table.num_rows
        self.table_bytes[split] += table.nbytes

    def _finish(self, split: str) -> None:
        name, file, writer = self._open[split]
        writer.close()
        self.file_bytes[split] += file.tell()
        del self._open[split]
        self._destination.finished(name)


class HuggingFaceWriter(ParquetWriter):
    """Writes ``data/<split>-<number>.parquet``, then the card."""

    def __init__(self, destination: Destination, file_bytes: int = FILE_BYTES) -> None:
        super().__init__(destination, lambda split, number: f"data/{split}-{number:05}.parquet", file_bytes)
        self._windows = Counter[str]()
        self._judges: set[str] = set()

    def add(self, hour: ExportHour) -> None:
        super().add(hour)
        if hour.served.total():
            self._windows[hour.split] += 1
        if hour.scores is not None and any(hour.served[entry.agent_id] for entry in hour.scores.scores):
            self._judges.add(hour.scores.judge)

    def close(self) -> None:
        super().close()
        self._destination.new(CARD).write(self._card().encode())
        self._destination.finished(CARD)

    def _card(self) -> str:
        splits = [split for split in SPLITS if self.examples.get(split)]
        lines = ["---", "tags:", "- reinforcement-learning", "- trading-agents", "configs:", "- config_name: default", "  data_files:"]
        lines += [f"  - split: {split}\n    path: data/{split}-*.parquet" for split in splits]
        lines += ["dataset_info:", "  features:"]
        lines += [indent(f"- name: {column.name}\n{_TYPES.get(column.kind, f'  dtype: {column.kind}')}", "  ") for column in COLUMNS]
        lines.append("  splits:")
        for split in splits:
            lines += [f"  - name: {split}", f"    num_bytes: {self.table_bytes[split]}", f"    num_examples: {self.examples[split]}"]
        lines += [f"  download_size: {self.file_bytes.total()}", f"  dataset_size: {self.table_bytes.total()}"]
        counts = [f"| {split} | {self._windows[split]} | {self.examples[split]} |" for split in splits]
        judges = ", ".join(sorted(self._judges)) or "nobody yet"
        facts = ["| split | windows | rows |", "|---|---|---|", *counts, "", f"Scores by: {judges}."]
        return "\n".join([*lines, "---"]) + "\n" + _TEXT.format(facts="\n".join(facts), columns=columns_table())


def columns_table() -> str:
    """Table of the columns and their meaning, in Markdown."""
    kinds = {"json": "string", "strings": "list of string", "messages": "list of struct", "logprobs": "list of struct"}
    rows = [f"| {column.name} | {kinds.get(column.kind, column.kind)} | {column.meaning} |" for column in COLUMNS]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *rows])
