"""Command group `batches`: trainings and their lineage."""

from statistics import fmean
from typing import Annotated, Any

import typer
from msgspec import to_builtins

from babylon_rl.cli.output import Column, JsonOption, Table, emit, listed, say
from babylon_rl.errors import UsageError
from babylon_rl.serving.status_shapes import BatchDocument
from babylon_rl.settings import load_settings
from babylon_rl.store.batches import Batch, read_batch, read_batch_episodes, read_batches, read_foreign_batches
from babylon_rl.store.benchmarks import read_report
from babylon_rl.store.columns import document_of
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import open_database
from babylon_rl.store.write_ahead import give_up_job, read_jobs, read_steps
from babylon_rl.training.batches import cancel_batch
from babylon_rl.training.curves import CURVES, optimizer_steps
from babylon_rl.windows import moment, utc_now

app = typer.Typer(name="batches", help="List training jobs; show, cancel or give up one.", invoke_without_command=True)
BATCHES = (
    Column("batch", "batchId"),
    Column("status", lambda row: row["status"] + (" (foreign)" if row["foreign"] else "")),
    Column("version", "modelVersion"),
    Column("base", "baseModel"),
    Column("trajectories", lambda row: row.get("trajectories")),
    Column("created", "createdAt"),
    Column("error", "error"),
)
MOST_ITERATIONS = 12  # shown of a long training, the last ones
ITERATIONS = (
    Column("step", "step"),
    Column("run", "attempt"),
    Column("loss", "loss", 4),
    Column("tokens", "trainableTokens"),
    Column("checkpoint", "checkpoint"),
)
STEPS = (
    Column("step", "step"),
    Column("iteration", "iteration"),
    *(Column(curve.short, name, curve.digits) for name, curve in CURVES.items()),
    Column("tokens", "trainableTokens"),
)
JOBS = (
    Column("step", "step"),
    Column("post", "attempt"),
    Column("state", "state"),
    Column("job", "jobId"),
    Column("from", "stepBefore"),
    Column("to", "stepAfter"),
    Column("error", "error"),
)
SHOWN_OF_JOB = (
    "attempt", "service", "model", "state", "job_id", "step_before", "step_after", "posted_at", "ended_at", "discarded_at", "sequences",
    "trainable_tokens", "loss", "estimated_usd", "error",
)  # fmt: skip
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="A batch id, such as batch-1761825600000.")]


@app.callback()
def list_batches(context: typer.Context, as_json: JsonOption = False) -> None:
    """List training jobs, newest first; those of other producers are shown as foreign."""
    # The callback runs before `batches show` and its like, too.
    if context.invoked_subcommand is not None:
        return

    with open_database(load_settings(), prepare=False) as database, database.connect() as connection:
        ours, foreign = read_batches(connection), read_foreign_batches(connection)
    documents = [batch_document(batch) for batch in ours]
    # Rows of other producers come as the table has them, with datetimes.
    times = ("createdAt", "completedAt")
    documents += [row | {name: moment(row[name]) for name in times} | {"foreign": True} for row in foreign]
    if not documents:
        say("No model has been trained yet. `babylon-rl train` freezes a batch and trains on it.")
    emit({"batches": documents}, [Table(BATCHES, documents)], as_json)


@app.command("show")
def show_batch(batch_id: IdArgument, as_json: JsonOption = False) -> None:
    """Show a batch. Loss, the judge's mean score, iterations, and jobs at a training service."""
    with open_database(load_settings(), prepare=False) as database, database.connect() as connection:
        batch = _required(connection, batch_id)
        episodes, steps = read_batch_episodes(connection, batch_id), read_steps(connection, batch_id)
        jobs, report = read_jobs(connection, batch_id), read_report(connection, batch_id)
    judged = [episode.score for episode in episodes if episode.score is not None and episode.dropped is None]
    document = batch_document(batch) | {
        "avgReward": fmean(judged) if judged else None,
        "preflight": None if batch.preflight is None else dict(batch.preflight),
        "warning": None if report is None else next((row["holdFloor"] for row in report.rows if row.get("holdFloor")), None),
        "episodes": [
            document_of(e, "window", "agent_id", "trajectory_ids", "score", "rank", "advantage", "sequences", "dropped")
            | {"contribution": e.contributes, "trainedTrajectoryIds": e.trained_ids}
            for e in episodes
        ],
        "iterations": [
            {"step": step.iteration}
            | document_of(step, "attempt", "loss", "trainable_tokens", "windows", "started_at", "finished_at", "checkpoint")
            for step in steps
        ],
        "remoteJobs": [{"step": job.iteration} | document_of(job, *SHOWN_OF_JOB) for job in jobs],
    }
    hours, left_out = len({episode.window for episode in episodes}), len(episodes) - len(judged)
    facts = {name: document[name] for name in ("batchId", "status", "modelVersion", "parent", "baseModel")}
    facts |= {
        "trainingLoss": None if batch.loss is None else f"{batch.loss:.4f}",
        "avgReward": f"{fmean(judged):.4f}, the judge's mean score of the episodes" if judged else None,
        "episodes": f"{len(episodes)} in {hours} hours, {left_out} of them left out or not judged; --json lists them",
        "trajectories": document["trajectories"],
        "warning": document["warning"],
        "error": document["error"],
    }
    shown = document["iterations"][-MOST_ITERATIONS:]
    parts = [
        listed(["", ""], list(facts.items())),
        Table(ITERATIONS, shown, "Iterations" if len(shown) == len(steps) else f"The last {len(shown)} of {len(steps)} iterations"),
        # Trainers on this machine have no jobs.
        *([Table(JOBS, document["remoteJobs"][-MOST_ITERATIONS:], "Jobs at the training service")] if jobs else []),
    ]
    emit(document, parts, as_json)


@app.command("steps")
def show_steps(batch_id: IdArgument, as_json: JsonOption = False) -> None:
    """List the optimizer steps of a batch. Loss, rewards, KL, ratio, entropy, clip share, gradient norm, learning rate and tokens."""
    with open_database(load_settings(), prepare=False) as database, database.connect() as connection:
        steps = optimizer_steps(connection, _required(connection, batch_id))
    if not steps:
        say(f"No optimizer step of {batch_id} is on record: none was taken yet, or an earlier version trained it.")
    emit({"steps": steps}, [Table(STEPS, steps)], as_json)


@app.command("cancel")
def cancel(
    batch_id: IdArgument,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is stored with the batch.")],
    as_json: JsonOption = False,
) -> None:
    """Fail a batch that has not ended. Its trajectories are free again."""
    with open_database(load_settings(), prepare=False) as database, database.connect() as connection:
        _required(connection, batch_id)
        batch = cancel_batch(connection, batch_id, reason, utc_now())
    emit(batch_document(batch), [f"{batch.batch_id} is failed: {batch.error}"], as_json)


@app.command("give-up-job")
def give_up(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="A job at the training service, as `batches show` lists it.")],
    reason: Annotated[str, typer.Option("--reason", help="Why it never will end; it is stored with the job.")],
) -> None:
    """Give up a job at the training service that will never end. Until then nothing else is posted to its model."""
    with open_database(load_settings(), prepare=False) as database, database.connect() as connection:
        if not give_up_job(connection, job_id, reason, utc_now()):
            raise UsageError(f"No job {job_id} is running. `babylon-rl batches show ID` lists a batch's jobs.")
    say(f"{job_id} counts as over. Its batch fails with its next run, and a new one may be posted; a step that it still makes is not used.")


def batch_document(batch: Batch) -> dict[str, Any]:
    """A batch of this pipeline as a JSON-ready dict, keyed by column names."""
    document: dict[str, Any] = to_builtins(BatchDocument.of(batch, foreign=False))
    return document


def _required(connection: Connection, batch_id: str) -> Batch:
    batch = read_batch(connection, batch_id)
    if batch is None:
        raise UsageError(f"There is no batch {batch_id} of this pipeline; `babylon-rl batches` lists them.")
    return batch
