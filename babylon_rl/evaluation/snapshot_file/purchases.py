"""Purchases of questions: what each would have earned at every tick, and which to make when only one can be made a tick.

Whoever buys a question once and keeps it trades with a pool that nobody else has pushed, so the shares received and what they are worth
at the end follow from the crowd's belief alone; the numbers are the exchange's own, impact included.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from babylon_rl.market.simulation.arithmetic import exp
from babylon_rl.market.simulation.config import HOUR_S, MarketModel
from babylon_rl.market.simulation.scenario import Question, Scenario

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Purchase:
    """``usd`` dollars of YES or NO shares bought at a tick, and what they earn, fees paid."""

    market: str
    yes: bool
    tick: int
    usd: float
    profit: float


def best_purchases(scenario: Scenario, model: MarketModel, turns: range, usd: float) -> tuple[Purchase, ...]:
    """The most profitable purchases, at most one a question and one a tick, all for ``usd`` dollars; in the order of ticks."""
    from scipy.optimize import linear_sum_assignment

    ticks = np.array(turns, dtype=np.int64)
    if not len(ticks) or not scenario.questions:
        return ()
    offers = np.array([[_profits(question, scenario, model, usd, yes)[ticks] for yes in (True, False)] for question in scenario.questions])
    gains = np.maximum(offers.max(axis=1), 0.0)
    # the others can take at most as many ticks from a question as there are others
    few = min(len(scenario.questions), len(ticks))
    columns = np.unique(np.argsort(-gains, axis=1, kind="stable")[:, :few])
    rows, picked = linear_sum_assignment(gains[:, columns], maximize=True)
    found = []
    for row, column in zip(rows, columns[picked], strict=True):
        if gains[row, column] > 0.0:
            yes = bool(offers[row, 0, column] >= offers[row, 1, column])
            found.append(Purchase(scenario.questions[row].id, yes, int(ticks[column]), usd, float(gains[row, column])))
    return tuple(sorted(found, key=lambda purchase: purchase.tick))


def _profits(question: Question, scenario: Scenario, model: MarketModel, usd: float, yes: bool) -> Floats:
    """Dollars earned by a purchase at each tick, kept to the answer or the end; -inf when the question is not open."""
    mine, other = pool_shares(question, model, yes)
    shares = usd + mine * usd / (other + usd)
    if question.resolve_tick <= scenario.ticks:
        worth = shares if question.answer is yes else np.zeros_like(shares)
    else:
        worth = worth_at_end(question, scenario, model, usd, yes, shares) * (1.0 - model.fee)
    return np.where(is_open(question, scenario), worth - usd * (1.0 + model.fee), -np.inf)


def pool_shares(question: Question, model: MarketModel, yes: bool) -> tuple[Floats, Floats]:
    """The maker's shares of the side that is bought and of the other, at every moment, in a pool that only the crowd moves."""
    crowd = np.array(question.crowd, dtype=np.float64)
    root = np.sqrt(crowd / (1.0 - crowd))
    sides = (model.pool_shares / root, model.pool_shares * root)
    return sides if yes else (sides[1], sides[0])


def is_open(question: Question, scenario: Scenario) -> NDArray[np.bool_]:
    """At which moments the question can be bought."""
    moments = np.arange(scenario.ticks + 1)
    return (moments >= question.created_tick) & (moments < min(question.resolve_tick, scenario.ticks))


def worth_at_end(question: Question, scenario: Scenario, model: MarketModel, usd: float, yes: bool, shares: Floats) -> Floats:
    """What selling brings at the last moment: the crowd has taken back most of what the purchase did to the odds, a share each tick."""
    mine, other = pool_shares(question, model, yes)
    pushed = ((other + usd) / other) ** 2  # odds of the bought side over the crowd's, right after the purchase
    pushed = pushed if yes else 1.0 / pushed  # those of YES, which return to the crowd's evenly
    kept = np.ones(scenario.ticks + 1)
    kept[1:] = exp(-model.recovery_per_hour * scenario.tick_seconds / HOUR_S)
    left = np.cumprod(kept)[::-1]  # after as many ticks as there are from each moment to the end
    root = np.sqrt(1.0 + (pushed - 1.0) * left)
    root = root if yes else 1.0 / root
    mine_then, other_then = mine[-1] / root, other[-1] * root
    total = mine_then + other_then + shares
    worth: Floats = 2.0 * shares * other_then / (total + np.sqrt(total * total - 4.0 * shares * other_then))
    return worth
