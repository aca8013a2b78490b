"""Pictures of the gate's evidence: a comparison (P&L, paired differences, the course of the hour, risk), and the leaderboard."""

import io
import math
import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from babylon_rl.evaluation.comparison import BASE, CANDIDATE, DEPLOYED, STRATEGY, Comparison, GateRow
from babylon_rl.evaluation.gate import GateVerdict
from babylon_rl.evaluation.leaderboard import VERSION, Leaderboard
from babylon_rl.evaluation.snapshots import PRESET
from babylon_rl.files.durable import fsync
from babylon_rl.market.simulation.config import PRESETS

_COLOURS = {
    "candidate": "#1f6fb4",
    "base": "#3d3d3d",
    "deployed": "#8a4fa3",
    "parent": "#b07aa1",
    "passed": "#b07aa1",
    "strategy": "#a9a9a9",
}
_GAIN, _LOSS = "#2a9d6f", "#c8553d"
_INCHES, _DPI = (13.5, 7.4), 80


def benchmark_png(comparison: Comparison[GateRow], verdict: GateVerdict) -> bytes:
    """Draw a comparison as a PNG of about 100 kB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DPI)
    FigureCanvasAgg(figure)
    places = [["means", "pairs", "hour"], ["means", "sharpe", "drawdown"]]
    panels = figure.subplot_mosaic(places, width_ratios=(1.15, 1.0, 1.0), height_ratios=(1.25, 1.0))
    figure.subplots_adjust(left=0.11, right=0.93, bottom=0.07, top=0.86, wspace=0.3, hspace=0.28)
    heading = f"{verdict.decision.replace('_', ' ').upper()}: {verdict.reason}"
    figure.text(0.02, 0.97, "\n".join(textwrap.wrap(heading, 170)[:3]), fontsize=9.5, va="top")
    _draw_means(panels["means"], comparison)
    _draw_pairs(panels["pairs"], comparison)
    _draw_hour(panels["hour"], comparison.rows, lambda row: row.pnl_path, "Mean P&L so far, dollars")
    models = [row for row in comparison.rows if row.role != STRATEGY] or comparison.rows  # strategies' risk is in the table
    _draw_hour(panels["sharpe"], models, lambda row: row.sharpe_path, "Mean Sharpe ratio so far")
    _draw_hour(panels["drawdown"], models, lambda row: row.drawdown_path, "Mean dollars below the peak so far")
    for axes in panels.values():
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _drawn(comparison: Comparison[GateRow]) -> list[GateRow]:
    """Models in their order, then strategies from best to worst."""
    scripts = [row for row in comparison.rows if row.role == STRATEGY]
    models = [row for row in comparison.rows if row.role != STRATEGY]
    return models + sorted(scripts, key=lambda row: -row.pnl.mean)


def write_plot(png: bytes, path: Path) -> Path:
    """Put a picture at ``path``, complete or not at all; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(png)
    fsync(temporary)
    temporary.replace(path)
    return path


def _draw_means(axes: Any, comparison: Comparison[GateRow]) -> None:
    drawn = _drawn(comparison)
    for position, row in enumerate(drawn):
        pnl, colour = row.pnl, _COLOURS[row.role]
        axes.plot([pnl.low, pnl.high], [position, position], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([pnl.mean], [position], marker="o", markersize=7, color=colour)
        axes.annotate(
            f"{pnl.mean:+.0f}", (pnl.mean, position), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8, color=colour
        )
    labels = [f"{s.player} ({s.role})" if s.role not in (s.player, STRATEGY) else s.player for s in drawn]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.6)
    axes.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xlabel("dollars of a market hour", fontsize=8)
    axes.set_title("Mean P&L, 95 % interval", fontsize=9, loc="left")


def _draw_pairs(axes: Any, comparison: Comparison[GateRow]) -> None:
    if comparison.candidate is None or comparison.reference is None or comparison.candidate == comparison.reference:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "not compared", ha="center", va="center", color="#888888", transform=axes.transAxes)
        return
    ours, theirs = comparison.row(comparison.candidate), comparison.row(comparison.reference)
    differences = sorted(a - b for a, b in zip(ours.pnls_usd, theirs.pnls_usd, strict=True))
    better = sum(difference > 0 for difference in differences)
    places = range(1, len(differences) + 1)
    axes.vlines(places, 0, differences, color=[_GAIN if d > 0 else _LOSS for d in differences], linewidth=1.2)
    axes.scatter(places, differences, color=[_GAIN if d > 0 else _LOSS for d in differences], s=18, zorder=3)
    if ours.improvement is not None:
        axes.axhspan(ours.improvement.low, ours.improvement.high, color=_COLOURS[CANDIDATE], alpha=0.18, linewidth=0)
        axes.axhline(
            ours.improvement.mean, color=_COLOURS[CANDIDATE], linewidth=1.4, label=f"mean {ours.improvement.mean:+.0f}, 95 % interval"
        )
        axes.legend(fontsize=7.5, frameon=False, loc="upper left")
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.set_xlabel("markets, worst to best", fontsize=8)
    axes.set_ylabel("dollars", fontsize=8)
    axes.set_title(f"{ours.player} - {theirs.player}: better in {better} of {len(differences)} markets", fontsize=9, loc="left")


def _draw_hour(axes: Any, rows: Sequence[GateRow], path_of: Callable[[GateRow], Sequence[float | None]], title: str) -> None:
    """Curves over the hour, each with its player's name at the end."""
    ends = []
    for row in rows:
        curve = [math.nan if value is None else value for value in path_of(row)]
        minutes = [tick * PRESETS[PRESET].tick_seconds / 60 for tick in range(len(curve))]
        style = {"linewidth": 1.1, "linestyle": "--"} if row.role == STRATEGY else {"linewidth": 2.0}
        axes.plot(minutes, curve, color=_COLOURS[row.role], **style)
        if not math.isnan(curve[-1]):  # who never trades has no Sharpe ratio
            ends.append((curve[-1], row.player, _COLOURS[row.role], minutes[-1]))
    low, high = axes.get_ylim()
    ends.sort()
    places = _apart([end[0] for end in ends], (high - low) * 0.045)
    for (_, model, colour, minute), place in zip(ends, places, strict=True):  # names beside the lines' ends
        axes.annotate(model, (minute, place), xytext=(5, 0), textcoords="offset points", fontsize=8, color=colour, va="center")
    axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xlabel("minute of the hour", fontsize=8)
    axes.set_title(title, fontsize=9, loc="left")


def _apart(values: Sequence[float], gap: float) -> list[float]:
    """Sorted values, moved as little as keeps them ``gap`` apart: those that would overlap share their mean as a block."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value])
        while len(blocks) > 1 and _ends(blocks[-2], gap)[1] + gap > _ends(blocks[-1], gap)[0]:
            last = blocks.pop()
            blocks[-1] += last
    return [_ends(block, gap)[0] + gap * place for block in blocks for place in range(len(block))]


def _ends(block: Sequence[float], gap: float) -> tuple[float, float]:
    middle, half = sum(block) / len(block), gap * (len(block) - 1) / 2
    return middle - half, middle + half


_BOARD_COLOURS = {VERSION: "#1f6fb4", DEPLOYED: "#8a4fa3", BASE: "#3d3d3d", STRATEGY: "#a9a9a9"}
_MARKERS = {"pass": "o", "fail": "X", "inconclusive": "D"}
_WIDTH, _BOARD_DPI, _MOST = 11.5, 88, 40


def leaderboard_png(board: Leaderboard) -> bytes:
    """Draw it as a PNG of about 40 kB; of more than 40 lines the first are drawn, and the newest versions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = 1.1 + 0.27 * max(8, min(_MOST, len(board.lines)))
    figure = Figure(figsize=(_WIDTH, height), dpi=_BOARD_DPI)
    FigureCanvasAgg(figure)
    ranks, progress = figure.subplots(1, 2, width_ratios=(1.25, 1.0))
    figure.subplots_adjust(left=0.12, right=0.97, bottom=0.5 / height, top=1 - 0.4 / height, wspace=0.16)
    _draw_ranks(ranks, board)
    _draw_versions(progress, board)
    for axes in (ranks, progress):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _draw_ranks(axes: Any, board: Leaderboard) -> None:
    drawn = board.lines[:_MOST]
    for position, line in enumerate(drawn):
        pnl, colour = line.row.pnl, _BOARD_COLOURS[line.row.role]
        axes.plot([pnl.low, pnl.high], [position, position], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([pnl.mean], [position], marker="o", markersize=6, color=colour)
        axes.annotate(
            f"{pnl.mean:+.0f}", (pnl.mean, position), xytext=(0, 5), textcoords="offset points", ha="center", fontsize=7.5, color=colour
        )
    axes.set_yticks(range(len(drawn)), [f"{line.place}. {line.row.player}" for line in drawn], parse_math=False)
    axes.set_ylim(len(drawn) - 0.5, -0.7)
    axes.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xlabel("dollars of a market hour", fontsize=8)
    axes.set_title(f"Mean P&L in {board.markets} unseen markets, 95 % interval", fontsize=9, loc="left")


def _draw_versions(axes: Any, board: Leaderboard) -> None:
    drawn = [(line, line.row.improvement) for line in board.versions if line.row.improvement is not None][-_MOST:]
    if not drawn:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no version is ranked", ha="center", va="center", color="#888888", transform=axes.transAxes)
        return
    for position, (line, gain) in enumerate(drawn):
        colour = _BOARD_COLOURS[line.row.role]
        axes.plot([position, position], [gain.low, gain.high], color=colour, linewidth=2.2, solid_capstyle="round")
        marker = _MARKERS.get(line.gated.decision if line.gated is not None else "", "o")
        axes.plot([position], [gain.mean], marker=marker, markersize=9, color=colour, markeredgecolor="white")
    axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xlim(-0.6, len(drawn) - 0.4)
    crowded = len(drawn) > 8
    names = [line.row.player for line, _ in drawn]
    axes.set_xticks(range(len(drawn)), names, rotation=90 if crowded else 0, fontsize=6 if crowded else 8, parse_math=False)
    axes.set_title("Dollars an hour above the base, paired, 95 % interval", fontsize=9, loc="left")
    decided = {line.gated.decision for line, _ in drawn if line.gated is not None}
    for decision in (one for one in _MARKERS if one in decided):
        axes.plot([], [], marker=_MARKERS[decision], markersize=7, color="#555555", linestyle="none", label=f"gate: {decision}")
    if decided:
        axes.legend(fontsize=7.5, frameon=False, loc="upper left")
