"""What an order of a given size brings when its market moves by a given amount, fees and the maker's depth included.

Pure functions of quotes, for agents that weigh an order before they place it. Formulas are those of the exchange with nobody else trading.
"""

import math

from babylon_rl.market.simulation.arithmetic import exp


def stock_profit(direction: int, usd: float, log_move: float, fee: float) -> float:
    """Dollars from going long (+1) or short (-1) with ``usd`` dollars held over a move of the log price, closing included."""
    ratio = exp(log_move)
    return usd * (direction * (ratio - 1.0) - fee * (1.0 + ratio))


def question_profit(direction: int, usd: float, yes: float, log_odds_move: float, fee: float, depth: float) -> float:
    """Dollars from buying YES (+1) or NO (-1) at a YES price and selling after the crowd has moved the log-odds.

    Args:
        depth: the root of the maker's YES times NO shares.
    """
    price = yes if direction > 0 else 1.0 - yes
    root = math.sqrt(price / (1.0 - price))
    mine, other = depth / root, depth * root  # the maker's shares of what is bought, and of the other side
    paid_in = other + usd
    shares = usd + mine * usd / paid_in
    mine = mine * other / paid_in
    moved = exp(0.5 * direction * log_odds_move)
    mine, other = mine / moved, paid_in * moved
    total = mine + other + shares
    proceeds = 2.0 * shares * other / (total + math.sqrt(total * total - 4.0 * shares * other))
    return proceeds * (1.0 - fee) - usd * (1.0 + fee)
