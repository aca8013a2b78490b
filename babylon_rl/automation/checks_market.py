"""Checks of every hour's market: records whose numbers were clamped, guessed or renamed."""

from collections import Counter
from collections.abc import Iterator

import dagster as dg

from babylon_rl.assets.partitions import hours
from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.verdicts import Finding, verdict
from babylon_rl.store.outcomes import MarketFlags, market_flags

FLAGS = {
    "start_from_first_price": "no price before the hour and no initialPrice, so its first price in the hour was taken",
    "start_price_not_positive": "its start price is not above 0, so its change counts as 0",
    "change_clamped": "its change is beyond the column's 999.99 %",
    "price_clamped": "its price is beyond the column's 99,999,999.99",
    "volume_clamped": "its volume is beyond the column's range",
    "probability_clamped": "its probability is beyond the column's range",
}
SUBJECTS_LISTED = 20


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec(
            "outcomes_unflagged",
            asset="market_outcomes",
            description="Every price and probability of the hour is as recorded: none is clamped, none has an unknown start.",
            partitions_def=hours,
        ),
        dg.AssetCheckSpec(
            "tickers_distinct",
            asset="market_outcomes",
            description="No two organizations share an engine ticker.",
            partitions_def=hours,
        ),
    ],
    can_subset=True,
)
def market_of_hours(context: dg.AssetCheckExecutionContext, babylon: dg.ResourceParam[Babylon]) -> Iterator[dg.AssetCheckResult]:
    """Unusual market records in some hours."""
    with babylon.connection() as connection:
        markets = market_flags(connection, context.partition_keys)
    wanted = {key.name for key in context.op_execution_context.selected_asset_check_keys}
    if "outcomes_unflagged" in wanted:
        flagged = {market.window: _flagged(market) for market in markets if market.flags}
        counted = Counter(entry["flag"] for market in markets for entry in market.flags)
        advice = "`babylon-rl outcomes {hour} --json` shows the flags with the unrounded numbers; compare them with the game's tables."
        yield verdict(context, "outcomes_unflagged", flagged, advice, flags=dict(counted))
    if "tickers_distinct" in wanted:
        shared = {market.window: _shared(tuple(market.shared_tickers)) for market in markets if market.shared_tickers}
        advice = "The suffix tells them apart, in the order of their ids; news that name the ticker alone stand on both."
        yield verdict(context, "tickers_distinct", shared, advice)


def _shared(tickers: tuple[str, ...]) -> Finding:
    return Finding(f"{', '.join(tickers[:3])}: a second organization with the same ticker", tickers[:SUBJECTS_LISTED])


def _flagged(market: MarketFlags) -> Finding:
    by_flag: dict[str, list[str]] = {}
    for entry in market.flags:
        by_flag.setdefault(entry["flag"], []).append(entry["subject"])
    parts = [f"{len(subjects)} ({', '.join(subjects[:3])}): {FLAGS.get(flag, flag)}" for flag, subjects in by_flag.items()]
    subjects = sorted({entry["subject"] for entry in market.flags})
    return Finding("; ".join(parts), tuple(subjects[:SUBJECTS_LISTED]))


checks_of_markets = [market_of_hours]
