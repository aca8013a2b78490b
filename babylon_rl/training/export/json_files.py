"""JSON formats: JSONL of ART messages, and an archive with a directory per window.

In the JSONL of openpipe-art a file is a split, a line a group, and a trajectory one LLM call: the prompt as served, then the answer; the
reward is the episode's score. An answer whose tokens were recorded with ids and log-probabilities is an OpenAI choice, which ART trains
on; any other is a plain message. In the archive ``trajectories.jsonl`` has a line per record, ``groups.jsonl`` one line with every exported
episode, ``scores.json`` the form of ``babylon-rl scores`` without the judge's words, ``metadata.json`` the hour's contents and outcomes.
"""

from collections.abc import Iterable
from io import BufferedWriter
from typing import Any

import msgspec

from babylon_rl.judge.consensus import scores_document as judged_document
from babylon_rl.training.export.destination import Destination
from babylon_rl.training.export.hours import ExportHour
from babylon_rl.training.export.records import Record, judged, row
from babylon_rl.types import MESSAGE_SOURCES, count_reasons

NO_REWARD = 0.0  # ART has no trajectory without a reward; a group in which all are equal teaches nothing
_IN_MESSAGES = {"messages", "response", "logprobs"}
_OF_EPISODE = (
    "agentId", "trajectoryIds", "steps", "startPnl", "endPnl", "windowPnl", "wins", "losses", "winRate", "trades", "posts", "actions",
    "messageSources", "usable",
)  # fmt: skip


class JsonlWriter:
    """Writes ``train.jsonl``, ``validation.jsonl`` and ``test.jsonl``, each only if it has records."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._files: dict[str, BufferedWriter] = {}

    def add(self, hour: ExportHour) -> None:
        """Write a line for an hour's scored records and one for the others: separate groups."""
        for scored in (True, False):
            # ART compares the rewards of a line, and an unscored record has none: with NO_REWARD beside scores it would count as the worst.
            records = hour.records(scored=scored)
            first = next(records, None)
            if first is not None:
                name = f"{hour.split}.jsonl"
                if name not in self._files:
                    self._files[name] = self._destination.new(name)
                self._files[name].write(b'{"trajectories":[' + msgspec.json.encode(art_trajectory(first)))
                self._files[name].writelines(b"," + msgspec.json.encode(art_trajectory(record)) for record in records)
                self._files[name].write(b"]}\n")

    def close(self) -> None:
        for name in self._files:
            self._destination.finished(name)


def art_trajectory(record: Record) -> dict[str, Any]:
    """Serialize a record as ``art.Trajectory``. Metadata holds all columns but the texts; values that are not plain are JSON text."""
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
    return msgspec.json.encode(value).decode() if isinstance(value, dict | list) else value


def _choice(record: Record) -> dict[str, Any] | None:
    """Convert the answer to an OpenAI choice for ART; None without token ids."""
    if record.logprobs is None or any(token.token_id is None for token in record.logprobs):
        return None
    # As in what is posted (backends/openpipe_art.py): ART reads the id out of the token's name.
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
        # The form needs a reason: a call recorded without one has no other.
        "finish_reason": record.finish_reason or "stop",
        "index": 0,
        "logprobs": {"content": tokens, "refusal": None},
        "message": {"role": "assistant", "content": record.response},
    }


class ArchiveWriter:
    """Writes a directory per window that holds an episode."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination

    def add(self, hour: ExportHour) -> None:
        if not hour.episodes:
            return
        # The order matters: the counts of records in groups and metadata are complete only once all records were read.
        self._write(hour, "trajectories.jsonl", map(row, hour.records()))
        self._write(hour, "groups.jsonl", [group_document(hour)])
        self._write(hour, "scores.json", [scores_document(hour)])
        self._write(hour, "metadata.json", [metadata_document(hour)])

    def _write(self, hour: ExportHour, file: str, documents: Iterable[Any]) -> None:
        name = f"{hour.window}/{file}"
        self._destination.new(name).writelines(msgspec.json.encode(document) + b"\n" for document in documents)
        self._destination.finished(name)

    def close(self) -> None:
        """Do nothing: every file is finished already."""


def group_document(hour: ExportHour) -> dict[str, Any]:
    episodes = []
    for episode in hour.episodes:
        document = msgspec.to_builtins(episode)
        own = {name: document[name] for name in _OF_EPISODE} | judged(hour.score_of(episode.agent_id))
        episodes.append(own | {"records": hour.served[episode.agent_id]})
    return {
        "groupId": hour.window,
        "window": hour.window,
        "split": hour.split,
        "judge": None if hour.scores is None else hour.scores.judge,
        "ready": hour.reading.ready,
        "episodes": episodes,
    }


def scores_document(hour: ExportHour) -> dict[str, Any]:
    """Describe the window's scores without the judge's words, which may quote hidden answers."""
    if hour.scores is None:
        return {"window": hour.window, "judge": None, "groupSize": 0, "mean": None, "spread": None, "disagreement": None, "scores": []}
    document = judged_document(hour.scores)
    rows = [{name: value for name, value in score.items() if name != "reasoning"} for score in document["scores"]]
    return document | {"scores": rows}


def metadata_document(hour: ExportHour) -> dict[str, Any]:
    reading = hour.reading
    return {
        "window": hour.window,
        "split": hour.split,
        "rows": reading.rows,
        "eligible": reading.eligible,
        "rejected": count_reasons(reading.rejections),
        "agents": len(reading.episodes),
        "usableEpisodes": len(reading.usable_episodes),
        "ready": reading.ready,
        "messageSources": {source: sum(episode.message_sources[source] for episode in reading.episodes) for source in MESSAGE_SOURCES},
        "trajectoryCount": sum(len(episode.trajectory_ids) for episode in hour.episodes),
        "records": hour.served.total(),
        "leftOut": dict(sorted(hour.left_out.items())),
        "scoresStale": hour.stale,
        "outcomes": hour.outcomes.document(),
    }
