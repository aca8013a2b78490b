"""Small pictures for asset pages: PNG inside a markdown data URI, drawn without pyplot and kept to a few kilobytes."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

GAIN, LOSS, OTHER = "#2a9d6f", "#c8553d", "#4063a3"
MOST_BARS = 40
_DPI = 72
_WIDTH_INCHES = 6.4


def bar_plot(
    title: str, unit: str, values: Sequence[tuple[str, float]], *, intervals: Sequence[tuple[float, float]] | None = None
) -> dg.MarkdownMetadataValue:
    """Horizontal bars, first on top, gains green and losses red; ``intervals`` are (low, high) per bar, in ``unit``.

    Beyond MOST_BARS only the first are drawn, and the title says so.
    """
    shown = list(values[:MOST_BARS])
    title = title if len(shown) == len(values) else f"{title} (first {MOST_BARS} of {len(values)})"
    figure, axes = _axes(title, 0.9 + 0.24 * max(len(shown), 1))
    numbers = [number for _, number in shown]
    axes.barh(range(len(shown)), numbers, color=[GAIN if number >= 0 else LOSS for number in numbers], height=0.7)
    if intervals is not None:
        lows = [number - low for number, (low, _) in zip(numbers, intervals, strict=False)]
        highs = [high - number for number, (_, high) in zip(numbers, intervals, strict=False)]
        axes.errorbar(numbers, range(len(shown)), xerr=[lows, highs], fmt="none", ecolor="#333333", capsize=3)
    axes.set_yticks(range(len(shown)), [_short(name) for name, _ in shown], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_xlabel(unit, fontsize=8)
    return _embed(title, figure)


def line_plot(title: str, unit: str, series: Mapping[str, Sequence[float]], *, x_label: str = "step") -> dg.MarkdownMetadataValue:
    """One line per series over its positions, from 1."""
    figure, axes = _axes(title, 2.8)
    for name, numbers in series.items():
        axes.plot(range(1, len(numbers) + 1), numbers, label=_short(name), linewidth=1.4, marker="." if len(numbers) < 30 else None)
    axes.set_xlabel(x_label, fontsize=8)
    axes.set_ylabel(unit, fontsize=8)
    if len(series) > 1:
        axes.legend(fontsize=7, frameon=False)
    return _embed(title, figure)


def embedded_png(title: str, png: bytes) -> dg.MarkdownMetadataValue:
    """A picture that somebody else drew."""
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})")


def _axes(title: str, height_inches: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_INCHES, height_inches), dpi=_DPI)
    FigureCanvasAgg(figure)
    # Fixed margins: measuring the texts to find better ones costs more than all the drawing.
    figure.subplots_adjust(left=0.27, right=0.97, bottom=0.5 / height_inches, top=1 - 0.32 / height_inches)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=9, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _embed(title: str, figure: Any) -> dg.MarkdownMetadataValue:
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return embedded_png(title, png.getvalue())


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}"
