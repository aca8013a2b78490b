"""Migrations on an empty database, on the game's own, on half-migrated ones, and by two at once."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from babylon_rl.errors import DatabaseError, SchemaMismatch
from babylon_rl.settings import Settings
from babylon_rl.store.connection import MIGRATIONS
from babylon_rl.store.database import Database, open_database
from babylon_rl.store.embedded.cluster import Cluster
from babylon_rl.store.migrate import CONTRACT, migrate, read_migrations, require_migrated
from babylon_rl_tests.store.servers import ROOT

COLUMNS = """
SELECT table_name, column_name, ordinal_position, data_type, udt_name, character_maximum_length, numeric_precision, numeric_scale,
       datetime_precision, is_nullable, column_default, is_identity, is_generated, collation_name
FROM information_schema.columns WHERE table_schema = 'public' AND table_name = ANY (%s) ORDER BY table_name, ordinal_position
"""
INDEXES = """
SELECT c.relname, pg_get_indexdef(i.indexrelid), i.indisprimary, i.indisvalid, i.indnullsnotdistinct, i.indisreplident, i.indisclustered
FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY (%s) ORDER BY 1, 2
"""
KEYS = """
SELECT conrelid::regclass::text, conname, contype, pg_get_constraintdef(oid), condeferrable, convalidated FROM pg_constraint
WHERE connamespace = 'public'::regnamespace AND contype IN ('p', 'u', 'f', 'c') AND conrelid::regclass::text = ANY (%s)
ORDER BY 1, 2
"""
TABLES = [
    *("AgentTrade", "BalanceTransaction", "Market", "Organization", "PerpPosition", "Position", "Post", "PredictionPriceHistory"),
    *("Question", "StockPrice", "SystemSettings", "User", "WorldEvent"),
    *("llm_call_logs", "market_outcomes", "reward_judgments", "trained_models", "training_batches", "trajectories"),
]


def rows(database: Database, sql: str, *parameters: object) -> list[tuple]:
    with database.connect() as connection:
        return connection.execute(sql, parameters or None).fetchall()


def run(database: Database, sql: str) -> None:
    with database.connect(autocommit=True) as connection:
        connection.execute(sql)


def public_fingerprint(database: Database) -> list[tuple]:
    names = [row[0] for row in rows(database, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    quoted = names + [f'"{name}"' for name in names]
    return rows(database, COLUMNS, names) + rows(database, INDEXES, names) + rows(database, KEYS, quoted)


@pytest.mark.parametrize("query", [COLUMNS, INDEXES, KEYS], ids=["columns", "indexes", "keys"])
def test_tables_made_on_an_empty_database_equal_the_games(database: Database, raw_sample_database: Database, query: str) -> None:
    names = TABLES + [f'"{name}"' for name in TABLES]
    made, games = rows(database, query, names), rows(raw_sample_database, query, names)
    assert made == games
    assert len({row[0].strip('"') for row in made}) == len(TABLES)


@pytest.mark.parametrize(
    ("query", "change"),
    [
        (COLUMNS, 'ALTER TABLE trajectories ALTER "windowId" TYPE varchar(60)'),
        (COLUMNS, 'ALTER TABLE market_outcomes ALTER "changePercent" TYPE numeric(6,2)'),
        (COLUMNS, 'ALTER TABLE trajectories ALTER "startTime" TYPE timestamp(6)'),
        (COLUMNS, 'ALTER TABLE trajectories ALTER "startTime" TYPE timestamptz(3)'),
        (COLUMNS, 'ALTER TABLE trajectories ALTER "windowHours" SET DEFAULT 2'),
        (COLUMNS, 'ALTER TABLE trajectories ALTER "updatedAt" SET DEFAULT CURRENT_TIMESTAMP'),
        (COLUMNS, 'ALTER TABLE trajectories ALTER "updatedAt" DROP NOT NULL'),
        (COLUMNS, "ALTER TABLE trajectories ADD COLUMN region text"),
        (COLUMNS, 'ALTER TABLE trajectories DROP COLUMN "batchId"'),
        (INDEXES, 'DROP INDEX "trajectories_windowId_idx"'),
        (INDEXES, 'CREATE INDEX extra ON trajectories ("createdAt")'),
        (INDEXES, 'ALTER INDEX "trajectories_windowId_idx" RENAME TO other'),
        (
            INDEXES,
            'DROP INDEX "StockPrice_timestamp_idx"; CREATE INDEX "StockPrice_timestamp_idx" ON "StockPrice" ("timestamp")',
        ),
        (
            INDEXES,
            'DROP INDEX "llm_call_logs_callId_key"; CREATE INDEX "llm_call_logs_callId_key" ON llm_call_logs ("callId")',
        ),
        (KEYS, "ALTER TABLE market_outcomes DROP CONSTRAINT market_outcomes_pkey"),
        (
            KEYS,
            'ALTER TABLE reward_judgments DROP CONSTRAINT "reward_judgments_trajectoryId_fkey", '
            'ADD CONSTRAINT "reward_judgments_trajectoryId_fkey" FOREIGN KEY ("trajectoryId") REFERENCES trajectories ("trajectoryId") '
            "ON UPDATE CASCADE ON DELETE SET NULL",
        ),
        (KEYS, "ALTER TABLE trajectories ADD CHECK (id <> '')"),
    ],
)
def test_the_comparison_of_tables_sees_every_kind_of_difference(database: Database, query: str, change: str) -> None:
    names = TABLES + [f'"{name}"' for name in TABLES]
    before = rows(database, query, names)
    run(database, change)
    assert rows(database, query, names) != before


def test_tables_made_on_an_empty_database_have_neither_triggers_nor_rules_nor_other_rights(database: Database) -> None:
    with database.connect() as connection:
        found = connection.execute(
            "SELECT relname, relhasrules, relrowsecurity, relacl::text, reloptions, relpersistence, "
            "(SELECT count(*) FROM pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal) "
            "FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY 1"
        ).fetchall()
    assert [name for name, *_ in found] == sorted(TABLES)
    assert {tuple(rest) for _, *rest in found} == {(False, False, None, None, "p", 0)}


def test_empty_database_reports_what_was_created_and_the_second_run_nothing(empty_database: Database) -> None:
    planned = migrate(empty_database, check_only=True)
    assert rows(empty_database, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'babylon%%'") == []
    report = migrate(empty_database)
    assert report == planned
    assert report.applied[0] == CONTRACT
    assert sorted(name for name in report.applied if name.startswith("public.")) == sorted(f'public."{name}"' for name in TABLES)
    assert (report.adopted, report.differences) == ((), ())
    again = migrate(empty_database)
    assert (again.applied, again.adopted, again.differences) == ((), (), ())


def test_records_hold_name_checksum_and_the_given_time(empty_database: Database) -> None:
    migrate(empty_database, now=datetime(2025, 10, 29, 14, 5))
    recorded = rows(empty_database, 'SELECT id, checksum, "appliedAt" FROM babylon_rl.migrations ORDER BY id')
    assert recorded == [(file.name, file.checksum, datetime(2025, 10, 29, 14, 5)) for file in read_migrations()]


@pytest.mark.slow
def test_the_games_tables_are_adopted_unchanged(raw_sample_database: Database) -> None:
    before = public_fingerprint(raw_sample_database)
    count = rows(raw_sample_database, "SELECT count(*) FROM trajectories")
    report = migrate(raw_sample_database)
    assert sorted(report.adopted) == sorted(f'public."{name}"' for name in TABLES)
    assert report.differences == ()
    assert [name for name in report.applied if name.startswith("public.")] == []
    assert public_fingerprint(raw_sample_database) == before
    assert rows(raw_sample_database, "SELECT count(*) FROM trajectories") == count


def test_tables_that_are_absent_are_made_beside_those_that_exist(raw_sample_database: Database) -> None:
    run(raw_sample_database, 'DROP TABLE reward_judgments, "WorldEvent" CASCADE')
    report = migrate(raw_sample_database)
    assert {'public."reward_judgments"', 'public."WorldEvent"'} == {name for name in report.applied if name.startswith("public.")}
    assert len(report.adopted) == len(TABLES) - 2


def test_every_difference_is_one_line_and_changes_nothing(raw_sample_database: Database) -> None:
    run(
        raw_sample_database,
        """
        ALTER TABLE trained_models DROP COLUMN accuracy;
        ALTER TABLE trajectories ALTER "totalReward" TYPE real, ALTER "finalStatus" DROP NOT NULL;
        ALTER TABLE trajectories ADD COLUMN region text NOT NULL DEFAULT '';
        ALTER TABLE trajectories ALTER region DROP DEFAULT;
        ALTER TABLE "User" ALTER "createdAt" DROP DEFAULT;
        DROP INDEX "llm_call_logs_callId_key";
        """,
    )
    before = public_fingerprint(raw_sample_database)
    assert migrate(raw_sample_database).differences == (
        'public."User"."createdAt" has no default; the contract has CURRENT_TIMESTAMP.',
        'public."llm_call_logs" has no unique key on ("callId"), as the contract has.',
        'public."trained_models"."accuracy" is missing; the contract has it as double precision.',
        'public."trajectories"."totalReward" is real; the contract has double precision.',
        'public."trajectories"."finalStatus" is nullable; the contract has it not null.',
        'public."trajectories"."region" is not in the contract and is required without a default: '
        "rows that are written here would be refused.",
    )
    assert public_fingerprint(raw_sample_database) == before


def by_psql(database: Database, file: Path) -> subprocess.CompletedProcess[str]:
    command = [Cluster(Path()).programs / "psql", "-q", "-X", "-f", file, database.url]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_psql_applies_the_files_in_order_and_migrate_goes_on_behind_them(database: Database, empty_database: Database) -> None:
    files = sorted(MIGRATIONS.glob("*.sql"))
    for file in files[:-1]:
        done = by_psql(empty_database, file)
        assert (done.returncode, done.stderr) == (0, ""), file
    assert migrate(empty_database).applied == (files[-1].stem,)
    assert by_psql(empty_database, files[3]).returncode != 0
    made = [
        rows(one, "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = ANY (%s) ORDER BY 1, 2",
             ["public", "babylon_rl"])
        for one in (database, empty_database)
    ]  # fmt: skip
    assert made[0] == made[1]
    recorded = rows(empty_database, "SELECT id FROM babylon_rl.migrations ORDER BY id")
    assert recorded == [(file.name,) for file in read_migrations()]


def test_a_file_that_does_not_fit_leaves_nothing_by_psql_either(empty_database: Database) -> None:
    done = by_psql(empty_database, MIGRATIONS / "0007_hour_quality.sql")
    assert done.returncode != 0 and "does not exist" in done.stderr
    assert rows(empty_database, "SELECT to_regnamespace('babylon_rl')::text") == [(None,)]


def test_every_migration_names_itself_to_psql_and_keeps_the_checksum_it_had() -> None:
    for file in MIGRATIONS.glob("*.sql"):
        lines = file.read_text().splitlines()
        assert lines[:2] == [f"\\set migration {file.stem}", "\\ir psql/begin.sql"] and lines[-1] == "\\ir psql/end.sql"
    # As it was recorded before there were lines for psql: databases of earlier versions go on.
    assert read_migrations()[0].checksum == "1039a22896648108c2394c8b91af10a3690125ccaeeb7f1b53a540279c5164fa"


def test_two_who_migrate_at_once_apply_each_step_once(empty_database: Database) -> None:
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(lambda _: migrate(empty_database), range(4)))
    applied = [name for report in reports for name in report.applied if not name.startswith("public.")]
    assert sorted(applied) == [file.name for file in read_migrations()]


def test_step_that_fails_leaves_nothing_of_itself(empty_database: Database, tmp_path: Path) -> None:
    for file in read_migrations()[:1]:
        (tmp_path / f"{file.name}.sql").write_text(file.sql)
    (tmp_path / "0002_bad.sql").write_text('CREATE TABLE babylon_rl.one (id TEXT); CREATE TABLE "trajectories" (id TEXT);')
    with pytest.raises(SchemaMismatch, match='0002_bad does not fit.*"trajectories" already exists.*Nothing of it was applied'):
        migrate(empty_database, directory=tmp_path)
    assert rows(empty_database, "SELECT to_regclass('babylon_rl.one')::text") == [(None,)]
    assert rows(empty_database, "SELECT id FROM babylon_rl.migrations") == [(CONTRACT,)]


def test_migration_that_was_edited_is_named(database: Database) -> None:
    run(database, f"UPDATE babylon_rl.migrations SET checksum = 'other' WHERE id = '{CONTRACT}'")
    with pytest.raises(SchemaMismatch, match=f"{CONTRACT} was changed after it was applied"):
        migrate(database, check_only=True)


def test_database_of_a_newer_version_is_refused(database: Database, settings: Settings) -> None:
    run(database, "INSERT INTO babylon_rl.migrations VALUES ('9999_future', 'x', '2030-01-01')")
    with pytest.raises(SchemaMismatch, match="9999_future, which this version"):
        migrate(database)
    opened = settings.model_copy(update={"database_url": SecretStr(database.url)})
    with pytest.raises(SchemaMismatch, match="9999_future, which this version.*Update the code"), open_database(opened):
        pass
    with open_database(opened, prepare=False):  # commands that only look, and the backup before an update
        pass


def test_gap_in_the_records_is_half_migrated(empty_database: Database, tmp_path: Path) -> None:
    (tmp_path / f"{CONTRACT}.sql").write_text(read_migrations()[0].sql)
    (tmp_path / "0003_b.sql").write_text("SELECT 1;")
    migrate(empty_database, directory=tmp_path)
    (tmp_path / "0002_a.sql").write_text("SELECT 1;")
    with pytest.raises(SchemaMismatch, match="half migrated: 0003_b is recorded, 0002_a before it is not"):
        migrate(empty_database, directory=tmp_path)


def test_recorded_table_that_is_gone_is_half_migrated(database: Database) -> None:
    run(database, "DROP TABLE market_outcomes")
    with pytest.raises(SchemaMismatch, match='half migrated: public."market_outcomes" is recorded as made and not there'):
        migrate(database)


def test_table_of_ours_that_is_gone_is_half_migrated(empty_database: Database, tmp_path: Path) -> None:
    (tmp_path / f"{CONTRACT}.sql").write_text(read_migrations()[0].sql)
    (tmp_path / "0002_a.sql").write_text("CREATE TABLE babylon_rl.ours (id TEXT PRIMARY KEY);")
    migrate(empty_database, directory=tmp_path)
    run(empty_database, "DROP TABLE babylon_rl.ours")
    with pytest.raises(SchemaMismatch, match="babylon_rl.ours is recorded as made"):
        migrate(empty_database, directory=tmp_path)


def test_a_role_that_owns_its_schema_needs_no_right_to_make_schemas(raw_sample_database: Database) -> None:
    run(raw_sample_database, "CREATE ROLE owner_of_ours LOGIN PASSWORD 'x'; CREATE SCHEMA babylon_rl AUTHORIZATION owner_of_ours")
    try:
        user = raw_sample_database.url.split("//")[1].split("@")[0]
        url = raw_sample_database.url.replace(user, "owner_of_ours:x")
        assert len(migrate(Database(url, url)).adopted) == len(TABLES)
    finally:
        run(raw_sample_database, "DROP OWNED BY owner_of_ours CASCADE; DROP ROLE owner_of_ours")


def test_role_without_privileges_is_told_what_to_grant(empty_database: Database, copy_of: Callable[[str], Database]) -> None:
    run(empty_database, "CREATE ROLE reader LOGIN PASSWORD 'x'")
    try:
        url = empty_database.url.replace(empty_database.url.split("//")[1].split("@")[0], "reader:x")
        with pytest.raises(DatabaseError, match="lacks a privilege.*Grant CREATE"):
            migrate(Database(url, url))
    finally:
        run(empty_database, "DROP ROLE reader")


def test_require_migrated_names_the_command(empty_database: Database, database: Database) -> None:
    require_migrated(database)
    with pytest.raises(SchemaMismatch, match="Run `babylon-rl migrate`"):
        require_migrated(empty_database)


def test_migrations_are_found_from_any_directory(tmp_path: Path) -> None:
    code = "from babylon_rl.store.migrate import read_migrations; print(len(read_migrations()))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(list(MIGRATIONS.glob("*.sql")))


def test_incomplete_clone_is_a_sentence(database: Database, tmp_path: Path) -> None:
    with pytest.raises(SchemaMismatch, match="whole clone"):
        migrate(database, directory=tmp_path)


def test_sample_database_is_the_whole_game(sample_database: Database, early_sample_database: Database) -> None:
    assert rows(sample_database, "SELECT count(*) FROM trajectories") == [(742,)]
    assert rows(early_sample_database, "SELECT count(*) < 742 FROM trajectories") == [(True,)]
    with pytest.raises(psycopg.errors.UniqueViolation):
        run(sample_database, "INSERT INTO trajectories SELECT * FROM trajectories LIMIT 1")
