"""The market engine alone: seconds to write a week, and ticks per second with eight agents that trade at random.

    python benchmarks/market_engine.py [--minutes 10080] [--seed 0]

Budgets on one quiet core: a week written in 3 s, and its 10,080 ticks traded in 5 s. Prints one JSON object.
"""

import argparse
import json
import random
import resource
import time

from babylon_rl.market.simulation.actions import Action, BuyPrediction, ClosePerp, Hold, OpenPerp, SellPrediction
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.ledger import Account, Fill
from babylon_rl_tests.market.simulation import audit


def any_action(rng: random.Random, exchange: Exchange, account: Account) -> Action:
    """An order that is mostly filled; one in five or so holds."""
    quotes, at, side = exchange.quotes(), rng.random(), rng.random() < 0.5
    if at < 0.3 and quotes.questions:
        return BuyPrediction(rng.choice(quotes.questions).market, "yes" if side else "no", 20.0 + 200.0 * rng.random())
    if at < 0.5 and account.shares:
        market, held = rng.choice(list(account.shares))
        return SellPrediction(market, "yes" if held == "yes" else "no")
    if at < 0.75 and len(account.perps) < 3:
        return OpenPerp(rng.choice(quotes.stocks).ticker, "long" if side else "short", 200.0 * rng.random() + 1.0, 1.0 + 4.0 * rng.random())
    return ClosePerp(rng.choice(list(account.perps))) if account.perps else Hold()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=int, default=10_080)
    parser.add_argument("--seed", default="0")
    given = parser.parse_args()
    began = time.perf_counter()
    scenario = generate(preset("week", minutes=given.minutes, seed=given.seed))
    written = time.perf_counter()
    exchange = Exchange(scenario, [f"agent-{number}" for number in range(8)])
    rng, fills, refusals = random.Random(0), 0, 0
    while not exchange.over:
        for agent, account in exchange.accounts.items():
            if isinstance(exchange.apply(agent, any_action(rng, exchange, account)), Fill):
                fills += 1
            else:
                refusals += 1
        exchange.advance()
    traded = time.perf_counter()
    audit.check(exchange)
    seconds = traded - written
    found = {
        "generationSeconds": round(written - began, 2),
        "tradingSeconds": round(seconds, 2),
        "ticksPerSecond": round(scenario.ticks / seconds),
        "ticks": scenario.ticks,
        "fills": fills,
        "refusals": refusals,
        "peakMb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
