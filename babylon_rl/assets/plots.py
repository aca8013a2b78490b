"""Small plots for asset pages: PNG in a markdown data URI.

They are drawn without pyplot and kept to a few kilobytes.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

GAIN, LOSS, OTHER = "#2a9d6f", "#c8553d", "#4063a3"
MOST_BARS = 40
NAMED_PATHS, MOST_PATHS = 8, 60
_PATHS = ("#4063a3", "#c8553d", "#2a9d6f", "#8e5ea2", "#d99a2b", "#3aa6b9", "#9a6b4f", "#d16ba5")
_DPI, _COLOURS, _MOST = 72, 96, 1e15
_WIDTH_INCHES = 6.4


def bar_plot(
    title: str,
    unit: str,
    values: Sequence[tuple[str, float]],
    *,
    intervals: Sequence[tuple[float, float]] | None = None,
    colour: str | None = None,
) -> dg.MarkdownMetadataValue:
    """Horizontal bars, first on top; gains green, losses red, or all in one ``colour``.

    ``intervals`` are (low, high), in ``unit``. Beyond MOST_BARS only the first are drawn, and the title says so.
    """
    shown = list(values[:MOST_BARS])
    title = title if len(shown) == len(values) else f"{title} (first {MOST_BARS} of {len(values)})"
    figure, axes = _axes(title, 0.9 + 0.24 * max(len(shown), 1))
    numbers = [_drawable(number) for _, number in shown]
    axes.barh(range(len(shown)), numbers, color=[colour or (GAIN if number >= 0 else LOSS) for number in numbers], height=0.7)
    # Error bars are drawn as distances from the bar's end.
    if intervals is not None:
        lows = [number - low for number, (low, _) in zip(numbers, intervals, strict=False)]
        highs = [high - number for number, (_, high) in zip(numbers, intervals, strict=False)]
        axes.errorbar(numbers, range(len(shown)), xerr=[lows, highs], fmt="none", ecolor="#333333", capsize=3)
    axes.set_yticks(range(len(shown)), [_short(name) for name, _ in shown], fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_xlabel(unit, fontsize=8)
    if all(isinstance(number, int) for number in numbers):
        axes.xaxis.get_major_locator().set_params(integer=True)
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


@dataclass(frozen=True)
class Paths:
    """One panel of ``path_plot``: (minute, value) series by name, most informative first."""

    unit: str
    series: Mapping[str, Sequence[tuple[float, float]]]

    @property
    def heading(self) -> str:
        """The unit, and how many series are named."""
        named = f"; {NAMED_PATHS} of {len(self.series)} named" if len(self.series) > NAMED_PATHS else ""
        return f"{self.unit}{named}"


def path_plot(title: str, panels: Sequence[Paths]) -> dg.MarkdownMetadataValue:
    """Lines over the minutes of an hour, one panel below the other.

    The first NAMED_PATHS series are named; more, up to MOST_PATHS, are grey.
    """
    height = 0.75 + 1.7 * len(panels)
    figure = _figure(height)
    figure.subplots_adjust(left=0.09, right=0.72, bottom=0.45 / height, top=1 - 0.48 / height, hspace=0.32)
    figure.text(0.012, 1 - 0.21 / height, title, fontsize=9)
    for position, panel in enumerate(panels, start=1):
        _draw_paths(figure.add_subplot(len(panels), 1, position), panel)
    figure.axes[-1].set_xlabel("minute of the hour", fontsize=8)
    return _embed(title, figure)


def _draw_paths(axes: Any, panel: Paths) -> None:
    from matplotlib.collections import LineCollection

    shown = list(panel.series.items())[:MOST_PATHS]
    drawn = [(name, [(minute, _drawable(value)) for minute, value in path]) for name, path in shown]
    # Unnamed series in grey below, named ones in colour above, names at the right edge.
    axes.add_collection(LineCollection([path for _, path in drawn[NAMED_PATHS:]], colors="#cccccc", linewidths=0.6, zorder=1))
    named = LineCollection([path for _, path in drawn[:NAMED_PATHS]], colors=_PATHS[: len(drawn)], linewidths=1.3, zorder=2)
    axes.add_collection(named)
    for place, ((name, _), colour) in enumerate(zip(drawn, _PATHS, strict=False)):
        axes.text(
            1.02, 0.94 - 0.125 * place, _short(name), color=colour, fontsize=7, transform=axes.transAxes, va="center", parse_math=False
        )
    axes.autoscale_view()
    axes.set_xlim(0, 60)
    axes.set_xticks(range(0, 61, 10))
    axes.set_title(panel.heading, fontsize=8, loc="left", y=1.0)
    _plain(axes, labelsize=7)


def embedded_png(title: str, png: bytes) -> dg.MarkdownMetadataValue:
    """Metadata for a PNG that was drawn elsewhere."""
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})")


def _figure(height_inches: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH_INCHES, height_inches), dpi=_DPI)
    FigureCanvasAgg(figure)
    return figure


def _axes(title: str, height_inches: float) -> tuple[Any, Any]:
    figure = _figure(height_inches)
    # Fixed margins: measuring the texts to find better ones costs more than all the drawing.
    figure.subplots_adjust(left=0.27, right=0.97, bottom=0.5 / height_inches, top=1 - 0.32 / height_inches)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=9, loc="left", y=1.0)
    _plain(axes, labelsize=8)
    return figure, axes


def _plain(axes: Any, *, labelsize: int) -> None:
    axes.tick_params(labelsize=labelsize)
    axes.spines[["top", "right"]].set_visible(False)


def _embed(title: str, figure: Any) -> dg.MarkdownMetadataValue:
    from PIL import Image

    figure.canvas.draw()
    drawn = Image.frombytes("RGBA", figure.canvas.get_width_height(), figure.canvas.buffer_rgba().tobytes())
    png = io.BytesIO()
    # These pictures have few colours, and a palette of them is a fifth of the bytes.
    drawn.convert("RGB").quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(png, "png", optimize=True)
    return embedded_png(title, png.getvalue())


def _drawable(number: float) -> float:
    """Clamp a number to the range that matplotlib can compute with.

    The table beside the plot has the exact number.
    """
    return max(-_MOST, min(_MOST, number))


def _short(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}"
