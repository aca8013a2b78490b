"""The benchmark as one picture: P&L of every model, the candidate against its reference market by market, and P&L over the hour."""

import io
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from babylon_rl.evaluation.comparison import CANDIDATE, STRATEGY, Comparison, Standing
from babylon_rl.evaluation.gate import Verdict
from babylon_rl.evaluation.snapshots import PRESET
from babylon_rl.market.simulation.config import PRESETS
from babylon_rl.models.files import fsync

_COLOURS = {
    "candidate": "#1f6fb4",
    "base": "#3d3d3d",
    "deployed": "#8a4fa3",
    "parent": "#b07aa1",
    "passed": "#b07aa1",
    "strategy": "#a9a9a9",
}
_GAIN, _LOSS = "#2a9d6f", "#c8553d"
_INCHES, _DPI = (13.5, 5.6), 88


def benchmark_png(comparison: Comparison, verdict: Verdict) -> bytes:
    """Draw a comparison as a PNG of about 50 kB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DPI)
    FigureCanvasAgg(figure)
    means, pairs, hour = figure.subplots(1, 3, width_ratios=(1.15, 1.0, 1.0))
    figure.subplots_adjust(left=0.11, right=0.93, bottom=0.1, top=0.82, wspace=0.3)
    heading = f"{verdict.decision.replace('_', ' ').upper()}: {verdict.reason}"
    figure.text(0.02, 0.97, "\n".join(textwrap.wrap(heading, 170)[:3]), fontsize=9.5, va="top")
    _draw_means(means, comparison)
    _draw_pairs(pairs, comparison)
    _draw_hour(hour, comparison)
    for axes in (means, pairs, hour):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _drawn(comparison: Comparison) -> list[Standing]:
    """Models in their order, then strategies from best to worst."""
    scripts = [standing for standing in comparison.standings if standing.role == STRATEGY]
    models = [standing for standing in comparison.standings if standing.role != STRATEGY]
    return models + sorted(scripts, key=lambda standing: -standing.pnl.mean)


def write_plot(png: bytes, path: Path) -> Path:
    """Put a picture at ``path``, complete or not at all; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(png)
    fsync(temporary)
    temporary.replace(path)
    return path


def _draw_means(axes: Any, comparison: Comparison) -> None:
    drawn = _drawn(comparison)
    for position, standing in enumerate(drawn):
        pnl, colour = standing.pnl, _COLOURS[standing.role]
        axes.plot([pnl.low, pnl.high], [position, position], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([pnl.mean], [position], marker="o", markersize=7, color=colour)
        axes.annotate(
            f"{pnl.mean:+.0f}", (pnl.mean, position), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8, color=colour
        )
    labels = [f"{s.model} ({s.role})" if s.role not in (s.model, STRATEGY) else s.model for s in drawn]
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.6)
    axes.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xlabel("dollars of a market hour", fontsize=8)
    axes.set_title("Mean P&L, 95 % interval", fontsize=9, loc="left")


def _draw_pairs(axes: Any, comparison: Comparison) -> None:
    if comparison.candidate is None or comparison.reference is None or comparison.candidate == comparison.reference:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "not compared", ha="center", va="center", color="#888888", transform=axes.transAxes)
        return
    ours, theirs = comparison.standing(comparison.candidate), comparison.standing(comparison.reference)
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
    axes.set_title(f"{ours.model} - {theirs.model}: better in {better} of {len(differences)} markets", fontsize=9, loc="left")


def _draw_hour(axes: Any, comparison: Comparison) -> None:
    ends = []
    for standing in comparison.standings:
        curve = [0.0, *standing.equity_usd]
        minutes = [tick * PRESETS[PRESET].tick_seconds / 60 for tick in range(len(curve))]
        style = {"linewidth": 1.1, "linestyle": "--"} if standing.role == STRATEGY else {"linewidth": 2.0}
        axes.plot(minutes, curve, color=_COLOURS[standing.role], **style)
        ends.append((curve[-1], standing.model, _COLOURS[standing.role], minutes[-1]))
    low, high = axes.get_ylim()
    ends.sort()
    places = _apart([end[0] for end in ends], (high - low) * 0.045)
    for (_, model, colour, minute), place in zip(ends, places, strict=True):  # names beside the lines' ends
        axes.annotate(model, (minute, place), xytext=(5, 0), textcoords="offset points", fontsize=8, color=colour, va="center")
    axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xlabel("minute of the hour", fontsize=8)
    axes.set_title("Mean P&L so far, dollars", fontsize=9, loc="left")


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
