"""Command group `batches`: trainings and their lineage."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from babylon_rl.cli.output import JsonOption, emit, say, table
from babylon_rl.errors import UsageError
from babylon_rl.settings import load_settings
from babylon_rl.windows import utc_now

if TYPE_CHECKING:
    from babylon_rl.store.batches import Batch
    from babylon_rl.store.write_ahead import RemoteJob

batches = typer.Typer(help="Training jobs: list, show, cancel, give up what never ends.", invoke_without_command=True)
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="A batch id, such as batch-1761825600000.")]


def register(app: typer.Typer) -> None:
    """Add the group to ``app``."""
    app.add_typer(batches, name="batches")


@batches.callback()
def list_batches(context: typer.Context, as_json: JsonOption = False) -> None:
    """Training jobs, newest first; those of other producers are shown as foreign."""
    if context.invoked_subcommand is not None:
        return
    from babylon_rl.store.batches import read_batches, read_foreign_batches
    from babylon_rl.store.database import open_database

    with open_database(load_settings(), prepare=False) as database, database.connect() as connection:
        ours, foreign = read_batches(connection), read_foreign_batches(connection)
    documents = [batch_document(batch) for batch in ours]
    times = ("createdAt", "completedAt")
    documents += [row | {name: moment(row[name]) for name in times} | {"foreign": True} for row in foreign]
    columns = ["batch", "status", "version", "base", "trajectories", "created", "error"]
    rows = [
        [d["batchId"], d["status"] + (" (foreign)" if d["foreign"] else ""), d["modelVersion"], d["baseModel"], d.get("trajectories"),
         d["createdAt"], d["error"]]
        for d in documents
    ]  # fmt: skip
    if not rows:
        say("No model has been trained yet. `babylon-rl train` freezes a batch and trains on it.")
    emit({"batches": documents}, lambda out: out.print(table(None, columns, rows)), as_json)


@batches.command("show")
def show_batch(batch_id: IdArgument, as_json: JsonOption = False) -> None:
    """One batch: its episodes with scores and advantages, its iterations, and its jobs at a training service."""
    from babylon_rl.store.batches import read_batch, read_batch_episodes
    from babylon_rl.store.database import open_database
    from babylon_rl.store.write_ahead import read_jobs, read_steps

    with open_database(load_settings(), prepare=False) as database, database.connect() as connection:
        batch = _found(read_batch(connection, batch_id), batch_id)
        episodes, steps = read_batch_episodes(connection, batch_id), read_steps(connection, batch_id)
        jobs = read_jobs(connection, batch_id)
    document = batch_document(batch) | {
        "preflight": None if batch.preflight is None else dict(batch.preflight),
        "episodes": [
            {"window": e.window, "agentId": e.agent_id, "trajectoryIds": list(e.trajectory_ids), "score": e.score, "rank": e.rank,
             "advantage": e.advantage, "sequences": e.sequences, "dropped": e.dropped, "contribution": e.contributes,
             "trainedTrajectoryIds": None if e.trained_ids is None else list(e.trained_ids)}
            for e in episodes
        ],
        "iterations": [
            {"step": s.iteration, "attempt": s.attempt, "loss": s.loss, "trainableTokens": s.trainable_tokens, "windows": list(s.windows),
             "startedAt": moment(s.started_at), "finishedAt": moment(s.finished_at), "checkpoint": s.checkpoint}
            for s in steps
        ],
        "remoteJobs": [_job_document(job) for job in jobs],
    }  # fmt: skip

    def render(out: Any) -> None:
        # Four tables: the batch, its episodes, its iterations, and its jobs if there are any.
        facts = [[name, document[name]] for name in ("batchId", "status", "modelVersion", "parent", "baseModel", "trajectories", "error")]
        out.print(table(None, ["", ""], facts))
        scored = [
            [e.window, e.agent_id, rounded(e.score), e.rank, rounded(e.advantage), e.sequences, e.contributes, e.dropped] for e in episodes
        ]
        columns = ["window", "agent", "score", "rank", "advantage", "sequences", "contributes", "left out"]
        out.print(table("Episodes", columns, scored))
        done = [[s.iteration, s.attempt, rounded(s.loss), s.trainable_tokens, s.checkpoint] for s in steps]
        out.print(table("Iterations", ["step", "run", "loss", "tokens", "checkpoint"], done))
        if jobs:
            posted = [[j.iteration, j.attempt, j.state, j.job_id, j.step_before, j.step_after, j.error] for j in jobs]
            out.print(table("Jobs at the training service", ["step", "post", "state", "job", "from", "to", "error"], posted))

    emit(document, render, as_json)


@batches.command("cancel")
def cancel(
    batch_id: IdArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is stored with the batch.")],
    as_json: JsonOption = False,
) -> None:
    """Fail a batch that has not ended; its trajectories are free again."""
    from babylon_rl.store.batches import read_batch
    from babylon_rl.store.database import open_database
    from babylon_rl.training.batches import cancel_batch

    with open_database(load_settings(), prepare=False) as database, database.connect() as connection:
        _found(read_batch(connection, batch_id), batch_id)
        batch = cancel_batch(connection, batch_id, reason, utc_now())
    emit(batch_document(batch), lambda out: out.print(f"{batch.batch_id} is failed: {batch.error}", markup=False), as_json)


@batches.command("give-up-job")
def give_up(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="A job at the training service, as `batches show` lists it.")],
    reason: Annotated[str, typer.Option("--reason", help="Why it never will end; it is stored with the job.")],
) -> None:
    """Count a job at the training service as over that never will end; until then nothing else is posted to its model."""
    from babylon_rl.store.database import open_database
    from babylon_rl.store.write_ahead import give_up_job

    with open_database(load_settings(), prepare=False) as database, database.connect() as connection:
        if not give_up_job(connection, job_id, reason, utc_now()):
            raise UsageError(f"No job {job_id} is running. `babylon-rl batches show ID` lists a batch's jobs.")
    say(f"{job_id} counts as over. Its batch fails with its next run, and a new one may be posted; a step that it still makes is not used.")


def _job_document(job: "RemoteJob") -> dict[str, Any]:
    return {
        "step": job.iteration,
        "attempt": job.attempt,
        "service": job.service,
        "model": job.model,
        "state": job.state,
        "jobId": job.job_id,
        "stepBefore": job.step_before,
        "stepAfter": job.step_after,
        "postedAt": moment(job.posted_at),
        "endedAt": moment(job.ended_at),
        "discardedAt": moment(job.discarded_at),
        "sequences": job.sequences,
        "trainableTokens": job.trainable_tokens,
        "loss": job.loss,
        "estimatedUsd": job.estimated_usd,
        "error": job.error,
    }


def batch_document(batch: "Batch") -> dict[str, Any]:
    """A batch of this pipeline as a JSON-ready dict, keyed by column names."""
    return {
        "batchId": batch.batch_id,
        "status": batch.state,
        "modelVersion": batch.version,
        "parent": batch.parent_version,
        "baseModel": batch.base_model,
        "backend": batch.backend,
        "trajectories": batch.trajectories,
        "windows": list(batch.windows),
        "trainingLoss": batch.loss,
        "seed": batch.seed,
        "attempt": batch.attempt,
        "dropout": dict(batch.dropout),
        "createdAt": moment(batch.created_at),
        "startedAt": moment(batch.started_at),
        "completedAt": moment(batch.completed_at),
        "heartbeatAt": moment(batch.heartbeat_at),
        "error": batch.error,
        "foreign": False,
    }


def _found(batch: "Batch | None", batch_id: str) -> "Batch":
    if batch is None:
        raise UsageError(f"There is no batch {batch_id} of this pipeline; `babylon-rl batches` lists them.")
    return batch


def moment(at: datetime | None) -> str | None:
    """A time as JSON shows it."""
    return None if at is None else at.isoformat(timespec="milliseconds") + "Z"


def rounded(number: float | None) -> float | None:
    """A number as tables show it."""
    return None if number is None else round(number, 4)
