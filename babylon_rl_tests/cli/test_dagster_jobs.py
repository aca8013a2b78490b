"""Jobs by `babylon-rl dagster job execute`: what they cannot run is refused in a sentence before a run exists."""

import json
from pathlib import Path

import pytest

from babylon_rl.store.database import Database
from babylon_rl_tests.cli.test_command_line import environment
from babylon_rl_tests.command_server import run_command

HOUR = "dagster/partition"
START, END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "tags", "said"),
    [
        ("hours", None, 'This run names no hour: give it one by --tags \'{"dagster/partition": "2025-10-29T14:00"}\', or a range'),
        ("score", {START: "2025-10-29T14:00"}, "This run names no hour: "),
        ("hours", {HOUR: "14:00"}, "14:00 is no hour: write one in UTC, as 2025-10-29T14:00; `babylon-rl windows` lists them."),
        ("hours", {HOUR: "2931-10-29T14:00"}, "2931-10-29T14:00 has not ended; an hour is read once it is over."),
        ("hours", {HOUR: "2024-10-29T14:00"}, "2024-10-29T14:00 lies before FIRST_WINDOW (2025-01-01T00:00)"),
        ("score", {START: "2025-10-29T14:00", END: "2025-10-29T12:00"}, "The range ends before it starts: "),
        ("train", None, 'This run names no batch: give it one by --tags \'{"dagster/partition": "ID"}\'; '),
        ("train", {HOUR: "batch-0"}, "There is no batch batch-0; `babylon-rl batches` lists them."),
    ],
)
def test_a_job_without_its_hour_or_batch_is_refused_before_its_run_exists(
    job: str, tags: dict[str, str] | None, said: str, database: Database, tmp_path: Path
) -> None:
    given = [] if tags is None else ["--tags", json.dumps(tags)]
    command = ("dagster", "job", "execute", "-m", "babylon_rl.definitions", "-j", job, *given)
    done = run_command(*command, environment=environment(tmp_path / "home", DATABASE_URL=database.url), directory=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(said) and done.stderr.count("\n") == 1, done.stderr
    with database.connect() as connection:
        assert connection.value("SELECT count(*) FROM babylon_dagster.runs") == 0
