"""For each constant of the simulated market: what the recorded game measures of it, and why the chosen value may differ."""

import statistics

from benchmarks.market_fit.measure import MarketFit

NONE = "not recorded"


def constants(game: MarketFit) -> list[tuple[str, str, str]]:
    """(fields of MarketModel, what was measured, why the chosen value is what it is)."""
    return [*_prices(game), *_events(game), *_questions(game), *_posts(game), *_trading(game)]


def _prices(game: MarketFit) -> list[tuple[str, str, str]]:
    stocks = game.stocks
    assert stocks is not None
    values = stocks.volatilities
    spread = statistics.pstdev(values) / statistics.mean(values) * 3**0.5
    memory = stocks.persistence[-1]
    return [
        (
            "volatility",
            f"{stocks.median:.4f} (by organization {values[0]:.4f} to {values[-1]:.4f}); 0.037 to 0.047 in the game's own benchmark",
            "Between the sample's prices, which are made up, and those that the game's benchmark generator makes. What can be learnt "
            "depends on its ratio to `event_effect`, not on its size.",
        ),
        ("volatility_spread", f"{spread:.2f}", "As measured: that of a uniform spread with the organizations' standard deviation."),
        (
            "fundamental_share, regimes, regime_hours",
            f"no memory: variance ratio at an hour {memory.ratio:.2f}, by chance {memory.low:.2f} to {memory.high:.2f}",
            "Added: momentum and reversion strong enough to be told apart within an hour. Over all regimes "
            "together they nearly cancel (about 1.1).",
        ),
        ("price_decimals", "15 digits; 2 after orders", "Enough for any price, and the same bytes everywhere."),
    ]


def _events(game: MarketFit) -> list[tuple[str, str, str]]:
    events, questions, stocks = game.events, game.questions, game.stocks
    assert events is not None
    assert questions is not None
    assert stocks is not None
    each = events.per_hour / game.open_questions
    pull = each * events.pointed * questions.response[0]
    error = 196 * (stocks.response_error or 0.0)
    return [
        (
            "events_per_hour",
            f"{events.per_hour:.0f} on {game.open_questions} questions, {each:.1f} an hour and question",
            "Of each open market. A quarter of what a question gets in the game: each event here says more, and a prompt must hold all. "
            "Evenly spaced, as measured. The preset `hour` with its four markets has one event a tick.",
        ),
        (
            "question_weight",
            f"all are about a question, {100 * events.text.names_company:.0f} % name a company",
            "Stocks need events of their own to be traded on anything but luck.",
        ),
        (
            "neutral_share, question_neutral_share",
            f"{100 * (1 - events.pointed):.0f} % without a direction, all of them about questions",
            "Towards the recorded share, as far as it goes without making many more games necessary: a silent event teaches only to hold.",
        ),
        ("rumour_share, rumour_strength", "none", "Added, so that trusting a text less than a report can be learnt and measured."),
        (
            "report_truth, rumour_truth",
            f"{100 * (events.pointed_true or 0.0):.0f} %: a direction never contradicts the answer",
            "Events that are always right would be obeyed, not judged; false ones are the decoys.",
        ),
        (
            "event_effect",
            f"{stocks.response[-1]:+.4f} (± {error / 100:.4f}) after ten ticks: none",
            "Without an effect there is nothing to learn about stocks. About 2.4 standard deviations of the five minutes it takes.",
        ),
        (
            "question_effect",
            f"{questions.response[0]:.3f} in log-odds, {each * events.pointed:.1f} times an hour and question: {pull:.2f} an hour",
            "Fewer events with a larger effect each, so that one is worth acting on; together they move a question of the preset `hour` as "
            "much as a recorded one moves.",
        ),
        ("strength", NONE, "Varied, so that clarity and strength are worth reading."),
        (
            "event_minutes",
            "the whole effect within one tick",
            "An agent acts once a tick, after it read the event: an effect that is over by then could not be earned.",
        ),
        ("report_clarity, rumour_clarity, neutral_clarity", "texts without words of direction", "As event_effect: the text must say it."),
        (
            "categories",
            ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in events.kinds),
            "As measured: these five, equally often; they say nothing of a direction.",
        ),
    ]


def _questions(game: MarketFit) -> list[tuple[str, str, str]]:
    questions = game.questions
    assert questions is not None
    return [
        (
            "question_start, question_limit",
            "pools open at 50 %; 13 to 88 % in the game's own benchmark",
            "A market is entered at any time of a question's life, not at its creation alone. Nothing makes the crowd surer than 97 %.",
        ),
        (
            "question_volatility",
            f"{questions.quiet_volatility:.2f} in ticks without an event, {questions.volatility:.2f} in all",
            "That of ticks without an event, events come on top. No reversion: a recorded tick's correlation with the next is "
            f"{questions.lag_one or 0.0:+.3f}.",
        ),
        (
            "pool_shares",
            f"{questions.depth or 0.0:.0f}",
            "For balances of 10,000 $ rather than orders of 40 $: an order's impact is about the same for its share of the balance.",
        ),
    ]


def _posts(game: MarketFit) -> list[tuple[str, str, str]]:
    posts = game.posts
    assert posts is not None
    return [
        (
            "posts_per_event, chatter_per_hour",
            f"{posts.per_event:.1f} per event, all about events; {posts.per_hour:.0f} an hour",
            "Every post is read by every agent at every decision: one per event, and some about nothing in particular.",
        ),
        ("post_early", "none before its event", "Some who know, know early: trust is worth something only before a price has moved."),
        ("authors", f"{posts.authors}, all equally busy", "Few enough that one can be met again and known by what came true."),
    ]


def _trading(game: MarketFit) -> list[tuple[str, str, str]]:
    stocks = game.stocks
    assert stocks is not None
    perps = next((trade for trade in game.trades if trade.market == "perp"), None)
    orders = next((trade for trade in game.trades if trade.market == "prediction"), None)
    levers = [lever for lever, _ in perps.leverage] if perps else []
    usd = f", at a median order of {perps.usd[1]:,.0f} $" if perps else ""
    return [
        ("fee", NONE, "Small, and enough that turning over for nothing costs."),
        (
            "impact_per_usd, max_impact, recovery_per_hour",
            f"{100 * (stocks.trade_impact or 0.0):.1f} % an order{usd}, given back on closing",
            "The recorded impact exceeds most profits; here it is noticed by large orders only, and no round trip earns by it.",
        ),
        (
            "max_leverage, maintenance",
            f"{levers[0]:g} to {levers[-1]:g}, equally often" if levers else NONE,
            "At the recorded leverage a tick's noise liquidates a position; up to 10 it is a decision.",
        ),
        ("funding_hours, funding_per_premium, max_funding", "none paid", "As usual for perpetuals: every 8 hours, bounded."),
        ("min_order_usd", f"lower quartile {orders.usd[0]:.0f} $" if orders else NONE, "Refuses nothing that anybody would place."),
    ]
