"""docs/evidence/market-fit.md: the recorded game and the simulated market measured alike; the table of constants with their reasons."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from babylon_rl.market.simulation.config import MarketModel, ScenarioConfig
from benchmarks.market_fit.constants import constants
from benchmarks.market_fit.measure import EventFit, MarketFit, PostFit, StockFit, TextFit
from benchmarks.market_fit.movements import QuestionFit, TradeFit

_PAGE = """# The simulated market and the recorded game

`python -m benchmarks.market_fit` measures both with the same functions. It prints all {rows} measurements, and for every constant
of `MarketModel` the measured value, the chosen one and the reason; `--write` makes this page.
[0012](../decisions/0012-what-is-fitted.md) lists what is fitted, chosen and added.

The recorded game has {hours:.1f} hours in {sessions} stretches, {events} events and {posts} posts. **Its organizations, questions,
events, posts and tick times are real. Its prices, probabilities and orders were made up when the sample was put together**: rows
marked *made* say nothing about the game.

![Events, posts and sentiment, recorded and simulated](../images/market-fit-told.png)

![Moves of prices and questions, recorded and simulated](../images/market-fit-moves.png)

{table}

## Consequences

* **As recorded there is nothing to learn.** Texts repeat their question and hide the direction. Sentiment agrees with it in
  {agrees} (± {error}) of the posts, by chance, and no author knows more than another. Stocks follow no event. Questions do follow
  events, within a tick and for good.
* **The recorded answer can be waited for.** Directions never contradict it, and the price goes there by {drift} in log-odds an
  hour: whoever buys what any event says and waits, wins. In the simulated market a move of *e* points to the answer with
  probability 1 / (1 + exp(-*e*)), so the price is right on average.
* **Simulated texts say a direction**, reports more often right than rumours. An event belongs to one stock or one question.
* **Simulated stocks trend, stay calm or revert by turns**, and news take minutes to move them.
"""
# Of all measurements, those that the page shows.
_SHOWN = (
    "events an hour and question",
    "events of a tick: variance over mean (1: Poisson)",
    "events with a direction (pointsToward)",
    "direction agrees with the answer",
    "words of an event",
    "tone agrees with the direction",
    "posts per event",
    "posts quoting an event of their tick",
    "sentiment agrees with the quoted event's direction",
    "**stocks**: volatility, % per √hour, median",
    "variance ratio of stocks at an hour (shuffled moves)",
    "move after an event naming the stock, %: one tick; ten",
    "volatility of questions in ticks without an event",
    "drift to the answer, log-odds an hour",
    "move after an event with a direction: one tick; ten",
)

Row = tuple[str, str, Callable[[MarketFit], str]]  # what, whether the recorded rows are real, the value as text
NOTHING = "-"


def page(game: MarketFit, ours: MarketFit, config: ScenarioConfig) -> str:
    """The page in Markdown."""
    posts, questions = _posts(game), game.questions
    assert questions is not None
    return _PAGE.format(
        rows=len(ROWS), hours=game.hours, sessions=game.sessions, events=_events(game).count, posts=posts.count,
        table="\n".join(comparison(game, ours, config, _SHOWN)), agrees=percent(posts.agrees, 1),
        error=f"{196 * (posts.agrees_error or 0.0):.1f}", drift=number(questions.drift_to_answer),
    )  # fmt: skip


def constants_table(game: MarketFit, model: MarketModel) -> list[str]:
    """Each constant as measured and chosen, with its reason; KeyError for one without a reason."""
    explained = constants(game)
    if missing := set(model.__struct_fields__) - {field for names, _, _ in explained for field in names.split(", ")}:
        raise KeyError(f"constants.py says nothing about {', '.join(sorted(missing))}")
    head = ["| `MarketModel` | measured | chosen | why |", "|---|---|---|---|"]
    return head + [f"| {name} | {measured} | {_chosen(model, name)} | {why} |" for name, measured, why in explained]


def comparison(game: MarketFit, ours: MarketFit, config: ScenarioConfig, shown: Sequence[str] = ()) -> list[str]:
    """The table of measurements; all of them if ``shown`` is empty."""
    head = f"{config.minutes / 60:g} h, {config.predictions} questions, {config.perps} stocks, ticks of {config.tick_seconds} s"
    lines = [f"| | recorded game | rows are | simulated market ({head}) |", "|---|---|---|---|"]
    return lines + [f"| {what} | {value(game)} | {real} | {value(ours)} |" for what, real, value in ROWS if not shown or what in shown]


def _event(show: Callable[[EventFit], str]) -> Callable[[MarketFit], str]:
    return lambda fit: show(fit.events) if fit.events else NOTHING


def _post(show: Callable[[PostFit], str]) -> Callable[[MarketFit], str]:
    return lambda fit: show(fit.posts) if fit.posts else NOTHING


def _stock(show: Callable[[StockFit], str]) -> Callable[[MarketFit], str]:
    return lambda fit: show(fit.stocks) if fit.stocks else NOTHING


def _question(show: Callable[[QuestionFit], str]) -> Callable[[MarketFit], str]:
    return lambda fit: show(fit.questions) if fit.questions else NOTHING


def _trade(market: str, show: Callable[[TradeFit], str]) -> Callable[[MarketFit], str]:
    return lambda fit: next((show(trade) for trade in fit.trades if trade.market == market), NOTHING)


def percent(share: float | None, digits: int = 0) -> str:
    """A share of 1 in per cent."""
    return NOTHING if share is None else f"{100 * share:.{digits}f} %"


def number(value: float | None, digits: int = 2) -> str:
    """With that many decimals; a dash for None."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def _lengths(text: TextFit) -> str:
    return f"{text.length_mean:.1f} ({text.length_min} to {text.length_max})"


def _templates(text: TextFit) -> str:
    shape, share = text.templates[0]
    return f"{shape.replace('<', '&lt;')} ({percent(share)})"


def _tone(text: TextFit) -> str:
    return f"{percent(text.toned)} ({percent(text.positive)} of these good)"


def _kinds(events: EventFit) -> str:
    return ", ".join(f"{kind} {percent(share)}" for kind, share in events.kinds)


def _memory(stocks: StockFit) -> str:
    one = stocks.persistence[-1]
    return f"{one.ratio:.2f} ({one.low:.2f} to {one.high:.2f})"


def _after(response: tuple[float, ...], error: float | None, scale: float, digits: int) -> str:
    if not response or error is None:
        return NOTHING
    return f"{scale * response[0]:+.{digits}f}; {scale * response[-1]:+.{digits}f} (± {1.96 * scale * error:.{digits}f})"


ROWS: tuple[Row, ...] = (
    ("hours played", "real", lambda fit: number(fit.hours, 1)),
    ("seconds of a tick", "real", lambda fit: number(fit.tick_s, 0)),
    ("**events** an hour", "real", _event(lambda one: number(one.per_hour, 1))),
    ("events an hour and question", "real", lambda fit: _per_question(fit)),
    ("events of a tick: variance over mean (1: Poisson)", "real", _event(lambda one: number(one.dispersion))),
    ("events of a tick: correlation with the next", "real", _event(lambda one: number(one.lag_one))),
    ("types", "real", _event(_kinds)),
    ("misspelled types", "real", _event(lambda one: percent(one.misspelled))),
    ("with a question; with actors", "real", _event(lambda one: f"{percent(one.with_question)}; {percent(one.with_actors)}")),
    ("events with a direction (pointsToward)", "real", _event(lambda one: percent(one.pointed))),
    ("direction agrees with the answer", "real", _event(lambda one: percent(one.pointed_true))),
    ("events whose question has another in the same tick", "real", _event(lambda one: percent(one.repeated_in_tick))),
    ("words of an event", "real", _event(lambda one: _lengths(one.text))),
    ("commonest shape of an event", "real", _event(lambda one: _templates(one.text))),
    ("events naming a company", "real", _event(lambda one: percent(one.text.names_company))),
    ("event texts with a tone", "real", _event(lambda one: _tone(one.text))),
    ("tone agrees with the direction", "real", _event(lambda one: percent(one.tone_agrees))),
    ("**posts** an hour", "real", _post(lambda one: number(one.per_hour, 1))),
    ("posts per event", "real", _post(lambda one: number(one.per_event, 1))),
    ("authors; as many equally busy ones", "real", _post(lambda one: f"{one.authors}; {one.authors_even:.0f}")),
    ("replies and reposts", "real", _post(lambda one: percent(one.replies))),
    ("posts quoting an event of their tick", "real", _post(lambda one: percent(one.about_event))),
    (
        "posts quoting a question; naming a company",
        "real",
        _post(lambda one: f"{percent(one.names_question)}; {percent(one.text.names_company)}"),
    ),
    ("words of a post", "real", _post(lambda one: _lengths(one.text))),
    ("commonest shape of a post", "real", _post(lambda one: _templates(one.text))),
    (
        "recorded sentiment: negative, neutral, positive",
        "real",
        _post(lambda one: ", ".join(percent(dict(one.sentiment).get(way, 0.0)) for way in (-1, 0, 1))),
    ),
    (
        "sentiment agrees with the quoted event's direction",
        "real",
        _post(lambda one: NOTHING if one.agrees is None else f"{percent(one.agrees, 1)} (± {196 * (one.agrees_error or 0.0):.1f})"),
    ),
    ("authors' spread in that (chi² / df; 1: none knows more)", "real", _post(lambda one: number(one.author_spread))),
    ("**stocks**: volatility, % per √hour, median", "made", _stock(lambda one: number(100 * one.median))),
    (
        "lowest and highest",
        "made",
        _stock(lambda one: f"{100 * one.volatilities[0]:.2f} to {100 * one.volatilities[-1]:.2f}"),
    ),
    ("price changes an hour and stock", "made", _stock(lambda one: number(one.changes_per_hour, 1))),
    ("correlation of a tick's move with the next", "made", _stock(lambda one: number(one.lag_one, 3))),
    ("of its size with the next one's", "made", _stock(lambda one: number(one.absolute_lag_one, 3))),
    ("variance ratio of stocks at an hour (shuffled moves)", "made", _stock(_memory)),
    ("correlation between stocks", "made", _stock(lambda one: number(one.correlation, 3))),
    ("excess kurtosis of moves", "made", _stock(lambda one: number(one.excess_kurtosis))),
    (
        "move after an event naming the stock, %: one tick; ten",
        "made",
        _stock(lambda one: _after(one.response, one.response_error, 100, 2)),
    ),
    ("median impact of an order, %", "made", _stock(lambda one: number(one.trade_impact and 100 * one.trade_impact))),
    ("**questions**: volatility, log-odds per √hour", "made", _question(lambda one: number(one.volatility))),
    ("volatility of questions in ticks without an event", "made", _question(lambda one: number(one.quiet_volatility))),
    ("correlation of a tick's move with the next", "made", _question(lambda one: number(one.lag_one, 3))),
    ("drift to the answer, log-odds an hour", "made", _question(lambda one: number(one.drift_to_answer))),
    ("events with a direction followed by a move within a tick", "made", _question(lambda one: percent(one.answered_share))),
    ("of these, in that direction", "made", _question(lambda one: percent(one.agreeing_share))),
    (
        "move after an event with a direction: one tick; ten",
        "made",
        _question(lambda one: _after(one.response, one.response_error, 1, 3)),
    ),
    ("told about a question by events, log-odds an hour", "made", lambda fit: _told(fit)),
    ("pool depth in shares", "made", _question(lambda one: number(one.depth, 0))),
    ("**orders** on questions an hour; quartiles in $", "made", _trade("prediction", lambda one: _orders(one))),
    ("positions in stocks an hour; quartiles in $", "made", _trade("perp", lambda one: _orders(one))),
    ("their leverage; median minutes held", "made", _trade("perp", lambda one: _levers(one))),
)


def _per_question(fit: MarketFit) -> str:
    linked = _events(fit).per_hour * _events(fit).with_question
    return number(linked / fit.open_questions, 1) if fit.open_questions else NOTHING


def _told(fit: MarketFit) -> str:
    one = fit.questions
    return number(one.pointed_events / one.questions / fit.hours * one.response[-1]) if one and one.response else NOTHING


def _orders(trades: TradeFit) -> str:
    return f"{trades.per_hour:.0f}; {', '.join(f'{usd:,.0f}' for usd in trades.usd)}"


def _levers(trades: TradeFit) -> str:
    return f"{', '.join(f'{lever:g} ({percent(share)})' for lever, share in trades.leverage)}; {number(trades.held_minutes, 0)}"


def _events(fit: MarketFit) -> EventFit:
    assert fit.events is not None
    return fit.events


def _posts(fit: MarketFit) -> PostFit:
    assert fit.posts is not None
    return fit.posts


def _chosen(model: MarketModel, name: str) -> str:
    values = [getattr(model, one) for one in name.split(", ")]
    return ", ".join(_shown(value) for value in values)


def _shown(value: Any) -> str:
    if isinstance(value, msgspec.Struct):
        return " ".join(map(_shown, msgspec.structs.astuple(value)))
    if isinstance(value, tuple) and all(isinstance(one, float) for one in value):
        return " to ".join(map(_shown, value))
    if isinstance(value, tuple) and isinstance(value[0], tuple):
        return f"{len(value)} types"
    if isinstance(value, tuple):
        return "; ".join(map(_shown, value))
    return value if isinstance(value, str) else f"{value:,.10g}"
