"""Command ``demo``: the whole loop, from an empty database to a benchmarked checkpoint.

Every stage does only missing work, so an interrupted demo resumes where it stopped, and a finished one only shows its result again. With
``--generations`` the loop repeats: the deployed version plays the next hours, and the next training continues from it.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from babylon_rl.cli import demo_stages
from babylon_rl.cli.children import stop_children
from babylon_rl.cli.demo_stages import AGENTS, MODEL_AGENTS, WINDOWS, Demo, player_after, stage
from babylon_rl.cli.options import GameOption
from babylon_rl.cli.output import JsonOption, Table, emit, say
from babylon_rl.errors import Diverged, NothingToTrain
from babylon_rl.evaluation.report import GENERATIONS, KINDS, ceiling_words, demo_columns, stored_standing
from babylon_rl.market.simulation.games import ONE_TICK_GAME, game_named
from babylon_rl.models.server_process import kept_open
from babylon_rl.project_files import clone
from babylon_rl.setting_sources import DEMO_FILE
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.batches import read_batch
from babylon_rl.store.benchmarks import read_report
from babylon_rl.store.database import open_database
from babylon_rl.store.registry import model_of_batch
from babylon_rl.store.releases import BASE

app = typer.Typer()
TRAJECTORIES_AN_HOUR = 20  # that must be freezable before the demo trains; an hour has 72
ITERATIONS = 2
# Of a first version, a quarter of the usual: the demo ends in minutes. Later ones differ too little from each other for that.
CONFIRMATION_MARKETS = 24
ROLLOUT_STEPS = (50.0, 100.0)  # half of the agents get a version at once
# What differs from the defaults, said on the first line. Without the KL penalty a step costs a third less; with a WANDB_API_KEY the trainer
# would be a paid one, unless TRAINER says otherwise. A day of hours has few steps: half as large ones after a longer warm-up depend less on
# the seed (docs/decisions/0031-trust-region.md).
DEMO_SETTINGS = {
    "train_rl_local": True, "trainer": "local", "iterations": ITERATIONS, "kl_penalty": 0, "gradient_accumulation_steps": 1,
    "warmup_steps": 12, "auto_promote": True,
}  # fmt: skip
# Where the prompt shows posts: after one pass a version reads too little (docs/decisions/0031-trust-region.md).
TWO_PASSES = {"epochs": 2, "iterations": 2 * ITERATIONS}


@app.command("demo")
def demo(
    windows: Annotated[int, typer.Option(min=2, help="Hours of market to simulate in each generation.")] = WINDOWS,
    seed: Annotated[int, typer.Option(help="Seed of the simulated market and of the training.")] = 0,
    generations: Annotated[int, typer.Option(min=1, help="How often to play, judge and train; each plays its own hours.")] = 1,
    game: GameOption = ONE_TICK_GAME.name,
    gate: Annotated[bool, typer.Option("--gate/--no-gate", help="Release only what passes; else every version, for comparison.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Run the whole loop: simulate, score, train, compare.

    From nothing to a better agent on this machine, compared on unseen markets.
    """
    began, played = time.monotonic(), game_named(game)
    minimum = TRAJECTORIES_AN_HOUR * windows
    chosen = DEMO_SETTINGS | {"trainer": load_settings().trainer or DEMO_SETTINGS["trainer"]}
    chosen |= {} if played == ONE_TICK_GAME else TWO_PASSES
    chosen |= {"auto_promote": gate, "training_min_trajectories": minimum, "windows_per_iteration": -(-windows // ITERATIONS)}
    settings = load_settings(**chosen).model_copy(update={"rollout_steps": ROLLOUT_STEPS})
    keep_choices(settings, chosen)
    given = f", seed {seed}" + ("" if played == ONE_TICK_GAME else f", game {game}")
    say("Demo settings: " + " ".join(f"{name.upper()}={str(value).lower()}" for name, value in chosen.items()) + given)
    # Remains of a killed demo would hold the database.
    say(*stop_children(settings.home, orphans_only=True))
    with open_database(settings) as database:
        state = Demo(settings, database, windows, seed, generations, game=played, gate=gate)
        with stage(settings, "1. Database"):
            demo_stages.prepare(state)
        plan = demo_stages.planned(state)
        keep_choices(settings, chosen | {"first_window": plan[0][0]})
        done: list[dict[str, Any]] = []
        _market(state, plan[0], done)
        for hours, following in zip(plan, [*plan[1:], None], strict=True):
            # The comparison, the confirmation, the hour of the release and the hours after it ask the same models.
            with kept_open(state.serving) as serving:
                asked = replace(state, serving=serving)
                done.append(_generation(asked, hours, done))
                if following is not None:
                    _market(asked, following, done)
        document = _result(state, done) | {"firstWindow": plan[0][0], "seconds": round(time.monotonic() - began, 1)}
    emit(document, _parts(document), as_json)


def keep_choices(settings: Settings, chosen: Mapping[str, Any]) -> None:
    """Store a demo's choices beside its embedded database, for later commands.

    A demo in a database of the user's own keeps nothing: other data may come to it.
    """
    if settings.uses_embedded_database:
        settings.home.mkdir(parents=True, exist_ok=True)
        lines = [f"{name.upper()}={value if isinstance(value, str) else str(value).lower()}\n" for name, value in chosen.items()]
        (settings.home / DEMO_FILE).write_text("# Chosen by babylon-rl demo; the environment and .env win.\n" + "".join(lines))


def _title(state: Demo, earlier: list[dict[str, Any]]) -> str:
    """What the lines of the next generation begin with, where there are several."""
    return f"generation {len(earlier) + 1} of {state.generations}, " if state.generations > 1 else ""


def _market(state: Demo, hours: list[str], earlier: list[dict[str, Any]]) -> None:
    player = player_after(earlier)
    model = "the base model" if player == BASE else player
    seats = f"{AGENTS - MODEL_AGENTS} scripted agents and {MODEL_AGENTS} that asks {model}"
    with stage(state.settings, f"2. Market: {_title(state, earlier)}{len(hours)} hours, {seats}"):
        demo_stages.play(state, hours, player)


def _generation(state: Demo, hours: list[str], earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """Judge and train the played hours of one generation; return its result."""
    player, failure, batch_id, title = player_after(earlier), None, None, _title(state, earlier)
    if player == BASE:
        state = replace(state, settings=state.settings.model_copy(update={"confirmation_markets": CONFIRMATION_MARKETS}))
    with stage(state.settings, f"3. Hours: {title}groups, outcomes and scores ({state.settings.judge_model}), through Dagster"):
        demo_stages.materialize_hours(state, hours)
    where = "at the training service" if state.settings.trainer == "serverless" else "on this machine's processor"
    with stage(state.settings, f"4. Training {where}, {title}then the benchmark, through Dagster"):
        try:
            batch_id = demo_stages.train(state, hours)
        except (Diverged, NothingToTrain) as nothing:
            # A single generation without a version is an error; several go on with the next hours.
            if state.generations == 1:
                raise
            failure = str(nothing)
            say(f"   No version came of it: {failure}")
        trained = _trained(state, batch_id)
    condition = ", if the gate and a confirmation in fresh markets let it" if state.gate else ", whatever the gate says"
    with stage(state.settings, f"5. Release: {title}the version in front of agents{condition}"):
        released = demo_stages.release(state, trained["modelVersion"], hours)
    played = {"generation": len(earlier) + 1, "player": player, "hours": [hours[0], hours[-1]]}
    document = played | {"failure": failure, "released": released} | trained
    return document | {"deployed": player_after([*earlier, document])}


def _trained(state: Demo, batch_id: str | None) -> dict[str, Any]:
    """A generation's version and the gate's decision; None values without a batch."""
    if batch_id is None:
        return {"batchId": None, "modelVersion": None}
    with state.database.connect() as connection:
        model, report, batch = model_of_batch(connection, batch_id), read_report(connection, batch_id), read_batch(connection, batch_id)
    assert model is not None and report is not None and batch is not None
    preflight = batch.preflight or {}
    own = next((row for row in report.rows if row["model"] == model.version), {})
    return {
        "batchId": batch_id, "modelVersion": model.version, "parentVersion": model.parent_version, "checkpoint": model.checkpoint,
        "plot": str(report.plot_path), "sequences": preflight.get("sequences"), "scriptedShare": preflight.get("scriptedShare"),
        "reference": report.reference or BASE, "decision": report.decision, "reason": report.reason, "gateMarkets": report.markets,
        "improvement": own.get("improvement"), "warning": own.get("holdFloor"),
    }  # fmt: skip


def _result(state: Demo, done: list[dict[str, Any]]) -> dict[str, Any]:
    """The newest version's numbers; for several generations also standings of all versions."""
    trained = [generation for generation in done if generation["modelVersion"] is not None]
    several: dict[str, Any] = {}
    if state.generations > 1:
        versions = [generation["modelVersion"] for generation in trained]
        with stage(state.settings, "6. Every version and player in the same markets"):
            several = {"generations": done, "standings": demo_stages.standings(state, versions, done[-1]["deployed"])}
    if not trained:
        return {"seed": state.seed, "windows": state.windows, "modelVersion": None, **several}
    last = trained[-1]
    with state.database.connect() as connection:
        report = read_report(connection, last["batchId"])
    assert report is not None
    names = ("batchId", "modelVersion", "checkpoint", "plot", "reference", "decision", "reason", "released")
    return {"seed": state.seed, "windows": state.windows, **{name: last[name] for name in names}, "rows": report.rows, **several}


def _parts(document: dict[str, Any]) -> list[Table | str]:
    parts: list[Table | str] = []
    if "generations" in document:
        parts += ["", Table(GENERATIONS, document["generations"]), ""]
        parts += [f"generation {one['generation']}: {one['failure'] or one['reason']}" for one in document["generations"]]
    if document["modelVersion"] is None:
        return parts
    rows = document["rows"]
    parts.append(f"\nThe same unseen markets ({rows[0]['markets']}), one agent alone in each; dollars an hour, 95 % intervals\n")
    played = next((game_named(row["game"]) for row in rows if "game" in row), ONE_TICK_GAME)
    parts.append(Table(demo_columns(document["reference"], played.names_size), rows))
    parts.append(f"\n{verdict(document)}\n")
    parts += [f"{row['holdFloor']}\n" for row in rows if row.get("holdFloor")]
    parts += [part for row in rows if row.get("errors") for part in (Table(KINDS, row["errors"], f"{row['model']}, by headline"), "")]
    for name, value in (
        ("checkpoint", document["checkpoint"]),
        ("plot", document["plot"]),
        ("gate", f"{document['decision']}: {document['reason']}"),
        ("release", "deployed; `babylon-rl models rollback` takes it back" if document["released"] else "not deployed"),
    ):
        parts.append(f"{name:11} {value}")
    return [*parts, *next_steps(document, in_clone=clone() is not None)]


def next_steps(document: dict[str, Any], in_clone: bool) -> list[str]:
    """Commands to go on with: of make and the clone's environment, or of an installed wheel."""
    dev, command = ("make dev", ".venv/bin/babylon-rl") if in_clone else ("babylon-rl dev", "babylon-rl")
    more = 2 * document["rows"][0]["markets"]  # the markets played so far are known: naming them plays nothing
    return [
        f"\nNext: {dev}   the graph, its hours and this checkpoint in Dagster's UI",
        f"      {command} batches show {document['batchId']}   its loss, its judge and its iterations",
        f"      {command} benchmark standings {document['modelVersion']} base --markets {more}   more evidence",
        f"      DATABASE_URL=postgresql://... {command} windows   what a real game's database holds",
    ]


def verdict(document: dict[str, Any]) -> str:
    """Sentences on the version against the reference, doing nothing, its best script, the news reader and the ceiling."""
    # A claim needs an interval above 0; anything else is reported as not shown.
    row = next((row for row in document["rows"] if row["model"] == document["modelVersion"]), None)
    if row is None:
        return f"{document['modelVersion']} was not compared: {document['reason']}"
    interval = f"{row['improvementLow']:+.0f} to {row['improvementHigh']:+.0f}"
    change = f"{row['improvement']:+.0f} dollars an hour against {document['reference']} (95 % interval {interval})"
    stands = f"{stored_standing(row)}\n{ceiling_words(row)}"
    if row["improvementLow"] > 0:
        return f"{document['modelVersion']} is better: {change}.\n{stands}"
    return f"{document['modelVersion']} is not shown to be better: {change}. Nothing is claimed from this run.\n{stands}"
