"""The fit as two pictures: what is told (events, posts) and how markets move, the recorded game beside the simulated market."""

from typing import Any

from babylon_rl.reporting import plots
from benchmarks.market_fit.measure import MarketFit

GAME, OURS = "recorded game", "simulated market"
_COLOURS = {GAME: "#3d3d3d", OURS: "#1f6fb4"}
_DPI = 88


def told_png(fits: dict[str, MarketFit]) -> bytes:
    """Events and posts of a tick, event types, and what the sentiment of posts says."""
    figure, (kinds, events, posts, sentiment) = _figure(4, (13.0, 4.2), (1.25, 1.0, 1.0, 1.0))
    names = sorted({kind for fit in fits.values() if fit.events for kind, _ in fit.events.kinds}, reverse=True)
    for place, (name, fit) in enumerate(fits.items()):
        shift, colour = (place - (len(fits) - 1) / 2) * 0.4, _COLOURS[name]
        if fit.events:
            shares = dict(fit.events.kinds)
            kinds.barh([row - shift for row in range(len(names))], [100 * shares.get(kind, 0.0) for kind in names], 0.38, color=colour)
            _bars(events, fit.events.per_tick, shift, colour, name)
        if fit.posts:
            _bars(posts, fit.posts.per_tick, shift, colour, name)
            shares = dict(fit.posts.sentiment)
            sentiment.bar([way + shift for way in (-1, 0, 1)], [100 * shares.get(way, 0.0) for way in (-1, 0, 1)], 0.38, color=colour)
    kinds.set_yticks(range(len(names)), names)
    kinds.set_title("events by type", fontsize=9)
    events.set_title("events in a tick", fontsize=9)
    posts.set_title("posts in a tick", fontsize=9)
    sentiment.set_xticks((-1, 0, 1), ("negative", "neutral", "positive"))
    sentiment.set_title("posts by sentiment", fontsize=9)
    kinds.set_xlabel("% of events", fontsize=8)
    for axes in (events, posts):
        axes.set_ylabel("% of ticks", fontsize=8)
    sentiment.set_ylabel("% of posts", fontsize=8)
    events.xaxis.get_major_locator().set_params(integer=True)
    posts.xaxis.get_major_locator().set_params(integer=True)
    return _png(figure)


def moves_png(fits: dict[str, MarketFit]) -> bytes:
    """Volatility by stock, persistence by horizon, and what follows an event that points somewhere."""
    figure, (volatility, memory, questions, stocks) = _figure(4, (13.0, 4.2), (1.0, 1.0, 1.0, 1.0))
    for name, fit in fits.items():
        colour = _COLOURS[name]
        if fit.stocks:
            values = [100 * value for value in fit.stocks.volatilities]
            ranks = [100 * (place + 0.5) / len(values) for place in range(len(values))]
            volatility.plot(values, ranks, "o-", color=colour, markersize=3.5, linewidth=1, label=name)
            minutes = [one.minutes for one in fit.stocks.persistence]
            memory.plot(minutes, [one.ratio for one in fit.stocks.persistence], "o-", color=colour, markersize=4)
            low, high = ([getattr(one, side) for one in fit.stocks.persistence] for side in ("low", "high"))
            memory.fill_between(minutes, low, high, color=colour, alpha=0.12, linewidth=0)
            _curve(stocks, [100 * move for move in fit.stocks.response], 100 * (fit.stocks.response_error or 0.0), fit.tick_s, colour)
        if fit.questions:
            _curve(questions, list(fit.questions.response), fit.questions.response_error or 0.0, fit.tick_s, colour)
    volatility.set_title("volatility of stocks", fontsize=9)
    volatility.set_xlabel("% per square root of an hour", fontsize=8)
    volatility.set_ylabel("% of stocks at most so volatile", fontsize=8)
    volatility.set_xlim(left=0)
    memory.axhline(1.0, color="#a9a9a9", linewidth=0.8)
    memory.set_title("momentum (>1) or reversion (<1) of prices", fontsize=9)
    memory.set_xlabel("minutes", fontsize=8)
    memory.set_ylabel("variance ratio; shaded: no memory", fontsize=8)
    questions.set_title("a question after an event about it", fontsize=9)
    questions.set_ylabel("log-odds in the direction pointed in", fontsize=8)
    stocks.set_title("a stock after an event naming it", fontsize=9)
    stocks.set_ylabel("% in the direction pointed in", fontsize=8)
    for axes in (questions, stocks):
        axes.axhline(0.0, color="#a9a9a9", linewidth=0.8)
        axes.set_xlabel("minutes after", fontsize=8)
    return _png(figure)


def _bars(axes: Any, shares: tuple[tuple[int, float], ...], shift: float, colour: str, name: str) -> None:
    axes.bar([count + shift for count, _ in shares], [100 * share for _, share in shares], 0.38, color=colour, label=name)


def _curve(axes: Any, moves: list[float], error: float, tick_s: float, colour: str) -> None:
    minutes = [place * tick_s / 60 for place in range(len(moves) + 1)]
    axes.plot(minutes, [0.0, *moves], "o-", color=colour, markersize=3, linewidth=1.2)
    if moves:
        axes.errorbar(minutes[-1:], moves[-1:], yerr=1.96 * error, color=colour, capsize=3)


def _figure(count: int, inches: tuple[float, float], widths: tuple[float, ...]) -> tuple[Any, Any]:
    figure = plots.new_figure(*inches, _DPI, constrained=True)
    return figure, figure.subplots(1, count, width_ratios=widths)


def _png(figure: Any) -> bytes:
    from matplotlib.patches import Patch

    plots.plain_axes(figure.axes)
    marks = [Patch(color=colour, label=name) for name, colour in _COLOURS.items()]
    figure.legend(handles=marks, loc="outside upper left", ncols=2, fontsize=9, frameon=False)
    return plots.png_of(figure)
