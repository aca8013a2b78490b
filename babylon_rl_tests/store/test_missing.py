"""A table or column that is not there is named, with what to do, by commands and by runs alike."""

from pathlib import Path

import dagster as dg
import pytest

from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.launch import QUIET, job_definition, run_hours
from babylon_rl.errors import SchemaMismatch
from babylon_rl.settings import Settings
from babylon_rl.store.connection import connect
from babylon_rl.store.database import Database
from babylon_rl.store.migrate import migrate
from babylon_rl_tests.cli.test_command_line import environment
from babylon_rl_tests.command_server import run_command
from babylon_rl_tests.training.sample import NOW

pytestmark = pytest.mark.slow

HOUR = "2025-10-29T14:00"
REMEDY = (
    "Run `babylon-rl migrate`. It never alters the game's tables: `babylon-rl migrate --check` lists how they differ from what is expected."
)
STOCKS_GONE = f'The database is not up to date: relation "public.StockPrice" does not exist. {REMEDY}'
HOURS_GONE = f'The database is not up to date: column "windowHours" does not exist. {REMEDY}'


def drop(database: Database, statement: str) -> None:
    with connect(database.url, autocommit=True) as connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    ("statement", "command", "said"),
    [
        ('DROP TABLE "StockPrice" CASCADE', f"outcomes {HOUR}", STOCKS_GONE),
        ('DROP TABLE "StockPrice" CASCADE', "sync-outcomes --hours 24", STOCKS_GONE),
        ('ALTER TABLE trajectories DROP COLUMN "windowHours" CASCADE', "windows", HOURS_GONE),
    ],
)
def test_a_command_names_what_is_gone(sample_database: Database, tmp_path: Path, statement: str, command: str, said: str) -> None:
    drop(sample_database, statement)
    given = environment(tmp_path / "home", DATABASE_URL=sample_database.url)
    done = run_command(*command.split(), environment=given, directory=tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.strip().splitlines()[-1] == said


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ('DROP TABLE "StockPrice" CASCADE', STOCKS_GONE),
        ('ALTER TABLE trajectories DROP COLUMN "windowHours" CASCADE', HOURS_GONE),
        ("DROP TABLE babylon_rl.episodes CASCADE", f'relation "babylon_rl.episodes" does not exist. {REMEDY}'),
        ('ALTER TABLE babylon_rl.windows DROP COLUMN "rowVersion" CASCADE', f'column "rowVersion" does not exist. {REMEDY}'),
    ],
)
def test_a_run_fails_with_what_is_gone_and_is_not_tried_again(
    sample_database: Database, settings: Settings, statement: str, said: str
) -> None:
    drop(sample_database, statement)
    babylon = Babylon(settings, sample_database, lambda: NOW)
    with dg.DagsterInstance.ephemeral() as instance:
        result = job_definition("hours", babylon).execute_in_process(
            instance=instance, partition_key=HOUR, run_config=QUIET, raise_on_error=False
        )
    failed = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failed and all(said in one.user_failure_data.description for one in failed if one.error.cause is not None)
    assert not [event for event in result.all_events if event.is_step_up_for_retry]


def test_the_caller_of_a_run_gets_the_sentence_as_an_error(sample_database: Database, settings: Settings) -> None:
    sample_database.prepare_dagster_schema()
    drop(sample_database, "DROP TABLE babylon_rl.rejections CASCADE")
    with pytest.raises(SchemaMismatch, match='relation "babylon_rl.rejections" does not exist'):
        run_hours(sample_database, settings, [HOUR], ["window_groups"], now=lambda: NOW)


def test_a_database_that_was_never_migrated_is_told_to_be(raw_sample_database: Database) -> None:
    said = 'relation "babylon_rl.windows" does not exist. Run `babylon-rl migrate`'
    with pytest.raises(SchemaMismatch, match=said), raw_sample_database.connect() as connection:
        connection.execute("SELECT * FROM babylon_rl.windows")
    migrate(raw_sample_database)
    with raw_sample_database.connect() as connection:
        connection.execute("SELECT * FROM babylon_rl.windows")
