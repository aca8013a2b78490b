"""Which checkpoints stay: rules on rows, then real directories; rows stay, and what is not ours is not touched."""

import os
from dataclasses import replace
from datetime import UTC, timedelta
from pathlib import Path

import pytest

from babylon_rl.errors import CheckpointError
from babylon_rl.models.checkpoints import publish
from babylon_rl.store.registry import note_upload, parent_of_line, read_models
from babylon_rl.training.backends.dry import DryTrainer
from babylon_rl.training.batches import prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl.training.publishing import parent_checkpoint, prunable, prune
from babylon_rl_tests.tiny_model import make_manifest
from babylon_rl_tests.training.sample import NOW, make_model
from babylon_rl_tests.training.test_upload import make_checkpoint


def versions(models) -> list[str]:
    return [model.version for model in models]


def test_of_each_line_the_newest_the_best_the_deployed_and_those_in_use_stay() -> None:
    line = [make_model(f"v1.0.{number}") for number in (8, 7, 6, 5, 4, 3, 2, 1, 0)]
    line[2] = replace(line[2], status="failed")  # counts for nothing
    line[4] = replace(line[4], status="deployed")
    line[5] = replace(line[5], benchmark_score=3.0)
    line[6] = replace(line[6], benchmark_score=-1.0)
    other = [make_model("v0.9.0", base_model="other"), make_model("v0.8.0", foreign=True)]
    assert versions(prunable([*line, *other], kept=3, in_use=frozenset({"v1.0.1"}))) == ["v1.0.6", "v1.0.2", "v1.0.0"]
    assert versions(prunable([*line, *other], kept=9)) == ["v1.0.6"]  # nothing continues from a version that failed
    gone = replace(line[8], pruned_at=NOW)
    assert versions(prunable([*line[:8], gone], kept=3)) == ["v1.0.6", "v1.0.2", "v1.0.1"]


def test_a_failed_version_is_not_the_best_whatever_its_score() -> None:
    line = [make_model(f"v1.0.{number}") for number in (3, 2, 1, 0)]
    line[1] = replace(line[1], status="failed", benchmark_score=9.0)  # refused for a collapse that pays on the benchmark, say
    line[2] = replace(line[2], benchmark_score=3.0)
    assert versions(prunable(line, kept=1)) == ["v1.0.2", "v1.0.0"]


@pytest.fixture
def trained_twice(connection, settings):
    """Two versions of the dry line, the second continuing from the first."""
    for most in (60, None):
        batch = freeze(connection, settings, NOW, max_trajectories=most).batch
        prepare_batch(connection, batch.batch_id, settings, NOW)
        train_batch(connection, batch.batch_id, settings, NOW)
    return [model for model in read_models(connection) if not model.foreign]


def test_a_version_is_said_to_be_pruned_and_then_its_directory_goes(connection, settings, trained_twice) -> None:
    second, first = trained_twice
    checkpoints = settings.home / "checkpoints"
    few = settings.model_copy(update={"checkpoints_kept": 1})
    foreign = checkpoints / "v1.0.9"  # a foreign row has this version, and somebody's files lie there
    foreign.mkdir()
    assert prune(connection, few.model_copy(update={"rl_model_version": first.version}), checkpoints, NOW).versions == []
    assert prune(connection, few, checkpoints, NOW + timedelta(hours=1)).versions == [first.version]
    assert {path.name for path in checkpoints.iterdir()} == {".work", second.version, "v1.0.9"}
    row = next(model for model in read_models(connection) if model.version == first.version)
    assert (row.shown_status, row.pruned_at, row.windows) == ("archived (pruned)", NOW + timedelta(hours=1), first.windows)
    assert prune(connection, few, checkpoints, NOW).versions == []
    with pytest.raises(CheckpointError, match=r"was pruned on 2025-10-30.*mark v1\.0\.11 as failed"):
        parent_checkpoint(row, settings)
    assert parent_of_line(connection, "dry").version == second.version


def test_a_deletion_that_was_broken_off_ends_with_the_next_one(connection, settings, trained_twice) -> None:
    second, first = trained_twice
    checkpoints = settings.home / "checkpoints"
    connection.execute('UPDATE babylon_rl.model_lineage SET "prunedAt" = %s WHERE "version" = %s', [NOW, first.version])
    connection.commit()
    (checkpoints / ".pruned-v1.0.3").mkdir()
    assert prune(connection, settings, checkpoints, NOW).versions == []
    assert {path.name for path in checkpoints.iterdir()} == {".work", second.version}


def test_another_checkpoint_of_a_registered_batch_goes_where_the_registered_one_is_at_a_storage(
    connection, settings, trained_twice, tmp_path: Path
) -> None:
    second, first = trained_twice
    checkpoints = settings.home / "checkpoints"
    own = checkpoints / second.version
    own.rename(tmp_path / "registered")
    make_checkpoint(tmp_path / "made", own, batch_id=second.training_batch)
    size = sum(path.stat().st_size for path in own.iterdir())
    assert prune(connection, settings, checkpoints, NOW).removal.files == 0  # it could be the only one, with a damaged manifest
    note_upload(connection, second.training_batch, f"file://{tmp_path}/there/{second.version}", NOW)
    connection.commit()
    assert prune(connection, settings, checkpoints, NOW, dry_run=True).removal.bytes == size and own.is_dir()
    assert prune(connection, settings, checkpoints, NOW).removal.bytes == size
    assert {path.name for path in checkpoints.iterdir() if path.is_dir()} == {".work", first.version}
    (tmp_path / "registered").rename(own)
    assert prune(connection, settings, checkpoints, NOW).removal.files == 0 and own.is_dir()


def test_what_a_killed_import_left_goes_after_a_day(connection, settings) -> None:
    checkpoints = settings.home / "checkpoints"
    for name, hours in ((".upload-killed", 25), (".upload-under-way", 1)):
        (checkpoints / name / "checkpoint").mkdir(parents=True)
        (checkpoints / name / "checkpoint" / "adapter_model.safetensors").write_bytes(b"weights")
        written = (NOW - timedelta(hours=hours)).replace(tzinfo=UTC).timestamp()
        os.utime(checkpoints / name, (written, written))
    assert prune(connection, settings, checkpoints, NOW).removal.bytes == len(b"weights")
    assert [path.name for path in checkpoints.iterdir()] == [".upload-under-way"]


def test_a_pruned_version_that_was_restored_and_deployed_stays(connection, settings, trained_twice) -> None:
    first = trained_twice[1]
    checkpoints = settings.home / "checkpoints"
    connection.execute('UPDATE babylon_rl.model_lineage SET "prunedAt" = %s WHERE "version" = %s', [NOW, first.version])
    connection.execute("UPDATE trained_models SET status = 'deployed' WHERE version = %s", [first.version])
    connection.commit()
    assert prune(connection, settings, checkpoints, NOW).versions == []
    assert (checkpoints / first.version).is_dir()


def test_a_directory_that_says_it_is_another_batchs_is_not_deleted(connection, settings, trained_twice, tmp_path: Path) -> None:
    first = trained_twice[1]
    directory = Path(first.checkpoint)
    (tmp_path / "made").mkdir()
    from babylon_rl.training.backends.dry import _write_adapter

    _write_adapter(tmp_path / "made", "dry", bytes(range(32)))
    directory.rename(tmp_path / "away")
    publish(tmp_path / "made", directory, make_manifest(DryTrainer().base_identity(), version=first.version, batch_id="batch-1"))
    assert prune(connection, settings.model_copy(update={"checkpoints_kept": 1}), directory.parent, NOW).versions == []
    assert directory.is_dir()
    assert next(model for model in read_models(connection) if model.version == first.version).pruned_at is None
