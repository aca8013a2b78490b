"""Run of a scenario: every tick each agent sees, decides and trades. All of it is kept.

All agents of a tick decide on the same quotes; their orders are then filled in a seeded order, and one tick passes. Agents that ask
models are asked at once. The same scenario, agents and seed give the same run, to the byte of `encode_run`, for scripted agents.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from babylon_rl.errors import MarketError, ModelUnavailable
from babylon_rl.market.simulation import prompting
from babylon_rl.market.simulation.actions import Action, Invalid, WritePost
from babylon_rl.market.simulation.agents import ONE_TICK, Agent, AgentFactory, AskingAgent, Decision, mandate_of
from babylon_rl.market.simulation.arithmetic import stream
from babylon_rl.market.simulation.config import START_BALANCE, MarketModel
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.games import Game
from babylon_rl.market.simulation.ledger import Fill
from babylon_rl.market.simulation.observation import Newsroom, Observation, observe
from babylon_rl.market.simulation.record import HOLD, AgentRecord
from babylon_rl.market.simulation.scenario import Scenario

MOST_THREADS = 64

Clock = Callable[[], float]
OnTick = Callable[[int, int], None]


@dataclass(eq=False)
class Run:
    """A played scenario.

    Attributes:
        records: what each agent did, by agent id in the order of seats.
        ticks_played: fewer than the scenario's when ``stopped`` says in words why the run ended early.
        exchange: as it stands at the end: accounts, the house's cash, what agents posted.
    """

    scenario: Scenario
    seed: int | str
    exchange: Exchange
    records: dict[str, AgentRecord]
    ticks_played: int = 0
    stopped: str | None = None

    @property
    def complete(self) -> bool:
        """Whether the market was played to its end; only complete runs may be compared."""
        return self.stopped is None and self.ticks_played == self.scenario.ticks

    @property
    def paths(self) -> dict[str, list[float]]:
        """Prices and YES prices as each moment began, by ticker and question. As agents moved them; a question's from its first moment."""
        stocks = {ticker: list(book.path) for ticker, book in self.exchange.books.items()}
        return stocks | {market: list(pool.path) for market, pool in self.exchange.pools.items()}

    @property
    def pnl_usd(self) -> dict[str, float]:
        return {agent_id: record.pnl_usd for agent_id, record in self.records.items()}


def play(
    scenario: Scenario,
    agents: Mapping[str, AgentFactory],
    *,
    seed: int | str = 0,
    model: MarketModel | None = None,
    start_balance: float | Mapping[str, float] = START_BALANCE,
    on_tick: OnTick | None = None,
    game: Game | None = None,
    clock: Clock = time.perf_counter,
) -> Run:
    """Play a scenario to its end.

    Args:
        agents: factories by agent id; the ids are seats, in this order.
        seed: of the agents and of the order of fills; the scenario's bytes are mixed in, so that no two markets share their luck.
        start_balance: dollars for each, or by agent id.
        on_tick: called after each tick with the ticks played and all there are; what it raises ends the run.
        game: agents that ask nobody leave what they would have been asked in it as calls.
        clock: seconds, for latencies.

    Returns:
        The run. An endpoint that stays down ends it early, with what was played before; ``stopped`` says so.

    Raises:
        MarketError: a start balance that is missing or below zero, or an agent of another mandate than the game's.
    """
    table = GameTable(scenario, agents, seed, start_balance, model, game)
    exchange = table.exchange
    run = Run(scenario, seed, exchange, {agent_id: seat.record for agent_id, seat in table.seats.items()})
    pool = ThreadPoolExecutor(MOST_THREADS)  # its threads begin when agents ask
    try:
        while not exchange.over:
            table.look()
            try:
                decisions = _decisions(table, pool, clock)
            except ModelUnavailable as down:
                run.stopped = f"Stopped at tick {exchange.tick} of {scenario.ticks}: {down}"
                return run
            table.play(decisions)
            run.ticks_played += 1
            if on_tick is not None:
                on_tick(run.ticks_played, scenario.ticks)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    table.look()
    return run


def encode_run(run: Run) -> bytes:
    """A run as JSON: decisions, results, money at every moment, prices.

    Latencies and calls, which a clock or a model make differ, are left out: two runs of the same scripted agents are the same bytes.
    """
    return msgspec.json.encode(
        {
            "scenario": run.scenario.digest,
            "seed": run.seed,
            "ticksPlayed": run.ticks_played,
            "stopped": run.stopped,
            "agents": [
                {
                    "agentId": record.agent_id,
                    "name": record.name,
                    "mandate": record.mandate,
                    "actions": record.actions,
                    "outcomes": record.outcomes,
                    "balance": list(record.balance),
                    "equity": list(record.equity),
                    "closed": list(record.closed.values()),
                    "settled": record.settled,
                }
                for record in run.records.values()
            ],
            "paths": run.paths,
        }
    )


class Seat:
    """An agent at its place in a run.

    `GameTable` takes every seat through its turns; who plays one step by step instead calls, tick by tick, ``look``, ``act``, the
    exchange's ``advance``, the record's ``settle`` and ``keep_mandate``, and ``look`` once more at the end.
    """

    def __init__(self, agent: Agent, agent_id: str, exchange: Exchange, game: Game | None = None) -> None:
        mandate = mandate_of(agent)
        self.agent = agent
        self.record = AgentRecord(agent_id, agent.name, mandate, exchange.accounts[agent_id])
        if game is not None and game.mandate != mandate:
            raise MarketError(f"{agent.name} trades under the {mandate} mandate; the game {game.name} is played under {game.mandate}.")
        self.asking = agent if isinstance(agent, AskingAgent) else None  # told once: it would be the slowest part of a decision
        self._game = game if self.asking is None else None

    def look(self, exchange: Exchange, newsroom: Newsroom) -> Observation:
        """The agent's present view; its money goes on record."""
        seen = observe(exchange, newsroom, self.record)
        self.record.balance.append(seen.balance)
        self.record.equity.append(seen.equity)
        self.record.held.append(self.record.account.open_positions)
        return seen

    def decide(self, seen: Observation, clock: Clock) -> Decision:
        started = clock()
        decision = Decision(self.agent.decide(seen)) if self.asking is None else self.asking.ask(seen)
        return msgspec.structs.replace(decision, latency_ms=1000.0 * (clock() - started))

    def act(self, exchange: Exchange, newsroom: Newsroom, seen: Observation, decision: Decision) -> None:
        record, call = self.record, decision.call
        record.latency_ms.append(decision.latency_ms)
        given: object = decision.action  # anybody's own agent may return anything
        action = given if isinstance(given, Action | Invalid) else Invalid(f"not an action: {type(given).__name__}")
        if call is None and self._game is not None:
            call = prompting.scripted_call(record.name, seen, action, self._game)
        if call is not None:
            record.calls[exchange.tick] = call
        if isinstance(action, Invalid):
            record.acted(HOLD, action)
            return
        outcome = exchange.apply(record.agent_id, action)
        record.acted(action, outcome)
        if isinstance(action, WritePost) and isinstance(outcome, Fill):
            newsroom.said(exchange.tick, record.agent_id, action.text)

    def keep_mandate(self, exchange: Exchange) -> None:
        """Close open positions where orders last one tick. Also at the last moment, when agents may not trade any more."""
        if self.record.mandate == ONE_TICK:
            for fill in exchange.close_all(self.record.agent_id):
                self.record.mandated(fill)


class GameTable:
    """A market in play: its exchange, its seats by agent id, its news, and the seeded order in which orders are filled.

    ``look`` and ``play`` alternate, with a last ``look`` at the end; arguments are those of the function `play`.
    """

    def __init__(
        self,
        scenario: Scenario,
        agents: Mapping[str, AgentFactory],
        seed: int | str,
        start_balance: float | Mapping[str, float] = START_BALANCE,
        model: MarketModel | None = None,
        game: Game | None = None,
    ) -> None:
        luck = f"{seed}/{scenario.digest[:16]}"
        self.exchange = Exchange(scenario, list(agents), start_balance, model)
        self.seats = {agent_id: Seat(make(agent_id, luck), agent_id, self.exchange, game) for agent_id, make in agents.items()}
        self.newsroom = Newsroom(scenario)
        self.seen: dict[str, Observation] = {}
        self._fills = stream(luck, "order of fills")
        self._acting, self._closing = self._orders()

    def look(self) -> dict[str, Observation]:
        """Let every seat look; its money goes on record."""
        self.seen = {agent_id: seat.look(self.exchange, self.newsroom) for agent_id, seat in self.seats.items()}
        return self.seen

    def play(self, decisions: Mapping[str, Decision]) -> None:
        """Carry out one tick's decisions, and let it pass."""
        for agent_id in self._acting:
            self.seats[agent_id].act(self.exchange, self.newsroom, self.seen[agent_id], decisions[agent_id])
        for settlement in self.exchange.advance():
            self.seats[settlement.agent].record.settle(settlement)
        for agent_id in self._closing:
            self.seats[agent_id].keep_mandate(self.exchange)
        self._acting, self._closing = self._orders()

    def usd(self, agent_id: str, decisions: Mapping[str, Decision], exchange: Exchange) -> float:
        """Dollars that one agent has after these decisions in ``exchange``, a copy that plays the tick; nothing goes on record."""
        for one in self._acting:
            if not isinstance(action := decisions[one].action, Invalid):
                exchange.apply(one, action)
        exchange.advance()
        for one in self._closing:
            if self.seats[one].record.mandate == ONE_TICK:
                exchange.close_all(one)
        return exchange.equity(agent_id)

    def _orders(self) -> tuple[list[str], list[str]]:
        """The orders in which the next tick's decisions are carried out, and positions closed after it."""
        acting = list(self.seats)
        self._fills.shuffle(acting)
        closing = list(acting)
        self._fills.shuffle(closing)
        return acting, closing


def _decisions(table: GameTable, pool: ThreadPoolExecutor, clock: Clock) -> dict[str, Decision]:
    turns = [(agent_id, seat, table.seen[agent_id]) for agent_id, seat in table.seats.items()]
    asked = {name: pool.submit(seat.decide, seen, clock) for name, seat, seen in turns if seat.asking is not None}
    own = {name: seat.decide(seen, clock) for name, seat, seen in turns if name not in asked}
    return own | {name: answer.result() for name, answer in asked.items()}
