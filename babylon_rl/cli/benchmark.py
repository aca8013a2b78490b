"""Command group ``benchmark``: standings, leaderboard, errors and markets as files here, run and compare in benchmark_run.py."""

import re
from datetime import UTC
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer

from babylon_rl.cli.benchmark_players import game_of_players, models_played
from babylon_rl.cli.benchmark_run import compare, gate_results, run
from babylon_rl.cli.options import GameOfVersionOption
from babylon_rl.cli.output import Column, JsonOption, Table, emit, say
from babylon_rl.errors import MarketError, UsageError
from babylon_rl.evaluation import leaderboard as ranking
from babylon_rl.evaluation import report
from babylon_rl.evaluation.ceiling import errors
from babylon_rl.evaluation.gate import Comparison
from babylon_rl.evaluation.gate import compare as compared
from babylon_rl.evaluation.play import gate_job, script_rows, scripted
from babylon_rl.evaluation.report import ANSWERS, KINDS, gate_columns, leaderboard_columns
from babylon_rl.evaluation.snapshot_file import benchmark_scenario, encode, from_scenario, optimum_of, save, validate
from babylon_rl.evaluation.snapshots import GATE_ID, benchmark_snapshots, require_unseen
from babylon_rl.evaluation.stakes import scripts_at_stake
from babylon_rl.market.headlines import EDITIONS, HELD_OUT
from babylon_rl.market.simulation.agents import ONE_TICK
from babylon_rl.market.simulation.config import ScenarioConfig
from babylon_rl.market.simulation.config import preset as named_preset
from babylon_rl.market.simulation.games import GAMES, Game
from babylon_rl.market.simulation.strategies import PLAYERS
from babylon_rl.settings import load_settings
from babylon_rl.store.database import open_database
from babylon_rl.store.migrate import require_migrated
from babylon_rl.windows import window_start

app = typer.Typer(name="benchmark", help="Evidence: models and strategies in unseen markets.", no_args_is_help=True)
app.command("run")(run)
app.command("compare")(compare)
DEFAULT_PRESET = "quick"
TEXTS = [
    Column("text", "name"), Column("says", lambda row: {1: "good, YES", -1: "bad, NO", 0: "nothing"}[row["direction"]]),
    Column("decisions", "decisions"), *ANSWERS,
    Column("lost, $", lambda row: f"{row['lostUsd']:.0f}", meaning="expected dollars below following, over all of its decisions"),
]  # fmt: skip


@app.command("errors")
def show_errors(
    player: Annotated[str, typer.Argument(metavar="PLAYER", help="A version, base, or an agent (conservative, best-by-prompt...).")],
    texts: Annotated[int, typer.Option(min=0, help="Most misread texts to show.")] = 10,
    game: GameOfVersionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show answers by kind of headline, and misread texts. In the gate's markets, of stored decisions; no model is asked."""
    played = game_of_players([player], game)
    if played.mandate != ONE_TICK:
        fitting = ", ".join(one.name for one in GAMES.values() if one.mandate == ONE_TICK)
        raise UsageError(f"Errors are of orders for one tick, and {played.name} is played with positions that last: choose {fitting}.")
    if player in PLAYERS:
        markets, script = benchmark_snapshots(load_settings().benchmark_markets, played), scripted(player, played.mandate)
        results = [gate_job(script, market).result(lambda done, of: None) for market in markets]
    else:
        results = gate_results([player], played)[0]
    highest = max((int(result.benchmark_id.removeprefix(GATE_ID)) for result in results), default=-1)
    kinds, by_text = errors(results, {snapshot.id: snapshot for snapshot in benchmark_snapshots(highest + 1, played)})
    misread = [one for one in by_text if one.lost_usd > 0.0][:texts]
    document: dict[str, Any] = {
        "player": player, "markets": len(results), "kinds": [one.document for one in kinds], "texts": [one.document for one in misread],
    }  # fmt: skip
    tables: list[Table | str] = [
        Table(KINDS, document["kinds"], f"{player}, {len(results)} markets: answers by kind of headline"),
        "",
        Table(TEXTS, document["texts"], "Texts that cost most, below following them"),
    ]
    emit(document, tables, as_json)


@app.command("standings")
def standings(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Versions, base, or agents (nothing, balanced, oracle...).")],
    against: Annotated[str | None, typer.Option(help="Player to compare the others with. Default: the last NAME of several.")] = None,
    markets: Annotated[int | None, typer.Option("--markets", min=2, help="Market hours to play. Default: BENCHMARK_MARKETS.")] = None,
    game: GameOfVersionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Play the gate's markets with any versions and agents. Shows the P&L of each, and its paired difference to one of them."""
    chosen = list(dict.fromkeys([*names, *([against] if against is not None else [])]))
    reference = against or (chosen[-1] if len(chosen) > 1 else None)
    if against is not None and len(chosen) == 1:
        raise UsageError(f"{against} cannot be compared with itself: name another.")
    comparison = _played(chosen, markets, reference, game_of_players(chosen, game))
    document = {
        "markets": comparison.markets,
        "reference": comparison.reference,
        "rows": [row.document for row in comparison.rows],
        "runs": [
            {"model": row.player, "snapshot": r.snapshot, "pnl": r.pnl_usd, "trades": r.trades, "wins": r.wins, "losses": r.losses,
             "invalid": r.invalid, "refused": r.refused, "actions": dict(r.actions), "equity": list(r.equity_usd)}
            for row in comparison.rows for r in row.results
        ],
    }  # fmt: skip
    title = f"{comparison.markets} unseen markets, mean P&L with its 95 % interval"
    emit(document, [Table(gate_columns(comparison.reference, comparison.game.names_size), comparison.rows, title)], as_json)


def _played(names: list[str], markets: int | None, reference: str | None, game: Game) -> Comparison:
    settings = load_settings()
    snapshots = benchmark_snapshots(markets or settings.benchmark_markets, game)
    # By edition and seed alone; hours of registered versions are compared where one of them plays.
    require_unseen(snapshots)
    played = script_rows(snapshots, [name for name in names if name in PLAYERS])
    models = [name for name in names if name not in played]
    if models:
        with open_database(settings, prepare=False) as database:
            require_migrated(database)
            with database.connect() as connection:
                played |= models_played(connection, settings, models, snapshots, say)
    staked = scripts_at_stake(snapshots, played[models[0]][1]) if models else {}
    return compared({name: played[name] for name in names} | staked, names[0], reference, game=game)


@app.command("leaderboard")
def leaderboard(
    plot: Annotated[Path | None, typer.Option("--plot", help="A PNG file for the picture.")] = None, as_json: JsonOption = False
) -> None:
    """Rank versions, base and agents by P&L. In the gate's markets; no model is asked."""
    settings = load_settings()
    with open_database(settings, prepare=False) as database:
        require_migrated(database)
        with database.connect() as connection:
            board = ranking.leaderboard(connection, settings)
    if plot is not None:
        say(f"The picture is {report.write_plot(ranking.leaderboard_png(board), plot)}.")
    title = f"{board.markets} unseen markets, mean P&L with its 95 % interval"
    emit(board.document, [Table(leaderboard_columns(board.reference, board.sized), board.lines, title)], as_json)
    say(*(f"{version} is not ranked. {why}" for version, why in board.unranked.items()))


@app.command("generate")
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
        str, typer.Option(help=f"Companies and words: {', '.join(EDITIONS)}. No training hour has those of a held-out edition.")
    ] = HELD_OUT,
    out: Annotated[Path | None, typer.Option(help="The file; with .gz compressed. Default: ID.json.gz here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a benchmark market to a file. Course, outcomes, and the best possible P&L."""
    options = {
        "minutes": minutes,
        "tick_seconds": tick_seconds,
        "predictions": predictions,
        "perps": perps,
        "agents": agents,
        "seed": int(seed) if seed is not None and re.fullmatch(r"-?\d+", seed) else seed,
        "start_ms": None if start is None else int(window_start(start).replace(tzinfo=UTC).timestamp() * 1000),
    }
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    try:
        # A length without a preset means the usual market; neither means DEFAULT_PRESET.
        if preset is None and minutes is not None:
            config = ScenarioConfig(edition=edition, **given)
        else:
            config = named_preset(DEFAULT_PRESET if preset is None else preset, edition=edition, **given)
    except MarketError as error:
        raise UsageError(str(error)) from error
    snapshot = from_scenario(benchmark_scenario(config))
    errors, warnings = validate(snapshot)
    if errors:
        raise MarketError(f"The market of {config} makes no sound snapshot: {' '.join(errors)}")
    say(*warnings)
    path = out if out is not None else Path(f"{snapshot.id}.json.gz")
    size, best = save(snapshot, path), optimum_of(snapshot)
    document = {
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
        "startBalance": best.start_balance,
        "warnings": warnings,
    }
    says = (
        f"{path}: {snapshot.id}, seed {snapshot.seed}, {len(snapshot.ticks):,} ticks of {snapshot.tick_interval} s, "
        f"{document['predictionMarkets']} prediction markets, {document['perpetualMarkets']} perpetuals, {document['agents']} agents, "
        f"{size:,} bytes.\n"
        f"From {best.start_balance:,.0f} $ an agent that knows the market to its end earns {best.pnl:,.0f} $."
    )
    emit(document, [says], as_json)
