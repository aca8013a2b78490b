"""docs/evidence/market-fit.md: the recorded game and the simulated market measured alike, and the reason of each constant."""

from collections.abc import Callable
from typing import Any

import msgspec

from babylon_rl.market.simulation.config import MarketModel, ScenarioConfig
from benchmarks.market_fit.constants import constants
from benchmarks.market_fit.measure import EventFit, MarketFit, PostFit, StockFit, TextFit
from benchmarks.market_fit.movements import QuestionFit, TradeFit

_OPENING = """# What the simulated market was fitted to

Made by `python -m benchmarks.market_fit --write`, which loads the recorded game that the tests use, measures it, generates a simulated
market and measures that with the same functions (`benchmarks/market_fit/measure.py`).

The recorded game: {hours:.1f} hours in {sessions} stretches, {events} world events, {posts} posts. **Its organizations, questions,
events, posts and tick times are real. Its prices, probabilities and orders were made up when the sample was put together**, as no public
recording holds real ones: what is measured of them says how they were made, and only the rows marked real say
something about the game; the others are marked made.

![What is told](../images/market-fit-told.png)

![How markets move](../images/market-fit-moves.png)

In the text columns, a *tone* is the balance of good and bad words by a lexicon of some 130 words (`texts.py`)."""
_READING = """## What this says

* **Events come by the clock.** Every tick brings two, three or four of them with equal chance: no bursts, no memory, five types equally
  often. {pointed} carry a direction, which never contradicts the hidden answer; the rest carry none. There are no rumours and no false
  reports.
* **The texts say nothing.** An event reads "Event related to:" and its question, a post repeats that after its author's name. Direction
  stands in a column of its own (pointsToward) and not in the text. The tone of a text is that of its question, the same whatever
  happens, so it agrees with the direction of events no more than the choice of questions makes it.
* **Sentiment is chance.** The recorded sentiment of posts agrees with the direction of the event they quote in {agrees} (± {error}) of
  the cases, and no author of the {authors} knows more than another (spread {spread}, 1 is chance). Authors have no trust recorded.
* **Questions do follow events**, within a tick: {answered} of the events with a direction are answered by an order, which moves the
  log-odds by {move}, for good. Between events they wander without memory.
* **Stocks follow nothing**: no momentum, no reversion (variance ratio {memory}), no common factor, no effect of events.
  Only the size of moves differs by organization, from {low} to {high} % per square root of an hour.

A policy could learn to trade here only from the log-odds themselves: nothing that agents read tells the future. So a market to learn in
must differ from the recording in what texts say and in what prices do after them. What is not in any constant:

* **Answers.** In the game and in the simulated market alike the answer is fixed when a question is asked, and the log-odds drift to it.
  In the game every event with a direction points to the answer, and the price goes there by {drift} in log-odds an hour, much too slowly:
  whoever buys what any event says and waits, wins. Here a move of *e* points to the answer with probability 1 / (1 + exp(-*e*)), 57 % for
  the usual event, which is what makes the new price right. So the crowd is calibrated from a question's first moment to its last (tests
  measure it), and its drift is half its variance. At the recorded volatility of {volatility} that is {fair} an hour: the recorded drift is
  not reproduced, as all beyond that is money for whoever waits. What can be earned here is the way that a price has yet to go after a
  text was read. Near the limit of 97 % news move less, as they must where nearly everything is known: a question of a week is all but
  decided after a day or two.
* **Texts** about a question stand in the game's frame, "Event related to:" with the question, and posts in "<author>'s take on:"; then
  follows a clause that says a direction, which the game keeps to itself. They are about as long as the game's. Headlines about stocks
  have no model in the game and are shorter, 5 to 12 words: a small model's prompt holds them all. A post that comes before its event, or
  belongs to none, cannot quote one and has 5 to 9 words. Many questions name a company without moving its price, so the measured
  move after an event naming a stock is less than after one about it.
* **What a text is about.** In the game all events and posts belong to questions. In the simulated market each belongs to a stock or a
  question, says so in the field that agents are shown, and speaks of one market alone.
* **Regimes.** Stocks trend and revert by turns. Without events, the variance of an hour's moves over that of as many single ticks is
  about 2.4 in a trending hour, 0.9 in a calm and 0.4 in a reverting one; a tick's volatility is nearly the same in all (tests measure
  both). A reverting market goes back to where it was when it began to revert, and to what news have made of that.

The simulated prices' variance ratio above 1 comes from events, whose effect takes minutes, and from trends.

[decisions/0012-what-is-fitted.md](../decisions/0012-what-is-fitted.md) lists what is fitted and what is chosen, and what a market as
recorded would take.
"""

Row = tuple[str, str, Callable[[MarketFit], str]]  # what, whether the recorded rows are real, the value as text
NOTHING = "-"


def page(game: MarketFit, ours: MarketFit, config: ScenarioConfig, model: MarketModel) -> str:
    """The page in Markdown; KeyError when a constant of the model is not explained in it."""
    explained = constants(game)
    if missing := set(model.__struct_fields__) - {field for names, _, _ in explained for field in names.split(", ")}:
        raise KeyError(f"constants.py says nothing about {', '.join(sorted(missing))}")
    return "\n".join(
        [
            *_OPENING.format(hours=game.hours, sessions=game.sessions, events=_events(game).count, posts=_posts(game).count).splitlines(),
            "",
            *comparison(game, ours, config),
            "",
            *_READING.strip().format(**_numbers(game)).splitlines(),
            "",
            "## The constants of the simulated market",
            "",
            "| `MarketModel` | measured | chosen | why |",
            "|---|---|---|---|",
            *(f"| {name} | {measured} | {_chosen(model, name)} | {why} |" for name, measured, why in explained),
            "",
        ]
    )


def comparison(game: MarketFit, ours: MarketFit, config: ScenarioConfig) -> list[str]:
    """The table of measurements, also printed by the command."""
    head = f"{config.minutes / 60:g} h, {config.predictions} questions, {config.perps} stocks, ticks of {config.tick_seconds} s"
    lines = [f"| | recorded game | rows are | simulated market ({head}) |", "|---|---|---|---|"]
    return lines + [f"| {what} | {value(game)} | {real} | {value(ours)} |" for what, real, value in ROWS]


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
    ("with a direction (pointsToward)", "real", _event(lambda one: percent(one.pointed))),
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
    ("variance ratio at an hour (shuffled moves)", "made", _stock(_memory)),
    ("correlation between stocks", "made", _stock(lambda one: number(one.correlation, 3))),
    ("excess kurtosis of moves", "made", _stock(lambda one: number(one.excess_kurtosis))),
    (
        "move after an event naming the stock, %: one tick; ten",
        "made",
        _stock(lambda one: _after(one.response, one.response_error, 100, 2)),
    ),
    ("median impact of an order, %", "made", _stock(lambda one: number(one.trade_impact and 100 * one.trade_impact))),
    ("**questions**: volatility, log-odds per √hour", "made", _question(lambda one: number(one.volatility))),
    ("the same in ticks without an event", "made", _question(lambda one: number(one.quiet_volatility))),
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


def _numbers(game: MarketFit) -> dict[str, str]:
    questions, stocks = game.questions, game.stocks
    assert questions is not None
    assert stocks is not None
    return {
        "pointed": percent(_events(game).pointed),
        "agrees": percent(_posts(game).agrees, 1),
        "error": f"{196 * (_posts(game).agrees_error or 0.0):.1f}",
        "answered": percent(questions.answered_share),
        "move": number(questions.response[0], 3),
        "drift": number(questions.drift_to_answer),
        "volatility": number(questions.volatility),
        "fair": number(questions.volatility**2 / 2),
        "low": f"{100 * stocks.volatilities[0]:.1f}",
        "high": f"{100 * stocks.volatilities[-1]:.1f}",
        "authors": str(_posts(game).authors),
        "spread": number(_posts(game).author_spread),
        "memory": _memory(stocks),
    }
