"""Players meet benchmark markets: one player alone in each, the same markets and seeds for all, several markets at once.

Everyone trades the same stake for one tick at a time, as policies are trained to. Several markets at once, because the server answers
what waits together in one batch. A result is told as soon as its market is over.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import Event

from babylon_rl.errors import MarketError, ModelUnavailable
from babylon_rl.evaluation.snapshots import PLAYER_ID, PROMPT_VERSION, Snapshot
from babylon_rl.market.simulation import roster
from babylon_rl.market.simulation.actions import Invalid
from babylon_rl.market.simulation.agents import ONE_TICK, STAKE_USD, AgentFactory, Choice
from babylon_rl.market.simulation.fills import Fill, Refusal
from babylon_rl.market.simulation.model_agent import model_agent
from babylon_rl.market.simulation.prompting import choice_of
from babylon_rl.market.simulation.record import AgentRecord
from babylon_rl.market.simulation.run import Run, play
from babylon_rl.market.simulation.scenario import Scenario
from babylon_rl.models.client import ChatClient
from babylon_rl.store.benchmarks import MarketResult

CONCURRENCY = 16
_NO_TRADE = ("hold", "post")
OnRun = Callable[[Snapshot, Run], None]


@dataclass(frozen=True)
class Contestant:
    """Who plays: an agent of the roster under its own name, or whoever ``agent`` makes."""

    name: str
    agent: AgentFactory | None = None

    def __post_init__(self) -> None:
        if self.agent is None and self.name not in roster.NAMES:  # refused here, not in the middle of a benchmark
            raise MarketError(f"There is no strategy {self.name!r}; there are {', '.join(roster.NAMES)}.")

    def seat(self, scenario: Scenario) -> AgentFactory:
        """Who sits down in this market: the same stake for everyone, so that only decisions differ."""
        return self.agent or roster.factory(self.name, scenario, ONE_TICK, stake_usd=STAKE_USD)


def model_contestant(client: ChatClient, name: str, temperature: float) -> Contestant:
    """A model at an endpoint, asked as policies are trained."""
    return Contestant(name, model_agent(client, mandate=ONE_TICK, prompt_version=PROMPT_VERSION, temperature=temperature, name=name))


def unkept(snapshot: Snapshot, run: Run) -> None:
    """What is done with whole runs that nobody wants to look at: nothing."""


def play_market(contestant: Contestant, snapshot: Snapshot, left: Event | None = None, on_run: OnRun = unkept) -> MarketResult:
    """Play one market to its end, or until ``left`` is set; ``on_run`` is given the whole run.

    Raises:
        ModelUnavailable: the endpoint stays down.
        MarketError: ``left`` was set.
    """

    def go_on(tick: int, ticks: int) -> None:
        if left is not None and left.is_set():
            raise MarketError("The benchmark was interrupted.")

    run = play(snapshot.scenario, {PLAYER_ID: contestant.seat(snapshot.scenario)}, seed=snapshot.seed, on_tick=go_on)
    if not run.complete:
        raise ModelUnavailable(f"{contestant.name} in {snapshot.id}: {run.stopped}")
    on_run(snapshot, run)
    return _result(snapshot, run.records[PLAYER_ID])


def play_benchmark(
    contestant: Contestant,
    snapshots: Sequence[Snapshot],
    concurrency: int = CONCURRENCY,
    on_result: Callable[[MarketResult], None] = lambda result: None,
    on_run: OnRun = unkept,
) -> list[MarketResult]:
    """Play every market, up to ``concurrency`` at once; the results come in the order of ``snapshots``.

    ``on_result`` is called in this thread as each market ends, so that what is played is kept when a later one fails; ``on_run`` before it,
    in the thread that played. When this
    thread is interrupted, the markets under way end with their next tick.

    Raises:
        ModelUnavailable: the endpoint stays down; markets under way are finished and told, those that have not begun are given up.
    """
    if contestant.agent is None:
        concurrency = 1  # a script computes: threads would only take turns
    played: dict[str, MarketResult] = {}
    left = Event()
    with ThreadPoolExecutor(max_workers=max(1, concurrency)) as pool:
        pending = [pool.submit(play_market, contestant, snapshot, left, on_run) for snapshot in snapshots]
        try:
            failure: BaseException | None = None
            for done in as_completed(pending):
                if done.cancelled():
                    continue
                error = done.exception()
                if error is not None:
                    failure = failure or error
                    for waiting in pending:
                        waiting.cancel()
                    continue
                played[done.result().snapshot] = done.result()
                on_result(done.result())
        finally:
            left.set()
            pool.shutdown(wait=False, cancel_futures=True)
    if failure is not None:
        raise failure
    return [played[snapshot.id] for snapshot in snapshots]


def _result(snapshot: Snapshot, record: AgentRecord) -> MarketResult:
    choices = [choice_of(action) for action in record.actions]
    valid = [choice.action for choice, outcome in zip(choices, record.outcomes, strict=True) if not isinstance(outcome, Invalid)]
    traded = [tick for tick, outcome in enumerate(record.outcomes) if isinstance(outcome, Fill) and outcome.kind not in _NO_TRADE]
    profits = _profits(record)
    pnls = [equity - record.account.start for equity in record.equity]
    return MarketResult(
        snapshot=snapshot.id,
        pnl_usd=pnls[-1],
        wins=sum(profit > 0 for profit in profits.values()),
        losses=sum(profit < 0 for profit in profits.values()),
        trades=len(traded),
        decisions=record.decisions,
        invalid=record.decisions - len(valid),
        refused=sum(isinstance(outcome, Refusal) for outcome in record.outcomes),
        actions={action: valid.count(action) for action in ("buy", "sell", "hold")},
        predictions=len(traded),
        predictions_right=sum(_was_right(snapshot.scenario, tick, choices[tick]) for tick in traded),
        equity_usd=tuple(pnls[1:]),
    )


def _profits(record: AgentRecord) -> dict[int, float]:
    """What the order of each tick brought once it was closed, in dollars after all costs."""
    profits: dict[int, float] = {}
    for tick, fills in record.closed.items():
        profits[tick] = sum(fill.profit or 0.0 for fill in fills)
    for settlement in record.settled:  # at the end of the tick before its own
        if settlement.profit is not None:
            profits[settlement.tick - 1] = profits.get(settlement.tick - 1, 0.0) + settlement.profit
    return profits


def _was_right(scenario: Scenario, tick: int, choice: Choice) -> bool:
    """True when the order's direction was that in which the market went over the tick, the player's own impact left out."""
    paths = {asset.ticker: asset.prices for asset in scenario.assets} | {question.id: question.crowd for question in scenario.questions}
    path = paths[choice.market or ""]
    return (path[tick + 1] - path[tick]) * choice.direction > 0
