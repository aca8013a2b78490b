"""The oracle's play of a scenario: a snapshot's optimal actions, and the P&L that optimality is measured against.

The oracle knows the market to its end (market/simulation/oracle.py). It plays alone, with the usual stake and start balance, once under
each mandate; the better play counts. That is no upper bound: an agent that stakes more may earn more, and has 100.
"""

import math

from babylon_rl.evaluation.snapshot_file.schema import OptimalAction, Optimum
from babylon_rl.market.simulation.agents import FREE, ONE_TICK
from babylon_rl.market.simulation.config import START_BALANCE
from babylon_rl.market.simulation.fills import Fill, Settlement
from babylon_rl.market.simulation.record import AgentRecord
from babylon_rl.market.simulation.roster import factory
from babylon_rl.market.simulation.run import play
from babylon_rl.market.simulation.scenario import Scenario

USD_DECIMALS = 2
_ORACLE = "oracle"
_REASONS = {"one-tick": "The best order for one tick", "free": "A swing that is larger than what entering and leaving cost"}


def oracle_play(scenario: Scenario) -> AgentRecord:
    """The oracle's better play, one-tick or with positions that last."""
    agents = [{_ORACLE: factory(_ORACLE, scenario, mandate, model=scenario.model)} for mandate in (ONE_TICK, FREE)]
    return max((play(scenario, agent).records[_ORACLE] for agent in agents), key=lambda record: record.pnl_usd)


def optimum(record: AgentRecord) -> Optimum:
    """The play's P&L in dollars, with its start balance."""
    return Optimum(pnl=round(record.pnl_usd, USD_DECIMALS), start_balance=START_BALANCE, policy=f"oracle, {record.mandate}")


def optimal_actions(record: AgentRecord) -> tuple[OptimalAction, ...]:
    """Trades of a play in the form of a snapshot, in order of ticks.

    An opening's value is the profit of its position after fees; 0 for one that is open at the end.
    """
    fills = [outcome for outcome in record.outcomes if isinstance(outcome, Fill) and outcome.market]
    fills += [fill for closed in record.closed.values() for fill in closed]
    profits: dict[str, list[float]] = {}
    ends: list[Fill | Settlement] = [*fills, *record.settled]
    for end in ends:
        profits.setdefault(end.position, []).append(end.profit or 0.0)
    return tuple(
        _action(fill, math.fsum(profits[fill.position]), _REASONS[record.mandate]) for fill in sorted(fills, key=lambda fill: fill.tick)
    )


def _action(fill: Fill, profit: float, reason: str) -> OptimalAction:
    if fill.profit is not None:
        return OptimalAction(fill.tick, fill.kind, fill.market, 0.0, "Closes the position", fill.side)
    return OptimalAction(fill.tick, fill.kind, fill.market, round(profit, USD_DECIMALS), reason, fill.side, round(fill.usd, USD_DECIMALS))


def optimality_score(pnl: float, best_pnl: float) -> float:
    """Score 0..100: P&L as a percentage of the oracle's, clamped. Where the oracle earns nothing, an agent that loses nothing has 100."""
    if best_pnl <= 0.0:
        return 100.0 if pnl >= 0.0 else 0.0
    return 100.0 * max(0.0, min(1.0, pnl / best_pnl))
