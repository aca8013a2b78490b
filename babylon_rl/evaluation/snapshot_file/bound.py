"""An upper bound on what can be earned by whoever never has more than the start balance at risk and buys a question at most once.

It frees the agent of fees, of one action a tick, of liquidation and of its impact on stocks; funding is only ever received. What stays:
the margins of all stocks together are at most the start balance, at the highest leverage, so each tick earns at most the move of the stock
that moves most; and each question, by itself, gives at most what its pool has for the whole balance.
"""

import math

import numpy as np

from babylon_rl.evaluation.snapshot_file.purchases import is_open, pool_shares
from babylon_rl.market.simulation.config import START_BALANCE, MarketModel
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
