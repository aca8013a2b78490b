"""Agents play an hour: every tick they see, decide, and trade; what they saw and did comes out as ticks to record.

Decisions of one tick are asked for together (language models answer concurrently); orders are then filled in a seeded order.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from babylon_rl.market import agents as trading_agents
from babylon_rl.market.agents import Decision, News, Observation, Quote
from babylon_rl.market.trading import Account, Exchange, Order
from babylon_rl.market.world import TICK_MINUTES, TICKS, Hour


@dataclass(frozen=True)
class Call:
    """One request to a model and its answer; ``logprobs`` is what the endpoint returned, or None."""

    model: str
    messages: list[dict[str, str]]
    response: str
    response_format: dict[str, Any] | None = None
    logprobs: list[dict[str, Any]] | None = None
    latency_ms: float = 0.0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    temperature: float = 1.0
    max_tokens: int = 300


@dataclass(frozen=True)
class Player:
    """One agent: who it is and how it decides. ``strategy`` is a scripted name, or ``llm``."""

    agent_id: str
    strategy: str
    stake_usd: float


@dataclass(frozen=True)
class Tick:
    """What one agent did in one tick; ``profit`` is what the order opened here brought when the tick ended, None for none."""

    tick: int
    player: Player
    seen: Observation
    decision: Decision
    call: Call
    filled: bool
    balance: float
    pnl_before: float
    pnl_after: float
    profit: float | None


Ask = Callable[[list[tuple[Player, Observation, int]]], list[tuple[Decision, Call]]]


def quotes(exchange: Exchange, tick: int, last: dict[str, float]) -> tuple[Quote, ...]:
    """The markets as they stand at a tick, with their change since the last one."""
    found = []
    for stock in exchange.hour.stocks:
        price = exchange.price(stock.name, tick)
        before = stock.prices[max(0, (tick - 1) * TICK_MINUTES)]
        found.append(Quote(stock.name, price, 100 * (price / before - 1)))
    label = exchange.hour.question.label
    probability = exchange.pool.yes_price
    found.append(Quote(label, probability, 100 * (probability - last.get(label, probability)), exchange.hour.question.text))
    return tuple(found)


def scripted_answer(player: Player, seen: Observation, rng: random.Random) -> tuple[Decision, Call]:
    """Let a script decide, and say what it would have been asked."""
    decision = trading_agents.strategy(player.strategy)(seen, rng)
    call = Call(f"scripted/{player.strategy}", trading_agents.messages(seen), decision.text, trading_agents.response_format(seen.markets))
    return decision, call


def play_hour(
    hour: Hour, players: Sequence[Player], ask: Ask | None, seed: int | str, accounts: dict[str, Account] | None = None, ticks: int = TICKS
) -> list[Tick]:
    """Play one hour.

    Args:
        ask: answers for the players whose strategy is ``llm``, given (player, observation, tick) of all of them.
        accounts: money carried over from the hour before, by agent id; changed in place.
        ticks: how many of the hour's ticks are played, from its start.

    Returns:
        One Tick per player and tick, in tick order, then in the players' order.
    """
    exchange = Exchange(hour)
    held = accounts if accounts is not None else {}
    for player in players:
        held.setdefault(player.agent_id, Account())
    rng = random.Random(f"play/{seed}/{hour.window}")
    rngs = {player.agent_id: random.Random(f"agent/{seed}/{hour.window}/{player.agent_id}") for player in players}
    last: dict[str, float] = {}
    played: list[Tick] = []
    for tick in range(ticks):
        shown = quotes(exchange, tick, last)
        last = {quote.market: quote.price for quote in shown}
        news = tuple(News(e.market, e.text, e.direction, e.rumour) for e in hour.events if e.tick == tick)
        seen = {
            p.agent_id: Observation(shown, news, held[p.agent_id].balance, held[p.agent_id].pnl, held[p.agent_id].last) for p in players
        }
        answers = _answers(players, seen, tick, ask, rngs)
        before = {player.agent_id: (held[player.agent_id].balance, held[player.agent_id].pnl) for player in players}
        order = list(players)
        rng.shuffle(order)
        filled = {player.agent_id: _open(exchange, held[player.agent_id], player, answers[player.agent_id][0], tick) for player in order}
        exchange.crowd_trades(tick + 1)
        rng.shuffle(order)
        profits = {player.agent_id: exchange.close(held[player.agent_id], tick + 1) for player in order}
        played += [
            _tick(
                tick,
                p,
                seen[p.agent_id],
                answers[p.agent_id],
                filled[p.agent_id],
                before[p.agent_id],
                held[p.agent_id],
                profits[p.agent_id],
            )
            for p in players
        ]
    return played


def _answers(
    players: Sequence[Player], seen: dict[str, Observation], tick: int, ask: Ask | None, rngs: dict[str, random.Random]
) -> dict[str, tuple[Decision, Call]]:
    answers = {p.agent_id: scripted_answer(p, seen[p.agent_id], rngs[p.agent_id]) for p in players if p.strategy != "llm"}
    models = [player for player in players if player.strategy == "llm"]
    if models and ask is not None:
        for player, answer in zip(models, ask([(p, seen[p.agent_id], tick) for p in models]), strict=True):
            answers[player.agent_id] = answer
    return answers


def _open(exchange: Exchange, account: Account, player: Player, decision: Decision, tick: int) -> bool:
    if decision.market is None:
        return False
    usd = player.stake_usd
    if decision.market == exchange.hour.question.label:
        usd *= trading_agents.QUESTION_STAKE
    return exchange.open(account, Order(decision.market, 1 if decision.action == "buy" else -1, usd), tick) is not None


def _tick(
    tick: int,
    player: Player,
    seen: Observation,
    answer: tuple[Decision, Call],
    filled: bool,
    before: tuple[float, float],
    account: Account,
    profit: float | None,
) -> Tick:
    decision, call = answer
    return Tick(tick, player, seen, decision, call, filled, account.balance, before[1], account.pnl, profit)
