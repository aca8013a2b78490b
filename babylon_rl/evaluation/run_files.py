"""The files of runs: in a results directory by the key of a run, of the gate by model and market; each is whole or not there.

    NAME-KEY.json                the result of a finished run
    NAME-KEY.partial.json        of one that ended early; the next call goes on with it
    NAME-KEY.decisions.jsonl.gz  every decision with its prompt, answer, fill and money
    NAME-KEY.answers.jsonl       while a model plays: its answers so far, by a hash of the request

    <home>/benchmarks/<name>/benchmark-0003-gate.json                result of a market of the gate
    <home>/benchmarks/<name>/benchmark-0003-gate.decisions.jsonl.gz  its decisions; 11 KB in all

An interrupted run of a model is played again up to where it was with the answers that it had, and asks only from there on. The gate's
files are for looking at only: a market that a name plays again, with other weights or since the market's code changed, replaces its files.
"""

import gzip
import hashlib
import io
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.evaluation.results import PARTIAL, SUFFIX, Result, encode_result, read_result, write_atomically
from babylon_rl.llm.client import ChatAnswer, ChatClient

DECISIONS, ANSWERS = ".decisions.jsonl.gz", ".answers.jsonl"
DIRECTORY = "benchmarks"  # of the gate
KEPT = 20  # models whose runs of the gate stay, those that were compared last
_GATE_KEY = "gate"


class RunFiles:
    """The files of one run in ``directory``; ``stem`` is ``NAME-KEY``."""

    def __init__(self, directory: Path, name: str, key: str) -> None:
        self.stem = f"{slug(name)}-{key}"
        self._directory = directory

    def path(self, suffix: str) -> Path:
        """The file with that ending."""
        return self._directory / f"{self.stem}{suffix}"

    def finished(self) -> Result | None:
        """The result, when the run was finished before.

        Raises:
            MarketError: there is one, and it cannot be read.
        """
        return read_result(self.path(SUFFIX)) if self.path(SUFFIX).is_file() else None

    def keep(self, result: Result, decisions: Iterable[bytes]) -> None:
        """Write a run, decisions first: a result that is there has its decisions."""
        self._directory.mkdir(parents=True, exist_ok=True)
        packed = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=packed, mtime=0) as file:
            file.writelines(decisions)
        write_atomically(self.path(DECISIONS), packed.getvalue())
        write_atomically(self.path(SUFFIX if result.complete else PARTIAL), encode_result(result))
        if result.complete:
            self.path(PARTIAL).unlink(missing_ok=True)
            self.path(ANSWERS).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all there is of the run, its result first: nobody finds one whose decisions are gone."""
        for suffix in (SUFFIX, PARTIAL, ANSWERS, DECISIONS):
            self.path(suffix).unlink(missing_ok=True)


def gate_files(home: Path, name: str, snapshot: str) -> RunFiles:
    """The files of a model's run in a market of the gate."""
    return RunFiles(runs_directory(home, name), snapshot, _GATE_KEY)


def runs_directory(home: Path, name: str) -> Path:
    """Where the runs of a model lie; it need not be there."""
    return home / DIRECTORY / name


def forget_old_runs(home: Path, names: Iterable[str]) -> None:
    """Count ``names`` as compared now, and remove the gate's runs of all but the KEPT models that were compared last."""
    for name in names:
        if runs_directory(home, name).is_dir():
            with suppress(OSError):  # a directory that cannot be written to
                os.utime(runs_directory(home, name))
    directories = [path for path in (home / DIRECTORY).glob("*") if path.is_dir()]
    for old in sorted(directories, key=lambda path: path.stat().st_mtime, reverse=True)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


class RememberingClient(ChatClient):
    """Another client whose answers are kept in a file as they come: a request that was answered before is not asked again.

    For one run, which asks one thing at a time. A last line that an interruption cut off is dropped.
    """

    def __init__(self, client: ChatClient, path: Path) -> None:
        super().__init__(client.base_url, None, client.model)
        self._client = client
        self._path = path
        self._known = dict(_lines(path.read_bytes())) if path.is_file() else {}
        if path.is_file():
            write_atomically(path, b"".join(_line(key, answer) for key, answer in self._known.items()))

    def complete_now(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        response_format: dict[str, Any] | None = None,
        temperature: float = 1.0,
        seed: int | None = None,
        max_tokens: int = 64,
    ) -> ChatAnswer:
        """As ChatClient's, with the answer of an earlier time where there is one."""
        asked = msgspec.json.encode([self.model, list(messages), response_format, temperature, seed, max_tokens])
        key = hashlib.sha256(asked).hexdigest()
        answer = self._known.get(key)
        if answer is None:
            answer = self._known[key] = self._client.complete_now(
                messages, response_format=response_format, temperature=temperature, seed=seed, max_tokens=max_tokens
            )
            with self._path.open("ab") as file:
                file.write(_line(key, answer))
        return answer


def slug(name: str) -> str:
    """A name as part of a file's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "agent"


def _line(key: str, answer: ChatAnswer) -> bytes:
    return msgspec.json.encode({"key": key, "answer": answer}) + b"\n"


class _Kept(msgspec.Struct):
    key: str
    answer: ChatAnswer


def _lines(raw: bytes) -> Iterable[tuple[str, ChatAnswer]]:
    whole = raw[: raw.rfind(b"\n") + 1]
    for kept in msgspec.json.Decoder(_Kept).decode_lines(whole):
        yield kept.key, kept.answer
