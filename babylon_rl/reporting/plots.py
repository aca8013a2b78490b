"""Plots as PNG, drawn by matplotlib.

Figures are drawn without pyplot, which keeps state between calls. Panels of a figure get plain values. Plots of asset pages are kept to
a few kilobytes by a palette, as Dagster stores them with every event.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GAIN, LOSS, OTHER, GREY = "#2a9d6f", "#c8553d", "#4063a3", "#bbbbbb"
SERIES = ("#4063a3", "#c8553d", "#2a9d6f", "#8e5ea2", "#d99a2b", "#3aa6b9", "#9a6b4f", "#d16ba5")
MOST_BARS = 40
NAMED_PATHS, MOST_PATHS = 8, 60
LONGEST_NAME = 24
_PAGE_WIDTH, _PAGE_DPI, _PAGE_COLOURS = 6.4, 72, 96
_NAMES_LEFT, _CHARACTER = 0.03, 0.0115  # of the page's width: before the names of bars, and for each of their characters
_LARGEST = 1e15  # that matplotlib can compute with
Path = Sequence[tuple[float, float]]  # (minute, value)


@dataclass(frozen=True)
class Picture:
    """A PNG with its title."""

    title: str
    png: bytes


@dataclass(frozen=True)
class IntervalMark:
    """A named mean with its interval; ``marker`` is one of matplotlib's."""

    label: str
    mean: float
    low: float
    high: float
    colour: str
    marker: str = "o"


def new_figure(width: float, height: float, dpi: int, *, constrained: bool = False) -> Any:
    """A figure of so many inches that can be drawn in any thread."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained" if constrained else None)
    FigureCanvasAgg(figure)
    return figure


def png_of(figure: Any) -> bytes:
    """The figure as a PNG in full colours."""
    png = io.BytesIO()
    # Without the version of matplotlib, so that the same drawing gives the same bytes.
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def plain_axes(panels: Iterable[Any], label_size: float = 8) -> None:
    """Leave out the frame's upper and right side, and set small tick labels."""
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=label_size)


def date_axis(axes: Any) -> None:
    """Label the horizontal axis with a few dates or hours, as its span asks."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))


# ---- plots of asset pages


def bar_plot(
    title: str,
    unit: str,
    values: Sequence[tuple[str, float]],
    *,
    intervals: Sequence[tuple[float, float]] | None = None,
    colour: str | None = None,
) -> Picture:
    """Horizontal bars, first on top; gains green, losses red, or all in one ``colour``.

    ``intervals`` are (low, high), in ``unit``. Beyond MOST_BARS only the first are drawn, and the title says so.
    """
    shown = list(values[:MOST_BARS])
    title = title if len(shown) == len(values) else f"{title} (first {MOST_BARS} of {len(values)})"
    names = [_short(name) for name, _ in shown]
    figure, axes = _page_axes(title, 0.9 + 0.24 * max(len(shown), 1), _NAMES_LEFT + _CHARACTER * max(map(len, names), default=0))
    numbers = [_drawable(number) for _, number in shown]
    axes.barh(range(len(shown)), numbers, color=[colour or (GAIN if number >= 0 else LOSS) for number in numbers], height=0.7)
    if intervals is not None:
        lows = [number - low for number, (low, _) in zip(numbers, intervals, strict=False)]
        highs = [high - number for number, (_, high) in zip(numbers, intervals, strict=False)]
        axes.errorbar(numbers, range(len(shown)), xerr=[lows, highs], fmt="none", ecolor="#333333", capsize=3)
    axes.set_yticks(range(len(shown)), names, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_xlabel(unit, fontsize=8)
    if all(isinstance(number, int) for number in numbers):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return _page_picture(title, figure)


def line_plot(title: str, unit: str, series: Mapping[str, Sequence[float]], *, x_label: str = "step") -> Picture:
    """One line per series over its positions, from 1."""
    figure, axes = _page_axes(title, 2.8, 0.11)
    for name, numbers in series.items():
        axes.plot(range(1, len(numbers) + 1), numbers, label=_short(name), linewidth=1.4, marker="." if len(numbers) < 30 else None)
    axes.set_xlabel(x_label, fontsize=8)
    axes.set_ylabel(unit, fontsize=8)
    if len(series) > 1:
        axes.legend(fontsize=7, frameon=False)
    return _page_picture(title, figure)


def curve_panels(title: str, panels: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Picture:
    """Curves over their positions from 1, two panels a row; a name has one colour in all panels. None leaves a gap."""
    colours = dict(zip(dict.fromkeys(name for curves in panels.values() for name in curves), SERIES, strict=False))
    rows = max(1, -(-len(panels) // 2))
    height = 0.75 + 1.5 * rows
    figure = new_figure(_PAGE_WIDTH, height, _PAGE_DPI)
    figure.subplots_adjust(left=0.09, right=0.98, bottom=0.42 / height, top=1 - 0.55 / height, hspace=0.55, wspace=0.25)
    figure.text(0.012, 1 - 0.21 / height, title, fontsize=9, parse_math=False)
    for place, (name, colour) in enumerate(colours.items()):
        right = 0.98 - 0.14 * (len(colours) - 1 - place)
        figure.text(right, 1 - 0.21 / height, name, color=colour, fontsize=9, ha="right", parse_math=False)
    for position, (heading, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(rows, 2, position)
        for name, values in curves.items():
            numbers = [math.nan if value is None else _drawable(value) for value in values]
            axes.plot(range(1, len(numbers) + 1), numbers, color=colours[name], linewidth=1.2, marker="." if len(numbers) < 30 else None)
        axes.set_title(heading, fontsize=8, loc="left", y=1.0)
        plain_axes([axes], 7)
    return _page_picture(title, figure)


def path_plot(title: str, panels: Mapping[str, Mapping[str, Path]]) -> Picture:
    """Lines over the minutes of an hour, one panel below the other, by the panels' units.

    The first NAMED_PATHS series are named; more, up to MOST_PATHS, are grey.
    """
    height = 0.75 + 1.7 * len(panels)
    figure = new_figure(_PAGE_WIDTH, height, _PAGE_DPI)
    figure.subplots_adjust(left=0.09, right=0.72, bottom=0.45 / height, top=1 - 0.48 / height, hspace=0.32)
    figure.text(0.012, 1 - 0.21 / height, title, fontsize=9)
    for position, (unit, series) in enumerate(panels.items(), start=1):
        draw_paths(figure.add_subplot(len(panels), 1, position), unit, series)
    figure.axes[-1].set_xlabel("minute of the hour", fontsize=8)
    return _page_picture(title, figure)


def draw_paths(axes: Any, unit: str, series: Mapping[str, Path]) -> None:
    """One panel of ``path_plot``; its title says how many series are named."""
    from matplotlib.collections import LineCollection

    shown = list(series.items())[:MOST_PATHS]
    paths = [(name, [(minute, _drawable(value)) for minute, value in path]) for name, path in shown]
    # Unnamed series in grey below, named ones in colour above, names at the right edge.
    axes.add_collection(LineCollection([path for _, path in paths[NAMED_PATHS:]], colors="#cccccc", linewidths=0.6, zorder=1))
    named = LineCollection([path for _, path in paths[:NAMED_PATHS]], colors=SERIES[: len(paths)], linewidths=1.3, zorder=2)
    axes.add_collection(named)
    for place, ((name, _), colour) in enumerate(zip(paths, SERIES, strict=False)):
        axes.text(
            1.02, 0.94 - 0.125 * place, _short(name), color=colour, fontsize=7, transform=axes.transAxes, va="center", parse_math=False
        )
    axes.autoscale_view()
    axes.set_xlim(0, 60)
    axes.set_xticks(range(0, 61, 10))
    named_of = f"; {NAMED_PATHS} of {len(series)} named" if len(series) > NAMED_PATHS else ""
    axes.set_title(f"{unit}{named_of}", fontsize=8, loc="left", y=1.0)
    plain_axes([axes], 7)


def _page_axes(title: str, height: float, left: float) -> tuple[Any, Any]:
    figure = new_figure(_PAGE_WIDTH, height, _PAGE_DPI)
    # Margins by the number of characters: measuring the texts to find better ones costs more than all the drawing.
    figure.subplots_adjust(left=left, right=0.97, bottom=0.5 / height, top=1 - 0.32 / height)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=9, loc="left", y=1.0)
    plain_axes([axes])
    return figure, axes


def _page_picture(title: str, figure: Any) -> Picture:
    from PIL import Image

    figure.canvas.draw()
    pixels = Image.frombytes("RGBA", figure.canvas.get_width_height(), figure.canvas.buffer_rgba().tobytes())
    png = io.BytesIO()
    # These pictures have few colours, and a palette of them is a fifth of the bytes.
    pixels.convert("RGB").quantize(_PAGE_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(png, "png", optimize=True)
    return Picture(title, png.getvalue())


def _drawable(number: float) -> float:
    """Clamp a number to the range that matplotlib can compute with. The table beside the plot has the exact number."""
    return max(-_LARGEST, min(_LARGEST, number))


def _short(name: str) -> str:
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


# ---- panels of reports


def draw_intervals(axes: Any, marks: Sequence[IntervalMark], *, title: str = "", unit: str, numbers: bool = True) -> None:
    """Means with their intervals as rows, first on top; ``numbers`` writes the mean above each."""
    for place, mark in enumerate(marks):
        axes.plot([mark.low, mark.high], [place, place], color=mark.colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([mark.mean], [place], marker=mark.marker, markersize=6.5, color=mark.colour)
        if numbers:
            label = f"{mark.mean:+.0f}"
            axes.annotate(label, (mark.mean, place), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8, color=mark.colour)
    axes.set_yticks(range(len(marks)), [mark.label for mark in marks], parse_math=False)
    axes.set_ylim(len(marks) - 0.5, -0.7 if numbers else -0.6)
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    axes.set_xlabel(unit, fontsize=8)
    axes.set_title(title, fontsize=9, loc="left")


def draw_interval_columns(axes: Any, marks: Sequence[IntervalMark], *, title: str, legend: Mapping[str, str]) -> None:
    """Means with their intervals as columns. ``legend`` says what markers mean."""
    for place, mark in enumerate(marks):
        axes.plot([place, place], [mark.low, mark.high], color=mark.colour, linewidth=2.2, solid_capstyle="round")
        axes.plot([place], [mark.mean], marker=mark.marker, markersize=9, color=mark.colour, markeredgecolor="white")
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    axes.set_xlim(-0.6, len(marks) - 0.4)
    crowded = len(marks) > 8
    labels = [mark.label for mark in marks]
    axes.set_xticks(range(len(marks)), labels, rotation=90 if crowded else 0, fontsize=6 if crowded else 8, parse_math=False)
    axes.set_title(title, fontsize=9, loc="left")
    for marker, meaning in legend.items():
        axes.plot([], [], marker=marker, markersize=7, color="#555555", linestyle="none", label=meaning)
    if legend:
        axes.legend(fontsize=7.5, frameon=False, loc="upper left")


def draw_differences(axes: Any, differences: Sequence[float], *, title: str, mean: IntervalMark | None) -> None:
    """Plot paired differences from worst to best, with their mean and its interval."""
    ordered = sorted(differences)
    places, colours = range(1, len(ordered) + 1), [GAIN if difference > 0 else LOSS for difference in ordered]
    axes.vlines(places, 0, ordered, color=colours, linewidth=1.2)
    axes.scatter(places, ordered, color=colours, s=18, zorder=3)
    if mean is not None:
        axes.axhspan(mean.low, mean.high, color=mean.colour, alpha=0.18, linewidth=0)
        axes.axhline(mean.mean, color=mean.colour, linewidth=1.4, label=mean.label)
        axes.legend(fontsize=7.5, frameon=False, loc="upper left")
    axes.axhline(0, color="#555555", linewidth=0.8)
    axes.set_xlabel("markets, worst to best", fontsize=8)
    axes.set_ylabel("dollars", fontsize=8)
    axes.set_title(title, fontsize=9, loc="left")


def draw_curves(axes: Any, curves: Iterable[tuple[str, Sequence[float | None], str, bool]], *, step: float, title: str) -> None:
    """Curves over an hour, ``step`` minutes between two values: name, written at the end, values, colour, dashed. None leaves a gap."""
    ends = []
    for name, path, colour, dashed in curves:
        values = [math.nan if value is None else value for value in path]
        times = [index * step for index in range(len(values))]
        axes.plot(times, values, color=colour, linewidth=1.1 if dashed else 2.0, linestyle="--" if dashed else "-")
        if not math.isnan(values[-1]):
            ends.append((values[-1], name, colour, times[-1]))
    low, high = axes.get_ylim()
    ends.sort()
    places = spaced([end[0] for end in ends], (high - low) * 0.045)
    for (_, name, colour, time), place in zip(ends, places, strict=True):
        axes.annotate(
            name, (time, place), xytext=(5, 0), textcoords="offset points", fontsize=8, color=colour, va="center", parse_math=False
        )
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    axes.set_xlabel("minute of the hour", fontsize=8)
    axes.set_title(title, fontsize=9, loc="left")


def draw_sentence(axes: Any, sentence: str) -> None:
    """An empty panel with a sentence."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, sentence, ha="center", va="center", color="#888888", transform=axes.transAxes)


def spaced(values: Sequence[float], gap: float) -> list[float]:
    """Move sorted values as little as keeps them ``gap`` apart. Overlapping ones share their mean as a block."""
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value])
        while len(blocks) > 1 and _block_ends(blocks[-2], gap)[1] + gap > _block_ends(blocks[-1], gap)[0]:
            last = blocks.pop()
            blocks[-1] += last
    return [_block_ends(block, gap)[0] + gap * place for block in blocks for place in range(len(block))]


def _block_ends(block: Sequence[float], gap: float) -> tuple[float, float]:
    middle, half = sum(block) / len(block), gap * (len(block) - 1) / 2
    return middle - half, middle + half
