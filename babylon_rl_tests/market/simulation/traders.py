"""Agents that trade at random, to wear an exchange out."""

import random
from collections.abc import Iterator

from babylon_rl.market.simulation.actions import Action, BuyPrediction, ClosePerp, Hold, OpenPerp, SellPrediction
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.ledger import Account, Fill, Refusal, Settlement


def any_action(rng: random.Random, exchange: Exchange, account: Account) -> Action:
    """Something that can often be carried out."""
    quotes, at = exchange.quotes(), rng.random()
    if at < 0.3 and quotes.questions:
        return BuyPrediction(rng.choice(quotes.questions).market, "yes" if rng.random() < 0.5 else "no", rng.uniform(1.0, 300.0))
    if at < 0.5 and account.shares:
        market, side = rng.choice(list(account.shares))
        return SellPrediction(market, "yes" if side == "yes" else "no", rng.choice((0.5, 1.0)))
    if at < 0.75:
        side = "long" if rng.random() < 0.5 else "short"
        return OpenPerp(
            rng.choice(quotes.stocks).ticker, "long" if side == "long" else "short", rng.uniform(1.0, 300.0), rng.uniform(1.0, 10.0)
        )
    if account.perps:
        return ClosePerp(rng.choice(list(account.perps)), rng.choice((0.5, 1.0)))
    return Hold()


def trade_at_random(exchange: Exchange, seed: int) -> Iterator[tuple[list[Fill | Refusal], list[Settlement]]]:
    """Every agent acts in every tick, to the market's end; what came of each tick."""
    rng = random.Random(seed)
    while not exchange.over:
        results = [exchange.apply(agent, any_action(rng, exchange, account)) for agent, account in exchange.accounts.items()]
        yield results, exchange.advance()
