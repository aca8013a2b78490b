"""Does a snapshot's ground truth agree with its states?"""

from collections.abc import Sequence

from babylon_rl.evaluation.snapshot_file.findings import Findings
from babylon_rl.evaluation.snapshot_file.schema import PerpetualMarket, PricePoint, Snapshot, State

RELATIVE = 1e-9
UNCLEAR = (0.01, 0.99)  # prices of a resolved question that do not tell its answer


def check_truth(snapshot: Snapshot, findings: Findings) -> None:
    """Outcomes and prices are those of the states, for every market and no other."""
    states = snapshot.states()
    questions = {market.id for state in (states[0], states[-1]) for market in state.prediction_markets}
    stocks = {market.ticker for market in states[0].perpetual_markets}
    truth = snapshot.ground_truth
    for name in sorted(questions - truth.market_outcomes.keys()):
        findings.error("no outcome", f"The ground truth has no outcome of question {name}")
    for name in sorted(truth.market_outcomes.keys() - questions):
        findings.error("unknown outcome", f"The ground truth has an outcome of {name!r}, which is no question of the snapshot")
    for name in sorted(stocks - truth.price_history.keys()):
        findings.error("no history", f"The ground truth has no price history of stock {name}")
    for name in sorted(truth.price_history.keys() - stocks):
        findings.error("unknown history", f"The ground truth has a price history of {name!r}, which is no stock of the snapshot")
    for name in sorted(stocks & truth.price_history.keys()):
        _check_history(name, truth.price_history[name], states, findings)
    _check_outcomes(snapshot, states, findings)
    _check_actions(snapshot, questions | stocks, findings)


def _check_outcomes(snapshot: Snapshot, states: Sequence[State], findings: Findings) -> None:
    for state in states:
        for market in state.prediction_markets:
            if not market.resolved or market.id not in snapshot.ground_truth.market_outcomes:
                continue
            answer = snapshot.ground_truth.market_outcomes[market.id]
            if UNCLEAR[0] < market.yes_price < UNCLEAR[1]:
                findings.warning("unclear", f"Question {market.id} is resolved at tick {state.tick} at a price of {market.yes_price}")
            elif (market.yes_price > 0.5) != answer:
                says, truth = ("YES" if yes else "NO" for yes in (market.yes_price > 0.5, answer))
                findings.error("outcome", f"Question {market.id} is resolved {says} at tick {state.tick}, the ground truth says {truth}")


def _check_history(ticker: str, history: Sequence[PricePoint], states: Sequence[State], findings: Findings) -> None:
    """A point's tick is a moment, or the number of the tick that ends with it, as in the game's own snapshots; one of both throughout."""
    recorded = {state.tick: market for state in states for market in state.perpetual_markets if market.ticker == ticker}
    times = {state.tick: state.timestamp for state in states}
    wrong, shift = min((([point for point in history if not _same(point, recorded.get(point.tick + by))], by) for by in (0, 1)), key=_size)
    for point in wrong:
        shown = recorded[point.tick + shift].price if point.tick + shift in recorded else None
        told = f"the state says {shown}" if shown is not None else "there is no such tick"
        findings.error(f"history {ticker}", f"The price history of {ticker} has {point.price} at tick {point.tick}, {told}")
    ticks = [point.tick for point in history]
    if ticks != list(range(len(ticks))) or len(ticks) < len(states) - 1:
        findings.error(
            f"gaps {ticker}", f"The price history of {ticker} has {len(ticks)} points, not one for each of {len(states) - 1} ticks"
        )
    zero = sum(point.timestamp == 0 for point in history)
    if zero:
        findings.warning("history zero", f"{zero} of {len(history)} points in the price history of {ticker} are dated 0")
    elif off := [point for point in history if times.get(point.tick + shift, point.timestamp) != point.timestamp]:
        findings.warning(
            "history time", f"The price history of {ticker} dates tick {off[0].tick} {off[0].timestamp}, its state another time"
        )


def _size(found: tuple[list[PricePoint], int]) -> int:
    return len(found[0])


def _same(point: PricePoint, market: PerpetualMarket | None) -> bool:
    return market is not None and abs(market.price - point.price) <= RELATIVE * abs(market.price)


def _check_actions(snapshot: Snapshot, markets: set[str], findings: Findings) -> None:
    truth = snapshot.ground_truth
    for action in truth.optimal_actions:
        if action.target not in markets:
            findings.error("target", f"An optimal action trades {action.target!r}, which is no market of the snapshot")
        if not 0 <= action.tick <= len(snapshot.ticks):
            findings.error("action tick", f"An optimal action is at tick {action.tick}, the snapshot ends with {len(snapshot.ticks)}")
    if any(action.side is None for action in truth.optimal_actions if not action.type.startswith("close")):
        findings.warning("no side", "Optimal actions name no side and no budget; they are computed anew where they are needed")
    for chance in truth.social_opportunities:
        if not 0 <= chance.tick <= len(snapshot.ticks):
            findings.error("chance tick", f"A social opportunity is at tick {chance.tick}, the snapshot ends with {len(snapshot.ticks)}")
    best = truth.optimum
    if best is not None and not best.played - best.start_balance * 0.01 <= best.pnl <= best.upper_bound + 0.01:
        findings.error("optimum", f"The optimum of {best.pnl} $ is not between what its plan earns and the bound of {best.upper_bound} $")
