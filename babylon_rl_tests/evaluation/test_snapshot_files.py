"""Snapshots on disk: written whole, read with a sentence for whatever is wrong, the game's own among them."""

import gzip
import json
from pathlib import Path

import msgspec
import pytest

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.metrics import optimality_score
from babylon_rl.evaluation.snapshot_file import (
    SnapshotDocument,
    benchmark_scenario,
    encode,
    from_scenario,
    load,
    optimum_of,
    save,
    to_scenario,
    validate,
)
from babylon_rl.market.simulation.actions import BuyPrediction, OpenPerp
from babylon_rl.market.simulation.agents import FREE, ONE_TICK
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.ledger import Fill
from babylon_rl.market.simulation.run import play
from babylon_rl.market.simulation.strategies import factory
from babylon_rl_tests.market.simulation import audit

GAME = Path(__file__).parent.parent / "data" / "game_benchmark_snapshot.json.gz"


@pytest.fixture(scope="module")
def snapshot() -> SnapshotDocument:
    return from_scenario(benchmark_scenario(preset("quick", edition="held-out", seed=0)))


@pytest.mark.parametrize("name", ["s.json", "s.json.gz"])
def test_a_snapshot_comes_back_from_its_file(snapshot: SnapshotDocument, tmp_path: Path, name: str) -> None:
    size = save(snapshot, tmp_path / "new" / name)
    assert load(tmp_path / "new" / name) == snapshot
    assert size == (tmp_path / "new" / name).stat().st_size and [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_the_same_snapshot_gives_the_same_file_whatever_its_name(snapshot: SnapshotDocument, tmp_path: Path) -> None:
    for name in ("one.json.gz", "other.json.gz"):
        save(snapshot, tmp_path / name)
    assert (tmp_path / "one.json.gz").read_bytes() == (tmp_path / "other.json.gz").read_bytes()
    assert (tmp_path / "one.json.gz").read_bytes()[4:8] == bytes(4)


def test_a_file_that_is_compressed_is_read_whatever_its_name(snapshot: SnapshotDocument, tmp_path: Path) -> None:
    (tmp_path / "plain.json").write_bytes(gzip.compress(encode(snapshot)))
    assert load(tmp_path / "plain.json") == snapshot


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_games_own_snapshot_loads_and_can_be_played(tmp_path: Path, wrapped: bool) -> None:
    document = msgspec.json.decode(gzip.decompress(GAME.read_bytes()))
    (tmp_path / "game.json").write_bytes(msgspec.json.encode(document if wrapped else document["snapshot"]))
    snapshot = load(tmp_path / "game.json")
    assert validate(snapshot)[0] == [] and len(validate(snapshot)[1]) == 6
    scenario = to_scenario(snapshot)
    exchange = Exchange(scenario, ["a"])
    assert isinstance(exchange.apply("a", OpenPerp("ETH", "long", 1000.0, 2.0)), Fill)
    assert isinstance(exchange.apply("a", BuyPrediction("market-2", "no", 1000.0)), Fill)
    settled = []
    for tick in snapshot.ticks:
        settled += exchange.advance()
        assert exchange.books["SOL"].mark == tick.state.perpetual_markets[2].price
    assert exchange.over and [one.price for one in settled if one.kind == "resolution"] == [1.0]
    assert audit.equity(exchange, "a") > 10_000.0
    assert [post.about for post in scenario.posts if post.direction] and all(0.0 <= post.trust <= 1.0 for post in scenario.posts)


def test_the_games_own_snapshot_has_the_oracles_optimum() -> None:
    best = optimum_of(load(GAME))
    assert best.pnl > 0.0 and best.start_balance == 10_000.0


def test_a_file_of_an_earlier_version_keeps_its_optimum(tmp_path: Path) -> None:
    document = json.loads(encode(from_scenario(benchmark_scenario(preset("quick", edition="held-out")))))
    document["groundTruth"]["optimum"] = {"pnl": 9.5, "played": 9.0, "upperBound": 99.0, "startBalance": 10_000.0, "policy": "a class"}
    (tmp_path / "old.json").write_text(json.dumps(document))
    assert optimum_of(load(tmp_path / "old.json")).pnl == 9.5


@pytest.mark.parametrize(("pnl", "best", "score"), [(5, 10, 50), (20, 10, 100), (-1, 10, 0), (0, 0, 100), (-1, -5, 0)])
def test_optimality_is_the_share_of_the_oracles_profit(pnl: float, best: float, score: float) -> None:
    assert optimality_score(pnl, best) == score


@pytest.mark.parametrize("name", ["hour", "quick"])
def test_the_oracles_actions_have_their_profits_and_are_the_better_of_its_plays(name: str) -> None:
    scenario = benchmark_scenario(preset(name, edition="held-out"))
    truth = from_scenario(scenario).ground_truth
    assert truth.optimum is not None
    plays = [play(scenario, {"o": factory("oracle", scenario, mandate)}).records["o"].pnl_usd for mandate in (ONE_TICK, FREE)]
    assert truth.optimum.pnl == round(max(plays), 2)
    assert [action.tick for action in truth.optimal_actions] == sorted(action.tick for action in truth.optimal_actions)
    assert sum(action.expected_value for action in truth.optimal_actions) == pytest.approx(truth.optimum.pnl, rel=0.2)


def test_no_file_says_how_to_make_one(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(MarketError, match="There is no snapshot .* `babylon-rl benchmark generate --out"):
            load(path)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is not JSON, or breaks off"),
        (b"hello", "is not JSON"),
        (b'{"version": "1.0.0", "ticks": [', "is not JSON, or breaks off"),
        (b"[1, 2]", "does not have the shape"),
        (b"{}", "of version None; this reads version '1.0.0'"),
        (b'{"version": "2.0.0", "anything": 1}', "of version '2.0.0'; this reads version '1.0.0'"),
        (b'{"config": {}, "clock": "", "snapshot": {"version": 3}}', "of version 3"),
        (b'{"version": "1.0.0", "id": "x"}', "missing required field `createdAt`"),
        (b'{"version": "1.0.0", "id": 7}', "Expected `str`, got `int` - at `$.id`"),
        (b'{"version": "1.0.0", "id": "\xff"}', "is not JSON"),
        (b'{"version": "1.0.0", "createdAt": NaN}', "is not JSON"),
        (gzip.compress(b"x" * 1000, mtime=0)[:20], "damaged or cut off"),
        (gzip.compress(b"x" * 1000, mtime=0)[:-8] + bytes(8), "damaged or cut off"),
        (b"\x1f\x8bnonsense that is no stream", "damaged or cut off"),
    ],
)
def test_what_is_no_snapshot_is_refused_in_a_sentence(tmp_path: Path, raw: bytes, said: str) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(raw)
    with pytest.raises(MarketError) as refused:
        load(path)
    assert said in str(refused.value) and str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_cut_off_anywhere_is_refused(snapshot: SnapshotDocument, tmp_path: Path) -> None:
    save(snapshot, tmp_path / "whole.json.gz")
    for whole in (encode(snapshot), (tmp_path / "whole.json.gz").read_bytes()):
        for share in (0.1, 0.5, 0.99, 0.9999):
            (tmp_path / "part").write_bytes(whole[: int(len(whole) * share)])
            with pytest.raises(MarketError, match="cut off|breaks off"):
                load(tmp_path / "part")


def test_contradictions_are_told_a_sentence_each(snapshot: SnapshotDocument, tmp_path: Path) -> None:
    document = msgspec.json.decode(encode(snapshot))
    document["groundTruth"]["marketOutcomes"]["Q1"] = True
    document["ticks"][0]["state"]["perpetualMarkets"][0]["price"] = -1
    (tmp_path / "s.json").write_bytes(msgspec.json.encode(document))
    with pytest.raises(MarketError) as refused:
        load(tmp_path / "s.json")
    first, *rest = str(refused.value).splitlines()
    assert first.endswith("contradicts itself:") and len(rest) == 5 and all(line.startswith("- ") for line in rest)
