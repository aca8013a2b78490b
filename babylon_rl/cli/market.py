"""Command ``spawn-agents``: simulated agents play hours of the market."""

from contextlib import ExitStack
from itertools import count
from typing import TYPE_CHECKING, Annotated

import typer

from babylon_rl.cli.output import JsonOption, emit, progress_of_parts, table

if TYPE_CHECKING:
    from rich.console import Console

    from babylon_rl.market.spawn import SpawnedHour

LOCAL_MODEL = "base"


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command("spawn-agents")(spawn_agents)


def spawn_agents(
    agents: Annotated[int, typer.Option(help="Agents in all.")] = 6,
    duration: Annotated[int, typer.Option(help="Minutes of market time played of each hour.")] = 60,
    windows: Annotated[int, typer.Option(help="Hours to play.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed and start give the same rows.")] = 0,
    start: Annotated[str | None, typer.Option(help="The first hour (YYYY-MM-DDTHH:00). Default: after the newest simulated hour.")] = None,
    llm_agents: Annotated[int, typer.Option(help="How many of the agents ask a language model.")] = 1,
    model: Annotated[
        str, typer.Option(help="base or a version (served here), or MODEL@URL of any OpenAI-compatible endpoint.")
    ] = LOCAL_MODEL,
    as_json: JsonOption = False,
) -> None:
    """Simulated agents play hours of the market and write what the game would, a row per agent tick."""
    from babylon_rl.market.serving import asked_model
    from babylon_rl.market.spawn import SpawnRequest, spawn
    from babylon_rl.settings import load_settings
    from babylon_rl.store.database import open_database
    from babylon_rl.store.migrate import migrate
    from babylon_rl.windows import utc_now

    request = SpawnRequest(agents, llm_agents, windows, seed, duration, start)
    settings = load_settings()
    with open_database(settings) as database, ExitStack() as stack:
        migrate(database)
        # A model is served only if an agent asks one.
        asked = stack.enter_context(asked_model(settings, model, temperature=1.0)) if llm_agents else None
        with database.connect() as connection, progress_of_parts() as on_progress:
            on_progress("playing hours", 0, windows)
            played = count(1)
            hours = spawn(connection, request, utc_now(), asked, lambda _: on_progress("playing hours", next(played), windows))
    emit({"windows": [hour.document for hour in hours]}, lambda console: _render(console, hours), as_json)


def _render(console: "Console", hours: "list[SpawnedHour]") -> None:
    strategies: dict[str, list[float]] = {}
    for hour in hours:
        for _, strategy, pnl in hour.agents:
            strategies.setdefault(strategy, []).append(pnl)
    title = f"{len(hours)} hours, {hours[0].window} to {hours[-1].window}, {sum(hour.trajectories for hour in hours):,} trajectories"
    lines = [
        [name, len(pnls), f"{sum(pnls) / len(pnls):+.0f}"]
        for name, pnls in sorted(strategies.items(), key=lambda item: -sum(item[1]) / len(item[1]))
    ]
    console.print(table(title, ["strategy", "agent hours", "mean P&L, $ an hour"], lines))
