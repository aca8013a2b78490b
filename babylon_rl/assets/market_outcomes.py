"""What happened in the market of every hour: price changes, probabilities, news."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from babylon_rl.assets.hours import HourReport, plotted, report_hours
from babylon_rl.assets.metadata import HOURS_GROUP, OWNERS, column_schema, counts, table
from babylon_rl.assets.partitions import hours
from babylon_rl.assets.plots import bar_plot
from babylon_rl.assets.resources import Babylon
from babylon_rl.market.outcomes import WindowOutcomes, sync_outcomes

NOTHING = "nothing recorded"
COLUMNS = column_schema(
    windowId=("varchar(50)", "The hour"),
    stockTicker=("varchar(20)", "On a stock row: the engine's ticker"),
    startPrice=("decimal(10,2)", "Dollars at the hour's start"),
    endPrice=("decimal(10,2)", "Dollars at the hour's end"),
    changePercent=("decimal(5,2)", "Change in percent, from unrounded prices"),
    sentiment=("varchar(20)", "BULLISH, BEARISH or NEUTRAL"),
    newsEvents=("jsonb", "What happened, in time order"),
    predictionMarketId=("text", "On a prediction row: the question"),
    outcome=("varchar(20)", "YES or NO once there is an official answer, else UNRESOLVED"),
    finalProbability=("decimal(5,4)", "Probability of YES at the hour's end"),
)


@dg.asset(
    partitions_def=hours,
    deps=["market_data"],
    group_name=HOURS_GROUP,
    owners=OWNERS,
    kinds={"python", "postgres"},
    code_version="1",
    backfill_policy=dg.BackfillPolicy.single_run(),
    metadata={**COLUMNS, "table": "public.market_outcomes"},
    description="Works out how prices and probabilities moved in an hour and which news explain it; the hidden answers are never read.",
)
def market_outcomes(context: dg.AssetExecutionContext, babylon: dg.ResourceParam[Babylon]) -> Iterator[Any]:
    windows = list(context.partition_keys)
    with babylon.connection() as connection:
        outcomes = sync_outcomes(connection, windows, babylon.settings, babylon.now())
    pictures = plotted(windows)
    yield from report_hours(context, {window: _report(outcomes.get(window), drawn=window in pictures) for window in windows})


def _report(market: WindowOutcomes | None, *, drawn: bool) -> HourReport:
    if market is None or not (market.stocks or market.predictions):
        return HourReport(NOTHING, counts(0, market=NOTHING))
    stocks = [
        {
            "ticker": s.ticker, "change %": s.change_percent, "start $": s.start_price, "end $": s.end_price,
            "sentiment": s.sentiment, "news": len(s.news),
        }
        for s in market.stocks
    ]  # fmt: skip
    predictions = [
        {"question": p.question[:120], "start": p.start_probability, "end": p.end_probability, "outcome": p.outcome, "news": len(p.news)}
        for p in market.predictions
    ]
    metadata = counts(
        len(stocks) + len(predictions),
        mean_change_percent=market.mean_change,
        volatility_percent=market.volatility,
        flags=len(market.flags),
        changed=market.changed,
    )
    if drawn and market.stocks:
        moves = sorted(((s.ticker, s.change_percent) for s in market.stocks), key=lambda move: -move[1])
        metadata["price_changes"] = bar_plot(f"Price changes, {market.window}", "percent", moves)
    metadata |= {"stocks": table(stocks), "predictions": table(predictions)}
    return HourReport(market.data_version, metadata)
