"""Cleanup of checkpoints, caches, transcripts, the gateway's files and rows, and logs of runs.

One function for `babylon-rl cleanup` and the job `cleanup`. Records stay: rows of versions and batches, materializations, and everything
about the deployed version, the versions in use and their ancestors. Calls that wait in the spool are in no database yet and stay.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg

from babylon_rl.assets.resources import Babylon
from babylon_rl.files.durable import Removal
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.dagster_rows import delete_logs, ended_runs
from babylon_rl.store.live_usage import forget_calls
from babylon_rl.store.releases import read_rollouts, read_tests
from babylon_rl.store.scores import forget_transcripts
from babylon_rl.training.publishing import batches_on_record, prune

# What these caches hold comes from a registry or a hub, and may be needed where there is none.
_KEPT_CACHES = ("wheels", "huggingface")


@dataclass(frozen=True)
class CleanedPart:
    """One kind of removed data: number and unit, bytes of files, refusals."""

    name: str
    count: int
    unit: str
    bytes: int | None = None
    refused: tuple[str, ...] = ()


def clean_up(connection: Connection, settings: Settings, now: datetime, *, dry_run: bool = False) -> Iterator[CleanedPart]:
    """Remove files and rows older than RETENTION_DAYS, and checkpoints beyond those that are kept.

    Yield each part when it is done. A path that cannot be removed is named in its part, and the rest goes on. ``dry_run`` changes nothing
    and says what would go.

    Args:
        connection: in autocommit mode.
        now: naive UTC.
    """
    before = now - timedelta(days=settings.retention_days)
    seconds = before.replace(tzinfo=UTC).timestamp()
    pruned = prune(connection, settings, settings.home / "checkpoints", now, dry_run=dry_run)
    yield CleanedPart("checkpoints", len(pruned.versions), "versions", pruned.removal.bytes, tuple(pruned.removal.refused))

    caches = Removal(dry_run)
    cache = settings.home / "cache"
    directories = [path for path in sorted(cache.iterdir() if cache.is_dir() else ()) if path.is_dir() and not path.is_symlink()]
    for directory in [*(path for path in directories if path.name not in _KEPT_CACHES), settings.home / "tmp"]:
        caches.unused(directory, seconds)
    yield _files("caches", caches)

    yield CleanedPart("transcripts", forget_transcripts(connection, before, dry_run=dry_run), "quarantined groups")

    rejected = Removal(dry_run)
    rejects = settings.home / "gateway" / "rejected.calls.json"
    # By its last write: the file goes whole, so none of its calls may be younger.
    if rejects.exists() and rejects.stat().st_mtime < seconds:
        rejected.file(rejects)
    yield _files("rejected calls", rejected)
    # Not those that a rollout or an A/B test still counts.
    begun = [test.started_at for test in read_tests(connection) if test.state == "running"]
    begun += [rollout.created_at for rollout in read_rollouts(connection, ("rolling", "paused"))]
    yield CleanedPart("gateway calls", forget_calls(connection, min([before, *begun]), dry_run=dry_run), "rows")

    # Runs of batches on record stay whole; of the others only what lies between the records goes (docs/decisions/0019).
    runs = ended_runs(connection, before, batches_on_record(connection, settings))
    yield CleanedPart("run logs", delete_logs(connection, runs, dry_run=dry_run), "events")
    outputs = Removal(dry_run)
    for run_id in runs:
        outputs.tree(settings.home / "dagster" / "storage" / run_id)
    yield _files("run output", outputs)


def _files(name: str, removal: Removal) -> CleanedPart:
    return CleanedPart(name, removal.files, "files", removal.bytes, tuple(removal.refused))


@dg.op(name="remove_old", description="Removes what is older than RETENTION_DAYS; fails when something cannot be removed, after the rest.")
def cleanup_op(context: dg.OpExecutionContext, babylon: dg.ResourceParam[Babylon]) -> None:
    refused: list[str] = []
    with babylon.connection() as connection:
        for part in clean_up(connection, babylon.settings, babylon.now()):
            context.log.info(f"{part.name}: {part.count} {part.unit}")
            refused += part.refused
    if refused:
        raise dg.Failure(" ".join([*refused, ADVICE]), allow_retries=False)


ADVICE = "Everything else was removed. Look at the disk, or at who owns the files, then run `babylon-rl cleanup` again."


@dg.job(name="cleanup", description="Remove what is older than RETENTION_DAYS; `babylon-rl cleanup --dry-run` says what that is.")
def cleanup_job() -> None:
    cleanup_op()
