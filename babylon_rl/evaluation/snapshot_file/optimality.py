"""Optimality of a result: its P&L as a share of the best plan's, and an upper bound on what any plan earns.

The bound holds for an agent that never has more than the start balance at risk and buys a question at most once. It frees the agent of
fees, of one action a tick, of liquidation and of its impact on stocks; funding is only ever received. What stays: the margins of all
stocks together are at most the start balance, at the highest leverage, so each tick earns at most the move of the stock that moves most;
and each question, by itself, gives at most what its pool has for the whole balance.
"""

import math

import numpy as np

from babylon_rl.evaluation.snapshot_file.best_plan import BestPlan, is_open, pool_shares
from babylon_rl.evaluation.snapshot_file.schema import OptimalAction, Optimum
from babylon_rl.market.simulation.config import START_BALANCE, MarketModel
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.scenario import Question, Scenario


def upper_bound(scenario: Scenario, model: MarketModel | None = None, start_balance: float = START_BALANCE) -> float:
    """Dollars that no plan earns more than, whatever it stakes at which leverage, of those that the module describes."""
    model = model or scenario.model or MarketModel()
    stocks = _stocks(scenario, model, start_balance) if scenario.assets else 0.0
    return stocks + math.fsum(_question(question, scenario, model, start_balance) for question in scenario.questions)


def _stocks(scenario: Scenario, model: MarketModel, balance: float) -> float:
    """In every tick the best move is caught, with as many units as the balance bought at the stock's lowest price so far."""
    prices = np.array([asset.prices for asset in scenario.assets], dtype=np.float64)
    units = balance * model.max_leverage / np.minimum.accumulate(prices, axis=1)[:, :-1]
    earned = units * np.abs(np.diff(prices, axis=1))
    for row, asset in enumerate(scenario.assets):
        for number, rate in enumerate(asset.funding):
            tick = (number + 1) * scenario.funding_ticks
            if tick <= scenario.ticks:
                earned[row, tick - 1] += abs(rate) * prices[row, tick] * units[row, tick - 1]
    return math.fsum(earned.max(axis=0).tolist())


def _question(question: Question, scenario: Scenario, model: MarketModel, balance: float) -> float:
    """The best purchase of the right side with the whole balance; of either side, sold as dear as it ever can be, when it stays open."""
    opened, answered = is_open(question, scenario), question.resolve_tick <= scenario.ticks
    if not opened.any():
        return 0.0
    best = 0.0
    for yes in (question.answer,) if answered else (True, False):
        mine, other = pool_shares(question, model, yes)
        kept = mine * balance / (other + balance)  # shares received beyond one for each dollar
        if not answered:
            odds = other[-1] / mine[-1] * ((other + balance) / other) ** 2
            # a share is sold for no more than the price that the purchase could leave, and was bought for no less than the one it met
            kept = np.minimum(kept, balance * np.maximum(0.0, odds / (1.0 + odds) * (mine + other) / other - 1.0))
        best = max(best, float(kept[opened].max()))
    return best


USD_DECIMALS = 2
_AGENT = "planner"


def optimality_score(pnl: float, best_pnl: float) -> float:
    """`optimality`, 0 to 100, where the best of the class earns ``best_pnl`` dollars."""
    if best_pnl <= 0.0:
        return 100.0 if pnl >= 0.0 else 0.0
    return 100.0 * max(0.0, min(1.0, pnl / best_pnl))


def optimum(scenario: Scenario, plan: BestPlan) -> Optimum:
    """P&L of the best plan: in the class's accounting, on the exchange, and beside the upper bound."""
    balance = plan.policy.start_balance
    return Optimum(
        pnl=round(plan.pnl, USD_DECIMALS),
        played=round(played(scenario, plan), USD_DECIMALS),
        upper_bound=round(upper_bound(scenario, start_balance=balance), USD_DECIMALS),
        start_balance=balance,
        policy=plan.policy.sentence(len(scenario.questions)),
    )


def played(scenario: Scenario, plan: BestPlan) -> float:
    """Dollars that one agent earns on the exchange by carrying out a plan."""
    exchange, actions = Exchange(scenario, [_AGENT], plan.policy.start_balance), plan.actions()
    while not exchange.over:
        if exchange.tick in actions:
            exchange.apply(_AGENT, actions[exchange.tick])
        exchange.advance()
    return exchange.equity(_AGENT) - plan.policy.start_balance


def listed(plan: BestPlan) -> tuple[OptimalAction, ...]:
    """The plan as a snapshot lists it; the values of all actions add up to the plan's profit."""
    found = []
    for trip in plan.trips:
        side = "long" if trip.direction > 0 else "short"
        moves = "rises" if trip.direction > 0 else "falls"
        usd, leverage, value = plan.policy.margin_usd, plan.policy.leverage, round(trip.profit, USD_DECIMALS)
        reason = f"{trip.ticker} {moves} until tick {trip.closed}"
        found.append(OptimalAction(trip.opened, "open_perp", trip.ticker, value, reason, side, usd, leverage))
        if trip.closed < plan.ticks:
            found.append(OptimalAction(trip.closed, "close_perp", trip.ticker, 0.0, f"closes the {side} of tick {trip.opened}"))
    for purchase in plan.purchases:
        side = "yes" if purchase.yes else "no"
        reason = f"{side.upper()} of {purchase.market} is at its cheapest for what it comes to"
        value = round(purchase.profit, USD_DECIMALS)
        found.append(OptimalAction(purchase.tick, "buy_prediction", purchase.market, value, reason, side, purchase.usd))
    return tuple(sorted(found, key=lambda action: action.tick))
