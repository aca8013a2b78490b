"""Agents play hours of the market, and the hours are written into the database as the game would have written them.

Each hour is one transaction: market rows (only into a simulated game), agents, trajectories with their prompts and answers, and
llm_call_logs. In a real game's database only our own agents' trajectories are written, at the recorded prices.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg

from babylon_rl.errors import MarketError, UsageError
from babylon_rl.market import game_rows
from babylon_rl.market.agents import STAKES_USD, STRATEGIES
from babylon_rl.market.headlines import TRAINING
from babylon_rl.market.model_agent import model_player
from babylon_rl.market.play import Ask, Player, Tick, play_hour
from babylon_rl.market.recorded import read_recorded_hour
from babylon_rl.market.trading import Account
from babylon_rl.market.world import TICK_MINUTES, Hour, generate_hour
from babylon_rl.store import recording as rows
from babylon_rl.windows import HOUR, newest_complete, window_of, window_start


@dataclass(frozen=True)
class SpawnRequest:
    """What to simulate: ``agents`` in all, of which ``model_agents`` ask a model, for ``minutes`` of each of ``windows`` hours."""

    agents: int
    model_agents: int
    windows: int
    seed: int
    minutes: int = 60
    start: str | None = None

    def __post_init__(self) -> None:
        if self.agents < 1 or self.windows < 1 or not 0 <= self.model_agents <= self.agents:
            raise UsageError("Ask for at least 1 agent and 1 window, and for no more model agents than agents.")
        if not TICK_MINUTES <= self.minutes <= 60:
            raise UsageError(
                f"--duration is {self.minutes} minutes: an hour is played in ticks of {TICK_MINUTES} minutes, so give {TICK_MINUTES} to 60."
            )


@dataclass(frozen=True)
class SpawnedHour:
    """What one hour came to; ``agents`` holds (agent id, strategy, P&L in the hour in dollars)."""

    window: str
    agents: tuple[tuple[str, str, float], ...]
    trajectories: int

    @property
    def document(self) -> dict[str, Any]:
        """As CLI.md's JSON."""
        played = [{"agentId": agent, "strategy": strategy, "pnl": round(pnl, 2)} for agent, strategy, pnl in self.agents]
        return {"window": self.window, "agents": played, "trajectories": self.trajectories}


def players_of(request: SpawnRequest, first: int = 1) -> list[Player]:
    """``test-agent-<n>`` from n = ``first``: scripted strategies in turn, then the agents that ask a model."""
    scripted = request.agents - request.model_agents
    names = [STRATEGIES[index % len(STRATEGIES)] for index in range(scripted)]
    players = [Player(f"test-agent-{first + index}", name, STAKES_USD[name]) for index, name in enumerate(names)]
    return players + [model_player(f"test-agent-{first + scripted + index}") for index in range(request.model_agents)]


def windows_to_play(request: SpawnRequest, newest: str | None, now: datetime) -> list[str]:
    """The hours of a request: from ``start``, else after the newest simulated hour, else so that they end at the newest complete one."""
    last = newest_complete(now)
    if request.start is not None:
        first = window_start(request.start)
    elif newest is not None and window_start(newest) + HOUR * request.windows <= window_start(last):
        first = window_start(newest) + HOUR
    elif newest is not None:
        raise UsageError(
            f"The simulated hours already reach {newest}; {request.windows} more would lie in the future. "
            "Wait, or give --start with an earlier hour."
        )
    else:
        first = window_start(last) - HOUR * (request.windows - 1)
    hours = [window_of(first + HOUR * index) for index in range(request.windows)]
    if hours[-1] > last:
        raise UsageError(f"{hours[-1]} is not over yet; the newest complete hour is {last}.")
    return hours


def spawn(
    connection: psycopg.Connection[Any],
    request: SpawnRequest,
    now: datetime,
    ask: Ask | None,
    on_hour: Callable[[SpawnedHour], None] | None = None,
) -> list[SpawnedHour]:
    """Play and write the hours of a request.

    Raises:
        MarketError: a requested hour of a real game has no recorded prices.
        UsageError: the hours lie in the future.
    """
    if request.model_agents and ask is None:
        raise UsageError("Model agents need a model: give --model, or --llm-agents 0.")
    hours = windows_to_play(request, rows.newest_simulated_hour(connection), now)
    own_market = rows.is_simulated_game(connection)
    players, done = players_of(request, rows.first_agent_number(connection)), list[SpawnedHour]()
    connection.commit()
    for window in hours:
        with connection.transaction():
            done.append(_play_and_write(connection, request, window, players, ask, own_market, now))
        if on_hour is not None:
            on_hour(done[-1])
    return done


def _play_and_write(
    connection: psycopg.Connection[Any], request: SpawnRequest, window: str, players: Sequence[Player], ask: Ask | None,
    own_market: bool, now: datetime,
) -> SpawnedHour:  # fmt: skip
    start = window_start(window)
    rows.lock_simulation(connection)
    if rows.has_simulated_hour(connection, window):
        raise MarketError(f"Simulated agents have already played {window}. Give another --start, or none to append after the newest hour.")
    if own_market:
        hour = generate_hour(
            TRAINING,
            window,
            request.seed,
            previous=rows.last_prices(connection, start),
            question_number=rows.next_question_number(connection),
        )
    else:
        hour = read_recorded_hour(connection, window)
    # from the database, so that hours played one by one equal hours played in one go
    held = rows.read_accounts(connection, [player.agent_id for player in players])
    accounts = {agent: Account(balance, pnl) for agent, (balance, pnl) in held.items()}
    ticks = play_hour(hour, players, ask, request.seed, accounts, ticks=request.minutes // TICK_MINUTES)
    ids = game_rows.Ids(start)
    if own_market:
        _write_market(connection, hour, ticks, ids)
    rows.add_agents(connection, [(player.agent_id, f"{player.strategy} {player.agent_id}") for player in players], start)
    rows.save_accounts(connection, {agent: (account.balance, account.pnl) for agent, account in accounts.items()}, start + HOUR)
    recorded = list(game_rows.recordings(window, rows.market_id(connection, hour.question.number), ticks, ids))
    rows.copy_rows(connection, "trajectories", [one.columns for one in recorded])
    rows.copy_rows(connection, "llm_call_logs", [call.columns for one in recorded for call in one.calls])
    rows.mark_simulated_hour(connection, window, request.seed, own_market, now)
    return SpawnedHour(window, tuple(_results(players, ticks)), len(recorded))


def _results(players: Sequence[Player], ticks: Sequence[Tick]) -> Iterator[tuple[str, str, float]]:
    for player in players:
        yield player.agent_id, player.strategy, sum(tick.profit or 0.0 for tick in ticks if tick.player == player)


def _write_market(connection: psycopg.Connection[Any], hour: Hour, ticks: Sequence[Tick], ids: game_rows.Ids) -> None:
    companies = [(game_rows.slug(stock.name), stock.name, stock.prices[0]) for stock in hour.stocks]
    rows.add_organizations(connection, companies, window_start(hour.window))
    rows.copy_rows(connection, "StockPrice", game_rows.stock_rows(hour, ids))
    rows.set_current_prices(
        connection, {game_rows.slug(stock.name): stock.prices[-1] for stock in hour.stocks}, window_start(hour.window) + HOUR
    )
    seen = {tick.tick: next(quote.price for quote in tick.seen.quotes if quote.question is not None) for tick in ticks}
    for table, found in game_rows.question_rows(hour, [seen[tick] for tick in sorted(seen)], ids).items():
        rows.copy_rows(connection, table, found)
    rows.copy_rows(connection, "WorldEvent", game_rows.event_rows(hour))
