import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from babylon_rl.errors import MarketError, ModelUnavailable
from babylon_rl.evaluation.benchmark import model_player
from babylon_rl.evaluation.gate import STRATEGY
from babylon_rl.evaluation.play import MODEL, Player, scripted
from babylon_rl.evaluation.snapshot_file import benchmark_scenario
from babylon_rl.evaluation.snapshots import Snapshot, benchmark_snapshots, require_unseen, snapshots_named
from babylon_rl.llm.client import ChatClient
from babylon_rl.market.headlines import HELD_OUT, TRAINING, edition_named
from babylon_rl.market.simulation.actions import Hold, OpenPerp
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.strategies import NAMES
from babylon_rl.market.spawn import training_seed
from babylon_rl.store.benchmarks import MarketResult
from babylon_rl.windows import is_window_id
from babylon_rl_tests.evaluation.endpoint import babble, endpoint, reads_news
from babylon_rl_tests.evaluation.runs import rows_in

SNAPSHOTS = benchmark_snapshots(8)
TICKS = SNAPSHOTS[0].scenario.ticks


def test_markets_are_unseen_by_construction() -> None:
    require_unseen(benchmark_snapshots(200), ["2025-10-29T14:00"])
    assert all(is_window_id(snapshot.window) and snapshot.window < "2001" for snapshot in SNAPSHOTS)
    companies = {name for name, _ in edition_named(TRAINING).companies}
    for snapshot in SNAPSHOTS:
        scenario = snapshot.scenario
        assert not companies & {asset.name for asset in scenario.assets}
        training = generate(preset("hour", seed=snapshot.seed, start_ms=scenario.start_ms))
        assert not {event.text for event in training.events} & {event.text for event in scenario.events}
        assert not {post.text for post in training.posts} & {post.text for post in scenario.posts}
    assert len({snapshot.scenario.digest for snapshot in benchmark_snapshots(200)}) == 200


def test_markets_of_an_earlier_edition_can_be_played_again() -> None:
    earlier, newest = (snapshots_named([f"preset:quick:minutes=12:seeds=7{edition}"])[0] for edition in (":edition=held-out", ""))
    assert earlier.scenario == benchmark_scenario(preset("quick", minutes=12, seed=7, edition="held-out"))
    assert newest.scenario == benchmark_scenario(preset("quick", minutes=12, seed=7, edition=HELD_OUT))


def like_training(seed: str, edition: str) -> Snapshot:
    """A market that training could have had, in the place of the sixth."""
    return Snapshot("benchmark-0005", generate(preset("hour", seed=seed, edition=edition, start_ms=SNAPSHOTS[5].scenario.start_ms)))


LIKE_TRAINING = [
    (training_seed(0, "2025-11-20T10:00"), HELD_OUT),
    ("7", HELD_OUT),
    ("benchmark/0", TRAINING),
    ("benchmark/0", "training"),
]


def test_a_market_that_training_could_have_seen_is_refused() -> None:
    with pytest.raises(MarketError, match="overlap with training"):
        require_unseen(SNAPSHOTS, [SNAPSHOTS[3].window])
    with pytest.raises(MarketError, match="the same"):
        require_unseen([SNAPSHOTS[0], SNAPSHOTS[1], replace(SNAPSHOTS[0])])
    for seed, edition in LIKE_TRAINING:
        with pytest.raises(MarketError, match="overlap with training: benchmark-0005"):
            require_unseen([*SNAPSHOTS[:3], like_training(seed, edition)])


def test_a_larger_benchmark_contains_the_smaller() -> None:
    assert benchmark_snapshots(30)[:8] == SNAPSHOTS
    assert [snapshot.scenario.digest for snapshot in benchmark_snapshots(30)[:8]] == [snapshot.scenario.digest for snapshot in SNAPSHOTS]


@pytest.mark.slow
def test_the_same_market_and_player_give_the_same_result_in_any_process() -> None:
    program = (
        "from babylon_rl.evaluation.play import scripted; from babylon_rl.evaluation.snapshots import benchmark_snapshots;"
        "from babylon_rl_tests.evaluation.runs import rows_in;"
        "s = benchmark_snapshots(3); print([x.fingerprint for x in s]); print(rows_in(scripted('balanced'), s))"
    )
    runs = {subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    own = f"{[s.fingerprint for s in SNAPSHOTS[:3]]}\n{rows_in(scripted('balanced'), SNAPSHOTS[:3])}\n"
    assert runs == {own}


def test_everyone_plays_the_same_markets() -> None:
    one, other = (rows_in(scripted(name), SNAPSHOTS) for name in ("balanced", "momentum"))
    assert [result.snapshot for result in one] == [result.snapshot for result in other] == [snapshot.id for snapshot in SNAPSHOTS]
    assert all(result.pnl_usd == 0 and result.trades == 0 for result in rows_in(scripted("nothing"), SNAPSHOTS))


@pytest.mark.parametrize("name", NAMES)
def test_a_result_adds_up(name: str) -> None:
    for result in rows_in(scripted(name), SNAPSHOTS):
        assert result.decisions == len(result.equity_usd) == TICKS
        assert sum(result.actions.values()) == TICKS and result.invalid == result.refused == 0
        assert result.trades == result.predictions == TICKS - result.actions["hold"]
        assert result.wins + result.losses == result.trades
        assert result.equity_usd[-1] == result.pnl_usd


def test_perfect_knowledge_is_always_right_and_honest_reading_earns_less() -> None:
    oracle, reader = (rows_in(scripted(name), SNAPSHOTS) for name in ("oracle", "news-reader"))
    assert all(result.predictions_right == result.predictions for result in oracle)
    assert 0 < sum(result.pnl_usd for result in reader) < sum(result.pnl_usd for result in oracle)


def play_one(player: Player) -> MarketResult:
    (result,) = rows_in(player, SNAPSHOTS[:1])
    return result


class _TooMuch:
    """Puts more into an order than it has, then holds."""

    name = "too-much"

    def decide(self, seen):
        return OpenPerp(seen.stocks[0].ticker, "long", 1e9) if seen.tick == 0 else Hold()


def test_a_refused_order_is_counted_and_costs_nothing() -> None:
    result = play_one(Player("too-much", "too-much", STRATEGY, "free", lambda *_: lambda agent_id, seed: _TooMuch()))
    assert (result.refused, result.trades, result.pnl_usd, result.actions["buy"]) == (1, 0, 0.0, 1)


def test_who_bets_against_every_move_is_never_right() -> None:
    played = rows_in(scripted("balanced"), SNAPSHOTS)
    right = sum(result.predictions_right for result in played) / sum(result.predictions for result in played)
    lost = rows_in(scripted("contrarian"), SNAPSHOTS)
    assert sum(result.predictions_right for result in lost) / sum(result.predictions for result in lost) < 0.5 < right


def test_a_result_that_contradicts_itself_is_not_counted() -> None:
    good = play_one(scripted("balanced"))
    fields = {name: getattr(good, name) for name in MarketResult.__slots__}
    for wrong in (
        {"invalid": 1},
        {"wins": 13},
        {"predictions_right": 13},
        {"refused": TICKS},
        {"pnl_usd": good.pnl_usd + 1},
        {"equity_usd": (1.0,)},
    ):
        with pytest.raises(MarketError, match="contradicts itself"):
            MarketResult(**fields | wrong)


def test_an_unknown_strategy_is_refused_before_anything_is_played() -> None:
    with pytest.raises(MarketError, match="no strategy 'genius'"):
        scripted("genius")


@pytest.mark.slow
def test_a_model_is_asked_for_every_decision_and_earns_by_its_answers() -> None:
    with endpoint(good=reads_news, bad=babble) as served:
        results = {}
        for model in served.rules:
            with ChatClient(served.url, None, model, logprobs=False) as client:
                results[model] = rows_in(model_player(client, model, model), SNAPSHOTS, concurrency=4)
    assert served.asked == {"good": TICKS * len(SNAPSHOTS), "bad": TICKS * len(SNAPSHOTS)}
    assert served.temperatures == {0.0}
    assert sum(result.pnl_usd for result in results["good"]) / len(SNAPSHOTS) > 100
    assert all(result.invalid == TICKS and result.pnl_usd == 0 and not sum(result.actions.values()) for result in results["bad"])
    assert [result.snapshot for result in results["good"]] == [snapshot.id for snapshot in SNAPSHOTS]


def test_an_endpoint_that_stays_down_is_an_error_that_says_where() -> None:
    with endpoint(good=reads_news) as served, ChatClient(served.url, None, "good", logprobs=False) as client:
        served.breaks_after = TICKS // 2
        with pytest.raises(ModelUnavailable, match=r"good in benchmark-0000: Stopped at tick 6 of 12"):
            play_one(model_player(client, "good", "good"))


def test_an_interrupted_benchmark_leaves_the_markets_under_way_at_their_next_tick() -> None:
    fast = threading.Semaphore(1)
    total: list[int] = []

    class Slow:
        name = "slow"

        def __init__(self) -> None:
            self.delay_s = 0.001 if fast.acquire(blocking=False) else 0.1

        def decide(self, seen):
            time.sleep(self.delay_s)
            total.append(1)
            return Hold()

    def interrupt(job: object, row: MarketResult) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slow = Player("slow", "slow", MODEL, "free", lambda *_: lambda agent_id, seed: Slow())
        rows_in(slow, SNAPSHOTS[:4], concurrency=4, on_row=interrupt)
    assert TICKS <= len(total) < 3 * TICKS
