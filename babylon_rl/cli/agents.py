"""Commands ``spawn-agents`` and ``harness``: simulated agents, and a benchmark that ends in a version.

The harness ends with exit code 1 if all scores are equal, no training was possible, the checkpoint does not load and answer, or its
artifact at Weights & Biases is not the checkpoint.
"""

from contextlib import ExitStack
from typing import Annotated, Any

import typer

from babylon_rl.cli.benchmark_run import RESULTS, agents_table, write_pages
from babylon_rl.cli.options import GameOption, ReportOption
from babylon_rl.cli.output import JsonOption, Table, emit, listed, progress_of, progress_of_parts
from babylon_rl.cli.training_batches import TrainArguments, choose_batch, read_new_hours, run_training
from babylon_rl.errors import CheckFailed, CheckpointError, ModelUnavailable, NothingToTrain, UsageError
from babylon_rl.evaluation.compare_results import ComparisonDocument, compare_results, sound_results
from babylon_rl.evaluation.gate import BASE
from babylon_rl.evaluation.harness import answer_of, benchmark_faults, harness_players, learning_faults, missing_hours, published_faults
from babylon_rl.evaluation.play import benchmark_results
from babylon_rl.evaluation.results import record_runs
from babylon_rl.evaluation.snapshots import Snapshot, snapshots_named
from babylon_rl.market.model_endpoints import model_agents
from babylon_rl.market.simulation.games import ONE_TICK_GAME, game_named
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.serving.status_shapes import ModelDocument, ReadinessDocument
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.batches import judged_groups
from babylon_rl.store.database import Database, open_database
from babylon_rl.store.migrate import migrate
from babylon_rl.store.registry import read_models
from babylon_rl.training.backends.protocol import trainer_choice
from babylon_rl.training.readiness import Readiness, readiness
from babylon_rl.windows import utc_now

app = typer.Typer()
SNAPSHOTS = ["preset:hour:seeds=1-12"]


@app.command("spawn-agents")
def spawn_agents(
    agents: Annotated[int, typer.Option(help="Agents in all.")] = 5,
    duration: Annotated[int, typer.Option(help="Minutes of each hour, 1 to 60, in which an agent acts 12 times.")] = 60,
    windows: Annotated[int, typer.Option(help="Hours to play.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed and start give the same rows.")] = 0,
    start: Annotated[str | None, typer.Option(help="The first hour (YYYY-MM-DDTHH:00). Default: the next free ones.")] = None,
    llm_agents: Annotated[
        int | None, typer.Option(help="How many of the agents ask a language model. Default: 0, or 1 with --model.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="base (the default; its first use fetches 93 MB of weights) or a version (served here), or MODEL@URL of any "
            "OpenAI-compatible endpoint."
        ),
    ] = None,
    game: GameOption = ONE_TICK_GAME.name,
    as_json: JsonOption = False,
) -> None:
    """Play market hours with simulated agents. Writes the game's rows: one per agent and tick."""
    asking = (0 if model is None else 1) if llm_agents is None else llm_agents
    request = SpawnRequest(agents, asking, windows, seed, duration, start, game_named(game))
    settings = load_settings()
    with open_database(settings) as database, ExitStack() as stack:
        migrate(database)
        llm = stack.enter_context(model_agents(settings, model or BASE, temperature=1.0, game=request.game)) if asking else None
        with database.connect() as connection, progress_of("playing hours", windows) as on_hour:
            hours = spawn(connection, request, utc_now(), llm, on_hour)
    earned: dict[tuple[str, str], float] = {}
    for hour in hours:
        for agent, strategy, pnl in hour.agents:
            earned[agent, strategy] = earned.get((agent, strategy), 0.0) + pnl
    played = f"{len(hours)} hours, {hours[0].window} to {hours[-1].window}" if len(hours) > 1 else hours[0].window
    title = f"{played}: {sum(hour.trajectories for hour in hours):,} trajectories"
    lines = [[*named, f"{pnl:+.2f}"] for named, pnl in sorted(earned.items(), key=lambda item: -item[1])]
    emit({"windows": [hour.document for hour in hours]}, [listed(["agent", "strategy", "P&L, $"], lines, title)], as_json)


@app.command("harness")
def harness(
    agents: Annotated[int, typer.Option(min=5, help="Scripted agents: the five strategies in turn.")] = 5,
    snapshot: Annotated[
        list[str] | None,
        typer.Option("--snapshot", metavar="SNAPSHOT", help="A file or preset:quick:seeds=1-8; repeatable. Default: 12 market hours."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the agents, the training hours and the training.")] = 0,
    train: Annotated[bool, typer.Option("--train", help="Also play training hours and train on them.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Train though readiness says no.")] = False,
    windows: Annotated[int | None, typer.Option(min=1, help="Training hours to play. Default: as many as readiness lacks.")] = None,
    start: Annotated[str | None, typer.Option(help="The first of them (YYYY-MM-DDTHH:00). Default: where hours are free.")] = None,
    report: ReportOption = None,
    as_json: JsonOption = False,
) -> None:
    """Benchmark agents, train on their records, report.

    Fails unless the scores rank the agents and the new checkpoint loads and answers.
    """
    if not train and (force or windows is not None or start is not None):
        raise UsageError("--force, --windows and --start belong to --train.")
    settings = load_settings()
    if train:
        # Settings without a trainer are refused before anything is played.
        trainer_choice(settings)
    markets = snapshots_named(snapshot or SNAPSHOTS)
    with open_database(settings) as database:
        migrate(database)
        before = _readiness(database, settings, reading=train)
        with progress_of_parts() as tell:
            runs = benchmark_results(harness_players(agents), markets, settings.home / RESULTS, seed=seed, on_progress=tell)
        with database.connect() as connection:
            recorded = record_runs(connection, runs.files)
        sound, refused = sound_results(runs.files)
        if report is not None:
            write_pages(sound, report, markets)
        comparison, training, faults = compare_results(sound, refused), None, list[str]()
        if train:
            number = windows or missing_hours(_readiness(database, settings), settings, agents)
            request = SpawnRequest(agents, 0, number, seed, start=start)
            training, faults = _learn(database, settings, markets[0], request, TrainArguments(seed=seed, force=force, as_json=as_json))
        after = _readiness(database, settings)
        with database.connect() as connection:
            model = next((ModelDocument.of(model) for model in read_models(connection) if not model.foreign), None)
    # Gathered and raised at the end, after everything that was measured has been shown.
    faults = benchmark_faults(comparison) + faults
    document = {
        "before": ReadinessDocument.of(before), "after": ReadinessDocument.of(after), "model": model, **comparison.document,
        "recorded": recorded, "training": training, "faults": faults,
    }  # fmt: skip
    emit(document, _parts(document, comparison), as_json)
    if faults:
        raise CheckFailed("\n".join(faults))


def _readiness(database: Database, settings: Settings, reading: bool = False) -> Readiness:
    """Readiness as in ``ready``; with ``reading``, new rows are read first."""
    with database.connect(autocommit=True) as connection:
        if reading:
            read_new_hours(database, connection, settings, utc_now(), None)
        return readiness(connection, settings, utc_now())


def _learn(
    database: Database, settings: Settings, market: Snapshot, request: SpawnRequest, arguments: TrainArguments
) -> tuple[dict[str, Any], list[str]]:
    """Play training hours, then train if there is enough data, or by force; return the result as JSON shows it, and faults."""
    with database.connect() as connection, progress_of("playing training hours", request.windows) as on_hour:
        hours = [hour.window for hour in spawn(connection, request, utc_now(), None, on_hour)]
    offered = _readiness(database, settings, reading=True)
    document: dict[str, Any] = {"hours": hours, "ready": ReadinessDocument.of(offered)}
    document |= dict.fromkeys(("batchId", "modelVersion", "checkpoint", "artifact", "answer"))
    if not offered.ready and not arguments.force:
        return document, [f"Not trained: {offered.reason}. Play more hours (--windows), or train with --force."]
    try:
        batch = choose_batch(database, settings, arguments)
        trained = run_training(database, settings, batch.batch_id, arguments.as_json)
    except NothingToTrain as nothing:
        return document, [str(nothing)]
    with database.connect() as connection:
        faults = learning_faults(judged_groups(connection, batch.batch_id), trained.steps)
    document |= {
        "batchId": trained.batch.batch_id, "modelVersion": trained.model.version, "checkpoint": str(trained.checkpoint),
        "artifact": trained.model.wandb_artifact_id,
    }  # fmt: skip
    try:
        document["answer"] = answer_of(trained.checkpoint, trained.model.version, trained.model.base_model, market.scenario, settings)
    except (CheckpointError, ModelUnavailable, CheckFailed) as unusable:
        faults.append(f"The checkpoint does not load and answer: {unusable}")
    return document, faults + published_faults(trained.model, trained.checkpoint, settings)


def _parts(document: dict[str, Any], comparison: ComparisonDocument) -> list[Table | str]:
    training = document["training"]
    played = {} if training is None else {f"hours played: {len(training['hours'])}": training["ready"]}
    rows = [
        [name, ready.stats.total_trajectories, ready.stats.scenario_groups, f"{ready.stats.data_quality:.1%}", ready.reason]
        for name, ready in ({"before": document["before"]} | played | {"after": document["after"]}).items()
    ]
    states = listed(["readiness", "freezable", "hours", "quality", ""], rows)
    runs, model = len(document["runs"]), document["model"]
    facts = [("recorded", f"{document['recorded']} runs as evaluation, {runs - document['recorded']} were in the database before")]
    if training is not None:
        facts.append(("played", f"{len(training['hours'])} training hours, {training['hours'][0]} to {training['hours'][-1]}"))
    if training is not None and training["modelVersion"] is not None:
        answered = training["answer"] or "not asked: a dry run makes checkpoints without a model"
        facts += [("trained", f"{training['modelVersion']} of {training['batchId']}"), ("checkpoint", training["checkpoint"]),
                  ("artifact", training["artifact"] or "none at Weights & Biases"), ("it answers", answered)]  # fmt: skip
    latest = f"{model.version} ({model.status}), from {model.parent_version or model.base_model}" if model is not None else "none yet"
    lines = [f"{name:11} {value}" for name, value in [*facts, ("newest", latest)]]
    return [agents_table(comparison), *comparison.notes, "", states, "", *lines]
