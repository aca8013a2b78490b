"""JSONL of ART messages: a file per split, a line per group, in openpipe-art's own format.

A trajectory in the file is one LLM call: the prompt as served, then the answer; the reward is the episode's score. An answer whose tokens
were recorded with ids and log-probabilities is an OpenAI choice, which ART trains on; any other is a plain message.
"""

from collections.abc import Iterable
from io import BufferedWriter
from itertools import chain
from typing import Any

import msgspec

from babylon_rl.training.export.files import Destination
from babylon_rl.training.export.hours import Hour
from babylon_rl.training.export.records import Record, encode

NO_REWARD = 0.0  # ART has no trajectory without a reward; a group in which all are equal teaches nothing
_IN_MESSAGES = {"messages", "response", "logprobs"}


class JsonlWriter:
    """Writes ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``, each only if it has records."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._files: dict[str, BufferedWriter] = {}

    def add(self, hour: Hour) -> None:
        """Write one line for an hour's scored records and one for the others.

        Separate groups keep rewards from being compared with missing ones.
        """
        for scored in (True, False):
            records = hour.records(scored=scored)
            first = next(records, None)
            if first is not None:
                self._line(self._file(f"{hour.split}.jsonl"), chain([first], records))

    def close(self) -> None:
        """Finish every file."""
        for name, file in self._files.items():
            file.close()
            self._destination.finished(name)

    def abandon(self) -> None:
        """Close the files without finishing them."""
        for file in self._files.values():
            file.close()

    def _file(self, name: str) -> BufferedWriter:
        if name not in self._files:
            self._files[name] = self._destination.new(name).open("wb")
        return self._files[name]

    @staticmethod
    def _line(file: BufferedWriter, records: Iterable[Record]) -> None:
        separator = b'{"trajectories":['
        for record in records:
            file.write(separator + encode(art_trajectory(record)))
            separator = b","
        file.write(b"]}\n")


def art_trajectory(record: Record) -> dict[str, Any]:
    """Serialize a record as ``art.Trajectory``.

    Metadata holds all columns but the texts; values that are not plain are JSON text.
    """
    metadata = {name: _plain(value) for name, value in msgspec.to_builtins(record).items() if name not in _IN_MESSAGES}
    choice = _choice(record)
    if choice is None and record.logprobs is not None:
        metadata["logprobs"] = _plain(msgspec.to_builtins(record.logprobs))
    return {
        "reward": NO_REWARD if record.score is None else record.score,
        "metrics": {},
        "metadata": metadata,
        "messages_and_choices": [*record.messages, choice or {"role": "assistant", "content": record.response}],
        "tools": None,
        "additional_histories": [],
        "logs": [],
    }


def _plain(value: Any) -> Any:
    return encode(value).decode() if isinstance(value, dict | list) else value


def _choice(record: Record) -> dict[str, Any] | None:
    """Convert the answer to an OpenAI choice that ART can train on; None when a token's id is missing."""
    if record.logprobs is None or any(token.token_id is None for token in record.logprobs):
        return None
    tokens = [
        {
            "token": f"token_id:{token.token_id}",
            "bytes": None if token.token is None else list(token.token.encode()),
            "logprob": token.logprob,
            "top_logprobs": [],
        }
        for token in record.logprobs
    ]
    return {
        "finish_reason": "stop",
        "index": 0,
        "logprobs": {"content": tokens, "refusal": None},
        "message": {"role": "assistant", "content": record.response},
    }
