"""The two plots of a page of evidence: P&L of all players, and P&L by generation."""

from collections.abc import Sequence
from typing import Any

from babylon_rl.market.simulation.strategies import STRATEGIES
from babylon_rl.reporting import plots
from benchmarks.evidence.results import Document, at_stake, ceiling, points, scripts

_SEEDS = ("#1f6fb4", "#c8553d", "#2a9d6f", "#8a4fa3", "#b5892b")
_SCRIPT, _BASE, _GRID, _CEILING = "#8a8f98", "#3d3d3d", "#d4d4d8", "#b5172f"
_LEAST_GAP = 0.035  # between names, as a share of the axis


def players(results: Sequence[Document]) -> bytes:
    """A PNG with the P&L and interval of all versions and scripts, one line each."""
    shown = [point for result in results for point in points(result) if point.row is not None]
    marks = [
        _mark(point.row, f"seed {point.seed}: {point.row['model']}", _colour(point.seed) if point.generation else _BASE)
        for point in shown
        if point.row is not None
    ]
    # Scripts last, best first: they are the scale for the seeds above.
    marks += [_mark(row, row["model"], _SCRIPT) for row in sorted(scripts(results), key=lambda row: -row["pnl"])]
    figure, axes = _figure(8, 0.27 * len(marks) + 0.9)
    plots.draw_intervals(axes, marks, unit="dollars of a market hour, mean and 95 % interval", numbers=False)
    best = ceiling(results)
    if best is not None:
        axes.axvline(best["pnl"], color=_CEILING, linewidth=1.2)
        axes.annotate(
            "ceiling", (best["pnl"], 1.0), xycoords=("data", "axes fraction"), fontsize=8, color=_CEILING, ha="center", va="bottom"
        )
    return plots.png_of(figure)


def _mark(row: Document, label: str, colour: str) -> plots.IntervalMark:
    return plots.IntervalMark(label, row["pnl"], row["low"], row["high"], colour)


def learning_curve(results: Sequence[Document]) -> bytes:
    """A PNG with P&L by generation: a line per seed, scripts as bands, and at the last version's own stake the best of them.

    Generation 0 is the base.
    """
    figure, axes = _figure(8.5, 5.2)
    last = len(results[0]["generations"])
    for row in scripts(results):
        axes.axhspan(row["low"], row["high"], color=_SCRIPT, alpha=0.07, linewidth=0)
        axes.axhline(row["pnl"], color=_SCRIPT, linewidth=0.9, linestyle="--", alpha=0.8)
    best = ceiling(results)
    if best is not None:
        axes.axhline(best["pnl"], color=_CEILING, linewidth=1.4)
    for index, result in enumerate(results):
        offset, colour = (index - (len(results) - 1) / 2) * 0.07, _colour(result["seed"])
        curve = points(result)
        drawn = [point for point in curve if point.row is not None]
        rows = [point.row for point in drawn if point.row is not None]
        errors = [[row["pnl"] - row["low"] for row in rows], [row["high"] - row["pnl"] for row in rows]]
        places = [point.generation + offset for point in drawn]
        axes.errorbar(
            places, [row["pnl"] for row in rows], yerr=errors, marker="o", color=colour, capsize=3, label=f"seed {result['seed']}"
        )
        staked = [row for row in at_stake(result) if row["model"].partition(" at ")[0] in STRATEGIES]
        if staked:
            best_usd = max(row["pnl"] for row in staked)
            axes.hlines(best_usd, last - 0.3, last + 0.3, colour, linestyle=":", label=f"best script at its stake, seed {result['seed']}")
        for point in curve:  # where no version came of it, the one before still stands
            if point.row is None:
                standing = next(earlier.row for earlier in reversed(curve[: point.generation]) if earlier.row is not None)
                axes.plot([point.generation + offset], [standing["pnl"]], marker="x", markersize=9, color=colour)
    axes.set_xticks(range(last + 1), ["base", *(f"generation {number}" for number in range(1, last + 1))])
    axes.set_xlim(-0.3, last + 0.3)
    axes.set_ylabel("P&L, dollars a market hour", fontsize=8)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    _name_bands(axes, scripts(results) + ([] if best is None else [best | {"model": "ceiling"}]), last + 0.3)
    return plots.png_of(figure)


def _name_bands(axes: Any, rows: Sequence[Document], right: float) -> None:
    """Label the bands from the lowest up, without overlaps."""
    low, high = axes.get_ylim()
    gap, place = (high - low) * _LEAST_GAP, low - high
    for row in sorted(rows, key=lambda row: row["pnl"]):
        place = max(row["pnl"], place + gap)
        colour = _CEILING if row["model"] == "ceiling" else "#5d626b"
        axes.annotate(row["model"], (right, place), xytext=(4, 0), textcoords="offset points", fontsize=8, color=colour, va="center")


def _colour(seed: int) -> str:
    return _SEEDS[seed % len(_SEEDS)]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    figure = plots.new_figure(width, height, 110, constrained=True)
    axes = figure.subplots()
    plots.plain_axes([axes])
    return figure, axes
