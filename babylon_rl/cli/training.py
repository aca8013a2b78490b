"""Commands ready, train and sync-outcomes; data changes only through the asset graph."""

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from babylon_rl.cli.options import FromOption, ToOption, pinned_windows
from babylon_rl.cli.output import JsonOption, emit, progress_of_parts, say, table
from babylon_rl.errors import BatchConflict, NothingToTrain, UsageError
from babylon_rl.settings import Settings, load_settings
from babylon_rl.windows import HOUR, newest_complete, utc_now, window_end, window_of, window_start

if TYPE_CHECKING:
    from babylon_rl.store.batches import Batch
    from babylon_rl.store.database import Database
    from babylon_rl.training.batches import Trained

SEE_WINDOWS = "`babylon-rl windows` shows what each hour holds; --from and --to choose others."
# Options of `train` that are frozen with a batch, by the setting that they are.
OPTIONS = {
    "min_agents_per_window": "--min-agents", "iterations": "--iterations", "learning_rate": "--learning-rate",
    "windows_per_iteration": "--windows-per-iteration", "epochs": "--epochs", "seed": "--seed",
}  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.command("ready")(ready)
    app.command("train")(train)
    app.command("sync-outcomes")(sync_outcomes)


def ready(as_json: JsonOption = False) -> None:
    """Is there enough, and good enough, data to train? Exit code 1 when not."""
    from babylon_rl.store.database import open_database
    from babylon_rl.training.readiness import readiness

    settings = load_settings()
    with open_database(settings, prepare=False) as database, database.connect() as connection:
        state = readiness(connection, settings, utc_now())
    rows: list[list[Any]] = [
        ["freezable trajectories", state.total_trajectories],
        ["of them in hours without scores", state.unscored_trajectories],
        [f"hours with {settings.training_min_group_size}+ of them", state.scenario_groups],
        [f"quality of the newest {state.quality.rows} rows", f"{state.quality.mean:.1%}"],
        *([f"not trainable: {reason}", number] for reason, number in state.not_trainable.items()),
    ]

    def render(out: Any) -> None:
        out.print(table(None, ["", ""], rows))
        out.print(state.reason, markup=False)

    emit(state.document(), render, as_json)
    if not state.ready:
        raise typer.Exit(1)


def train(
    min_agents: Annotated[int | None, typer.Option(min=1, help="Usable episodes that make an hour a group.")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Most resumable steps, each with a checkpoint.")] = None,
    lookback_hours: Annotated[int | None, typer.Option(min=1, help="Hours back from the newest complete one that holds rows.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Unset: the backend's own (serverless and GPU 5e-6, CPU 3e-3).")] = None,
    windows_per_iteration: Annotated[int | None, typer.Option(min=1, help="Most windows an iteration trains on.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the batch's hours, each in iterations of its own.")] = None,
    first: FromOption = None,
    end: ToOption = None,
    max_trajectories: Annotated[
        int | None, typer.Option(min=1, help="Most trajectories to freeze, newest hours first. Unset: TRAINING_MAX_TRAJECTORIES.")
    ] = None,
    mode: Annotated[str | None, typer.Option("--mode", help="single, list, continuous or backfill. Unset: MODE.")] = None,
    batch: Annotated[str | None, typer.Option("--batch", help="Train this batch, frozen earlier.")] = None,
    seed: Annotated[int | None, typer.Option(help="Fixes dropout, order and every draw (0).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Freeze a new batch though another has not ended.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Freeze a batch, judge what lacks scores, train it, and register the version. An interrupted training goes on.

    --mode, or MODE, chooses: single trains one batch; list shows what could be frozen; backfill trains batch after batch until
    BACKFILL_HOURS hold nothing more; continuous trains whenever `babylon-rl ready` says yes, until Ctrl-C.
    """
    from babylon_rl.cli.training_modes import Wanted, train_as
    from babylon_rl.store.database import open_database

    given = {
        "min_agents_per_window": min_agents, "iterations": iterations, "lookback_hours": lookback_hours, "learning_rate": learning_rate,
        "windows_per_iteration": windows_per_iteration, "epochs": epochs,
    }  # fmt: skip
    # Only options that were given override settings; a frozen batch must agree with them.
    given = {name: value for name, value in given.items() if value is not None}
    settings = load_settings(**given, **({} if mode is None else {"mode": mode}))
    windows = pinned_windows(settings, first, end)
    asked = given if seed is None else given | {"seed": seed}
    wanted = Wanted(batch or settings.batch_id, windows, max_trajectories, seed or 0, force, as_json, asked)
    with open_database(settings) as database:
        train_as(settings.mode, database, settings, wanted)


def run_training(database: "Database", settings: Settings, batch_id: str, as_json: bool) -> "Trained":
    """Train a frozen batch through the graph and print its lines meanwhile.

    With ``as_json`` the lines go to standard error.

    Raises:
        NothingToTrain: no group with a spread of scores is left.
    """
    from babylon_rl.automation.launch import run_batch
    from babylon_rl.cli.training_lines import following
    from babylon_rl.training.batches import train_batch

    with following(database, batch_id, _line(as_json)), progress_of_parts() as on_progress:
        run_batch(database, settings, batch_id, ["training_batch", "trained_checkpoint"], on_progress=on_progress)
    with database.connect() as connection:
        return train_batch(connection, batch_id, settings, utc_now())  # registered: this reads it back


def _line(as_json: bool) -> Any:
    stream = sys.stderr if as_json else sys.stdout
    return lambda line: print(line, file=stream, flush=True)


def choose_batch(
    database: "Database",
    settings: Settings,
    batch_id: str | None,
    windows: tuple[str, str] | None,
    most: int | None,
    seed: int,
    force: bool,
    when_ready: bool = False,
    asked: Mapping[str, Any] | None = None,
) -> "Batch":
    """The named batch, else an unfinished one, else a new one.

    Args:
        most: trajectories to freeze; None is TRAINING_MAX_TRAJECTORIES.
        when_ready: freeze only if `babylon-rl ready` says yes, as automation does.
        asked: settings (by field name, and "seed") that were given as options; a batch that is frozen already must agree with them.

    Raises:
        NothingToTrain: nothing can be frozen, or it is not ready.
        BatchConflict: another run has just frozen it, or the named batch has failed.
        UsageError: there is no such batch, or it was frozen with other options.
    """
    from babylon_rl.store.batches import foreign_batch, read_batch
    from babylon_rl.training.backends import trainer_choice
    from babylon_rl.training.batches import freeze, pending_batches
    from babylon_rl.training.readiness import not_ready

    trainer_choice(settings)
    with database.connect(autocommit=True) as connection:
        if batch_id is not None:
            # 1. The batch that was named.
            found = read_batch(connection, batch_id)
            if found is None and foreign_batch(connection, batch_id):
                raise UsageError(f"{batch_id} is another producer's, which this pipeline leaves alone; `babylon-rl batches` lists ours.")
            if found is None:
                raise UsageError(f"There is no batch {batch_id}; `babylon-rl batches` lists them.")
            if found.state == "failed":
                raise BatchConflict(f"{batch_id} has failed ({found.error}); freeze a new batch with `babylon-rl train`.")
            _refuse_other(found, asked or {}, "or leave --batch and BATCH_ID out")
            return found
        # 2. A batch that has not ended, unless --force.
        pending = pending_batches(connection)
        if pending and not force:
            if windows is not None or most is not None:
                raise UsageError(
                    f"{pending[0].batch_id} has not ended, and its hours are frozen. Finish it with `babylon-rl train`, or add --force."
                )
            _refuse_other(pending[0], asked or {}, "or add --force")
            unused = " (--lookback-hours is for new batches)" if "lookback_hours" in (asked or {}) else ""
            say(f"Going on with {pending[0].batch_id}, which is {pending[0].state}{unused}.")
            return pending[0]
        now = utc_now()
        # 3. A new batch, after new rows were read.
        windows = windows or backfilled(connection, settings, now)
        bring_up_to_date(database, connection, settings, now, windows)
        why_not = not_ready(connection, settings, now, windows=windows).reason if when_ready else None
        if why_not is not None:
            raise NothingToTrain(why_not)
        most = most or settings.training_max_trajectories
        minimum = settings.training_min_trajectories if when_ready else 0
        frozen = freeze(connection, settings, now, windows=windows, max_trajectories=most, seed=seed, minimum=minimum, settled=when_ready)
        if frozen.batch is None:
            # Nothing was freezable: perhaps because another run has just frozen these hours.
            before = {found.batch_id for found in pending}
            meanwhile = [found.batch_id for found in pending_batches(connection) if found.batch_id not in before]
            if meanwhile:
                raise BatchConflict(
                    f"Another run trains these hours: {meanwhile[0]} was frozen from them meanwhile. "
                    f"`babylon-rl batches show {meanwhile[0]}` says how far it is."
                )
            raise NothingToTrain(frozen.reason)
        dropped = f", {frozen.dropped} episodes left out by dropout" if frozen.dropped else ""
        say(f"Froze {frozen.batch.batch_id}: {frozen.batch.trajectories} trajectories of {len(frozen.batch.windows)} hours{dropped}.")
        return frozen.batch


def _refuse_other(batch: "Batch", asked: Mapping[str, Any], otherwise: str) -> None:
    """Raise UsageError if an option differs from the values frozen with ``batch``.

    Such an option would have no effect.
    """
    frozen = {**batch.settings, "seed": batch.seed}
    other = [name for name in OPTIONS if name in asked and asked[name] != frozen.get(name)]
    if batch.live and other:
        was = ", ".join(f"{OPTIONS[name]} {'unset' if frozen.get(name) is None else frozen[name]}" for name in other)
        raise UsageError(
            f"{batch.batch_id} has not ended, and was frozen with {was}. Finish it with `babylon-rl train` without "
            f"{' and '.join(OPTIONS[name] for name in other)}, cancel it with `babylon-rl batches cancel {batch.batch_id}`, {otherwise}."
        )


def backfilled(connection: Any, settings: Settings, now: datetime) -> tuple[str, str] | None:
    """The hours of MODE=backfill, as (from, to); None in other modes and without rows."""
    if settings.mode != "backfill":
        return None
    from babylon_rl.store.trajectories import newest_window_with_rows

    newest = newest_window_with_rows(connection, newest_complete(now))
    if newest is None:
        return None
    end = window_of(window_end(newest))
    return window_of(window_start(end) - settings.backfill_hours * HOUR), end


def bring_up_to_date(
    database: "Database", connection: Any, settings: Settings, now: datetime, windows: tuple[str, str] | None
) -> list[str]:
    """Read new and changed hours in range through the graph.

    Returns all hours in range that hold rows.
    """
    from babylon_rl.automation.launch import run_hours
    from babylon_rl.episodes.reading import read_windows
    from babylon_rl.episodes.summary import data_version
    from babylon_rl.store.trajectories import windows_with_rows
    from babylon_rl.store.windows import read_versions
    from babylon_rl.training.freezing import freeze_bounds

    bounds = freeze_bounds(connection, settings, now, windows)
    held = [window for window in windows_with_rows(connection, bounds.first, bounds.end) if window <= bounds.complete]
    stored = read_versions(connection, held)
    readings = read_windows(connection, held, settings)
    changed = [window for window, reading in readings.items() if stored.get(window) != data_version(reading)]
    if changed:
        say(f"Reading {len(changed)} of {len(held)} hours that are new or have changed.")
        run_hours(database, settings, changed, ["window_groups", "market_outcomes", "hindsight"])
    return held


def report_training(trained: "Trained", settings: Settings, as_json: bool, earlier: Sequence[str] = ()) -> None:
    """Print the result of a training.

    ``earlier`` are the batches that the same command trained before.
    """
    from babylon_rl.training.backends import address_of

    model = trained.model
    # The document for scripts; the lines below show the same facts to people.
    endpoint = address_of(settings, model.version, trained.checkpoint)
    document = {
        "batchId": trained.batch.batch_id,
        "modelVersion": model.version,
        "parent": model.parent_version,
        "status": trained.batch.state,
        "iterations": [
            {"step": step.iteration, "loss": step.loss, "trainableTokens": step.trainable_tokens, "windows": list(step.windows)}
            for step in trained.steps
        ],
        "checkpoint": str(trained.checkpoint),
        "storagePath": model.storage_path,
        "endpoint": {"url": endpoint.url, "model": endpoint.model},
        **({"earlierBatches": list(earlier)} if earlier else {}),
    }

    def render(out: Any) -> None:
        for line in (
            f"Final step: {trained.steps[-1].iteration}",
            f"Checkpoints: {len(trained.steps)}",
            f"Model: {model.model_id} (status {model.status}), continues from {model.parent_version or model.base_model}",
            f"Checkpoint: {trained.checkpoint}",
            f"Inference endpoint: {endpoint.url}, model name {endpoint.model}{f' ({endpoint.hint})' if endpoint.hint else ''}",
        ):
            out.print(line, markup=False)

    emit(document, render, as_json)


def sync_outcomes(
    hours: Annotated[int, typer.Option("--hours", min=1, help="Hours back from the newest complete one that holds rows.")] = 24,
    first: FromOption = None,
    end: ToOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what happened in the market of some hours into market_outcomes."""
    from babylon_rl.automation.launch import run_hours
    from babylon_rl.store.database import open_database
    from babylon_rl.store.market import windows_with_market
    from babylon_rl.store.outcomes import market_hours
    from babylon_rl.store.trajectories import windows_with_rows
    from babylon_rl.training.freezing import freeze_bounds

    settings = load_settings(lookback_hours=hours)
    wanted = pinned_windows(settings, first, end)
    with open_database(settings) as database, database.connect(autocommit=True) as connection:
        bounds = freeze_bounds(connection, settings, utc_now(), wanted)
        # Hours with trajectories or market records; only complete ones are written.
        recorded = {*windows_with_rows(connection, bounds.first, bounds.end), *windows_with_market(connection, bounds.first, bounds.end)}
        held = sorted(window for window in recorded if window <= bounds.complete)
        before = market_hours(connection, held)
        run_hours(database, settings, held, ["market_outcomes"])
        after = market_hours(connection, held)
    shown = [
        {
            "window": window,
            "stocks": after[window].stocks if window in after else 0,
            "predictions": after[window].predictions if window in after else 0,
            "changed": before.get(window) != after.get(window),
        }
        for window in held
    ]
    if not shown:
        say("No complete hour here holds a trajectory, a price, a probability or an event.")
    rows = [[row["window"], row["stocks"], row["predictions"], "yes" if row["changed"] else "no"] for row in shown]
    emit({"windows": shown}, lambda out: out.print(table(None, ["window", "stocks", "predictions", "changed"], rows)), as_json)
