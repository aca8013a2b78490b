import subprocess
import sys
import threading
import time

import pytest

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.markets import Contestant, play_benchmark, play_market
from babylon_rl.evaluation.snapshots import Snapshot, benchmark_snapshots, require_unseen
from babylon_rl.market.agents import Decision, Observation
from babylon_rl.market.headlines import TRAINING
from babylon_rl.market.model_agent import ask_model
from babylon_rl.market.play import Call, Player
from babylon_rl.market.world import TICKS, generate_hour
from babylon_rl.models.client import ChatClient
from babylon_rl.store.benchmarks import MarketResult
from babylon_rl.windows import is_window_id
from babylon_rl_tests.evaluation.endpoint import babble, endpoint, reads_news

SNAPSHOTS = benchmark_snapshots(8)


def test_markets_are_unseen_by_construction() -> None:
    require_unseen(benchmark_snapshots(200), ["2025-10-29T14:00"])
    assert all(is_window_id(snapshot.window) and snapshot.window < "2001" for snapshot in SNAPSHOTS)
    companies = {name for name, _ in TRAINING.companies}
    for snapshot in SNAPSHOTS:
        assert not companies & set(snapshot.hour.markets)
        training = generate_hour(TRAINING, snapshot.window, snapshot.seed)
        assert not {event.text for event in training.events} & {event.text for event in snapshot.hour.events}
    assert len({snapshot.hour.stocks for snapshot in benchmark_snapshots(200)}) == 200


def test_a_market_that_training_could_have_seen_is_refused() -> None:
    with pytest.raises(MarketError, match="overlap with training"):
        require_unseen(SNAPSHOTS, [SNAPSHOTS[3].window])
    with pytest.raises(MarketError, match="the same"):
        require_unseen([SNAPSHOTS[0], Snapshot(0)])


def test_a_larger_benchmark_contains_the_smaller() -> None:
    assert benchmark_snapshots(30)[:8] == SNAPSHOTS
    assert [snapshot.hour for snapshot in benchmark_snapshots(30)[:8]] == [snapshot.hour for snapshot in SNAPSHOTS]


def test_the_same_market_and_player_give_the_same_result_in_any_process() -> None:
    program = (
        "from babylon_rl.evaluation.markets import *; from babylon_rl.evaluation.snapshots import *;"
        "s = benchmark_snapshots(3); print([x.fingerprint for x in s]); print(play_benchmark(Contestant('balanced'), s))"
    )
    runs = {subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    own = f"{[s.fingerprint for s in SNAPSHOTS[:3]]}\n{play_benchmark(Contestant('balanced'), SNAPSHOTS[:3])}\n"
    assert runs == {own}


def test_everyone_plays_the_same_markets() -> None:
    one, other = (play_benchmark(Contestant(name), SNAPSHOTS) for name in ("balanced", "momentum"))
    assert [result.snapshot for result in one] == [result.snapshot for result in other] == [snapshot.id for snapshot in SNAPSHOTS]
    assert all(result.pnl_usd == 0 and result.trades == 0 for result in play_benchmark(Contestant("nothing"), SNAPSHOTS))


def test_a_result_adds_up() -> None:
    for result in play_benchmark(Contestant("balanced"), SNAPSHOTS):
        assert result.decisions == len(result.equity_usd) == TICKS
        assert sum(result.actions.values()) == TICKS and result.invalid == 0
        assert result.trades == result.predictions == TICKS - result.actions["hold"]
        assert result.equity_usd[-1] == result.pnl_usd
        assert result.predictions_right > result.predictions / 2


def test_who_bets_against_every_move_is_never_right() -> None:
    played = play_benchmark(Contestant("balanced"), SNAPSHOTS)
    right = sum(result.predictions_right for result in played) / sum(result.predictions for result in played)
    lost = play_benchmark(Contestant("contrarian"), SNAPSHOTS)
    assert sum(result.predictions_right for result in lost) / sum(result.predictions for result in lost) < 0.5 < right


def test_a_result_that_contradicts_itself_is_not_counted() -> None:
    good = play_market(Contestant("balanced"), SNAPSHOTS[0])
    fields = {name: getattr(good, name) for name in MarketResult.__slots__}
    for wrong in ({"invalid": 1}, {"wins": 13}, {"predictions_right": 13}, {"pnl_usd": good.pnl_usd + 1}, {"equity_usd": (1.0,)}):
        with pytest.raises(MarketError, match="contradicts itself"):
            MarketResult(**fields | wrong)


def test_an_unknown_strategy_is_refused_before_anything_is_played() -> None:
    with pytest.raises(MarketError, match="no strategy 'genius'"):
        Contestant("genius")


def test_a_model_is_asked_for_every_decision_and_earns_by_its_answers() -> None:
    with endpoint(good=reads_news, bad=babble) as served:
        results = {}
        for model in served.rules:
            with ChatClient(served.url, None, model, logprobs=False) as client:
                results[model] = play_benchmark(Contestant(model, ask_model(client, 0.0, "benchmark")), SNAPSHOTS, concurrency=4)
    assert served.asked == {"good": TICKS * len(SNAPSHOTS), "bad": TICKS * len(SNAPSHOTS)}
    assert served.temperatures == {0.0}
    assert sum(result.pnl_usd for result in results["good"]) / len(SNAPSHOTS) > 150
    assert all(result.invalid == TICKS and result.pnl_usd == 0 and not sum(result.actions.values()) for result in results["bad"])
    assert [result.snapshot for result in results["good"]] == [snapshot.id for snapshot in SNAPSHOTS]


def test_an_interrupted_benchmark_leaves_the_markets_under_way_at_their_next_tick() -> None:
    fast, asked = threading.Semaphore(1), threading.local()
    total: list[int] = []

    def hold(items: list[tuple[Player, Observation, int]]) -> list[tuple[Decision, Call]]:
        if not hasattr(asked, "delay_s"):
            asked.delay_s = 0.001 if fast.acquire(blocking=False) else 0.1
        time.sleep(asked.delay_s)
        total.append(1)
        return [(Decision("hold"), Call("m", [], "")) for _ in items]

    def interrupt(result: MarketResult) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play_benchmark(Contestant("model", hold), SNAPSHOTS[:4], 4, interrupt)
    assert TICKS <= len(total) < 3 * TICKS
