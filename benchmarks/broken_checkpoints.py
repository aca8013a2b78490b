"""Does the gate refuse what is broken? `python -m benchmarks.broken_checkpoints --better DIR [--out docs]` writes gate.md and its picture.

Real checkpoints of the packaged model are made that always hold, always buy, or have random weights, and registered, benchmarked and
judged as a trained version is; so is DIR, a checkpoint that is better (or a state directory, then its newest version). State and
embedded database are of their own, `broken-checkpoints` in BABYLON_RL_HOME; what is there is not made or played again.
"""

import argparse
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from babylon_rl.errors import CheckpointError
from babylon_rl.evaluation.benchmark import evaluate_batch, record_release
from babylon_rl.files.durable import sha256
from babylon_rl.market.simulation.games import TRADER_V1
from babylon_rl.models.base_model import base_model_dir, base_model_name
from babylon_rl.models.checkpoints import ADAPTER_CONFIG, MANIFEST, WEIGHTS, Manifest, base_identity, load_manifest, publish, verify
from babylon_rl.models.server_process import Serving, running_server
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.batches import advance_batch, claim_batch
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import open_database
from babylon_rl.store.freezing import NewBatch, insert_batch
from babylon_rl.store.migrate import migrate
from babylon_rl.store.registry import NewModel, model_of_batch, next_version, register_model, version_order
from babylon_rl.training.lifecycle import PREPARE, PUBLISH, REGISTER, TRAIN
from babylon_rl.types import BenchmarkReport
from babylon_rl.windows import utc_now
from benchmarks.broken_adapters import BROKEN, make_adapter

THREADS = 1
BETTER = "better"
PICTURE = "../images/gate.png"
_DEPLOY = 'UPDATE public.trained_models SET status = %s, "deployedAt" = %s WHERE version = %s'
_NOBODY = "UPDATE public.trained_models SET status = 'ready', \"deployedAt\" = NULL"


@dataclass(frozen=True)
class Judged:
    """A checkpoint by what it is, and what the gate found of it."""

    name: str
    words: str
    report: BenchmarkReport

    @property
    def row(self) -> dict[str, Any]:
        """Its line of the report."""
        return next(row for row in self.report.rows if row["model"] == self.report.version)


@contextmanager
def served(settings: Settings, adapters: Mapping[str, Path]) -> Iterator[str]:
    """As market/model_endpoints.served_here, with one thread: this need not be quick."""
    with running_server(base_model_dir(settings), dict(adapters), threads=THREADS) as server:
        yield server.url


def register(connection: Connection, settings: Settings, name: str, adapter: Path, now: datetime) -> str:
    """Publish an adapter that peft saved and register it as the version of a batch of its own, as training does; returns the batch's id.

    A batch that has registered one stays as it is.

    Raises:
        CheckpointError: ``adapter`` is no adapter, or a damaged checkpoint or one of another base.
    """
    batch_id = f"batch-{name}"
    if model_of_batch(connection, batch_id) is not None:
        return batch_id
    base_dir = base_model_dir(settings)
    base = base_identity(base_dir, base_model_name(settings))
    if (adapter / MANIFEST).is_file():
        verify(adapter, base_dir)
    version = next_version(connection)
    final, staging = settings.home / "checkpoints" / version, settings.home / "checkpoints" / f".{name}"
    for directory in (final, staging):  # of a run that was interrupted: no row points to it
        shutil.rmtree(directory, ignore_errors=True)
    staging.mkdir(parents=True)
    for file in (ADAPTER_CONFIG, WEIGHTS):
        if not (adapter / file).is_file():
            raise CheckpointError(f"{adapter} has no {file}: it is not an adapter that peft saved.")
        shutil.copy(adapter / file, staging / file)
    stamp = now.isoformat(timespec="milliseconds") + "Z"
    publish(staging, final, Manifest(version=version, base=base, created_at=stamp, batch_id=batch_id, prompt_version=TRADER_V1))
    insert_batch(connection, NewBatch(batch_id, base.name, "cpu", None, version, 0, {}, {}, now, []))
    attempt = claim_batch(connection, batch_id, now) or 0
    for transition in (PREPARE, TRAIN, PUBLISH):
        advance_batch(connection, batch_id, attempt, transition, now)
    new = NewModel(
        batch_id=batch_id, attempt=attempt, version=version, parent_version=None, base_model=base.name,
        backend="cpu", checkpoint=str(final), storage_path=str(final), manifest_sha=sha256(final / MANIFEST), episodes=[], loss=0.0,
        metrics={}, now=now,
    )  # fmt: skip
    register_model(connection, new, REGISTER)
    connection.commit()
    return batch_id


def judge(
    connection: Connection, settings: Settings, batch_id: str, say: Callable[[str], Any], serving: Serving = served
) -> BenchmarkReport:
    """Benchmark a batch's version, decide and record the decision."""
    report = evaluate_batch(connection, batch_id, settings, say, serving=serving)
    record_release(connection, batch_id, utc_now())
    connection.commit()
    return report


def checkpoint_of(given: Path) -> Path:
    """The adapter directory itself, or the newest version's of a state directory.

    Raises:
        CheckpointError: it is neither.
    """
    if (given / WEIGHTS).is_file():
        return given
    versions = [path for path in given.glob("checkpoints/v*") if (path / WEIGHTS).is_file()]
    if not versions:
        raise CheckpointError(f"{given} is no adapter directory, and holds no checkpoints/v*: give one made by `babylon-rl demo`.")
    return max(versions, key=lambda path: version_order(path.name) or (-1, -1, -1))


def prepared(settings: Settings) -> Settings:
    """The same, at home in a directory of its own with an embedded database; the base model is the one that is there."""
    base = base_model_dir(settings)
    home = settings.home / "broken-checkpoints"
    (home / "models").mkdir(parents=True, exist_ok=True)
    if settings.local_base_model is None and not (home / "models" / base.name).exists():
        (home / "models" / base.name).symlink_to(base, target_is_directory=True)
    return settings.model_copy(update={"babylon_rl_home": home, "database_url": None, "direct_database_url": None})


def entered(connection: Connection, settings: Settings, better: Path, say: Callable[[str], Any]) -> dict[str, tuple[str, str]]:
    """Batch ids and words by name: the better one, then what is broken, made where it is missing."""
    made = load_manifest(better).trainer if (better / MANIFEST).is_file() else {}
    words = f"{better.name} of a training with seed {made['seed']}" if "seed" in made else f"the adapter {better.name}"
    batch_id = register(connection, settings, f"{BETTER}-{sha256(better / WEIGHTS)[:8]}", better, utc_now())
    found = {BETTER: (batch_id, words)}
    for recipe in BROKEN:
        adapter = settings.home / "adapters" / recipe.name
        if not (adapter / WEIGHTS).is_file():
            say(f"{recipe.name}: {recipe.words}")
            make_adapter(recipe, base_model_dir(settings), adapter, THREADS)
        found[recipe.name] = register(connection, settings, recipe.name, adapter, utc_now()), recipe.words
    return found


def both_rounds(connection: Connection, settings: Settings, better: Path, say: Callable[[str], Any]) -> tuple[list[Judged], list[Judged]]:
    """Everybody judged with the base as the reference, the better one first; then, where that passed, the others with it deployed."""
    batches = entered(connection, settings, better, say)
    connection.execute(_NOBODY)
    first = [Judged(name, words, judge(connection, settings, batch, say)) for name, (batch, words) in batches.items()]
    if first[0].report.decision != "pass":
        return first, []
    connection.execute(_DEPLOY, ["deployed", utc_now(), first[0].report.version])
    broken = [(name, *found) for name, found in batches.items() if name != BETTER]
    return first, [Judged(name, words, judge(connection, settings, batch, say)) for name, batch, words in broken]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make, judge, write and print."""
    from benchmarks.broken_checkpoints_page import page, picture

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--better", type=Path, required=True, help="an adapter directory, or a state directory with checkpoints")
    parser.add_argument("--out", type=Path, default=Path("docs/evidence"), help="where gate.md and its picture are written")
    given = parser.parse_args(arguments)
    settings = prepared(load_settings())
    with open_database(settings, prepare=False) as database:
        migrate(database)
        with database.connect() as connection:
            first, second = both_rounds(connection, settings, checkpoint_of(given.better), lambda line: print(line, flush=True))
    (given.out / PICTURE).parent.mkdir(parents=True, exist_ok=True)
    (given.out / PICTURE).write_bytes(picture(first))
    (given.out / "gate.md").write_text(page(first, second, PICTURE), encoding="utf-8")
    print(f"written to {given.out / 'gate.md'}")


if __name__ == "__main__":
    main()
