"""Snapshots that we write: the contract's shape, the scenario's market, the same bytes for the same seed, and the way back."""

import hashlib
import os
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.snapshot_file import SnapshotDocument, benchmark_scenario, decode, encode, from_scenario, to_scenario, validate
from babylon_rl.market.simulation.config import START_MS, MarketModel, ScenarioConfig, preset
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.scenario import Asset, Post, Question, Scenario, from_paths

STATE = {"tick", "timestamp", "predictionMarkets", "perpetualMarkets", "agents"}
QUESTION = {
    "id", "question", "yesShares", "noShares", "yesPrice", "noPrice", "totalVolume", "liquidity", "resolved", "createdAt", "resolveAt",
}  # fmt: skip
STOCK = {"ticker", "price", "priceChange24h", "volume24h", "openInterest", "fundingRate", "nextFundingTime"}

# Whoever changes the market or the snapshot on purpose puts the new sizes and hashes here.
GOLDEN = {
    12345: (120_541, "296bfccfdd1fdec2f7e001ffe3dba57ab6120b035b994aadd979422977aa99b6"),
    0: (113_592, "609e1ba5e4d6426341667e1973f900353a7ee2212ebf8139d93c52896e3e57bd"),
}


def quick(**changes: Any) -> ScenarioConfig:
    return preset("quick", edition="held-out", **changes)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return benchmark_scenario(quick(seed=0))


@pytest.fixture(scope="module")
def snapshot(scenario: Scenario) -> SnapshotDocument:
    return from_scenario(scenario)


def test_the_names_are_those_of_the_contract(snapshot: SnapshotDocument) -> None:
    document = msgspec.json.decode(encode(snapshot))
    assert {"id", "version", "createdAt", "duration", "tickInterval", "initialState", "ticks", "groundTruth"} <= set(document)
    assert document["version"] == "1.0.0" and (document["duration"], document["tickInterval"]) == (1800, 60)
    for state in (document["initialState"], *(tick["state"] for tick in document["ticks"])):
        assert set(state) == STATE
        assert all(set(market) == QUESTION for market in state["predictionMarkets"])
        assert all(set(market) == STOCK for market in state["perpetualMarkets"])
        assert all(set(agent) == {"id", "name", "reputation", "totalPnl"} for agent in state["agents"])
    events = [event for tick in document["ticks"] for event in tick["events"]]
    assert {event["type"] for event in events} == {"price:updated", "market:trade", "post:created"}
    assert all(set(event) == {"type", "timestamp", "data"} for event in events)
    truth = document["groundTruth"]
    assert {"marketOutcomes", "priceHistory", "optimalActions", "socialOpportunities"} <= set(truth)
    assert all(set(point) == {"tick", "timestamp", "price"} for history in truth["priceHistory"].values() for point in history)
    assert all({"tick", "type", "target", "expectedValue", "reason"} <= set(action) for action in truth["optimalActions"])
    assert all({"tick", "type", "value", "description"} <= set(chance) for chance in truth["socialOpportunities"])


def test_a_preset_has_its_markets_agents_and_ticks(snapshot: SnapshotDocument) -> None:
    assert len(snapshot.ticks) == 30 and [tick.number for tick in snapshot.ticks] == list(range(30))
    assert len(snapshot.ground_truth.market_outcomes) == 5 and len(snapshot.initial_state.perpetual_markets) == 3
    assert len(snapshot.initial_state.agents) == 8


def test_states_show_the_prices_beliefs_and_answers_of_the_scenario(scenario: Scenario, snapshot: SnapshotDocument) -> None:
    for state in snapshot.states():
        assert [market.price for market in state.perpetual_markets] == [round(a.prices[state.tick], 6) for a in scenario.assets]
        for market in state.prediction_markets:
            question = scenario.question(market.id)
            assert market.resolved == (state.tick >= question.resolve_tick) and state.tick >= question.created_tick
            assert market.yes_price == pytest.approx(float(question.answer) if market.resolved else question.crowd[state.tick], abs=1e-6)


def test_all_that_can_be_read_is_in_the_tick_it_is_read_in(scenario: Scenario, snapshot: SnapshotDocument) -> None:
    for tick in snapshot.ticks:
        said = [event.data["content"] for event in tick.events if event.type == "post:created"]
        assert said == [*(news.text for news in scenario.events_at(tick.number)), *(post.text for post in scenario.posts_at(tick.number))]
        assert all(event.timestamp == scenario.timestamp_ms(tick.number) for event in tick.events if event.type == "post:created")


def test_what_is_hidden_from_agents_stands_in_the_ground_truth_alone(snapshot: SnapshotDocument) -> None:
    told = [event.data for tick in snapshot.ticks for event in tick.events if event.type == "post:created"]
    assert told and not any({"informed", "effect", "kind", "strength", "direction"} & set(data) for data in told)


def test_times_follow_the_start_of_the_market_and_no_clock() -> None:
    start = START_MS + 3_600_000
    later = from_scenario(benchmark_scenario(quick(start_ms=start)))
    assert later.created_at == later.initial_state.timestamp == start
    assert [tick.timestamp for tick in later.ticks] == [start + 60_000 * number for number in range(1, 31)]
    for history in later.ground_truth.price_history.values():
        assert [(point.tick, point.timestamp) for point in history] == [(tick, start + 60_000 * tick) for tick in range(31)]


@pytest.mark.parametrize("seed", [0, 1, 12345, "a text", -3])
def test_the_same_seed_gives_the_same_bytes(seed: int | str) -> None:
    one, other = (encode(from_scenario(benchmark_scenario(quick(seed=seed)))) for _ in range(2))
    assert one == other


def test_a_seed_written_as_text_is_the_same_seed() -> None:
    one, other = (encode(from_scenario(benchmark_scenario(quick(seed=seed)))) for seed in (7, "7"))
    assert one == other


@pytest.mark.slow
def test_another_process_with_other_hashes_writes_the_same_bytes(snapshot: SnapshotDocument) -> None:
    program = (
        "import hashlib; from babylon_rl.evaluation.snapshot_file import *; from babylon_rl.market.simulation.config import preset;"
        "made = encode(from_scenario(benchmark_scenario(preset('quick', edition='held-out', seed=0))));"
        "print(hashlib.sha256(made).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "17"}
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment).stdout
    assert told.strip() == hashlib.sha256(encode(snapshot)).hexdigest()


@pytest.mark.slow
def test_no_two_markets_share_an_id() -> None:
    configs = [
        *(quick(seed=seed) for seed in range(30)), quick(seed="x"), quick(minutes=31), quick(perps=2), quick(agents=7),
        quick(start_ms=START_MS + 1000), preset("quick", seed=0),
    ]  # fmt: skip
    assert len({from_scenario(benchmark_scenario(config)).id for config in configs}) == len(configs)


@pytest.mark.parametrize(
    "config",
    [
        quick(),
        quick(seed=0, predictions=0),
        quick(perps=0),
        quick(agents=0),
        quick(agents=40),
        preset("hour", edition="held-out"),
        preset("hour"),
        ScenarioConfig(minutes=1, edition="held-out"),
        ScenarioConfig(minutes=1440, tick_seconds=300, predictions=10, perps=5, edition="held-out"),
    ],
)
def test_a_snapshot_of_ours_is_sound_and_gives_its_scenario_back(config: ScenarioConfig) -> None:
    scenario = benchmark_scenario(config)
    snapshot = from_scenario(scenario)
    assert validate(snapshot) == ([], [])
    assert decode(encode(snapshot)) == snapshot
    assert to_scenario(snapshot) == scenario


def test_a_market_of_other_constants_keeps_them() -> None:
    scenario = generate(quick(seed=5), MarketModel(fee=0.01, pool_shares=500.0))
    assert to_scenario(decode(encode(from_scenario(scenario)))) == scenario


def test_a_recorded_market_is_replayed_from_its_states() -> None:
    question = Question("Q4", 1, "Will it?", True, (0.5, 0.6, 0.7, 0.7, 0.7), 0, 3)
    recorded = from_paths(
        tick_seconds=60,
        assets=[Asset("AAA", "AAA", (10.0, 11.0, 12.5, 9.25, 10.0), funding=(0.0001,))],
        questions=[question],
        posts=[Post(2, "Ada", 0.5, "AAA is about to run", "AAA", 0, False)],
        funding_ticks=4,
    )
    snapshot = from_scenario(recorded)
    assert snapshot.config is None and validate(snapshot)[0] == []
    again = to_scenario(snapshot)
    assert [asset.prices for asset in again.assets] == [recorded.assets[0].prices] and again.assets[0].funding == (0.0001,)
    assert again.questions == (question,) and again.posts == recorded.posts and again.start_ms == recorded.start_ms


def test_a_changed_snapshot_of_ours_is_refused(snapshot: SnapshotDocument) -> None:
    replace = msgspec.structs.replace
    tick = snapshot.ticks[3]
    stock = replace(tick.state.perpetual_markets[0], price=1.0)
    state = replace(tick.state, perpetual_markets=(stock, *tick.state.perpetual_markets[1:]))
    changed = replace(snapshot, ticks=(*snapshot.ticks[:3], replace(tick, state=state), *snapshot.ticks[4:]))
    with pytest.raises(MarketError, match="was changed at tick 3"):
        to_scenario(changed)
    answers = {name: not answer for name, answer in snapshot.ground_truth.market_outcomes.items()}
    with pytest.raises(MarketError, match="outcomes are not those of its config"):
        to_scenario(replace(snapshot, ground_truth=replace(snapshot.ground_truth, market_outcomes=answers)))
    with pytest.raises(MarketError, match="has 29 ticks, its config asks for 30"):
        to_scenario(replace(snapshot, ticks=snapshot.ticks[:-1]))


def test_a_snapshot_of_another_generator_says_so(snapshot: SnapshotDocument) -> None:
    assert snapshot.generator is not None
    other = msgspec.structs.replace(snapshot, generator=msgspec.structs.replace(snapshot.generator, scenario="0" * 64))
    with pytest.raises(MarketError, match="another version of the generator"):
        to_scenario(other)


def test_what_was_worth_reading_is_worth_money(snapshot: SnapshotDocument, scenario: Scenario) -> None:
    chances = snapshot.ground_truth.social_opportunities
    texts = {f"{event.text} ({event.about})" for event in scenario.events if event.direction}
    assert chances and all(chance.value > 0.0 for chance in chances)
    assert all(chance.description in texts for chance in chances if chance.type != "informed_post")
    assert [chance.tick for chance in chances] == sorted(chance.tick for chance in chances)


def test_the_crowd_trades_the_way_the_price_goes_and_its_trades_are_the_volume(snapshot: SnapshotDocument) -> None:
    before = {market.id: market for market in snapshot.initial_state.prediction_markets}
    traded = dict.fromkeys(snapshot.ground_truth.market_outcomes, 0.0)
    for tick in snapshot.ticks:
        after = {market.id: market for market in tick.state.prediction_markets}
        for event in tick.events:
            if event.type == "market:trade":
                name = event.data["marketId"]
                assert (after[name].yes_price > before[name].yes_price) == (event.data["outcome"] == "YES")
                traded[name] += event.data["amount"]
        assert all(market.total_volume == pytest.approx(traded[name], abs=0.01) for name, market in after.items())
        before = after
    assert all(amount > 0.0 for amount in traded.values())


@pytest.mark.parametrize("seed", GOLDEN)
def test_every_platform_writes_the_same_snapshot(seed: int) -> None:
    written = encode(from_scenario(benchmark_scenario(quick(seed=seed))))
    assert (len(written), hashlib.sha256(written).hexdigest()) == GOLDEN[seed]
