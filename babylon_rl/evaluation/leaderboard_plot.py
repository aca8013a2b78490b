"""The leaderboard as one picture: everybody's P&L from the richest down, and how far each version is from the base, oldest first."""

import io
from typing import Any

from babylon_rl.evaluation.comparison import BASE, DEPLOYED, STRATEGY
from babylon_rl.evaluation.leaderboard import VERSION, Leaderboard

_COLOURS = {VERSION: "#1f6fb4", DEPLOYED: "#8a4fa3", BASE: "#3d3d3d", STRATEGY: "#a9a9a9"}
_MARKERS = {"pass": "o", "fail": "X", "inconclusive": "D"}
_WIDTH, _DPI, _MOST = 11.5, 88, 40


def leaderboard_png(board: Leaderboard) -> bytes:
    """Draw it as a PNG of about 40 kB; of more than 40 lines the first are drawn, and the newest versions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = 1.1 + 0.27 * max(8, min(_MOST, len(board.lines)))
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI)
    FigureCanvasAgg(figure)
    ranks, progress = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
    figure.subplots_adjust(left=0.12, right=0.97, bottom=0.5 / height, top=1 - 0.4 / height, wspace=0.16)
    _draw_ranks(ranks, board)
    _draw_progress(progress, board)
    for axes in (ranks, progress):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _draw_ranks(axes: Any, board: Leaderboard) -> None:
    drawn = board.lines[:_MOST]
    for position, line in enumerate(drawn):
        pnl, colour = line.standing.pnl, _COLOURS[line.standing.role]
        axes.plot([pnl.low, pnl.high], [position, position], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([pnl.mean], [position], marker="o", markersize=6, color=colour)
        axes.annotate(
            f"{pnl.mean:+.0f}", (pnl.mean, position), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=7.5, color=colour
        )
    axes.set_yticks(range(len(drawn)), [f"{line.place}. {line.standing.model}" for line in drawn], parse_math=False)
    axes.set_ylim(len(drawn) - 0.5, -0.7)
    axes.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xlabel("dollars of a market hour", fontsize=8)
    axes.set_title(f"Mean P&L in {board.markets} unseen markets, 95 % interval", fontsize=9, loc="left")


def _draw_progress(axes: Any, board: Leaderboard) -> None:
    drawn = [(line, line.standing.improvement) for line in board.versions if line.standing.improvement is not None][-_MOST:]
    if not drawn:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no version is ranked", ha="center", va="center", color="#888888", transform=axes.transAxes)
        return
    for position, (line, gain) in enumerate(drawn):
        colour = _COLOURS[line.standing.role]
        axes.plot([position, position], [gain.low, gain.high], color=colour, linewidth=2.2, solid_capstyle="round")
        marker = _MARKERS.get(line.gated.decision if line.gated is not None else "", "o")
        axes.plot([position], [gain.mean], marker=marker, markersize=9, color=colour, markeredgecolor="white")
    axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xlim(-0.6, len(drawn) - 0.4)
    crowded = len(drawn) > 8
    names = [line.standing.model for line, _ in drawn]
    axes.set_xticks(range(len(drawn)), names, rotation=90 if crowded else 0, fontsize=6 if crowded else 8, parse_math=False)
    axes.set_title("Dollars an hour above the base, paired, 95 % interval", fontsize=9, loc="left")
    decided = {line.gated.decision for line, _ in drawn if line.gated is not None}
    for decision in (one for one in _MARKERS if one in decided):
        axes.plot([], [], marker=_MARKERS[decision], markersize=7, color="#555555", linestyle="none", label=f"gate: {decision}")
    if decided:
        axes.legend(fontsize=7.5, frameon=False, loc="upper left")
