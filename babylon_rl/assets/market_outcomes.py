"""Asset ``market_outcomes``: price changes, probabilities and news of every hour."""

from collections.abc import Mapping, Sequence

from babylon_rl.assets.partitions import AS_LOADED, HourReport, counts, embedded, hourly_asset, table
from babylon_rl.assets.resources import Babylon
from babylon_rl.judge.plan import market_rules, note_changes
from babylon_rl.market.outcomes import PredictionOutcome, StockOutcome, WindowOutcomes, sync_outcomes
from babylon_rl.reporting.numbers import shortened
from babylon_rl.reporting.plots import Picture, bar_plot, path_plot
from babylon_rl.store.connection import Connection
from babylon_rl.store.market import PRICES, PROBABILITIES, Path, paths

NOTHING = "nothing recorded"
MOST_PERCENT = 999.99  # the most that changePercent holds


@hourly_asset(
    deps=["market_data"],
    group_name="market",
    code_version=market_rules(AS_LOADED),
    table="public.market_outcomes",
    columns={
        "windowId": ("varchar(50)", "The hour"),
        "stockTicker": ("varchar(20)", "On a stock row: the engine's ticker"),
        "startPrice": ("decimal(10,2)", "Dollars at the hour's start"),
        "endPrice": ("decimal(10,2)", "Dollars at the hour's end"),
        "changePercent": ("decimal(5,2)", "Change in percent, from unrounded prices"),
        "sentiment": ("varchar(20)", "BULLISH, BEARISH or NEUTRAL"),
        "newsEvents": ("jsonb", "What happened, in time order"),
        "predictionMarketId": ("text", "On a prediction row: the question"),
        "outcome": ("varchar(20)", "YES or NO once there is an official answer, else UNRESOLVED"),
        "finalProbability": ("decimal(5,4)", "Probability of YES at the hour's end"),
    },
    says="Works out how prices and probabilities moved in an hour and which news explain it; the hidden answers are never read.",
    when_red="the log of its run names the hour; `babylon-rl outcomes HOUR --json` reads the same tables of the game.",
)
def market_outcomes(connection: Connection, windows: list[str], babylon: Babylon, pictures: frozenset[str]) -> dict[str, HourReport]:
    outcomes = sync_outcomes(connection, windows, babylon.settings, babylon.now())
    # A judge is shown the market too: scores that were given for another one are marked here, before anything asks for them.
    note_changes(connection, windows, babylon.settings)
    drawn = [outcomes[window] for window in windows if window in pictures and window in outcomes]
    prices = paths(connection, PRICES, [(market.window, stock.organization_id) for market in drawn for stock in market.stocks])
    odds = paths(connection, PROBABILITIES, [(market.window, asked.market_id) for market in drawn for asked in market.predictions])
    shown = {market.window: _pictures(market, prices, odds) for market in drawn}
    return {window: _report(outcomes.get(window), shown.get(window, [])) for window in windows}


def _report(market: WindowOutcomes | None, shown: Sequence[Picture]) -> HourReport:
    if market is None or not (market.stocks or market.predictions):
        return HourReport(NOTHING, counts(0, market=NOTHING))
    stocks = [
        {
            "ticker": s.ticker, "move %": s.change_percent, "from $": s.start_price, "to $": s.end_price,
            "sentiment": s.sentiment, "news": len(s.news),
        } | ({"flags": ", ".join(s.flags)} if market.flags else {})
        for s in market.stocks
    ]  # fmt: skip
    predictions = [
        {
            "question": shortened(p.question, 120),
            "start": p.start_probability,
            "end": p.end_probability,
            "outcome": p.outcome,
            "news": len(p.news),
        }
        for p in market.predictions
    ]
    metadata = counts(
        len(stocks) + len(predictions),
        mean_change_percent=market.mean_change,
        volatility_percent=market.volatility,
        flags=len(market.flags),
        changed=market.changed,
    )
    metadata |= {**embedded(shown), "stocks": table(stocks), "predictions": table(predictions)}
    return HourReport(market.data_version, metadata)


def _pictures(market: WindowOutcomes, prices: Mapping[tuple[str, str], Path], odds: Mapping[tuple[str, str], Path]) -> list[Picture]:
    pictures = []
    if market.stocks:
        moves = sorted(((s.ticker, _drawable(s.change_percent)) for s in market.stocks), key=lambda move: -move[1])
        pictures.append(bar_plot(f"Price changes, {market.window}", "percent", moves))
    # Largest moves first: they are the named series of each panel.
    movers = sorted(market.stocks, key=lambda stock: -abs(stock.change_percent))
    swingers = sorted(market.predictions, key=lambda asked: -abs(asked.end_probability - asked.start_probability))
    stocks = [(f"{s.ticker} {s.change_percent:+.1f} %", _percent(prices[market.window, s.organization_id], s)) for s in movers]
    questions = [(_question_name(p), _whole_hour(p.start_probability, odds[market.window, p.market_id])) for p in swingers]
    panels = {
        "prices, percent from the hour's start": {name: path for name, path in stocks if path},
        "probability of YES": {name: path for name, path in questions if path},
    }
    if moved := {unit: series for unit, series in panels.items() if series}:
        pictures.append(path_plot(f"Within the hour, {market.window}", moved))
    return pictures


def _question_name(prediction: PredictionOutcome) -> str:
    name = prediction.market_id if prediction.question_number is None else f"no. {prediction.question_number}"
    return f"{name} {prediction.end_probability - prediction.start_probability:+.3f}"


def _percent(path: Path, stock: StockOutcome) -> Path:
    """A price path in percent from the hour's start price; [] if not comparable."""
    if stock.start_price <= 0:
        return []
    return _whole_hour(0.0, [(minute, _drawable((price / stock.start_price - 1) * 100)) for minute, price in path])


def _whole_hour(start: float, path: Path) -> Path:
    # Drawn from the hour's first to its last minute, also where a price moved once.
    return [(0.0, start), *path, (60.0, path[-1][1])] if path else []


def _drawable(percent: float) -> float:
    """Clamp a change to MOST_PERCENT: beyond it a plot shows one stock and zeros."""
    return max(-MOST_PERCENT, min(MOST_PERCENT, percent))
