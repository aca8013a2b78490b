"""Scenarios: the same seed, the same bytes; and markets that behave as their model says."""

import hashlib
import itertools
import math
import statistics

import msgspec
import pytest

from babylon_rl.errors import MarketError
from babylon_rl.market.headlines import EDITIONS, edition_named
from babylon_rl.market.simulation import scenario as scenarios
from babylon_rl.market.simulation.actions import BuyPrediction, ClosePerp, OpenPerp, SellPrediction
from babylon_rl.market.simulation.config import PRESETS, MarketModel, Regime, ScenarioConfig, preset
from babylon_rl.market.simulation.events import chance_up
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.generation import futures, generate
from babylon_rl.market.simulation.ledger import Fill
from babylon_rl.market.simulation.questions import room, spread_of
from babylon_rl.market.simulation.scenario import Asset, Question, Scenario
from babylon_rl_tests.market.simulation import audit
from babylon_rl_tests.market.simulation.traders import trade_at_random

# of this version's format on every platform; they change only with ``scenario.FORMAT`` or the model's values
QUICK_SEED_0 = "07947e6d11ecf42830c042ed8695c99860e9c4c0a19b3c54ba8b16c3ef36d27a"
RUN_SEED_0 = "7181abf822ee518143688b24a028e0ef6133244e0dfa4c6591feaf2184cade98"
HOURS = 250
STEADY = (Regime("steady", 1.0, 1.0, 0.0, 0.0),)


def log_odds(probability: float) -> float:
    return math.log(probability / (1.0 - probability))


def test_seed_0_gives_the_same_bytes_on_every_platform() -> None:
    assert generate(preset("quick", seed=0, edition="training")).digest == QUICK_SEED_0


def test_a_run_of_seed_0_gives_the_same_bytes_on_every_platform() -> None:
    exchange = Exchange(generate(preset("quick", seed=0, edition="training")), ("a", "b", "c"))
    told = [msgspec.json.encode(happened) for happened in trade_at_random(exchange, seed=0)]
    told.append(msgspec.json.encode([audit.equity(exchange, agent) for agent in exchange.accounts]))
    assert hashlib.sha256(b"\n".join(told)).hexdigest() == RUN_SEED_0


@pytest.mark.parametrize("name", PRESETS)
def test_the_same_seed_gives_the_same_scenario_and_another_seed_another(name: str) -> None:
    small = {"minutes": 240} if name == "week" else {}
    once, again = generate(preset(name, seed=7, **small)), generate(preset(name, seed=7, **small))
    assert msgspec.json.encode(once) == msgspec.json.encode(again)
    assert once.digest != generate(preset(name, seed=8, **small)).digest
    assert msgspec.json.decode(msgspec.json.encode(once), type=scenarios.Scenario) == once


def test_seed_0_is_a_seed_like_any_other_and_texts_are_seeds_too() -> None:
    digests = {generate(preset("quick", seed=seed)).assets for seed in (0, 1, 12345, "", "eval-1", "eval-2")}
    assert len(digests) == 6


def test_one_more_question_stock_or_post_leaves_the_rest_as_it_was() -> None:
    silent = MarketModel(events_per_hour=0.0)
    base = generate(preset("quick", seed=3), silent)
    more = generate(preset("quick", seed=3, predictions=6, perps=4), silent)
    assert more.assets[:3] == base.assets and [q.text for q in more.questions[:5]] == [q.text for q in base.questions]
    assert {event.text for event in generate(preset("quick", seed=3)).events} == {
        event.text for event in generate(preset("quick", seed=3), MarketModel(chatter_per_hour=60.0)).events
    }


def test_a_future_of_a_tick_has_the_same_past() -> None:
    made = generate(preset("hour", seed=3))
    assert futures(msgspec.structs.replace(made, config=None), 5, 4) == [{}]
    others = futures(made, 5, 4)
    assert others == futures(made, 5, 4) and len(others) == 4
    for other in others:
        assert other.keys() == {own.ticker for own in made.assets} | {own.id for own in made.questions if own.open_at(5)}
        for own in made.assets:
            stock = other[own.ticker]
            assert isinstance(stock, Asset) and stock.prices[:6] == own.prices[:6] and stock.prices[6] != own.prices[6]
        for question in made.questions:
            changed = other.get(question.id, question)
            assert isinstance(changed, Question) and msgspec.structs.replace(changed, crowd=question.crowd) == question
            assert [a == b for a, b in zip(changed.crowd, question.crowd, strict=True)].count(False) == (question.id in other)


def name_of(market: Asset | Question) -> str:
    return market.ticker if isinstance(market, Asset) else market.id


def futures_of(scenario: Scenario, tick: int, count: int, market: Asset | Question) -> list[float]:
    """Moves of a market's log price or log-odds in the futures of a tick."""
    found = [other[name_of(market)] for other in futures(scenario, tick, count)]
    return [
        math.log(one.prices[tick + 1] / one.prices[tick])
        if isinstance(one, Asset)
        else log_odds(one.crowd[tick + 1]) - log_odds(one.crowd[tick])
        for one in found
    ]


@pytest.mark.parametrize("seed", range(3))
def test_noise_of_the_futures_of_a_tick_cancels_by_pairs_and_is_as_large_as_the_markets_own(seed: int) -> None:
    calm = (Regime("calm", 1.0, 1.0, 0.0, 0.0),)
    made = generate(preset("hour", seed=seed), MarketModel(event_effect=0.0, question_effect=0.0, regimes=calm, volatility_spread=0.0))
    markets: tuple[Asset | Question, ...] = (*made.assets, *made.questions)
    for tick in (0, 5, 11):
        for market in markets:
            moves = futures_of(made, tick, 120, market)
            if isinstance(market, Question):
                drift = (2 * market.crowd[tick] - 1) * statistics.pvariance(moves) / 2
                usual = spread_of(preset("hour"), MarketModel()) * room(log_odds(market.crowd[tick]), MarketModel().question_limit)
            else:
                drift, usual = 0.0, MarketModel().volatility * math.sqrt(preset("hour").tick_hours)
            pairs = [(a + b) / 2 for a, b in zip(moves[::2], moves[1::2], strict=True)]
            assert pairs == pytest.approx([drift] * 60, abs=2e-4) and statistics.stdev(moves) == pytest.approx(usual, rel=0.3)


def test_news_moves_the_futures_of_a_tick_as_often_as_its_text_and_posts_let_expect() -> None:
    model = MarketModel(volatility=0.0, question_volatility=0.0, regimes=(Regime("calm", 1.0, 1.0, 0.0, 0.0),))
    found: dict[tuple[str, bool], list[float]] = {}
    for seed in range(12):
        made = generate(preset("hour", seed=seed), model)
        markets: tuple[Asset | Question, ...] = (*made.assets, *made.questions)
        for market in markets:
            for tick in range(made.ticks):
                news = [event for event in made.events_at(tick) if event.about == name_of(market)]
                moves = futures_of(made, tick, 8, market)
                if not any(event.direction for event in news):
                    assert moves == pytest.approx([0.0] * 8, abs=1e-5)
                    continue
                [event] = news
                expected = chance_up(event, made.posts_at(tick), model)
                up = sum(move > 0.0 for move in moves)
                assert math.floor(8 * expected) <= up <= math.ceil(8 * expected)
                found.setdefault((event.kind, isinstance(market, Asset)), []).extend(abs(move) for move in moves)
                # What the event really does plays no part.
                turned = tuple(msgspec.structs.replace(one, effect=-one.effect) if one is event else one for one in made.events)
                assert futures_of(msgspec.structs.replace(made, events=turned), tick, 8, market) == moves
    assert {kind for kind, _ in found} == {"true", "decoy", "rumour"}
    mean = {key: statistics.fmean(sizes) for key, sizes in found.items()}
    assert mean["true", True] == pytest.approx(model.event_effect, rel=0.02) == mean["decoy", True]
    assert mean["rumour", True] == pytest.approx(model.event_effect * model.rumour_strength, rel=0.02)


def test_a_chance_is_how_often_the_market_goes_up() -> None:
    expected, went = list[float](), list[bool]()
    for seed in range(150):
        made = generate(preset("hour", seed=seed))
        for event in made.events:
            if event.effect:
                expected.append(chance_up(event, made.posts_at(event.tick), made.model or MarketModel()))
                went.append(event.effect > 0)
    for low, high in itertools.pairwise((0.0, 0.08, 0.15, 0.4, 0.6, 0.85, 0.92, 1.0)):
        those = [(chance, up) for chance, up in zip(expected, went, strict=True) if low < chance <= high]
        chance, up = (statistics.fmean(one) for one in zip(*those, strict=True))
        assert len(those) > 40 and abs(chance - up) < 3.5 * math.sqrt(chance * (1 - chance) / len(those))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_size_they_promise(name: str) -> None:
    config = preset(name, minutes=240) if name == "week" else preset(name)
    made = generate(config)
    assert (len(made.assets), len(made.questions), made.ticks) == (config.perps, config.predictions, config.ticks)
    assert not list(scenarios.faults(made))
    assert {len(asset.prices) for asset in made.assets} == {len(question.crowd) for question in made.questions} == {made.ticks + 1}
    if name == "hour":
        assert [len(made.events_at(tick)) for tick in range(12)] == [1] * 12
        assert made.questions[0].resolve_tick > made.ticks


def test_a_market_goes_where_it_is_told_only_after_the_tick_in_which_it_was_told() -> None:
    still = MarketModel(volatility=0.0, question_volatility=0.0, regimes=STEADY)
    made = generate(preset("quick", minutes=120, seed=5, resolving=0.0), still)
    for question in made.questions:
        told = [event for event in made.events if event.about == question.id]
        for tick in range(question.created_tick, made.ticks):
            due = sum(event.effect / event.ticks for event in told if event.tick <= tick < event.tick + event.ticks)
            assert log_odds(question.crowd[tick + 1]) - log_odds(question.crowd[tick]) == pytest.approx(due, abs=1e-4)
    for asset in made.assets:
        events = [event for event in made.events if event.about == asset.ticker]
        for tick in range(made.ticks):
            due = sum(event.effect / event.ticks for event in events if event.tick <= tick < event.tick + event.ticks)
            assert math.log(asset.prices[tick + 1] / asset.prices[tick]) == pytest.approx(due, abs=1e-6)


def test_reports_and_rumours_are_as_true_as_the_model_says() -> None:
    events = [event for seed in range(HOURS) for event in generate(preset("hour", seed=seed)).events]
    reports = [event for event in events if event.kind in ("true", "decoy")]
    rumours = [event for event in events if event.rumour]
    assert statistics.mean(event.kind == "true" for event in reports) == pytest.approx(0.90, abs=0.02)
    assert statistics.mean(event.effect * event.direction > 0 for event in rumours) == pytest.approx(0.62, abs=0.07)
    assert all((event.effect * event.direction > 0) == (event.kind == "true") for event in reports)
    assert all(event.effect == 0.0 for event in events if event.kind == "noise")
    assert statistics.mean(event.direction for event in events) == pytest.approx(0.0, abs=0.06)


def test_posts_about_an_event_are_right_as_often_as_their_authors_trust_says() -> None:
    model = MarketModel(chatter_per_hour=0.0, posts_per_event=3.0, neutral_share=0.0, question_neutral_share=0.0)
    right: dict[bool, list[bool]] = {True: [], False: []}
    for seed in range(60):
        made = generate(preset("hour", seed=seed), model)
        for post in made.posts:
            near = [event for event in made.events if event.about == post.about and event.tick - 1 <= post.tick <= event.tick]
            if len(near) == 1:
                right[post.trust > 0.5].append(post.direction * near[0].effect > 0)
    for trusted, rate in ((True, 0.875), (False, 0.625)):
        assert statistics.mean(right[trusted]) == pytest.approx(rate, abs=0.05)


@pytest.mark.long
@pytest.mark.parametrize(("config", "seeds"), [(preset("quick"), 400), (preset("week", minutes=1_440, tick_seconds=300), 60)])
def test_the_crowd_is_calibrated_from_a_questions_first_moment_to_its_last(config: ScenarioConfig, seeds: int) -> None:
    asked = [question for seed in range(seeds) for question in generate(msgspec.structs.replace(config, seed=seed)).questions]
    for part in (0.0, 0.5, 1.0):
        moments = [(q.crowd[int(q.created_tick + part * (q.resolve_tick - q.created_tick))], q.answer) for q in asked]
        for low, high in ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0)):
            within = [(believed, answer) for believed, answer in moments if low <= believed < high]
            if len(within) > 50:
                expected = statistics.mean(believed for believed, _ in within)
                error = math.sqrt(expected * (1.0 - expected) / len(within))
                assert abs(statistics.mean(answer for _, answer in within) - expected) < 3.0 * error, (part, low)


@pytest.mark.long
def test_a_crowd_drifts_to_the_answer_by_half_its_variance() -> None:
    """What Bayes' rule asks of whatever moves log-odds: more drift and holding would be free money, less and favourites lose."""
    drift = variance = 0.0
    agreeing, model = [], MarketModel()
    for seed in range(150):
        made = generate(preset("week", minutes=240, resolving=0.0, seed=seed), model)
        for question in made.questions:
            way = 1 if question.answer else -1
            path = [log_odds(probability) for probability in question.crowd[question.created_tick :]]
            told = [event for event in made.events if event.about == question.id and event.direction]
            drift += way * (path[-1] - path[0])
            variance += sum(event.effect**2 for event in told) + model.question_volatility**2 * (len(path) - 1) / 60.0
            agreeing += [event.direction == way for event in told]
    assert drift == pytest.approx(variance / 2.0, rel=0.15)
    assert 0.53 < statistics.mean(agreeing) < 0.58


def test_a_question_that_is_all_but_decided_stays_within_the_limit() -> None:
    limit = MarketModel().question_limit
    made = generate(preset("week", tick_seconds=300, perps=0))
    most = max(abs(log_odds(probability)) for question in made.questions for probability in question.crowd)
    assert limit - 0.5 < most <= limit + 1e-4


def test_noise_has_the_models_volatility_whatever_the_length_of_a_tick() -> None:
    model = MarketModel(events_per_hour=0.0, volatility_spread=0.0, regimes=STEADY)
    for seconds in (60, 300):
        found = []
        for asset in generate(preset("week", minutes=2_880, tick_seconds=seconds, predictions=0), model).assets:
            found += [math.log(b / a) for a, b in itertools.pairwise(asset.prices)]
        assert statistics.pstdev(found) == pytest.approx(model.volatility * math.sqrt(seconds / 3600), rel=0.05)


def test_prices_return_to_their_fundamental_in_reverting_regimes_and_trend_in_trending_ones() -> None:
    steady = {"events_per_hour": 0.0, "fundamental_share": 0.0, "volatility_spread": 0.0}
    reverting = MarketModel(**steady, regimes=(Regime("reverting", 1.0, 1.0, 0.0, 2.0),))
    trending = MarketModel(**steady, regimes=(Regime("trending", 1.0, 1.0, 0.1, 0.0),))
    assert persistence(reverting) < -0.2 < 0.2 < persistence(trending)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [60, 300])
def test_without_events_an_hours_moves_tell_the_regimes_apart(seconds: int) -> None:
    """By the variance of an hour's moves over that of a tick's as often: above 1 is momentum, below 1 reversion."""
    made = [generate(preset("week", tick_seconds=seconds, predictions=0, seed=seed), MarketModel(events_per_hour=0.0)) for seed in (0, 1)]
    ratios = variance_ratios([asset for one in made for asset in one.assets], 3600 // seconds)
    assert ratios["reverting"] < 0.6 < 0.8 < ratios["calm"] < 1.2 < 1.7 < ratios["trending"]


def variance_ratios(assets: list[Asset], ticks: int) -> dict[str, float]:
    """By regime, over stretches of that many ticks within one."""
    longer: dict[str, list[float]] = {}
    single: dict[str, list[float]] = {}
    for asset in assets:
        logs = [math.log(price) for price in asset.prices]
        moves = [after - before for before, after in itertools.pairwise(logs)]
        scale = statistics.pstdev(moves)
        for first in range(0, len(moves) - ticks, ticks // 4):
            (regime, *others) = set(asset.regimes[first : first + ticks])
            if not others:
                longer.setdefault(regime, []).append(((logs[first + ticks] - logs[first]) / scale) ** 2)
                single.setdefault(regime, []).append((moves[first] / scale) ** 2)
    return {regime: statistics.mean(longer[regime]) / ticks / statistics.mean(single[regime]) for regime in longer}


@pytest.mark.slow
def test_the_length_of_a_tick_and_a_regime_change_no_stocks_volatility_much() -> None:
    found = {}
    for seconds in (60, 300):
        made = generate(
            preset("week", tick_seconds=seconds, predictions=0, perps=10), MarketModel(events_per_hour=0.0, volatility_spread=0.0)
        )
        for regime in ("calm", "trending", "reverting"):
            moves = [
                math.log(after / before)
                for asset in made.assets
                for before, after, name in zip(asset.prices, asset.prices[1:], asset.regimes, strict=False)
                if name == regime
            ]
            found[seconds, regime] = statistics.pstdev(moves) * math.sqrt(3600 / seconds) / MarketModel().volatility
    assert all(0.85 < volatility < 1.15 for volatility in found.values()), found


@pytest.mark.slow
def test_stocks_differ_in_volatility_as_the_model_says() -> None:
    found = []
    for seed in range(20):
        made = generate(
            preset("week", minutes=2_880, tick_seconds=300, predictions=0, perps=10, seed=seed), MarketModel(events_per_hour=0.0)
        )
        found += [statistics.pstdev(math.log(b / a) for a, b in itertools.pairwise(asset.prices)) for asset in made.assets]
    spread = statistics.pstdev(found) / statistics.mean(found) * math.sqrt(3.0)
    assert spread == pytest.approx(MarketModel().volatility_spread, abs=0.08)


@pytest.mark.slow
def test_every_open_market_has_as_many_events_an_hour() -> None:
    model, config = MarketModel(), preset("week", minutes=2_880, resolving=0.0)
    made = generate(config, model)
    hours = {question.id: (made.ticks - question.created_tick) / 60.0 for question in made.questions}
    assert len(made.events) == pytest.approx(model.events_per_hour * (sum(hours.values()) + 48.0 * len(made.assets)), rel=0.02)
    half = generate(msgspec.structs.replace(config, events_per_hour=1.5), model)
    assert len(half.events) == pytest.approx(len(made.events) / 2, rel=0.05)


def test_events_are_worded_in_the_games_frame_and_say_their_direction() -> None:
    for edition in map(edition_named, EDITIONS):
        made = generate(preset("week", minutes=1_440, edition=edition.name))
        questions = {question.id: question.text for question in made.questions}
        clauses = {1: edition.toward_yes, -1: edition.toward_no, 0: edition.no_news}
        for event in made.events:
            if event.about in questions:
                start = f"{'Rumour' if event.rumour else 'Event'} related to: {questions[event.about]} "
                assert event.text.startswith(start) and event.text.removeprefix(start) in clauses[event.direction]
                assert len(event.text.split()) <= 23
            else:
                assert event.text.startswith("Rumour: ") == event.rumour and len(event.text.split()) <= 14
        stocks = [event.kind == "noise" for event in made.events if event.about not in questions]
        asked = [event.kind == "noise" for event in made.events if event.about in questions]
        assert statistics.mean(stocks) == pytest.approx(MarketModel().neutral_share, abs=0.06)
        assert statistics.mean(asked) == pytest.approx(MarketModel().question_neutral_share, abs=0.08)


def test_posts_about_an_event_quote_it_once_it_was_told() -> None:
    made = generate(preset("week", minutes=1_440), MarketModel(chatter_per_hour=0.0))
    questions = {question.id: question.text for question in made.questions}
    takes = [post for post in made.posts if " take on: " in post.text]
    assert 0.7 < len(takes) / len(made.posts) < 0.8  # the rest are early
    assert len(made.posts) == len(made.events)
    for post in takes:
        assert post.text.startswith(f"{post.author}'s take on: ")
        if post.about in questions:
            assert f"Event related to: {questions[post.about]} " in post.text
        else:
            told = [event for event in made.events if event.about == post.about and event.tick <= post.tick < event.tick + event.ticks]
            assert any(event.text in post.text for event in told)


def persistence(model: MarketModel) -> float:
    """Correlation of an hour's log return with the next hour's."""
    made = generate(preset("week", minutes=10_080, tick_seconds=300, predictions=0), model)
    pairs = []
    for asset in made.assets:
        hourly = asset.prices[::12]
        moves = [math.log(b / a) for a, b in itertools.pairwise(hourly)]
        pairs += list(itertools.pairwise(moves))
    return statistics.correlation([first for first, _ in pairs], [second for _, second in pairs])


def test_an_hour_is_as_learnable_as_one_headline_should_make_it() -> None:
    """Following every headline for one tick with 1500 $ of a stock wins about 23 $ a trade at a standard deviation of 29 $."""
    profits = []
    for seed in range(HOURS):
        exchange = Exchange(generate(preset("hour", seed=seed)), ("me",))
        while exchange.tick < exchange.scenario.ticks - 1:
            (event,) = exchange.scenario.events_at(exchange.tick)
            up, question = event.direction > 0, event.about in exchange.pools
            if event.direction == 0:
                exchange.advance()
                continue
            if question:
                opened = exchange.apply("me", BuyPrediction(event.about, "yes" if up else "no", 525.0))
            else:
                opened = exchange.apply("me", OpenPerp(event.about, "long" if up else "short", 1_500.0))
            assert isinstance(opened, Fill)
            exchange.advance()
            closing = SellPrediction(event.about, "yes" if up else "no") if question else ClosePerp(event.about)
            closed = exchange.apply("me", closing)
            assert isinstance(closed, Fill) and closed.profit is not None
            profits.append(closed.profit)
    assert statistics.mean(profits) / statistics.stdev(profits) > 0.65
    assert statistics.mean(profits) == pytest.approx(26.0, abs=5.0)


def test_a_market_can_go_on_from_the_prices_and_numbers_of_the_last_one() -> None:
    config = preset("hour", edition="training")
    made = generate(config, start_prices={"Vapor Games": 61.5, "Elsewhere": 3.0}, question_numbers=[44])
    assert made.asset("VAPORGAMES").prices[0] == 61.5
    assert made.questions[0].id == "Q44"
    with pytest.raises(MarketError, match="positive number of dollars: Vapor Games at -1"):
        generate(config, start_prices={"Vapor Games": -1.0})
    with pytest.raises(MarketError, match="2 questions need as many different numbers"):
        generate(preset("hour", predictions=2), question_numbers=[44, 44])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"minutes": 7}, "minutes is 7, allowed is a positive number of whole ticks of 300 s"),
        ({"edition": "deluxe"}, "edition is 'deluxe', allowed is training or training-2 or held-out or held-out-2"),
        ({"perps": 49}, "perps is 49, allowed is 0 to 48"),
        ({"perps": 0, "predictions": 0}, "predictions \\+ perps is 0, allowed is 1 or more"),
        ({"resolving": math.nan}, "resolving is nan"),
        ({"events_per_hour": math.inf}, "events_per_hour is inf"),
    ],
)
def test_a_config_out_of_range_says_what_is_allowed(changes: dict[str, object], words: str) -> None:
    with pytest.raises(MarketError, match=words):
        preset("hour", **changes)


def test_an_unknown_preset_names_those_that_there_are() -> None:
    with pytest.raises(MarketError, match="no preset 'month'; there are quick, week, hour"):
        preset("month")
