"""Leaderboard: versions of the lineage, their base and every strategy, by P&L.

It is made of stored results and asks no model anything. A version that did not play enough of the markets as they are now, or stands on
another base, is not ranked, and the reason is said. Left out: a correction for taking the best of many, which flatters the first place;
the gate compares a version with one reference and is the place for decisions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from babylon_rl.evaluation.benchmark import identity_of
from babylon_rl.evaluation.gate import BASE, DEPLOYED, GateRow, compare
from babylon_rl.evaluation.play import known_rows, script_rows
from babylon_rl.evaluation.report import CORRECTED, MARKET_FIT, interval_mark, leaderboard_columns
from babylon_rl.evaluation.snapshots import benchmark_snapshots
from babylon_rl.evaluation.stakes import game_of_report, scripts_at_stake
from babylon_rl.market.simulation.games import ONE_TICK_GAME, game_named
from babylon_rl.reporting import plots
from babylon_rl.reporting.numbers import legend, markdown_rows
from babylon_rl.settings import Settings
from babylon_rl.store.benchmarks import MarketResult, read_identities, read_reports
from babylon_rl.store.connection import Connection
from babylon_rl.store.registry import Model, read_models
from babylon_rl.types import BenchmarkReport
from babylon_rl.versions import content_version

VERSION = "version"
_FAILED = "failed"
_FEWEST = 2  # for an interval


@dataclass(frozen=True)
class LeaderboardRow:
    """A player's place in the leaderboard.

    ``model`` and ``gated`` are a version's, None for the base and strategies; ``gated`` also without a report.
    """

    place: int
    row: GateRow
    model: Model | None = None
    gated: BenchmarkReport | None = None

    @property
    def document(self) -> dict[str, Any]:
        """Report row with place, status and the gate's decision, as JSON values."""
        model, gated = self.model, self.gated
        return {
            "place": self.place,
            **self.row.document,
            "status": None if model is None else model.status,
            "parent": None if model is None else model.parent_version,
            "decision": None if gated is None else gated.decision,
            "reason": None if gated is None else gated.reason,
            "batch": None if model is None else model.training_batch,
        }


@dataclass(frozen=True)
class Leaderboard:
    """Ranked players over common markets, by P&L.

    ``lines`` begin with the highest; ``reference`` is the base, None before it has played. ``unranked`` says why a version has no place.
    ``sized``: in a game whose answers choose dollars; there scripts play at the mean stake of the best version too.
    """

    lines: tuple[LeaderboardRow, ...]
    unranked: Mapping[str, str]
    markets: int
    reference: str | None
    sized: bool = False

    @property
    def versions(self) -> list[LeaderboardRow]:
        """The ranked versions, oldest first."""
        return sorted((line for line in self.lines if line.model is not None), key=lambda line: line.model.order if line.model else ())

    @property
    def best(self) -> str | None:
        """The version that earned most, None while none is ranked."""
        return next((line.row.player for line in self.lines if line.model is not None), None)

    @cached_property
    def data_version(self) -> str:
        return content_version([self.document, [list(line.row.pnls_usd) for line in self.lines]])

    @property
    def document(self) -> dict[str, Any]:
        return {
            "markets": self.markets,
            "reference": self.reference,
            "rows": [line.document for line in self.lines],
            "unranked": [{"version": version, "reason": why} for version, why in self.unranked.items()],
        }


def leaderboard(connection: Connection, settings: Settings) -> Leaderboard:
    """Rank our versions on the newest version's base, that base, and all strategies.

    Markets are those that all of them played, in the game of the newest version whose game is known.
    """
    models, gated = read_models(connection), read_reports(connection)
    reports = {model.version: gated[model.training_batch] for model in models if model.training_batch in gated and not model.foreign}
    games = {version: name for version, report in reports.items() if (name := game_of_report(report)) is not None}
    game = next((games[model.version] for model in models if model.version in games), ONE_TICK_GAME.name)
    most = max([settings.benchmark_markets, *(report.markets for report in reports.values())])
    snapshots = benchmark_snapshots(most, game_named(game))
    ours = [model for model in models if not model.foreign]
    weights = _line(ours, read_identities(connection, [BASE, *(model.version for model in ours)]))
    results = {name: known_rows(connection, name, identity, snapshots, settings.home) for name, identity in weights.items()}
    reasons = {model.version: _missing(model, reports.get(model.version), results, settings.benchmark_markets) for model in models}
    for version, own in games.items():
        if own != game:
            reasons[version] = f"It plays {own}; the newest version, and this leaderboard, {game}."
    ranked = {model.version: model for model in models if reasons[model.version] is None}
    # Everyone is measured in the same markets, or differences would be those of the markets.
    players = {name: results[name] for name in (*ranked, BASE) if name in results}
    common = [snapshot for snapshot in snapshots if players and all(snapshot.id in rows for rows in players.values())]
    if len(common) < _FEWEST:
        common = list(snapshots[: settings.benchmark_markets])
        players = {name: rows for name, rows in players.items() if all(snapshot.id in rows for snapshot in common)}
    roles = {BASE: BASE} | {version: DEPLOYED if model.status == DEPLOYED else VERSION for version, model in ranked.items()}
    played = {name: (roles[name], [rows[snapshot.id] for snapshot in common]) for name, rows in players.items()}
    best = max((own for name, (_, own) in played.items() if name in ranked), key=lambda own: sum(row.pnl_usd for row in own), default=())
    played |= script_rows(common) | scripts_at_stake(common, best)
    # Without a stored base there is nothing to pair with.
    reference = BASE if BASE in played else None
    rows = sorted(compare(played, None, reference).rows, key=lambda row: (-row.pnl.mean, row.player))
    return Leaderboard(
        lines=tuple(LeaderboardRow(place, row, ranked.get(row.player), reports.get(row.player)) for place, row in enumerate(rows, start=1)),
        unranked={version: why for version, why in reasons.items() if why is not None},
        markets=len(common),
        reference=reference,
        sized=game_named(game).names_size,
    )


def _missing(
    model: Model, report: BenchmarkReport | None, results: Mapping[str, Mapping[str, MarketResult]], benchmark_size: int
) -> str | None:
    """Reason why a version has no place; None when it has one. ``benchmark_size`` is the number of markets of a benchmark."""
    again = f"materialize benchmark_report of {model.training_batch}"
    if model.foreign or model.status == _FAILED:
        return "Another producer made it." if model.foreign else "Its training failed."
    if report is None:
        return f"It has no benchmark report yet: {again}."
    if model.version not in results:
        return report.reason if report.reference is None else "It stands on another base than the newest version."
    # Measured by the version that shares most: after a change of the markets all have few, and none is at fault.
    shared = {name: len(rows.keys() & results[BASE].keys()) for name, rows in results.items() if name != BASE}
    # A version that shares too few markets would make the common set small for all.
    if shared[model.version] < max(_FEWEST, min(benchmark_size, max(shared.values()))):
        # One without a reference was not compared, or refused before the gate's markets: the report says why.
        few = f"It and the base share {shared[model.version]} of the markets as they are now: {again}."
        return report.reason if report.reference is None else few
    return None


def _line(models: Sequence[Model], identities: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Identities of the base and of the versions on it, by name. The base is that of the highest version, else the one that played last."""
    for model in models:
        for base in identities[BASE]:
            if _weights(model, base) in identities[model.version]:
                return {BASE: base} | {m.version: weights for m in models if (weights := _weights(m, base)) in identities[m.version]}
    last = next(iter(identities[BASE]), None)
    return {} if last is None else {BASE: last}


def _weights(model: Model, base: str) -> str:
    return "" if model.manifest_sha is None else identity_of(base, model.manifest_sha)


FOOTER = (
    "P&L in dollars of one market hour, mean and 95 % interval over the markets; differences to the base are paired market by market, "
    f"{CORRECTED}. Nothing is corrected for the number of rows: the first of many looks better than it is. The gate's column is its "
    "decision against the version's own reference, over as many markets as its report says. The oracle knows the future, the news reader "
    f"how often news are true. {MARKET_FIT}"
)


def markdown(board: Leaderboard) -> str:
    columns = leaderboard_columns(board.reference, board.sized)
    parts = [markdown_rows(columns, board.lines), legend(columns)]
    if board.unranked:
        parts.append("\n".join(["Not ranked:", "", *(f"* {version}: {why}" for version, why in board.unranked.items())]))
    parts.append(f"{board.markets} unseen markets. {FOOTER}")
    return "\n\n".join(parts) + "\n"


GATE_MARKERS = {"pass": "o", "fail": "X", "inconclusive": "D"}
MOST_DRAWN = 40


def leaderboard_png(board: Leaderboard) -> bytes:
    """The leaderboard as a PNG of about 40 kB. It shows the first MOST_DRAWN rows, and the newest versions against the base."""
    height = 1.1 + 0.27 * max(8, min(MOST_DRAWN, len(board.lines)))
    figure = plots.new_figure(11.5, height, 88)
    ranks, progress = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
    figure.subplots_adjust(left=0.12, right=0.97, bottom=0.5 / height, top=1 - 0.4 / height, wspace=0.16)
    marks = [interval_mark(f"{line.place}. {line.row.player}", line.row.pnl, line.row.role) for line in board.lines[:MOST_DRAWN]]
    title = f"Mean P&L in {board.markets} unseen markets, 95 % interval"
    plots.draw_intervals(ranks, marks, title=title, unit="dollars of a market hour")
    drawn = [(line, gain) for line in board.versions if (gain := line.row.improvement) is not None][-MOST_DRAWN:]
    if drawn:
        decisions = ["" if line.gated is None else line.gated.decision for line, _ in drawn]
        gains = [
            interval_mark(line.row.player, gain, line.row.role, GATE_MARKERS.get(decision, "o"))
            for (line, gain), decision in zip(drawn, decisions, strict=True)
        ]
        markers = {marker: f"gate: {decision}" for decision, marker in GATE_MARKERS.items() if decision in decisions}
        plots.draw_interval_columns(progress, gains, title=f"Dollars an hour above the base, {CORRECTED}", legend=markers)
    else:
        plots.draw_sentence(progress, "no version is ranked")
    plots.plain_axes((ranks, progress))
    return plots.png_of(figure)
