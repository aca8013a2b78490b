"""Do a snapshot's events agree with its states?"""

from babylon_rl.evaluation.snapshot_file.findings import Findings
from babylon_rl.evaluation.snapshot_file.schema import EVENT_TYPES, MARKET_TRADE, PRICE_UPDATED, Snapshot, Tick

RELATIVE = 1e-9


def check_events(snapshot: Snapshot, findings: Findings) -> None:
    """Events name what is there, lie in their tick, and lead to the price that the state after them shows."""
    began = snapshot.initial_state.timestamp
    for tick in snapshot.ticks:
        _check_tick(tick, began, findings)
        began = tick.timestamp


def _check_tick(tick: Tick, began: int, findings: Findings) -> None:
    prices = {market.ticker: market.price for market in tick.state.perpetual_markets}
    questions = {market.id for market in tick.state.prediction_markets}
    updated: dict[str, object] = {}
    for event in tick.events:
        if event.type not in EVENT_TYPES:
            findings.warning("type", f"Tick {tick.number} has an event of type {event.type!r}, which is passed over")
        if not began <= event.timestamp <= tick.timestamp:
            findings.warning(
                "event time", f"An event of tick {tick.number} is dated {event.timestamp}, outside {began} to {tick.timestamp}"
            )
        if event.type == PRICE_UPDATED:
            ticker = event.data.get("ticker")
            if isinstance(ticker, str) and ticker in prices:
                updated[ticker] = event.data.get("newPrice")
            else:
                findings.error("event stock", f"Tick {tick.number} moves the price of {ticker!r}, which is no stock")
        elif event.type == MARKET_TRADE:
            market = event.data.get("marketId")
            if not isinstance(market, str) or market not in questions:
                findings.error("event question", f"Tick {tick.number} trades {market!r}, which is no question")
    for ticker, price in updated.items():
        if not isinstance(price, int | float) or abs(price - prices[ticker]) > RELATIVE * prices[ticker]:
            findings.error("event price", f"{ticker} moves to {price} in tick {tick.number}, the state after it says {prices[ticker]}")
