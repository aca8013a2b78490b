"""``demo``: the whole loop on this machine, from an empty database to a checkpoint with its evidence.

Every stage looks first at what is there already, so an interrupted demo goes on where it stopped, and a finished one only shows
its result again.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from babylon_rl.cli.output import JsonOption, emit, progress, progress_of_parts, say, table

if TYPE_CHECKING:
    from rich.console import Console

    from babylon_rl.settings import Settings
    from babylon_rl.store.database import Database

WINDOWS, AGENTS, MODEL_AGENTS = 24, 6, 1
TRAJECTORIES_AN_HOUR = 20  # that must be freezable before the demo trains; an hour has 72
ITERATIONS = 2
# What differs from the defaults, said on the first line. Without the KL penalty a step costs a third less.
DEMO_SETTINGS = {"train_rl_local": True, "iterations": ITERATIONS, "kl_penalty": 0}


@dataclass(frozen=True)
class Demo:
    """What the stages share: ``seed`` decides the simulated hours, ``windows`` how many."""

    settings: "Settings"
    database: "Database"
    windows: int
    seed: int


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("demo")(demo)


def demo(
    windows: Annotated[int, typer.Option(min=2, help="Hours of market to simulate.")] = WINDOWS,
    seed: Annotated[int, typer.Option(help="Seed of the simulated market and of the training.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """From nothing to a better agent on this machine: simulate, read, score, train, and compare on unseen markets."""
    from babylon_rl.cli.children import stop_children
    from babylon_rl.settings import load_settings
    from babylon_rl.store.database import open_database

    began = time.monotonic()
    minimum = TRAJECTORIES_AN_HOUR * windows
    chosen = DEMO_SETTINGS | {"training_min_trajectories": minimum, "windows_per_iteration": -(-windows // ITERATIONS)}
    settings = load_settings(**chosen)
    say("Demo settings: " + " ".join(f"{name.upper()}={str(value).lower()}" for name, value in chosen.items()) + f", seed {seed}")
    for sentence in stop_children(settings.home, orphans_only=True):
        say(sentence)
    with open_database(settings) as database:
        state = Demo(settings, database, windows, seed)
        with _stage("1. Database"):
            _prepare(state)
        with _stage(f"2. Market: {windows} hours, {AGENTS - MODEL_AGENTS} scripted agents and {MODEL_AGENTS} that asks the base model"):
            hours = _play(state)
        with _stage(f"3. Hours: groups, outcomes and scores ({settings.judge_model}), through Dagster"):
            _materialize_hours(state, hours)
        with _stage("4. Training on this machine's processor, then the benchmark, through Dagster"):
            batch_id = _train(state)
        document = _result(state, batch_id) | {"firstWindow": hours[0], "seconds": round(time.monotonic() - began, 1)}
    emit(document, lambda console: _render(console, document), as_json)


@contextmanager
def _stage(title: str) -> Iterator[None]:
    say(f"\n{title}")
    began = time.monotonic()
    yield
    say(f"   done in {time.monotonic() - began:.0f} s")


def _prepare(state: Demo) -> None:
    from babylon_rl.store.migrate import migrate

    report = migrate(state.database)
    say(f"   {state.database.address}: {len(report.applied)} applied, {len(report.adopted)} adopted")
    for difference in report.differences:
        say(f"   {difference}")


def _play(state: Demo) -> list[str]:
    """The demo's hours; those that are missing are played now."""
    from babylon_rl.errors import UsageError
    from babylon_rl.market.serving import BASE, asked_model
    from babylon_rl.market.spawn import SpawnRequest, spawn
    from babylon_rl.store.recording import simulated_hours, simulated_seeds
    from babylon_rl.windows import utc_now

    with state.database.connect() as connection:
        there = simulated_hours(connection, state.seed)
        connection.commit()
        missing = state.windows - len(there)
        if missing <= 0:
            say(f"   {len(there)} hours are there already")
            return there
        if simulated_seeds(connection) - {state.seed}:
            raise UsageError(
                f"{state.settings.home} holds a demo with another seed. Choose that seed, another BABYLON_RL_HOME, "
                "or run `make clean` first."
            )
        request = SpawnRequest(AGENTS, MODEL_AGENTS, missing, state.seed)
        with asked_model(state.settings, BASE, temperature=1.0) as ask, progress(missing, "   hours played") as advance:
            spawn(connection, request, utc_now(), ask, lambda _: advance())
        return simulated_hours(connection, state.seed)


def _materialize_hours(state: Demo, hours: list[str]) -> None:
    from babylon_rl.automation.launch import observe_hours, run_hours
    from babylon_rl.judge.scoring import stored_scores

    observe_hours(state.database, state.settings)
    with state.database.connect() as connection:
        done = stored_scores(connection, hours)
    missing = [hour for hour in hours if hour not in done]
    if not missing:
        say(f"   {len(hours)} hours are scored already")
        return
    run_hours(state.database, state.settings, missing, on_range=lambda first, last: say(f"   {first} to {last}"))


def _train(state: Demo) -> str:
    from babylon_rl.automation.launch import run_batch
    from babylon_rl.store.batches import read_batches
    from babylon_rl.training.freezing import freeze
    from babylon_rl.windows import utc_now

    with state.database.connect(autocommit=True) as connection:
        known = [batch for batch in read_batches(connection) if batch.seed == state.seed and batch.state != "failed"]
        if known:
            batch_id = known[-1].batch_id
            say(f"   {batch_id} is there already ({known[-1].state})")
        else:
            frozen = freeze(
                connection, state.settings, utc_now(), seed=state.seed, minimum=state.settings.training_min_trajectories, settled=True
            )
            if frozen.batch is None:
                from babylon_rl.errors import NothingToTrain

                raise NothingToTrain(frozen.reason)
            batch_id = frozen.batch.batch_id
            say(f"   {batch_id} froze {frozen.batch.trajectories} trajectories")
    with progress_of_parts("   ") as on_progress:
        run_batch(state.database, state.settings, batch_id, on_progress=on_progress)
    return batch_id


def _result(state: Demo, batch_id: str) -> dict[str, Any]:
    from babylon_rl.evaluation.benchmark import read_report
    from babylon_rl.store.registry import model_of_batch

    with state.database.connect() as connection:
        model, report = model_of_batch(connection, batch_id), read_report(connection, batch_id)
    assert model is not None and report is not None
    return {
        "seed": state.seed, "batchId": batch_id, "modelVersion": model.version, "checkpoint": model.checkpoint,
        "plot": str(report.plot_path),
        "reference": report.reference or "base", "decision": report.decision, "reason": report.reason, "rows": report.rows,
    }  # fmt: skip


def _render(console: "Console", document: dict[str, Any]) -> None:
    rows = document["rows"]
    console.print(f"\nThe same unseen markets ({rows[0]['markets']}), one agent alone in each; dollars an hour, 95 % intervals\n")
    columns = ["model", "P&L", "interval", f"against {document['reference']}", "interval ", "win rate", "accuracy", "invalid", "HOLD"]
    console.print(table(None, columns, [_line(row) for row in rows]))
    console.print(f"\n{_verdict(document)}\n")
    for name, value in (
        ("checkpoint", document["checkpoint"]),
        ("plot", document["plot"]),
        ("gate", f"{document['decision']}: {document['reason']}"),
    ):
        console.print(f"{name:11} {value}", markup=False)
    console.print(
        f"\nNext: FIRST_WINDOW={document['firstWindow']} make dev   the graph, its hours and this checkpoint in Dagster's UI", markup=False
    )
    console.print(f"      .venv/bin/babylon-rl batches show {document['batchId']}   the hours and episodes it was trained on", markup=False)
    console.print(
        f"      .venv/bin/babylon-rl benchmark standings {document['modelVersion']} base --markets 48   more evidence", markup=False
    )
    console.print("      DATABASE_URL=postgresql://... .venv/bin/babylon-rl windows   what a real game's database holds")


def _line(row: dict[str, Any]) -> list[Any]:
    def percent(name: str) -> str | None:
        return None if row.get(name) is None else f"{100 * row[name]:.0f} %"

    compared = row.get("improvement") is not None
    return [
        row["model"],
        f"{row['pnl']:+.0f}",
        f"{row['low']:+.0f} to {row['high']:+.0f}",
        f"{row['improvement']:+.0f}" if compared else None,
        f"{row['improvementLow']:+.0f} to {row['improvementHigh']:+.0f}" if compared else None,
        percent("winRate"),
        percent("accuracy"),
        row.get("invalid"),
        percent("holdShare"),
    ]


def _verdict(document: dict[str, Any]) -> str:
    row = next((row for row in document["rows"] if row["model"] == document["modelVersion"]), None)
    if row is None:
        return f"{document['modelVersion']} was not compared: {document['reason']}"
    interval = f"{row['improvementLow']:+.0f} to {row['improvementHigh']:+.0f}"
    change = f"{row['improvement']:+.0f} dollars an hour against {document['reference']} (95 % interval {interval})"
    if row["improvementLow"] > 0:
        return f"{document['modelVersion']} is better: {change}."
    return f"{document['modelVersion']} is not shown to be better: {change}. Nothing is claimed from this run."
