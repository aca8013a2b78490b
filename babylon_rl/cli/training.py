"""Commands ready, train (in the modes single, list, backfill and continuous) and sync-outcomes.

Data changes only through the asset graph.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from babylon_rl.cli.options import FromOption, ToOption, pinned_windows
from babylon_rl.cli.output import Column, JsonOption, Table, emit, listed, say
from babylon_rl.cli.system import run_daemon
from babylon_rl.cli.training_batches import TrainArguments, backfill_hours, choose_batch, run_training
from babylon_rl.episodes.quality import unmatched_sentence
from babylon_rl.errors import NothingToTrain, UsageError
from babylon_rl.files.location import shown_url
from babylon_rl.serving.status_shapes import ReadinessDocument
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.batches import last_completed_at, read_batch_episodes
from babylon_rl.store.columns import document_of
from babylon_rl.store.database import Database, open_database
from babylon_rl.store.market import windows_with_market
from babylon_rl.store.outcomes import read_market_windows
from babylon_rl.store.trajectories import windows_with_rows
from babylon_rl.training.backends.protocol import address_of
from babylon_rl.training.batches import Trained, pending_batches
from babylon_rl.training.freezing import count_freezable, freeze_bounds
from babylon_rl.training.lifecycle import fewer_iterations
from babylon_rl.training.readiness import readiness, smaller_batch_due, with_smaller_minimum
from babylon_rl.windows import utc_now

app = typer.Typer()
SYNCED = (
    Column("window", "window"),
    Column("stocks", "stocks"),
    Column("predictions", "predictions"),
    Column("changed", lambda row: "yes" if row["changed"] else "no"),
)


@app.command("ready")
def ready(as_json: JsonOption = False) -> None:
    """Check whether the data suffice for a training. Exit code 1 when they are not enough."""
    settings = load_settings()
    with open_database(settings, prepare=False) as database, database.connect() as connection:
        state = readiness(connection, settings, utc_now())
        due = smaller_batch_due(last_completed_at(connection), settings, utc_now())
        unmatched = unmatched_sentence(connection, freeze_bounds(connection, settings, utc_now(), settled=True).first, utc_now())
    if unmatched:
        say(unmatched)
    rows: list[list[Any]] = [
        ["freezable trajectories", state.total_trajectories],
        ["of them in hours without scores", state.unscored_trajectories],
        [f"hours with {settings.training_min_group_size}+ of them", state.scenario_groups],
        *([[f"quality of the newest {state.quality.rows} rows", f"{state.quality.mean:.1%}"]] if state.quality.rows else []),
        *([f"not trainable: {reason}", number] for reason, number in state.not_trainable.items()),
    ]
    least = with_smaller_minimum(settings).training_min_trajectories
    smaller = f"Automation starts with {least} trajectories from {due:%Y-%m-%d %H:%M} UTC on (train_daily)."
    emit(ReadinessDocument.of(state), [listed(["", ""], rows), state.reason, *([] if state.ready else [smaller])], as_json)
    if not state.ready:
        raise typer.Exit(1)


@app.command("train")
def train(
    min_agents: Annotated[int | None, typer.Option(min=1, help="Usable episodes that make an hour a group.")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Most resumable steps, each with a checkpoint.")] = None,
    lookback_hours: Annotated[int | None, typer.Option(min=1, help="Hours back from the newest complete one that holds rows.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Unset: CPU 3e-3, or 2e-3 with EPOCHS above 1, then 3e-4; others 5e-6.")
    ] = None,
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
    """Freeze, judge and train a batch; register the version.

    An interrupted training goes on.

    --mode, or MODE, chooses: single trains one batch; list shows what could be frozen; backfill trains batch after batch until
    BACKFILL_HOURS hold nothing more; continuous runs the daemon with all of the automation, without the UI, until Ctrl-C.
    """
    given = {
        "min_agents_per_window": min_agents, "iterations": iterations, "lookback_hours": lookback_hours, "learning_rate": learning_rate,
        "windows_per_iteration": windows_per_iteration, "epochs": epochs,
    }  # fmt: skip
    # Only options that were given override settings; a frozen batch must agree with them.
    given = {name: value for name, value in given.items() if value is not None}
    settings = load_settings(**given, **({} if mode is None else {"mode": mode}))
    windows = pinned_windows(settings, first, end)
    options = given if seed is None else given | {"seed": seed}
    arguments = TrainArguments(batch or settings.batch_id, windows, max_trajectories, seed or 0, force, as_json, options)
    if settings.mode == "continuous" and arguments.batch_id is None:
        raise typer.Exit(train_continuously(settings, arguments))
    with open_database(settings) as database:
        train_as(settings.mode, database, settings, arguments)


@app.command("sync-outcomes")
def sync_outcomes(
    hours: Annotated[int, typer.Option("--hours", min=1, help="Hours back from the newest complete one that holds rows.")] = 24,
    first: FromOption = None,
    end: ToOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the outcomes of hours into market_outcomes."""
    from babylon_rl.automation.launch import run_hours

    settings = load_settings(lookback_hours=hours)
    span = pinned_windows(settings, first, end)
    with open_database(settings) as database, database.connect(autocommit=True) as connection:
        bounds = freeze_bounds(connection, settings, utc_now(), span)
        recorded = {*windows_with_rows(connection, bounds.first, bounds.end), *windows_with_market(connection, bounds.first, bounds.end)}
        held = sorted(window for window in recorded if window <= bounds.complete)
        before = read_market_windows(connection, held)
        run_hours(database, settings, held, ["market_outcomes"])
        after = read_market_windows(connection, held)
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
    emit({"windows": shown}, [Table(SYNCED, shown)], as_json)


def train_as(mode: str, database: Database, settings: Settings, arguments: TrainArguments) -> None:
    """Run `train` in the mode single, list or backfill.

    A named batch is trained in any mode but list.

    Raises:
        UsageError: MODEL_VERSION pins one version and the mode makes many.
        NothingToTrain: nothing can be frozen.
    """
    if mode == "list":
        list_freezable(database, settings, arguments)
    elif mode == "single" or arguments.batch_id is not None:
        batch = choose_batch(database, settings, arguments)
        if (fewer := fewer_iterations(batch)) is not None and "iterations" in arguments.options:
            say(fewer)
        report_training([run_training(database, settings, batch.batch_id, arguments.as_json)], settings, arguments.as_json)
    # Several batches, and a pinned version can be used once.
    elif settings.model_version is not None:
        raise UsageError(f"MODEL_VERSION pins one version, and MODE={mode} makes one after the other: unset one of the two.")
    else:
        backfill(database, settings, arguments)


def list_freezable(database: Database, settings: Settings, arguments: TrainArguments) -> None:
    """Show freezable hours, rows that cannot train with reasons, and unfinished batches."""
    with database.connect() as connection:
        counted = count_freezable(connection, settings, utc_now(), windows=arguments.windows)
        pending = pending_batches(connection)
    rows = [[window, number] for window, number in sorted(counted.windows.items(), reverse=True)]
    document = {
        "windows": [{"window": window, "freezable": number} for window, number in rows],
        "notTrainable": dict(counted.not_trainable),
        "pending": [batch.batch_id for batch in pending],
    }
    parts: list[Table | str] = [
        listed(["window", "freezable trajectories"], rows),
        f"{counted.trajectories} trajectories in {len(rows)} hours could be frozen.",
        *(f"Not trainable: {number} {reason}" for reason, number in counted.not_trainable.items()),
        *(f"`babylon-rl train` goes on with {batch.batch_id}, which is {batch.state}." for batch in pending),
    ]
    emit(document, parts, arguments.as_json)


def backfill(database: Database, settings: Settings, arguments: TrainArguments) -> None:
    """Train batch after batch, newest hours first, until the hours hold nothing more.

    Each continues from the one before. A batch without anything to train is reported, and the next one is frozen from older hours. With
    --json the last training is printed with those before it, even after an error.

    Raises:
        NothingToTrain: nothing was trained.
    """
    trained: list[Trained] = []
    try:
        while True:
            with database.connect() as connection:
                unfinished = bool(pending_batches(connection)) and not arguments.force
            # Hours and options are for a new batch; an unfinished one was frozen with its own.
            asked = replace(arguments, windows=None, most=None, options={}) if unfinished else arguments
            batch = choose_batch(database, settings, asked)
            # --force is for the first batch: later rounds must resume their own batch.
            arguments = replace(arguments, force=False)
            try:
                trained.append(run_training(database, settings, batch.batch_id, arguments.as_json))
            except NothingToTrain as nothing:
                with database.connect() as connection:
                    oldest = min(episode.window for episode in read_batch_episodes(connection, batch.batch_id))
                    reach = arguments.windows or backfill_hours(connection, settings, utc_now())
                if reach is None or oldest <= reach[0]:
                    raise
                say(f"{nothing} Going on with older hours.")
                arguments = replace(arguments, windows=(reach[0], oldest))
                continue
            if not arguments.as_json:
                report_training(trained, settings, False)
    except NothingToTrain as nothing:
        if not trained:
            raise
        say(str(nothing))
    finally:
        if trained and arguments.as_json:
            report_training(trained, settings, True)


def train_continuously(settings: Settings, arguments: TrainArguments) -> int:
    """Run Dagster's daemon with this project's automation, without the UI, until the process is interrupted.

    It trains when ready, as with `babylon-rl dev`, and the options hold for what it freezes.

    Raises:
        UsageError: an option of a single batch was given, or --json: there is no last document.
    """
    if arguments.as_json:
        raise UsageError("MODE=continuous never ends, so it has no document to print: leave --json out.")
    if arguments.windows is not None or arguments.force or "seed" in arguments.options:
        raise UsageError("MODE=continuous freezes what is ready: leave --from, --to, WINDOW_ID, --force and --seed out.")
    if settings.model_version is not None:
        raise UsageError("MODEL_VERSION pins one version, and MODE=continuous makes one after the other: unset one of the two.")
    # Handed over as variables, because the daemon's processes read their settings themselves.
    chosen = {**arguments.options} if arguments.most is None else {**arguments.options, "training_max_trajectories": arguments.most}
    variables = {name.upper(): str(value) for name, value in chosen.items()}
    say("The daemon runs; it trains when `babylon-rl ready` says yes or a day has passed. Ctrl-C stops it.")
    # This command is for automation, whatever the environment says.
    return run_daemon({**variables, "AUTOMATION_STATUS": "running"})


def report_training(results: Sequence[Trained], settings: Settings, as_json: bool) -> None:
    """Print the last result of a command; of those before it, the batches as JSON."""
    trained, earlier = results[-1], [result.batch.batch_id for result in results[:-1]]
    model = trained.model
    endpoint = address_of(settings, model.version, trained.checkpoint)
    document = {
        "batchId": trained.batch.batch_id,
        "modelVersion": model.version,
        "parent": model.parent_version,
        "status": trained.batch.state,
        "iterations": [{"step": step.iteration} | document_of(step, "loss", "trainable_tokens", "windows") for step in trained.steps],
        "checkpoint": str(trained.checkpoint),
        "storagePath": model.storage_path,
        "endpoint": {"url": shown_url(endpoint.url), "model": endpoint.model},
        **({"earlierBatches": earlier} if earlier else {}),
    }
    lines = [
        f"Final step: {trained.steps[-1].iteration}",
        f"Checkpoints: {len(trained.steps)}",
        f"Model: {model.model_id} (status {model.status}), continues from {model.parent_version or model.base_model}",
        f"Checkpoint: {trained.checkpoint}",
        f"Inference endpoint: {shown_url(endpoint.url)}, model name {endpoint.model}{f' ({endpoint.hint})' if endpoint.hint else ''}",
    ]
    emit(document, lines, as_json)
