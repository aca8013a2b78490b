"""Games that go on: brought back from a backup, moved to another server, on a database and state of an earlier version."""

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from babylon_rl.automation.cleanup import clean_up
from babylon_rl.backup import backup, move_to, restore
from babylon_rl.files.durable import sha256
from babylon_rl.models.checkpoint_store import checkpoint_of
from babylon_rl.models.checkpoints import WEIGHTS, verify
from babylon_rl.serving.releases import deploy, rollback
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database, open_database
from babylon_rl.store.migrate import migrate, read_migrations
from babylon_rl.store.registry import Model, deployed_model, read_models, version_order
from babylon_rl.store.releases import ReleaseAuthor
from babylon_rl.training.backends.dry import DryTrainer
from babylon_rl.training.batches import prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.scored import score_windows
from babylon_rl_tests.store.pipeline import recorded_hours
from babylon_rl_tests.store.test_backup import at
from babylon_rl_tests.store.test_copying import contents, copied, of_version
from babylon_rl_tests.training.sample import NOW

AUTHOR = ReleaseAuthor("ada", "as she likes", NOW)
# What migrations after 0046 touch and the game's loop does not make: answers whose scores differ and do not, a benchmark's result, an
# episode that a batch dropped, scores of an hour whose rules have changed.
OF_LATER_MIGRATIONS = """
INSERT INTO babylon_rl.replayed_hours SELECT "window", 2, 4, '', 's', 'd', now() FROM babylon_rl.windows ORDER BY "window" LIMIT 1;
INSERT INTO babylon_rl.answer_groups ("window", "trajectoryId", "callId", "answers")
    SELECT "window", 't', call, given.answers::jsonb FROM babylon_rl.replayed_hours,
    (VALUES ('differ', '[["buy", 5, 1.0], ["sell", -5, 0.0]]'), ('equal', '[["buy", 0, 0.5], ["sell", 0, 0.5]]')) AS given (call, answers);
INSERT INTO babylon_rl.benchmark_results VALUES ('v1.0.0', 'i', 's', 'm', 1.5, 1, 0, 1, 1, 0, 1, 0, 0, 1, 1, '{1000, 1001.5}', now());
INSERT INTO babylon_rl.dropped_episodes SELECT '2025-10-28T14:00', 'ada', "batchId", 'dropout', now() FROM babylon_rl.batches;
UPDATE babylon_rl.group_scores SET "rulesChanged" = true, "scoredBy" = ''
    WHERE "window" = (SELECT min("window") FROM babylon_rl.group_scores);
"""
COPIED_COLUMNS = """
SELECT format('%I.%I', table_schema, table_name), string_agg(quote_ident(column_name), ', ' ORDER BY ordinal_position)
FROM information_schema.columns JOIN information_schema.tables USING (table_schema, table_name)
WHERE table_schema IN ('public', 'babylon_rl') AND table_type = 'BASE TABLE' AND is_generated = 'NEVER' AND table_name <> 'migrations'
GROUP BY table_schema, table_name
"""
SEQUENCES = "SELECT format('%I.%I', schemaname, sequencename), last_value FROM pg_sequences WHERE last_value IS NOT NULL"
TRAINED = 'SELECT "trajectoryId" FROM babylon_rl.batch_items WHERE "consumed" ORDER BY 1'


def train(connection: Connection, settings: Settings) -> Model:
    batch = freeze(connection, settings, NOW, max_trajectories=60).batch
    assert batch is not None
    prepare_batch(connection, batch.batch_id, settings, NOW)
    return train_batch(connection, batch.batch_id, settings, NOW, DryTrainer()).model


def begin(database: Database, settings: Settings) -> Model:
    """Score every hour, train the first version and deploy it."""
    with database.connect() as connection:
        score_windows(connection, recorded_hours(database), settings, NOW)
        model = train(connection, settings)
        deploy(connection, model.version, settings, AUTHOR, strategy="immediate")
        connection.commit()
        connection.execute(OF_LATER_MIGRATIONS)
    return model


def go_on(database: Database, settings: Settings, first: Model) -> None:
    """Score, train on the first version, release, roll back and clean up; what was there stays."""
    kept = sha256(settings.home / "checkpoints" / first.version / WEIGHTS)
    with database.connect() as connection:
        score_windows(connection, recorded_hours(database), settings, NOW)
        following = train(connection, settings)
        assert following.parent_version == first.version and version_order(following.version) > version_order(first.version)
        trained = connection.execute(TRAINED).fetchall()
        assert len(trained) == len(set(trained)) > 60  # no trajectory twice
        deploy(connection, following.version, settings, AUTHOR, strategy="immediate")
        assert rollback(connection, settings, AUTHOR).version == following.version
        deployed = deployed_model(read_models(connection))
        assert deployed is not None and deployed.version == first.version
    with database.connect(autocommit=True) as connection:
        parts = list(clean_up(connection, settings, NOW + timedelta(days=100)))
    assert not [refusal for part in parts for refusal in part.refused]
    assert sha256(settings.home / "checkpoints" / first.version / WEIGHTS) == kept
    assert verify(settings.home / "checkpoints" / following.version).batch_id == following.training_batch


@pytest.mark.slow
def test_a_line_that_was_brought_back_elsewhere_goes_on_from_its_checkpoint(
    read_sample: Database, settings: Settings, empty_database: Database, tmp_path: Path
) -> None:
    model = begin(read_sample, settings)
    weights = sha256(settings.home / "checkpoints" / model.version / WEIGHTS)
    made = backup(at(settings, read_sample), tmp_path / "kept.zip", NOW)
    assert (made.versions, made.left_out) == ([model.version], [])
    assert (tmp_path / "kept.zip").stat().st_mode & 0o777 == 0o600
    shutil.move(settings.home, tmp_path / "gone")  # nothing of the old place may be needed
    new = at(settings, empty_database, tmp_path / "new")
    assert restore(new, tmp_path / "kept.zip") == made
    assert contents(empty_database) == contents(read_sample) == made.tables
    with empty_database.connect() as restored:
        (same,) = (one for one in read_models(restored) if not one.foreign)
        directory = checkpoint_of(same, new)
        assert directory == new.home / "checkpoints" / model.version and sha256(directory / WEIGHTS) == weights
        assert verify(directory).batch_id == model.training_batch
    go_on(empty_database, new, model)


@pytest.mark.long
def test_a_line_whose_embedded_database_was_moved_to_a_server_goes_on(
    read_sample: Database, settings: Settings, empty_database: Database
) -> None:
    with open_database(settings) as embedded:
        copied(read_sample, embedded)
        model = begin(embedded, settings)
        before = contents(embedded)
    assert move_to(settings, empty_database.url) == contents(empty_database) == before
    go_on(empty_database, at(settings, empty_database), model)


def carried_back(database: Database, earlier: Database) -> None:
    """Copy all rows into the emptied tables of an earlier version, as far as these have columns for them."""
    with database.connect() as source, earlier.connect() as target:
        tables = dict(target.execute(COPIED_COLUMNS).fetchall())
        target.execute(f"TRUNCATE {', '.join(tables)}")
        target.execute("SET LOCAL session_replication_role = replica")  # the order of tables by their foreign keys does not count
        for table, columns in tables.items():
            with (
                source.cursor().copy(f"COPY {table} ({columns}) TO STDOUT") as rows,
                target.cursor().copy(f"COPY {table} ({columns}) FROM STDIN") as into,
            ):
                for block in rows:
                    into.write(block)
        for name, last in source.execute(SEQUENCES).fetchall():
            target.execute("SELECT setval(%s::regclass, %s)", [name, last])


@pytest.mark.slow
@pytest.mark.parametrize("behind", [1, 2, 3])
def test_a_line_on_an_earlier_version_is_upgraded_in_place_with_all_that_it_held_and_goes_on(
    read_sample: Database, raw_sample_database: Database, settings: Settings, tmp_path: Path, behind: int
) -> None:
    model = begin(read_sample, settings)
    earlier = of_version(raw_sample_database, read_migrations()[-1 - behind].name, tmp_path / "migrations")
    carried_back(read_sample, earlier)
    assert migrate(earlier).applied == tuple(file.name for file in read_migrations()[-behind:])
    today, upgraded = contents(read_sample), contents(earlier)
    assert {table for table in today | upgraded if today.get(table) != upgraded.get(table)} == {'"babylon_rl"."migrations"'}
    go_on(earlier, at(settings, earlier), model)
