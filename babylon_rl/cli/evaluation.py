"""Command ``benchmark standings``: any versions and agents in the gate's markets; no registry change."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from babylon_rl.cli.output import JsonOption, emit, say, table
from babylon_rl.errors import UsageError
from babylon_rl.settings import Settings, load_settings
from babylon_rl.windows import utc_now

if TYPE_CHECKING:
    from babylon_rl.evaluation.comparison import Comparison, GateRow
    from babylon_rl.store.benchmarks import MarketResult
    from babylon_rl.store.database import Database

MarketsOption = Annotated[int | None, typer.Option("--markets", min=2, help="Market hours to play. Default: BENCHMARK_MARKETS.")]


def standings(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Versions, base, or agents (nothing, balanced, oracle...).")],
    against: Annotated[str | None, typer.Option(help="Whom the others are compared with. Default: the last NAME of several.")] = None,
    markets: MarketsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Play the gate's markets with any versions and agents: what each earns, and the paired difference to one of them."""
    chosen = list(dict.fromkeys([*names, *([against] if against is not None else [])]))
    reference = against or (chosen[-1] if len(chosen) > 1 else None)
    if against is not None and len(chosen) == 1:
        raise UsageError(f"{against} cannot be compared with itself: name another.")
    _emit(_played(chosen, markets, reference), as_json)


def _played(names: list[str], markets: int | None, reference: str | None) -> "Comparison[GateRow]":
    from babylon_rl.evaluation.comparison import compare
    from babylon_rl.evaluation.play import play_strategies
    from babylon_rl.evaluation.snapshots import benchmark_snapshots, require_unseen
    from babylon_rl.market.simulation.roster import NAMES
    from babylon_rl.store.database import open_database
    from babylon_rl.store.migrate import require_migrated

    settings = load_settings()
    snapshots = benchmark_snapshots(markets or settings.benchmark_markets)
    require_unseen(snapshots)
    played = play_strategies(snapshots, [name for name in names if name in NAMES])
    models = [name for name in names if name not in played]
    if models:
        with open_database(settings, prepare=False) as database:
            require_migrated(database)
            played |= _models_played(settings, database, models, snapshots)
    return compare({name: played[name] for name in names}, names[0], reference)


def _models_played(
    settings: Settings, database: "Database", names: list[str], snapshots: Any
) -> "dict[str, tuple[str, list[MarketResult]]]":
    from babylon_rl.evaluation.comparison import BASE, CANDIDATE
    from babylon_rl.evaluation.model_sources import absent, base_of, base_source, play_sources, trained_windows, version_source
    from babylon_rl.evaluation.snapshots import require_unseen
    from babylon_rl.market.serving import served_here
    from babylon_rl.store.registry import read_models

    with database.connect() as connection:
        models = {model.version: model for model in read_models(connection)}
        unknown = [name for name in names if name != BASE and name not in models]
        if unknown:
            raise UsageError(
                f"There is no version or strategy {unknown[0]!r}; `babylon-rl models` lists the versions; base is always there."
            )
        # Refuse before anything is played: unknown versions, absent weights, markets seen in training.
        missing = [fault for name in names if name != BASE and (fault := absent(models[name], settings)) is not None]
        if missing:
            raise UsageError(f"{missing[0]}")
        require_unseen(snapshots, trained_windows(models.values()))
        sources = [
            base_source(settings) if name == BASE else version_source(models[name], CANDIDATE, base_of(models[name], settings))
            for name in names
        ]
        results = play_sources(connection, settings, sources, snapshots, say, clock=utc_now, serving=served_here)
    return {source.name: (source.role, results[source.name]) for source in sources}


def _emit(comparison: "Comparison[GateRow]", as_json: bool) -> None:
    from babylon_rl.evaluation.report import COLUMNS, cells

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
    rows = [cells(comparison, row) for row in comparison.rows]
    if comparison.reference is None:
        # Without a reference the column of differences would be empty.
        rows = [[*row[:2], *row[3:]] for row in rows]
        columns = [*COLUMNS[:2], *COLUMNS[3:]]
    else:
        columns = list(COLUMNS)
    emit(document, lambda out: out.print(table(title, columns, rows)), as_json)
