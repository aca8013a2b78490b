"""How near a result came to the best of the policy class, and that best as a snapshot tells it."""

from babylon_rl.evaluation.snapshot_file.bound import upper_bound
from babylon_rl.evaluation.snapshot_file.optimum import Plan, best_plan
from babylon_rl.evaluation.snapshot_file.replay import to_scenario
from babylon_rl.evaluation.snapshot_file.schema import OptimalAction, Optimum, Snapshot
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.scenario import Scenario

USD_DECIMALS = 2
_AGENT = "planner"


def optimality(pnl: float, snapshot: Snapshot, best: Optimum | None = None) -> float:
    """0 for a loss or nothing earned, 100 for the best of the policy class or more, in between in proportion.

    Args:
        pnl: dollars earned from ``Optimum.start_balance``.
        best: the snapshot's optimum where it is known; else `optimum_of` looks it up, which replays a snapshot that does not say it.

    Where the class earns nothing, whoever loses nothing has 100.
    """
    return optimality_score(pnl, (best if best is not None else optimum_of(snapshot)).pnl)


def optimality_score(pnl: float, best_pnl: float) -> float:
    """`optimality` where the best of the class earns ``best_pnl`` dollars."""
    if best_pnl <= 0.0:
        return 100.0 if pnl >= 0.0 else 0.0
    return 100.0 * max(0.0, min(1.0, pnl / best_pnl))


def optimum_of(snapshot: Snapshot) -> Optimum:
    """The optimum in the snapshot's ground truth, or, as in the game's own snapshots that say none, that of its recorded market."""
    if snapshot.ground_truth.optimum is not None:
        return snapshot.ground_truth.optimum
    scenario = to_scenario(snapshot)
    return optimum(scenario, best_plan(scenario))


def optimum(scenario: Scenario, plan: Plan) -> Optimum:
    """What a plan, the best of its class, comes to: in the class's accounting, on the exchange, and beside the upper bound."""
    balance = plan.policy.start_balance
    return Optimum(
        pnl=round(plan.pnl, USD_DECIMALS),
        played=round(played(scenario, plan), USD_DECIMALS),
        upper_bound=round(upper_bound(scenario, start_balance=balance), USD_DECIMALS),
        start_balance=balance,
        policy=plan.policy.sentence(len(scenario.questions)),
    )


def played(scenario: Scenario, plan: Plan) -> float:
    """Dollars that one agent earns on the exchange by carrying out a plan."""
    exchange, actions = Exchange(scenario, [_AGENT], plan.policy.start_balance), plan.actions()
    while not exchange.over:
        if exchange.tick in actions:
            exchange.apply(_AGENT, actions[exchange.tick])
        exchange.advance()
    return exchange.equity(_AGENT) - plan.policy.start_balance


def listed(plan: Plan) -> tuple[OptimalAction, ...]:
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
