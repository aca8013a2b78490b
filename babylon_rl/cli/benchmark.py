"""Command ``benchmark generate``: writes a market as a snapshot file for later runs."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from babylon_rl.cli.benchmark_leaderboard import leaderboard
from babylon_rl.cli.benchmark_run import compare, run
from babylon_rl.cli.evaluation import standings
from babylon_rl.cli.output import JsonOption, emit, say

if TYPE_CHECKING:
    from babylon_rl.evaluation.snapshot_file import SnapshotDocument
    from babylon_rl.market.simulation.config import ScenarioConfig

benchmark = typer.Typer(help="Evidence: models and strategies in unseen markets.", no_args_is_help=True)
DEFAULT_PRESET = "quick"


def register(app: typer.Typer) -> None:
    """Add the group to ``app``."""
    benchmark.command("standings")(standings)
    benchmark.command("generate")(generate)
    benchmark.command("run")(run)
    benchmark.command("compare")(compare)
    benchmark.command("leaderboard")(leaderboard)
    app.add_typer(benchmark, name="benchmark")


def generate(
    preset: Annotated[
        str | None,
        typer.Option(help="quick (30 minutes), hour (an hour in ticks of 5 minutes) or week. Default: quick, without --minutes."),
    ] = None,
    minutes: Annotated[int | None, typer.Option(help="Length of the market.")] = None,
    tick_seconds: Annotated[int | None, typer.Option(help="Length of a tick; every agent acts once in it. Default: 60.")] = None,
    predictions: Annotated[int | None, typer.Option(help="Prediction markets. Default: 5.")] = None,
    perps: Annotated[int | None, typer.Option(help="Perpetuals. Default: 3.")] = None,
    agents: Annotated[int | None, typer.Option(help="People who post in it. Default: 8.")] = None,
    seed: Annotated[str | None, typer.Option(help="A number or a text; the same seed gives the same bytes. Default: 12345.")] = None,
    start: Annotated[str | None, typer.Option(help="The hour (YYYY-MM-DDTHH:00) it begins with. Default: 2025-01-01T00:00.")] = None,
    edition: Annotated[
        str, typer.Option(help="Whose companies and words: held-out, which no training hour has, or training.")
    ] = "held-out",
    out: Annotated[Path | None, typer.Option(help="The file; with .gz compressed. Default: ID.json.gz here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a benchmark market to a file: its course, what came of it, and the best that could have been earned."""
    from babylon_rl.errors import MarketError
    from babylon_rl.evaluation.snapshot_file import benchmark_scenario, from_scenario, save, validate

    asked = {
        "minutes": minutes,
        "tick_seconds": tick_seconds,
        "predictions": predictions,
        "perps": perps,
        "agents": agents,
        "seed": int(seed) if seed is not None and re.fullmatch(r"-?\d+", seed) else seed,
        "start_ms": _start_ms(start),
    }
    config = _config(preset, edition, {name: value for name, value in asked.items() if value is not None})
    snapshot = from_scenario(benchmark_scenario(config))
    # An unsound snapshot is never written; warnings are printed.
    errors, warnings = validate(snapshot)
    if errors:
        raise MarketError(f"The market of {config} makes no sound snapshot: {' '.join(errors)}")
    for warning in warnings:
        say(warning)
    path = out if out is not None else Path(f"{snapshot.id}.json.gz")
    document = _summary(snapshot, path, save(snapshot, path), warnings)
    emit(document, lambda console: console.print(_told(document)), as_json)


def _config(preset: str | None, edition: str, changes: dict[str, Any]) -> "ScenarioConfig":
    """The configuration of a preset with the changes from options.

    Without a preset, ``minutes`` of the usual market.

    Raises:
        UsageError: no such preset, or a value out of range.
    """
    from babylon_rl.errors import MarketError, UsageError
    from babylon_rl.market.simulation.config import ScenarioConfig
    from babylon_rl.market.simulation.config import preset as named

    try:
        # A length without a preset means the usual market; neither means DEFAULT_PRESET.
        if preset is None and "minutes" in changes:
            return ScenarioConfig(edition=edition, **changes)
        return named(preset if preset is not None else DEFAULT_PRESET, edition=edition, **changes)
    except MarketError as error:
        raise UsageError(str(error)) from error


def _start_ms(start: str | None) -> int | None:
    from datetime import UTC

    from babylon_rl.windows import window_start

    return int(window_start(start).replace(tzinfo=UTC).timestamp() * 1000) if start is not None else None


def _summary(snapshot: "SnapshotDocument", path: Path, size: int, warnings: list[str]) -> dict[str, Any]:
    from hashlib import sha256

    from babylon_rl.evaluation.snapshot_file import encode, optimum_of

    best = optimum_of(snapshot)
    return {
        "id": snapshot.id,
        "file": str(path),
        "bytes": size,
        "sha256": sha256(encode(snapshot)).hexdigest(),
        "seed": snapshot.seed,
        "duration": snapshot.duration,
        "tickInterval": snapshot.tick_interval,
        "ticks": len(snapshot.ticks),
        "predictionMarkets": len(snapshot.ground_truth.market_outcomes),
        "perpetualMarkets": len(snapshot.initial_state.perpetual_markets),
        "agents": len(snapshot.initial_state.agents),
        "events": sum(len(tick.events) for tick in snapshot.ticks),
        "optimalPnl": best.pnl,
        "playedPnl": best.played,
        "upperBound": best.upper_bound,
        "startBalance": best.start_balance,
        "warnings": warnings,
    }


def _told(document: dict[str, Any]) -> str:
    return (
        f"{document['file']}: {document['id']}, seed {document['seed']}, {document['ticks']:,} ticks of {document['tickInterval']} s, "
        f"{document['predictionMarkets']} prediction markets, {document['perpetualMarkets']} perpetuals, {document['agents']} agents, "
        f"{document['bytes']:,} bytes.\n"
        f"From {document['startBalance']:,.0f} $ the best plan earns {document['optimalPnl']:,.0f} $ "
        f"({document['playedPnl']:,.0f} $ with its own impact on prices); "
        f"whoever stakes no profits and buys no question twice earns at most {document['upperBound']:,.0f} $."
    )
