"""Simulation of whole hours: agents play, and the hours are written in the game's format.

Each hour is one transaction: market rows (only into a simulated game), agents, trajectories with their prompts and answers, and
llm_call_logs. In a real game's database only our own agents' trajectories are written, at the recorded prices: prices, one question and
events are as recorded. Our orders do not move its stocks; a question's pool moves like that of any market maker. A company without a price
yet uses its first one; events about other markets are left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from babylon_rl.errors import MarketError, ModelUnavailable, UsageError
from babylon_rl.market import game_rows
from babylon_rl.market.headlines import TRAINING
from babylon_rl.market.simulation.agents import AgentFactory
from babylon_rl.market.simulation.config import PRESETS, START_BALANCE, MarketModel, preset
from babylon_rl.market.simulation.games import ONE_TICK_GAME, Game
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.run import Run, play
from babylon_rl.market.simulation.scenario import Asset, Question, Scenario, WorldEvent, from_paths
from babylon_rl.market.simulation.strategies import STRATEGIES, player
from babylon_rl.recorder import milliseconds
from babylon_rl.store import market as recorded_market
from babylon_rl.store import recording as rows
from babylon_rl.store.connection import Connection
from babylon_rl.windows import HOUR, newest_complete, window_of, window_start

_HOUR = PRESETS["hour"]
TICKS = _HOUR.ticks  # of an agent in an hour, whatever the duration
MODEL_STRATEGY = "llm"
SEED_PREFIX = "training/"  # prefix that no held-out market's seed has
_RECORDED_MODEL = MarketModel(impact_per_usd=1e-12)  # recorded prices stay as they are: orders do not move them
_EXTREME = 0.02  # prices of a question stay so far from 0 and 1


@dataclass(frozen=True)
class SpawnedPlayer:
    """One agent: its id and its strategy. ``strategy`` is the name of a scripted one, or ``llm`` for an agent that asks a model."""

    agent_id: str
    strategy: str


@dataclass(frozen=True)
class SpawnRequest:
    """Size of a simulation: hours, minutes per hour, agents. ``model_agents`` of the ``agents`` ask a model.

    Every hour has ``TICKS`` ticks; ``minutes`` is the time that they take. All play the same ``game``; the factory of ``model_agents`` must
    ask in it. ``edition`` names the texts of the hours' markets; None: those that the seed's hours have so far, else the newest.
    """

    agents: int
    model_agents: int
    windows: int
    seed: int
    minutes: int = 60
    start: str | None = None
    game: Game = ONE_TICK_GAME
    edition: str | None = None

    def __post_init__(self) -> None:
        if self.agents < 1 or self.windows < 1 or not 0 <= self.model_agents <= self.agents:
            raise UsageError("Ask for at least 1 agent and 1 window, and for no more model agents than agents.")
        if not 1 <= self.minutes <= 60:
            raise UsageError(f"--duration is {self.minutes} minutes of an hour: give 1 to 60.")

    @property
    def tick_seconds(self) -> int:
        return self.minutes * 60 // TICKS


@dataclass(frozen=True)
class SpawnedHour:
    """Result of one hour; ``agents`` holds (agent id, strategy, P&L in the hour in dollars)."""

    window: str
    agents: tuple[tuple[str, str, float], ...]
    trajectories: int

    @property
    def document(self) -> dict[str, Any]:
        played = [{"agentId": agent, "strategy": strategy, "pnl": round(pnl, 2)} for agent, strategy, pnl in self.agents]
        return {"window": self.window, "agents": played, "trajectories": self.trajectories}


def players_of(request: SpawnRequest, first: int = 1) -> list[SpawnedPlayer]:
    """Players ``test-agent-<n>`` from n = ``first``: scripted strategies in turn, then model agents."""
    scripted = request.agents - request.model_agents
    names = [STRATEGIES[index % len(STRATEGIES)] for index in range(scripted)] + [MODEL_STRATEGY] * request.model_agents
    return [SpawnedPlayer(f"test-agent-{first + index}", name) for index, name in enumerate(names)]


def training_seed(seed: int, window: str) -> str:
    """The seed of an hour's market, derived from the request's seed and the hour."""
    return f"{SEED_PREFIX}{seed}/{window}"


def windows_to_play(connection: Connection, request: SpawnRequest, now: datetime) -> list[str]:
    """Return the hours of a request.

    They begin at ``start``, else after the newest simulated hour, else they end at the newest complete hour, or before it in the newest
    gap of simulated hours that is long enough.

    Raises:
        UsageError: the request has a start, and reaches into the future.
    """
    last = newest_complete(now)
    newest = rows.newest_simulated_hour(connection) if request.start is None else None
    if request.start is not None:
        first = window_start(request.start)
    elif newest is not None and window_start(newest) + HOUR * request.windows <= window_start(last):
        first = window_start(newest) + HOUR
    else:
        # Backwards until as many consecutive hours are free: an hour that is taken starts the count again.
        first, free = window_start(last), 0
        while (free := 0 if rows.has_simulated_hour(connection, window_of(first)) else free + 1) < request.windows:
            first -= HOUR
    hours = [window_of(first + HOUR * index) for index in range(request.windows)]
    if hours[-1] > last:
        raise UsageError(f"{hours[-1]} is not over yet; the newest complete hour is {last}.")
    return hours


def spawn(
    connection: Connection,
    request: SpawnRequest,
    now: datetime,
    model: AgentFactory | None,
    on_hour: Callable[[SpawnedHour], None] | None = None,
    *,
    players: Sequence[SpawnedPlayer] | None = None,
) -> list[SpawnedHour]:
    """Play and write the hours of a request.

    ``model`` makes the agents that ask a model; ``players`` replaces the request's usual ones.

    Raises:
        MarketError: a requested hour of a real game has no recorded prices.
        ModelUnavailable: the endpoint stays down; the hours before this one are written.
        UsageError: the hours lie in the future.
    """
    if request.model_agents and model is None:
        raise UsageError("Model agents need a model: give --model, or --llm-agents 0.")
    hours = windows_to_play(connection, request, now)
    own_market = rows.is_simulated_game(connection)
    # Numbers of new agents continue those in the database.
    players, done = players or players_of(request, rows.first_agent_number(connection)), list[SpawnedHour]()
    # What was read so far must not keep a transaction open: each hour below is one of its own.
    connection.commit()
    for window in hours:
        with connection.transaction():
            done.append(_play_and_write(connection, request, window, players, model, own_market, now))
        if on_hour is not None:
            on_hour(done[-1])
    return done


def _play_and_write(
    connection: Connection, request: SpawnRequest, window: str, players: Sequence[SpawnedPlayer], model: AgentFactory | None,
    own_market: bool, now: datetime,
) -> SpawnedHour:  # fmt: skip
    start = window_start(window)
    connection.take_lock(rows.SIMULATION_LOCK)
    # Checked under the lock: two commands never play the same hour.
    if rows.has_simulated_hour(connection, window):
        raise MarketError(f"Simulated agents have already played {window}. Give another --start, or none for the newest free hours.")
    # from the database, so that hours played one by one equal hours played in one go
    held = rows.read_accounts(connection, [player.agent_id for player in players])
    seats = tuple((player.agent_id, held.get(player.agent_id, (START_BALANCE, 0.0))[0]) for player in players)
    source = _source(connection, request, window, seats)
    scenario = market_of(connection, source, request.seed, window, own_market=own_market)
    run = _played(scenario, request, players, model, dict(seats))
    earlier = {agent: pnl for agent, (_, pnl) in held.items()}
    ids = game_rows.Ids(start)
    if own_market:
        _write_market(connection, scenario, run.paths, ids)
    rows.add_agents(connection, [(player.agent_id, f"{player.strategy} {player.agent_id}") for player in players], start)
    rows.save_accounts(
        connection,
        # With what is still open at its worth: the next hour is another market.
        {agent: (record.equity[-1], earlier.get(agent, 0.0) + record.pnl_usd) for agent, record in run.records.items()},
        start + HOUR,
    )
    markets = {question.id: rows.market_id(connection, question.number) for question in scenario.questions}
    recorded = game_rows.recordings(run, markets, ids, earlier_pnl_usd=earlier)
    rows.copy_rows(connection, "trajectories", [recording.columns for recording in recorded])
    rows.copy_rows(connection, "llm_call_logs", [call for recording in recorded for call in recording.calls])
    rows.mark_simulated_hour(connection, window, request.seed, own_market, source, now)
    return SpawnedHour(
        window, tuple((player.agent_id, player.strategy, run.records[player.agent_id].pnl_usd) for player in players), len(recorded)
    )


def _source(connection: Connection, request: SpawnRequest, window: str, seats: tuple[tuple[str, float], ...]) -> rows.HourSource:
    first = rows.next_question_number(connection)
    numbers = tuple(range(first, first + _HOUR.predictions))
    prices = rows.last_prices(connection, window_start(window))
    # A game keeps its words unless others are asked for.
    edition = request.edition or rows.edition_of(connection, request.seed) or TRAINING
    return rows.HourSource(edition, request.agents, request.tick_seconds, numbers, prices, seats, request.game.name)


def market_of(connection: Connection, source: rows.HourSource, seed: int, window: str, *, own_market: bool) -> Scenario:
    """Make the market of an hour: the same source gives the same bytes, for recorded prices as long as the game's rows stay.

    Raises:
        MarketError: the hour of a real game has no recorded prices, or there is no such edition.
    """
    if not own_market:
        return _recorded_hour(connection, window, source.tick_seconds)
    config = preset(
        "hour", seed=training_seed(seed, window), agents=source.agents, edition=source.edition, start_ms=milliseconds(window_start(window))
    )
    whole = generate(config, start_prices=source.start_prices, question_numbers=source.question_numbers)
    # The same hour in less time: in a market generated for five minutes there would be one piece of news to act on.
    return msgspec.structs.replace(whole, tick_seconds=source.tick_seconds)


def _played(
    scenario: Scenario, request: SpawnRequest, players: Sequence[SpawnedPlayer], model: AgentFactory | None, balances: Mapping[str, float]
) -> Run:
    seats = {
        seat.agent_id: model if model is not None and seat.strategy == MODEL_STRATEGY else player(seat.strategy, scenario, request.game)
        for seat in players
    }
    run = play(scenario, seats, seed=request.seed, start_balance=balances, game=request.game)
    if run.stopped is not None:
        # Raised within the hour's transaction: an hour that was played in part is not written.
        raise ModelUnavailable(f"{window_of(game_rows.moment(scenario, 0))}: {run.stopped}")
    return run


def _write_market(connection: Connection, scenario: Scenario, paths: game_rows.Paths, ids: game_rows.Ids) -> None:
    start, end = game_rows.moment(scenario, 0), game_rows.moment(scenario, scenario.ticks)
    rows.add_organizations(connection, [(game_rows.slug(asset.name), asset.name, asset.prices[0]) for asset in scenario.assets], start)
    rows.copy_rows(connection, "StockPrice", game_rows.stock_rows(scenario, paths, ids))
    rows.set_current_prices(connection, game_rows.closing_prices(scenario, paths), end)
    for table, table_rows in game_rows.question_rows(scenario, paths, ids).items():
        rows.copy_rows(connection, table, table_rows)
    rows.copy_rows(connection, "WorldEvent", game_rows.event_rows(scenario))


def _recorded_hour(connection: Connection, window: str, tick_seconds: int) -> Scenario:
    """A recorded hour's busiest companies and question, from its start on, in the ticks of a simulated hour.

    Raises:
        MarketError: the hour has no company with prices, or no traded question.
    """
    start, end = window_start(window), window_start(window) + HOUR
    busiest = recorded_market.busiest_stocks(connection, start, end, _HOUR.perps)
    stocks = tuple(stock for stock in (_stock(connection, *row, window, tick_seconds) for row in busiest) if stock)
    traded = recorded_market.busiest_question(connection, start, end)
    if not stocks or traded is None:
        raise MarketError(
            f"{window} has no recorded prices to play at. "
            f"`babylon-rl outcomes {window}` shows what it holds; give --start with an hour that has some."
        )
    market_id, number, text, answer = traded
    odds = recorded_market.by_minute(connection, recorded_market.PROBABILITIES, market_id, start, _HOUR.minutes)
    minutes = [0.5 if probability is None else probability for probability in odds]
    crowd = tuple(min(1 - _EXTREME, max(_EXTREME, probability)) for probability in _at_ticks(minutes, tick_seconds))
    # Resolved after the last tick, so that its answer is not known within the hour.
    question = Question(f"Q{number}", number, text, answer, crowd, 0, _HOUR.ticks + 1)
    scenario = from_paths(
        tick_seconds=tick_seconds, assets=stocks, questions=(question,),
        events=_events(connection, window, stocks, question, tick_seconds), start_ms=milliseconds(start),
    )  # fmt: skip
    return msgspec.structs.replace(scenario, model=_RECORDED_MODEL)


def _at_ticks(minutes: Sequence[float], tick_seconds: int) -> list[float]:
    """Values at the moments of the ticks, of values at every minute."""
    return [minutes[tick * tick_seconds // 60] for tick in range(TICKS + 1)]


def _stock(connection: Connection, organization_id: str, name: str, window: str, tick_seconds: int) -> Asset | None:
    prices = recorded_market.by_minute(connection, recorded_market.PRICES, organization_id, window_start(window), _HOUR.minutes)
    valid = [price for price in prices if price is not None and 0 < price < math.inf]
    if not valid:
        return None
    # Minutes without a valid price repeat the last one.
    filled, last = [], valid[0]
    for price in prices:
        last = price if price is not None and 0 < price < math.inf else last
        filled.append(last)
    return Asset(organization_id, name, tuple(_at_ticks(filled, tick_seconds)))


def _events(connection: Connection, window: str, stocks: tuple[Asset, ...], question: Question, tick_seconds: int) -> list[WorldEvent]:
    start, by_tick = window_start(window), dict[int, WorldEvent]()
    for moment, text, actors, number, points in recorded_market.events_between(connection, start, start + HOUR):
        tick = int((moment - start).total_seconds() // tick_seconds) + 1  # agents read it at the next tick
        named = next((stock.ticker for stock in stocks if stock.name.lower() in f"{text} {' '.join(actors or [])}".lower()), None)
        about = question.id if number == question.number else named
        if about is not None and tick < TICKS:
            direction = {"YES": 1, "NO": -1}.get(points or "", 0)
            # One event a tick: the first of it stays, the others are left out.
            by_tick.setdefault(tick, WorldEvent(tick, about, text, direction, 1.0, False, "recorded", 0.0, "noise", 0.0, 1))
    return [by_tick[tick] for tick in sorted(by_tick)]
