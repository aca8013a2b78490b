"""A table or column that is not there is named, with the migration that makes it, by commands and by runs alike."""

from pathlib import Path

import dagster as dg
import pytest

from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.launch import QUIET, job_definition, run_hours
from babylon_rl.errors import SchemaMismatch
from babylon_rl.settings import Settings
from babylon_rl.store.connection import MIGRATIONS, connect, defined
from babylon_rl.store.database import Database
from babylon_rl.store.migrate import migrate, read_migrations, read_tables
from babylon_rl_tests.cli.test_command_line import environment
from babylon_rl_tests.command_server import run_command
from babylon_rl_tests.training.sample import NOW

pytestmark = pytest.mark.slow

HOUR = "2025-10-29T14:00"
STOCKS_GONE = (
    'The database is not up to date: there is no table public."StockPrice", which migration 0001_contract_tables makes. '
    "Run `babylon-rl migrate`; if it was there before, that says what to restore."
)
HOURS_GONE = (
    'The database is not up to date: there is no column "windowHours" in public.trajectories, which migration 0001_contract_tables makes. '
    "A table that was there before is adopted as it is and never altered: bring the game's schema up to date; "
    "`babylon-rl migrate --check` lists every difference."
)


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
        (
            "DROP TABLE babylon_rl.episodes CASCADE",
            "The database is not up to date: there is no table babylon_rl.episodes, which migration 0002_windows makes. "
            "Run `babylon-rl migrate`; if it was there before, that says what to restore.",
        ),
        (
            'ALTER TABLE babylon_rl.windows DROP COLUMN "rowVersion" CASCADE',
            'The database is not up to date: there is no column "rowVersion" in babylon_rl.windows, which migration 0002_windows makes. '
            "Run `babylon-rl migrate`.",
        ),
        (
            "ALTER TABLE market_outcomes DROP COLUMN volume CASCADE",
            'The database is not up to date: there is no column "volume" in public.market_outcomes, which migration 0001_contract_tables '
            "makes.",
        ),
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
    with pytest.raises(SchemaMismatch, match="no table babylon_rl.rejections, which migration 0002_windows makes"):
        run_hours(sample_database, settings, [HOUR], ["window_groups"], now=lambda: NOW)


def test_a_database_that_was_never_migrated_is_told_to_be(raw_sample_database: Database) -> None:
    said = "no table babylon_rl.windows, which migration 0002_windows makes. Run `babylon-rl migrate`"
    with pytest.raises(SchemaMismatch, match=said), raw_sample_database.connect() as connection:
        connection.execute("SELECT * FROM babylon_rl.windows")
    migrate(raw_sample_database)
    with raw_sample_database.connect() as connection:
        connection.execute("SELECT * FROM babylon_rl.windows")


def test_what_no_migration_makes_is_said_to_be_so(database: Database) -> None:
    with pytest.raises(SchemaMismatch, match="no table public.nothing, and no migration makes one"), database.connect() as connection:
        connection.execute("SELECT * FROM nothing")
    with pytest.raises(SchemaMismatch, match='no column "nothing", and no migration makes one'), database.connect() as connection:
        connection.execute("SELECT nothing FROM trajectories")


def test_every_table_and_column_of_a_migrated_database_is_found_in_the_migrations(database: Database) -> None:
    known = defined()
    with database.connect() as connection:
        for schema in ("public", "babylon_rl"):
            for table, found in read_tables(connection, schema).items():
                name = f"{schema}.{table}"
                if name == "babylon_rl.migrations":
                    continue
                assert known.tables[name] in {file.name for file in read_migrations()}
                if (MIGRATIONS / f"{known.tables[name]}.sql").read_text().find(f"CREATE VIEW {name}") < 0:
                    assert {(name, column) for column in found.columns} <= known.columns.keys()
