"""Commands of the docs: every one is parsed, and the ways to make hours and batches without the UI are run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from babylon_rl.cli import COMMANDS, load
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.store.servers import ROOT

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SPAN = re.compile(r"`(?:\.venv/bin/)?babylon-rl ([^`]+)`|^\$? ?(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?babylon-rl (.+)$", re.MULTILINE)
BD = re.findall(r"^bd (.+)$", (ROOT / "docs" / "reference" / "ui.md").read_text(), re.MULTILINE)
PASSED_ON = {"dagster"}  # its arguments are another program's


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


@pytest.mark.slow
@pytest.mark.e2e
def test_hours_a_range_and_a_batch_are_made_by_the_commands_that_the_page_shows(sample_database: Database, tmp_path: Path):
    unset = {name.upper() for name in Settings.model_fields} | {"DAGSTER_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {
        "DATABASE_URL": sample_database.url, "BABYLON_RL_HOME": str(tmp_path / "home"), "TRAIN_RL_LOCAL": "true", "LOCAL_BASE_MODEL": "dry",
    }  # fmt: skip

    def run(part: str, **replaced: str) -> str:
        (line, *_) = [line for line in BD if part in line]
        for old, new in replaced.items():
            line = line.replace(f"<{old} id>", new)
        command = [sys.executable, "-m", "babylon_rl", "dagster", *shlex.split(line)]
        ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr[-3000:]
        return ended.stderr

    run('-j hours --tags \'{"dagster/partition"')
    run('-j hours --tags \'{"dagster/asset_partition_range_start"')
    with sample_database.connect(autocommit=True) as connection:
        scored = """SELECT count(*) FROM babylon_rl.windows WHERE "state" = 'scored'"""
        assert connection.execute(scored).fetchone() == (5,)
        train = [sys.executable, "-m", "babylon_rl", "train", "--max-trajectories", "60", "--iterations", "1", "--json"]
        trained = json.loads(subprocess.run(train, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout)
        run("-j train", batch=trained["batchId"])
        assert connection.execute('SELECT "version" FROM babylon_rl.releases').fetchall() == [(trained["modelVersion"],)]
