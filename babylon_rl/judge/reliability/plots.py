"""Plots of the report: position bias, agreement by hour, score against P&L, cost by day."""

from collections.abc import Sequence
from typing import Any

from babylon_rl.judge.reliability.measures import Estimate, bin_estimates
from babylon_rl.judge.reliability.report import ReliabilityReport
from babylon_rl.reporting.plots import date_axis, new_figure, plain_axes, png_of
from babylon_rl.windows import window_start

_MAIN, _SECOND = "#1f6fb4", "#c8553d"
_DPI = 88
_SIZE = (6.8, 3.5)


def draw_plots(report: ReliabilityReport) -> dict[str, bytes]:
    """PNG plots by name (position, agreement, pnl, cost); those without data are absent."""
    pngs = {"position": _position(report), "agreement": _agreement(report), "pnl": _pnl(report), "cost": _cost(report)}
    return {name: png for name, png in pngs.items() if png is not None}


def _position(report: ReliabilityReport) -> bytes | None:
    bins = bin_estimates(report.sums.by_place)
    if report.position_slope is None or not bins:
        return None
    figure, axes = _figure()
    _points(axes, bins)
    slope = report.position_slope.value
    axes.plot([0, 1], [-slope / 2, slope / 2], color=_SECOND, linewidth=1.2, linestyle="--", label=f"slope {slope:+.3f}")
    axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks([0, 0.5, 1], ["first", "middle", "last"])
    axes.set_xlabel("place in the request", fontsize=8)
    axes.set_ylabel("score here less the episode's mean", fontsize=8)
    axes.legend(fontsize=7.5, frameon=False)
    return _png(figure, f"Position bias of {report.judge}, {report.position_slope.groups} groups")


def _agreement(report: ReliabilityReport) -> bytes | None:
    shown = [point for point in report.sums.hours if point.disagreement is not None]
    if not shown:
        return None
    figure, (upper, lower) = _figure(2)
    _by_hour(upper, [(p.window, p.disagreement) for p in shown], "orders differ by")
    upper.set_ylim(0, 1.12 * max(0.05, *(p.disagreement or 0.0 for p in shown)))
    upper.sharex(lower)
    upper.tick_params(labelbottom=False)
    for axes in (upper, lower):
        axes.xaxis.get_offset_text().set_fontsize(8)
    upper.xaxis.get_offset_text().set_visible(False)
    _by_hour(lower, [(p.window, p.tau) for p in shown], "Kendall's tau")
    lower.set_ylim(min([0.0, *(p.tau for p in shown if p.tau is not None)]) - 0.08, 1.06)
    lower.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    return _png(figure, f"Agreement of {report.judge} with itself, by hour")


def _pnl(report: ReliabilityReport) -> bytes | None:
    bins = bin_estimates(report.sums.by_pnl_rank)
    if not bins or not report.sums.points:
        return None
    figure, (ranks, money) = _figure(1, 2)
    _points(ranks, bins)
    ranks.set_xlim(-0.05, 1.05)
    ranks.set_xticks([place for place, _ in bins], ["least", *[""] * (len(bins) - 2), "most"] if len(bins) > 1 else [""])
    ranks.set_ylim(-0.03, 1.03)
    ranks.set_ylabel("score", fontsize=8)
    ranks.set_xlabel("P&L among those of its hour", fontsize=8)
    money.scatter([pnl for pnl, _ in report.sums.points], [score for _, score in report.sums.points], s=9, color=_MAIN, alpha=0.35, lw=0)
    money.set_ylim(-0.03, 1.03)
    money.tick_params(labelleft=False)
    money.set_xlabel("P&L of the hour, $", fontsize=8)
    # on a linear axis a few large gains would hide all others
    if max(abs(pnl) for pnl, _ in report.sums.points) > 3_000:
        money.set_xscale("symlog", linthresh=100)
    correlation = report.pnl_correlation
    subtitle = "" if correlation is None else f", Spearman within an hour {correlation.value:+.2f}"
    return _png(figure, f"Score and P&L, {report.judge}{subtitle}")


def _cost(report: ReliabilityReport) -> bytes | None:
    if not report.days:
        return None
    figure, axes = _figure()
    days = list(report.days)
    priced = report.usd is not None
    places = range(len(days))
    if priced:
        axes.bar(places, [day.usd for day in days], color=_MAIN, width=0.7)
        axes.set_ylabel("dollars", fontsize=8)
    else:
        axes.bar(places, [day.prompt_tokens / 1000 for day in days], color=_MAIN, width=0.7, label="in")
        below = [day.prompt_tokens / 1000 for day in days]
        axes.bar(places, [day.completion_tokens / 1000 for day in days], bottom=below, color=_SECOND, width=0.7, label="out")
        axes.set_ylabel("thousand tokens", fontsize=8)
        axes.legend(fontsize=7.5, frameon=False)
    # at most eight day labels, and bars of sensible width for few days
    every = max(1, -(-len(days) // 8))
    axes.set_xticks(list(places)[::every], [day.of for day in days][::every])
    axes.set_xlim((len(days) - 1) / 2 - max(len(days), 5) / 2, (len(days) - 1) / 2 + max(len(days), 5) / 2)
    for place, day in zip(places, days, strict=True):
        if len(days) <= 14:
            height = day.usd if priced else (day.prompt_tokens + day.completion_tokens) / 1000
            axes.annotate(f"{day.hours} h", (place, height), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=7.5)
    axes.margins(y=0.15)
    total = f"${report.usd:.2f}" if report.usd is not None else "no table has the price"
    return _png(figure, f"Cost by day of the hours judged ({total})")


def _points(axes: Any, bins: Sequence[tuple[float, Estimate]]) -> None:
    places = [place for place, _ in bins]
    values = [estimate.value for _, estimate in bins]
    lows = [0.0 if estimate.low is None else estimate.value - estimate.low for _, estimate in bins]
    highs = [0.0 if estimate.high is None else estimate.high - estimate.value for _, estimate in bins]
    label = "mean of the groups, 95 %"
    axes.errorbar(places, values, yerr=[lows, highs], fmt="o", markersize=5.5, color=_MAIN, capsize=3, linewidth=1.4, label=label)


def _by_hour(axes: Any, values: Sequence[tuple[str, float | None]], label: str) -> None:
    points = [(window_start(window), value) for window, value in values if value is not None]
    axes.scatter([when for when, _ in points], [value for _, value in points], s=12, color=_MAIN, alpha=0.6, lw=0)
    if points:
        date_axis(axes)
        mean = sum(value for _, value in points) / len(points)
        axes.axhline(mean, color=_SECOND, linewidth=1.0, linestyle="--")
        axes.annotate(f"mean {mean:.2f}", (1.0, mean), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
                      fontsize=7.5, color=_SECOND, va="center", annotation_clip=False)  # fmt: skip
    axes.set_ylabel(label, fontsize=8)


def _figure(rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    figure = new_figure(*_SIZE, _DPI, constrained=True)
    axes = figure.subplots(rows, columns)
    plain_axes(figure.axes)
    return figure, axes


def _png(figure: Any, title: str) -> bytes:
    figure.suptitle(title, fontsize=9.5, x=0.01, ha="left", parse_math=False)
    return png_of(figure)
