"""Players meet benchmark markets: one player alone in each, the same markets and seeds for all, several markets at once.

Several at once, because the server answers what waits together in one batch. A result is told as soon as its market is over.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from threading import Event

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.snapshots import PLAYER_ID, Snapshot
from babylon_rl.market.agents import MODEL_STAKE_USD, Decision, Observation, strategy
from babylon_rl.market.play import Ask, Call, Player, Tick, play_hour
from babylon_rl.market.world import TICK_MINUTES, Hour
from babylon_rl.store.benchmarks import MarketResult

CONCURRENCY = 16
_MODEL = "llm"


@dataclass(frozen=True)
class Contestant:
    """Who plays: a scripted strategy under its own name, or a model that ``ask`` answers for."""

    name: str
    ask: Ask | None = None

    def __post_init__(self) -> None:
        if self.ask is None:
            strategy(self.name)  # a name that no strategy has is refused here, not in the middle of a benchmark

    @property
    def player(self) -> Player:
        """The seat in the market: the same id and stake for everyone, so that only decisions differ."""
        return Player(PLAYER_ID, _MODEL if self.ask is not None else self.name, MODEL_STAKE_USD)


def play_market(contestant: Contestant, snapshot: Snapshot) -> MarketResult:
    """Play one market to its end.

    Raises:
        ModelUnavailable: the endpoint stays down.
    """
    ticks = play_hour(snapshot.hour, [contestant.player], contestant.ask, snapshot.seed)
    traded = [tick for tick in ticks if tick.filled]
    valid = [tick.decision.action for tick in ticks if tick.decision.invalid is None]
    return MarketResult(
        snapshot=snapshot.id,
        pnl_usd=ticks[-1].pnl_after,
        wins=sum(tick.profit is not None and tick.profit > 0 for tick in ticks),
        losses=sum(tick.profit is not None and tick.profit < 0 for tick in ticks),
        trades=len(traded),
        decisions=len(ticks),
        invalid=len(ticks) - len(valid),
        actions={action: valid.count(action) for action in ("buy", "sell", "hold")},
        predictions=len(traded),
        predictions_right=sum(_was_right(snapshot.hour, tick) for tick in traded),
        equity_usd=tuple(tick.pnl_after for tick in ticks),
    )


def play_benchmark(
    contestant: Contestant,
    snapshots: Sequence[Snapshot],
    concurrency: int = CONCURRENCY,
    on_result: Callable[[MarketResult], None] = lambda result: None,
) -> list[MarketResult]:
    """Play every market, up to ``concurrency`` at once; the results come in the order of ``snapshots``.

    ``on_result`` is called in this thread as each market ends, so that what is played is kept when a later one fails. When this
    thread is interrupted, the markets under way end with their next tick.

    Raises:
        ModelUnavailable: the endpoint stays down; markets under way are finished and told, those that have not begun are given up.
    """
    if contestant.ask is None:
        concurrency = 1  # a script computes: threads would only take turns
    played: dict[str, MarketResult] = {}
    left = Event()
    player = replace(contestant, ask=None if contestant.ask is None else _until(left, contestant.ask))
    with ThreadPoolExecutor(max_workers=max(1, concurrency)) as pool:
        pending = [pool.submit(play_market, player, snapshot) for snapshot in snapshots]
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


def _until(left: Event, ask: Ask) -> Ask:
    """Ask no more once nobody waits for the answer."""

    def asked(items: list[tuple[Player, Observation, int]]) -> list[tuple[Decision, Call]]:
        if left.is_set():
            raise MarketError("The benchmark was interrupted.")
        return ask(items)

    return asked


def _was_right(hour: Hour, tick: Tick) -> bool:
    """True when the order's direction was that in which the market went over the tick, the player's own impact left out."""
    start, end = tick.tick * TICK_MINUTES, (tick.tick + 1) * TICK_MINUTES
    if tick.decision.market == hour.question.label:
        path = hour.question.crowd_logit
    else:
        path = next(stock.prices for stock in hour.stocks if stock.name == tick.decision.market)
    move = path[end] - path[start]
    return move > 0 if tick.decision.action == "buy" else move < 0
