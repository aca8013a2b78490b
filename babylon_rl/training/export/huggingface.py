"""Hugging Face dataset directory: Parquet files under data/, and a card with splits and types for ``datasets``."""

from babylon_rl.training.export.files import Destination
from babylon_rl.training.export.hours import Hour
from babylon_rl.training.export.records import COLUMNS
from babylon_rl.training.export.splits import SPLITS
from babylon_rl.training.export.tables import TableFiles

CARD = "README.md"
FILE_BYTES = 500_000_000
_TYPES = {
    "string": "  dtype: string",
    "json": "  dtype: string",
    "int64": "  dtype: int64",
    "float64": "  dtype: float64",
    "bool": "  dtype: bool",
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


class HuggingFaceWriter:
    """Writes ``data/<split>-<number>.parquet``, then the card."""

    def __init__(self, destination: Destination, file_bytes: int = FILE_BYTES) -> None:
        self._destination = destination
        self._tables = TableFiles(destination, lambda split, number: f"data/{split}-{number:05}.parquet", file_bytes)
        self._windows: dict[str, int] = {}
        self._judges: set[str] = set()

    def add(self, hour: Hour) -> None:
        """Write an hour's records."""
        self._tables.add(hour)
        if hour.served.total():
            self._windows[hour.split] = self._windows.get(hour.split, 0) + 1
        if hour.scores is not None and any(hour.served[entry.agent_id] for entry in hour.scores.scores):
            self._judges.add(hour.scores.judge)

    def close(self) -> None:
        """Finish the files and write the card."""
        self._tables.close()
        self._destination.new(CARD).write_text(self._card(), encoding="utf-8")
        self._destination.finished(CARD)

    def abandon(self) -> None:
        """Close the files without finishing them."""
        self._tables.abandon()

    def _card(self) -> str:
        # Front matter for `datasets`, then the counts and columns for readers.
        splits = [split for split in SPLITS if self._tables.examples.get(split)]
        lines = ["---", "tags:", "- reinforcement-learning", "- trading-agents", "configs:", "- config_name: default", "  data_files:"]
        lines += [f"  - split: {split}\n    path: data/{split}-*.parquet" for split in splits]
        lines += ["dataset_info:", "  features:"]
        lines += [_indented(f"- name: {column.name}\n{_TYPES[column.kind]}") for column in COLUMNS]
        lines.append("  splits:")
        for split in splits:
            lines += [
                f"  - name: {split}",
                f"    num_bytes: {self._tables.table_bytes[split]}",
                f"    num_examples: {self._tables.examples[split]}",
            ]
        lines += [f"  download_size: {sum(self._tables.file_bytes.values())}", f"  dataset_size: {sum(self._tables.table_bytes.values())}"]
        counts = [f"| {split} | {self._windows[split]} | {self._tables.examples[split]} |" for split in splits]
        facts = [
            "| split | windows | rows |",
            "|---|---|---|",
            *counts,
            "",
            f"Scores by: {', '.join(sorted(self._judges)) or 'nobody yet'}.",
        ]
        return "\n".join([*lines, "---"]) + "\n" + _TEXT.format(facts="\n".join(facts), columns=columns_table())


def columns_table() -> str:
    """Table of the columns and their meaning, in Markdown."""
    kinds = {"json": "string", "strings": "list of string", "messages": "list of struct", "logprobs": "list of struct"}
    rows = [f"| {column.name} | {kinds.get(column.kind, column.kind)} | {column.meaning} |" for column in COLUMNS]
    return "\n".join(["| column | type | meaning |", "|---|---|---|", *rows])


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
