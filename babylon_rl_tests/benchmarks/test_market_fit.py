"""What is measured of a market agrees with what it was made from, and with what the recorded game is known to hold."""

import math
import random
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from babylon_rl.errors import MarketError
from babylon_rl.market.simulation.config import MarketModel, preset
from babylon_rl.market.simulation.generation import generate
from babylon_rl.store.database import Database
from benchmarks.market_fit.constants import constants
from benchmarks.market_fit.measure import known_kind, measure
from benchmarks.market_fit.rows import Clock, EventRow, PostRow, PriceRow, ProbabilityRow, QuestionRow, Recording, TradeRow
from benchmarks.market_fit.sources import recorded, simulated
from benchmarks.market_fit.texts import direction, names, template

START = datetime(2025, 11, 15, 10)
MINUTES = 600
QUESTION = QuestionRow(7, "Will Palantyrant ship drones?", True, START)


def at(minute: float) -> datetime:
    return START + timedelta(minutes=minute)


def event(minute: float, points: int = 0, *, text: str = "Event related to: " + QUESTION.text, kind: str = "deal") -> EventRow:
    return EventRow(at(minute), kind, text, 0, 7, points)


def recording(**rows: object) -> Recording:
    empty = Recording(("Palantyrant",), (QUESTION,), (), (), (), (), (), tuple(at(minute) for minute in range(MINUTES)))
    return replace(empty, **rows)  # type: ignore[arg-type]


def prices_of(moves: list[float], company: str = "Palantyrant") -> tuple[PriceRow, ...]:
    """A price for each minute, each moved during the minute before it."""
    logs = [sum(moves[:minute]) for minute in range(len(moves) + 1)]
    return tuple(PriceRow(at(minute - 0.5), company, 100 * math.exp(log)) for minute, log in enumerate(logs))


def test_a_pause_of_the_game_is_no_time_and_breaks_moves_apart() -> None:
    clock = Clock.of([at(0), at(0) + timedelta(seconds=2), at(1), at(2), at(300), at(301)])

    assert clock.sessions == ((at(0), at(1), at(2)), (at(300), at(301)))
    assert clock.hours == pytest.approx(5 / 60)
    assert clock.grid([(at(0.5), 1.0), (at(2.9), 2.0), (at(100), 4.0), (at(301), 8.0)]) == [[1.0, 0.0, 2.0], [0.0, 8.0]]


def test_rates_and_shares_are_counted_per_hour_played() -> None:
    events = (event(0, 1), event(1, -1), event(1), event(3, kind="announcment"))
    fit = measure(recording(events=events)).events

    assert fit is not None
    assert fit.per_hour == pytest.approx(4 / 10)
    assert (fit.pointed, fit.pointed_true) == (0.5, 0.5)
    assert fit.per_tick == ((0, 597 / 600), (1, 2 / 600), (2, 1 / 600))
    assert fit.repeated_in_tick == 0.25
    assert dict(fit.kinds) == {"announcement": 0.25, "deal": 0.75}
    assert fit.misspelled == 0.25


@pytest.mark.parametrize(
    ("written", "meant"), [("announcment", "announcement"), ("annonce", "announcement"), ("Deal", "deal"), ("war", "war")]
)
def test_misspelled_event_types_are_counted_as_what_was_meant(written: str, meant: str) -> None:
    assert known_kind(written) == meant


def test_texts_are_told_by_shape_names_and_tone() -> None:
    post = 'Mantra "OM" Patel\'s take on: Event related to: ' + QUESTION.text

    assert template(post, [QUESTION.text], ["Palantyrant"]) == "<author>'s take on: Event related to: <question>"
    assert template("Palantyrant earns $5,000 more", [], ["Palantyrant"]) == "<company> earns <number> more"
    assert names("Palantyrant wins; Palantyrants lose", ["OpenLIE", "Palantyrant"]) == ("Palantyrant",)
    assert [direction(text) for text in ("A record profit", "Fraud probe", "No fraud", "A meeting", "profit and loss")] == [1, -1, 1, 0, 0]


def test_the_tone_of_texts_is_compared_with_what_events_point_to() -> None:
    events = (event(0, 1, text="Record profit"), event(1, 1, text="Fraud"), event(2, -1, text="Fraud"), event(3, -1, text="A meeting"))
    fit = measure(recording(events=events)).events

    assert fit is not None
    assert fit.tone_agrees == pytest.approx(2 / 3)
    assert (fit.text.toned, fit.text.positive) == (0.75, pytest.approx(1 / 3))


def test_posts_are_compared_with_the_event_they_quote_author_by_author() -> None:
    text = "Event related to: " + QUESTION.text
    events = tuple(event(minute, 1 if minute % 2 else -1) for minute in range(100))
    knows = tuple(PostRow(at(minute), "knows", f"Yes: {text}", 1 if minute % 2 else -1, False) for minute in range(100))
    lies = tuple(PostRow(at(minute), "lies", f"No: {text}", -1 if minute % 2 else 1, True) for minute in range(100))
    fit = measure(recording(events=events, posts=knows + lies)).posts

    assert fit is not None
    assert (fit.agrees, fit.about_event, fit.replies) == (0.5, 1.0, 0.5)
    assert fit.authors_even == pytest.approx(2.0)
    assert fit.author_spread is not None
    assert fit.author_spread > 50  # one always right and one always wrong, where 1 is chance


def test_the_volatility_that_prices_were_made_with_is_found_again() -> None:
    rng = random.Random(1)
    made = {f"Company {number}": 0.01 * (1 + number) for number in range(4)}
    moves = {name: [rng.gauss(0.0, sigma / math.sqrt(60)) for _ in range(MINUTES)] for name, sigma in made.items()}
    fit = measure(recording(prices=tuple(row for name in made for row in prices_of(moves[name], name)))).stocks

    assert fit is not None
    assert dict(fit.volatility) == pytest.approx(made, rel=0.1)
    assert fit.correlation == pytest.approx(0.0, abs=0.05)
    assert [one.ratio for one in fit.persistence[:2]] == pytest.approx([1.0, 1.0], abs=0.25)


@pytest.mark.parametrize(("memory", "above"), [(0.6, True), (-0.6, False)])
def test_momentum_and_reversion_are_told_from_moves_without_memory(memory: float, above: bool) -> None:
    rng = random.Random(2)
    moves = [0.0]
    for _ in range(MINUTES - 1):
        moves.append(memory * moves[-1] + rng.gauss(0.0, 0.001))
    fit = measure(recording(prices=prices_of(moves))).stocks

    assert fit is not None
    first = fit.persistence[0]
    assert first.ratio > first.high if above else first.ratio < first.low
    assert fit.lag_one == pytest.approx(memory, abs=0.1)


def test_what_orders_did_to_a_price_is_impact_and_no_volatility() -> None:
    rows = [PriceRow(at(minute), "Palantyrant", 100 * math.exp(0.001 * (minute % 2))) for minute in range(MINUTES)]
    pushed = [
        PriceRow(at(minute + 0.5), "Palantyrant", 100 * math.exp(0.001 * (minute % 2) + 0.01), True) for minute in range(0, MINUTES, 60)
    ]
    back = [PriceRow(at(minute + 0.7), "Palantyrant", 100 * math.exp(0.001 * (minute % 2)), True) for minute in range(0, MINUTES, 60)]
    plain, traded = (measure(recording(prices=tuple(prices))).stocks for prices in (rows, rows + pushed + back))

    assert plain is not None
    assert traded is not None
    assert traded.median == pytest.approx(plain.median)
    assert (plain.trade_impact, traded.trade_impact) == (None, pytest.approx(0.01))


def test_the_effect_that_events_were_given_is_found_again_in_stocks_and_questions() -> None:
    rng = random.Random(3)
    points = {minute: rng.choice((1, -1)) for minute in range(5, MINUTES - 15, 15)}
    effect = [0.02 * points.get(minute, 0) + rng.gauss(0.0, 0.001) for minute in range(MINUTES)]
    events = tuple(event(minute, way) for minute, way in points.items())
    logits = [sum(effect[:minute]) for minute in range(MINUTES + 1)]
    beliefs = tuple(ProbabilityRow(at(minute - 0.5), 7, 1 / (1 + math.exp(-logit)), 500.0) for minute, logit in enumerate(logits))
    fit = measure(recording(events=events, prices=prices_of(effect), probabilities=beliefs))

    assert fit.stocks is not None
    assert fit.questions is not None
    assert fit.stocks.response == pytest.approx([0.02] * 10, abs=0.002)
    assert fit.questions.response == pytest.approx([0.02] * 10, abs=0.002)
    assert (fit.questions.answered_share, fit.questions.agreeing_share, fit.questions.depth) == (1.0, 1.0, 500.0)
    assert fit.questions.quiet_volatility == pytest.approx(0.001 * math.sqrt(60), rel=0.1)


def test_orders_are_summed_up_by_kind_of_market() -> None:
    trades = [TradeRow(at(minute), "perp", 100.0 * (1 + minute), 10.0 if minute else 20.0, 5.0) for minute in range(4)]
    (fit,) = measure(recording(trades=tuple(trades))).trades

    assert (fit.market, fit.per_hour, fit.usd[1], fit.held_minutes) == ("perp", pytest.approx(0.4), 250.0, 5.0)
    assert fit.leverage == ((10.0, 0.75), (20.0, 0.25))


def test_what_was_not_recorded_is_none_and_a_market_without_time_is_refused() -> None:
    fit = measure(recording())

    assert (fit.events, fit.posts, fit.stocks, fit.questions, fit.trades) == (None, None, None, None, ())
    with pytest.raises(MarketError, match="no time to measure by"):
        measure(recording(ticks=()))


@pytest.mark.long
def test_the_recorded_game_measures_as_documented(sample_database: Database) -> None:
    with sample_database.connect() as connection:
        fit = measure(recorded(connection))

    assert fit.events is not None
    assert fit.posts is not None
    assert fit.stocks is not None
    assert fit.questions is not None
    assert (fit.hours, fit.sessions, fit.open_questions) == (pytest.approx(4.5, abs=0.01), 5, 16)
    assert (fit.events.count, fit.posts.count, fit.posts.authors, len(fit.stocks.volatility)) == (807, 3886, 85, 32)
    assert [count for count, _ in fit.events.per_tick] == [2, 3, 4]
    assert fit.events.pointed_true == 1.0
    assert fit.events.text.templates == (("Event related to: <question>", 1.0),)
    assert fit.posts.text.templates == (("<author>'s take on: Event related to: <question>", 1.0),)
    assert fit.posts.agrees == pytest.approx(0.5, abs=1.96 * (fit.posts.agrees_error or 0.0))
    assert fit.stocks.median == pytest.approx(0.014, abs=0.001)
    assert all(one.low <= one.ratio <= one.high for one in fit.stocks.persistence)
    assert fit.questions.agreeing_share == pytest.approx(0.99, abs=0.01)


@pytest.mark.long
def test_a_generated_market_measures_as_its_model_says() -> None:
    # In the first edition, whose words the lexicon knows; later ones have negations.
    config = preset("week", minutes=1440, predictions=6, perps=6, resolving=0.0, edition="training")
    model = MarketModel(events_per_hour=5.0, question_effect=0.1)
    scenario = generate(config, model)
    rows = simulated(scenario)
    fit = measure(rows)
    own = measure(replace(rows, events=tuple(event for event in rows.events if event.question is None)))  # questions name companies too
    markets = [(scenario.ticks - question.created_tick) / scenario.ticks for question in scenario.questions] + [1.0] * config.perps

    assert fit.events is not None
    assert own.stocks is not None
    assert fit.questions is not None
    assert fit.hours == pytest.approx(24.0)
    assert fit.events.per_hour == pytest.approx(sum(markets) * model.events_per_hour, rel=0.05)
    assert fit.events.tone_agrees == pytest.approx(1.0, abs=0.05)
    assert fit.questions.quiet_volatility == pytest.approx(model.question_volatility, rel=0.3)
    assert fit.questions.response[-1] == pytest.approx(0.7 * model.question_effect, rel=0.25)  # false ones count against it
    assert own.stocks.response[-1] == pytest.approx(0.7 * model.event_effect, rel=0.25)


@pytest.mark.long
def test_every_constant_of_the_model_is_explained_by_what_was_measured(sample_database: Database) -> None:
    with sample_database.connect() as connection:
        rows = constants(measure(recorded(connection)))
    explained = [field for names, _, _ in rows for field in names.split(", ")]

    assert sorted(explained) == sorted(MarketModel.__struct_fields__)
