"""A scored game to export, and how each format is read back: by what it is for, into the same plain records."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection, connect
from babylon_rl.store.trajectories import windows_with_rows
from babylon_rl.training.export import ExportedRows, export_windows
from babylon_rl.training.export.hours import Selection, Splits
from babylon_rl_tests.rows import insert, make_call, make_step, make_trajectory
from babylon_rl_tests.scored import score_windows

NOW = datetime(2025, 11, 15, 12)
UNSCORED = "2025-10-29T17:00"  # has a group that nobody has judged
TOKENS = [{"token": '{"a', "tokenId": 11, "logprob": -0.25}, {"token": "é", "tokenId": 2**40, "logprob": 0.0}]
SCHEMA = {"type": "json_schema", "json_schema": {"enum": ["buy", "hold"], "minimum": 1e3}}
CANARY = "canary-of-the-game"


def windows_of(connection: Connection) -> list[str]:
    """Every hour of the game."""
    found = windows_with_rows(connection, "2025-01-01T00:00", "2026-01-01T00:00")
    connection.commit()
    return found


def fill(url: str) -> None:
    """A group whose calls carry all that a call can, besides the recorded game; all hours scored but one."""
    with connect(url) as connection:
        insert(connection, "trajectories", [_rich(number) for number in range(6)])
        settings = Settings(_env_file=None)
        windows = windows_of(connection)
        sync_windows(connection, windows, settings, NOW)
        score_windows(connection, [window for window in windows if window != UNSCORED], settings, NOW)


def _rich(number: int) -> dict[str, Any]:
    calls = [
        make_call(logprobs=TOKENS, responseFormat=SCHEMA, modelVersion="v1.2.3", callId=f"call-{number}"),
        make_call(logprobs=[{"token": "a", "logprob": -1}], response="two\nlines \u2028 \u0000 \U0001f600", systemPrompt=None),
        make_call(logprobs=[TOKENS[0], {"token": "x", "logprob": None}], model="scripted/momentum", response=" "),
    ]
    steps = [make_step(step, calls=[calls[step % 3]], pnl=float(step)) for step in range(6)]
    knowledge = {"gameKnowledge": {"trueProbabilities": {f"{CANARY}-market": 0.987654}, "actualOutcomes": {}, "futureOutcomes": {}}}
    return make_trajectory(f"t{number}", f"agent-{number}", steps=steps, finalPnL=25.0 * number, metadataJson=json.dumps(knowledge))


def exported(
    connection: Connection, windows: Sequence[str], target: Path | str, form: str, settings: Settings, **given: Any
) -> ExportedRows:
    """``export_windows`` with plain choices; ``given`` may hold splits, selection and the rest."""
    choices = {"splits": Splits(0.6, 0.2), "selection": Selection()} | given
    return export_windows(connection, windows, str(target), form, settings, **choices)


def records_of(form: str, directory: Path) -> list[dict[str, Any]]:
    """The records that an export holds, in order of (window, agent, trajectory, step, call)."""
    readers = {"jsonl": _jsonl, "parquet": _parquet, "hf": _parquet, "archive": _archive}
    names = ("window", "agentId", "trajectoryId", "step", "callId")
    return sorted(readers[form](directory), key=lambda record: [str(record[name]) for name in names])


def _parquet(directory: Path) -> list[dict[str, Any]]:
    return [_decoded(record) for file in sorted(directory.rglob("*.parquet")) for record in pyarrow.parquet.read_table(file).to_pylist()]


def _archive(directory: Path) -> list[dict[str, Any]]:
    return [_decoded(json.loads(line)) for file in sorted(directory.glob("*/trajectories.jsonl")) for line in lines_of(file)]


def _decoded(record: dict[str, Any]) -> dict[str, Any]:
    return record | {"responseFormat": record["responseFormat"] and json.loads(record["responseFormat"])}


def lines_of(file: Path) -> list[bytes]:
    """The lines of a JSONL file, which may hold what Unicode takes for the end of a line."""
    return file.read_bytes().removesuffix(b"\n").split(b"\n")


def groups_of(directory: Path) -> list[dict[str, Any]]:
    """The lines of all ``.jsonl`` files."""
    return [json.loads(line) for file in sorted(directory.glob("*.jsonl")) for line in lines_of(file)]


def _jsonl(directory: Path) -> list[dict[str, Any]]:
    return [record_of(trajectory) for group in groups_of(directory) for trajectory in group["trajectories"]]


def record_of(trajectory: dict[str, Any]) -> dict[str, Any]:
    """The record that an ART trajectory was made of."""
    *messages, answer = trajectory["messages_and_choices"]
    record = dict(trajectory["metadata"])
    logprobs = json.loads(record["logprobs"]) if "logprobs" in record else None
    if "message" in answer:
        logprobs = [
            {"token": bytes(t["bytes"]).decode(), "tokenId": int(t["token"].removeprefix("token_id:")), "logprob": t["logprob"]}
            for t in answer["logprobs"]["content"]
        ]
    response = answer["message"]["content"] if "message" in answer else answer["content"]
    record |= {"messages": messages, "response": response, "logprobs": logprobs}
    record["responseFormat"] = record["responseFormat"] and json.loads(record["responseFormat"])
    record["trajectoryIds"] = json.loads(record["trajectoryIds"])
    return record


def content_of(directory: Path) -> dict[str, bytes]:
    """Every file below a directory, by its relative name."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}
