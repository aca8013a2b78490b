"""Commands of the docs: every one is parsed, those that take no model and no server are run, and Dagster's by hand too."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.cli import COMMANDS, load, run
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.registry import read_models
from babylon_rl_tests.alert_receiver import alert_receiver
from babylon_rl_tests.command_server import run_command
from babylon_rl_tests.store.servers import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SPAN = re.compile(r"`(?:\.venv/bin/)?babylon-rl ([^`]+)`|^\$? ?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?babylon-rl (.+)$", re.MULTILINE)
BD = re.findall(r"^bd (.+)$", (ROOT / "docs" / "reference" / "ui.md").read_text(), re.MULTILINE)
PASSED_ON = {"dagster"}  # its arguments are another program's
HOUR, NEXT = "2025-10-29T14:00", "2025-10-29T15:00"
# Words of the docs that stand for something of the database: its hours, two versions, the last batch, a name that is not there yet.
STANDS_FOR = {
    "WINDOW": HOUR, "HOUR": HOUR, "2026-01-10T14:00": HOUR, "NEXT": NEXT, "NAME": "name{number}", "ID": "{batch}", "JOB": "{batch}",
    "v1.0.1": "{0}", "v1.0.2": "{0}", "v1.0.3": "{1}", "v1.0.2,v1.0.3": "{0},{1}",
}  # fmt: skip
# What must happen before a command, as the docs show it alone.
FIRST = {"models deploy v1.0.3 --strategy test": "models rollback"}
# Those that other tests run, as they take minutes, a model, a server, or files that another command of the page makes.
ELSEWHERE = (
    "dev", "worker", "serve", "demo", "harness", "dagster", "env", "spawn-agents", "train", "benchmark run", "benchmark compare",
    "benchmark standings", "benchmark leaderboard", "judge calibrate", "judge report", "judge retry", "models export", "models upload",
    "batches give-up-job", "batches cancel", "restore", "move-to",
)  # fmt: skip
NAMED = {"outcomes", "scores"}  # in a sentence, without the hour that they need
ENDS_IN_1 = ("ready", "verify-data", "verify-system", "models agents")  # which say no of the sample, or of this machine


def commands() -> list[tuple[str, str]]:
    """Every command line of the docs with its page."""
    found = []
    for page in PAGES:
        for match in SPAN.finditer(page.read_text()):
            line = re.split(r"\s+[#|>&;]\s*|\s{2,}#", (match[1] or match[2]).replace("\\\n", " "))[0]
            found.append((str(page.relative_to(ROOT)), line.strip()))
    return sorted(set(found))


def unknown(line: str) -> str | None:
    """A word of a command line that no command or option has."""
    try:
        words = shlex.split(re.sub(r"[\[\]]", " ", line))  # brackets: what may be left out
    except ValueError:
        return None  # a part of a sentence
    if not words or words[0] in PASSED_ON:
        return None
    if words[0] not in COMMANDS:
        return words[0] if re.fullmatch(r"[a-z-]+", words[0]) else None
    command = load(words.pop(0))
    while hasattr(command, "commands") and words and re.fullmatch(r"[a-z][a-z-]*", words[0]):
        if words[0] not in command.commands:
            return words[0]
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]} | {"--help"}
    return next((word for word in words if re.match(r"--[a-z]", word) and word.split("=")[0] not in options), None)


def test_every_command_of_the_docs_has_its_name_and_options():
    found = commands()
    assert len(found) > 100
    assert [(page, line, word) for page, line in found if (word := unknown(line))] == []


@pytest.mark.long
def test_hours_a_range_and_a_batch_are_made_by_the_commands_that_the_page_shows(sample_database: Database, tmp_path: Path):
    unset = {name.upper() for name in Settings.model_fields} | {"DAGSTER_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {
        "DATABASE_URL": sample_database.url, "BABYLON_RL_HOME": str(tmp_path / "home"), "TRAIN_RL_LOCAL": "true", "LOCAL_BASE_MODEL": "dry",
    }  # fmt: skip

    # Those of all pages: ui.md has an alias for them, and a line that begins with an ellipsis or a bare word stands for others.
    lines = {f"dagster {line}" for line in BD} | {line for _, line in commands() if re.match(r"dagster \w+ ", line)}
    batches = {line for line in lines if "<batch id>" in line}
    assert len(lines) > 8 and len(batches) == 1

    def run(line: str, **forked: Any) -> None:
        words = shlex.split(line)[1:] if forked else shlex.split(line)
        ended = run_command(*words, **({"environment": environment, "directory": ROOT} | forked))
        assert ended.returncode == 0, f"{line}: {ended.stderr[-3000:]}"

    # Hours before what stands on them. The first as the pages have it, the others by plain dagster with the lines of `babylon-rl env`,
    # which spares each the time to import Dagster.
    first, *others = sorted(lines - batches, key=lambda line: ("-j hours" not in line, line))
    run(first)
    exported = run_command("env", environment=environment, directory=ROOT).stdout
    plain = environment | dict(word.split("=", 1) for word in shlex.split(exported) if word != "export")
    for line in others:
        run(line, program="dagster", environment=plain)
    with sample_database.connect(autocommit=True) as connection:
        scored = """SELECT count(*) FROM babylon_rl.windows WHERE "state" = 'scored'"""
        assert connection.execute(scored).fetchone() == (5,)
        train = ("train", "--max-trajectories", "60", "--iterations", "1", "--json")
        trained = json.loads(run_command(*train, environment=environment, directory=ROOT).stdout)
        run(batches.pop().replace("<batch id>", trained["batchId"]))
        assert connection.execute('SELECT "version" FROM babylon_rl.releases').fetchall() == [(trained["modelVersion"],)]


def runnable() -> list[str]:
    """Command lines of the docs that a test can run by themselves, each once."""
    lines = {line for _, line in commands() if not re.search(r"[\n\[]|^[A-Z]", line)} - NAMED
    return sorted(line for line in lines if not line.startswith(ELSEWHERE))


@pytest.fixture
def webhook() -> Iterator[str]:
    """Address of a receiver of alerts."""
    with alert_receiver() as receiver:
        yield receiver.url


@pytest.mark.long
def test_commands_of_the_docs_do_what_the_page_says(
    sample_database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, webhook: str
) -> None:
    for name in {name.upper() for name in Settings.model_fields} | {"DAGSTER_HOME"}:
        monkeypatch.delenv(name, raising=False)
    chosen = {
        "DATABASE_URL": sample_database.url,
        "TRAIN_RL_LOCAL": "true",
        "LOCAL_BASE_MODEL": "dry",
        "BABYLON_RL_HOME": str(tmp_path / "home"),
    }
    for name, value in (chosen | {"ITERATIONS": "1", "ALERT_WEBHOOK_URL": webhook}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run(["train", "--max-trajectories", "60"]) == 0
    with sample_database.connect() as connection:
        second, first = [model.version for model in read_models(connection)][:2]
        (batch,) = connection.execute('SELECT max("batchId") FROM babylon_rl.batches').fetchone() or ()

    def words(line: str, number: int) -> list[str]:
        return [STANDS_FOR.get(word, word).format(first, second, batch=batch, number=number) for word in shlex.split(line)]

    # In order of the alphabet what is started comes before what is paused, revoked or stopped.
    ended = {}
    for number, line in enumerate(runnable()):
        for before in (command for start, command in FIRST.items() if line.startswith(start)):
            assert run(words(before, number)) == 0, before
        ended[line] = run(words(line, number))
    assert len(ended) > 50
    assert {line: code for line, code in ended.items() if code and not line.startswith(ENDS_IN_1)} == {}
