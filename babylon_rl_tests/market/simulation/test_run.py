"""A run: mandates kept, everything recorded, the same bytes from the same seed, and anybody's own agent welcome."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from babylon_rl.errors import MarketError
from babylon_rl.market.simulation.actions import Action, BuyPrediction, Hold, Invalid, OpenPerp, WritePost
from babylon_rl.market.simulation.agents import ONE_TICK, AgentFactory
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.games import ONE_TICK_GAME, POSITIONS, POSTS
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.ledger import Fill, Refusal
from babylon_rl.market.simulation.observation import Observation
from babylon_rl.market.simulation.run import encode_run, play
from babylon_rl.market.simulation.strategies import NAMES, factory
from babylon_rl_tests.market.simulation import audit
from babylon_rl_tests.market.simulation.agents import Script
from babylon_rl_tests.market.simulation.audit import check
from babylon_rl_tests.market.simulation.markets import MARKET, OTHER_STOCK, STOCK, make_market

DOCS = Path(__file__).parents[3] / "docs" / "howto" / "agents.md"


def scripted(actions: dict[int, Action], mandate: str = "free") -> AgentFactory:
    def make(agent_id: str, seed: int | str) -> Script:
        script = Script(actions)
        script.mandate = mandate  # type: ignore[attr-defined] # as agents of the roster have one
        return script

    return make


def test_under_the_one_tick_mandate_a_decision_owns_its_profit() -> None:
    prices = (100.0, 100.0, 110.0, 121.0, *[121.0] * 17)
    orders: dict[int, Action] = {
        1: OpenPerp(STOCK, "long", 1000.0),
        2: OpenPerp(STOCK, "short", 1000.0),
        19: BuyPrediction(MARKET, "yes", 500.0),
    }
    run = play(make_market(prices), {"a": scripted(orders, ONE_TICK)})
    record = run.records["a"]
    won, lost, last = record.turn(1), record.turn(2), record.turn(19)
    assert 95.0 < won.equity_after - won.equity < 100.0 and -105.0 < lost.equity_after - lost.equity < -100.0
    for turn in (won, lost, last):
        assert [fill.profit for fill in turn.closed] == [pytest.approx(turn.equity_after - turn.equity)]
    assert record.turn(3).closed == () and list(record.closed) == [1, 2, 19]  # the last one at the market's last moment
    assert record.account.open_positions == 0 and record.balance[-1] == record.equity[-1]
    assert record.pnl_usd == pytest.approx(sum(fill.profit or 0.0 for fills in record.closed.values() for fill in fills))
    assert list(record.balance) == pytest.approx(list(record.equity))
    check(run.exchange)


def test_under_the_free_mandate_positions_stay() -> None:
    run = play(make_market(), {"a": scripted({1: OpenPerp(STOCK, "long", 1000.0)})})
    assert not run.records["a"].closed and STOCK in run.exchange.accounts["a"].perps
    assert run.records["a"].equity[-1] == pytest.approx(audit.equity(run.exchange, "a"))


def test_every_decision_is_kept_with_its_outcome() -> None:
    orders: dict[int, Action] = {
        0: OpenPerp(STOCK, "long", 1000.0),
        1: OpenPerp("NOPE", "long", 1.0),
        2: WritePost("hello"),
        3: OpenPerp(OTHER_STOCK, "long", 1e9),
    }
    ticks = iter(range(1000))
    told: list[tuple[int, int]] = []
    run = play(
        make_market(resolve_tick=8), {"a": scripted(orders | {4: BuyPrediction(MARKET, "yes", 50.0)})}, clock=lambda: next(ticks) / 8.0,
        on_tick=lambda played, all_of_them: told.append((played, all_of_them)),
    )  # fmt: skip
    record = run.records["a"]
    assert [type(outcome) for outcome in record.outcomes[:5]] == [Fill, Refusal, Fill, Refusal, Fill]
    assert record.refused == {"unknown_market": 1, "balance": 1} and not record.invalid
    assert record.decisions == 20 and list(record.latency_ms) == [125.0] * 20
    assert len(record.balance) == len(record.equity) == 21
    assert run.complete and run.ticks_played == 20 and told == [(played, 20) for played in range(1, 21)]
    assert [(one.kind, one.market) for one in record.settled] == [("resolution", MARKET)]
    assert record.last_profit == record.settled[0].profit
    assert run.exchange.posted == [(2, "a", "hello")]
    assert {name: len(path) for name, path in run.paths.items()} == {STOCK: 21, OTHER_STOCK: 21, MARKET: 21, "Q2": 21}


def test_prices_show_what_agents_did() -> None:
    run = play(make_market(), {"a": scripted({0: BuyPrediction(MARKET, "yes", 5000.0)})})
    assert run.paths[MARKET][0] == pytest.approx(0.4) and run.paths[MARKET][1] > 0.45


@pytest.mark.parametrize("seed", [0, "a text"])
def test_the_same_seed_gives_the_same_bytes(seed: int | str) -> None:
    scenario = generate(preset("quick", seed=0))
    runs = [play(scenario, {name: factory(name, scenario, "free") for name in NAMES}, seed=seed) for _ in range(2)]
    assert encode_run(runs[0]) == encode_run(runs[1])
    other = play(scenario, {name: factory(name, scenario, "free") for name in NAMES}, seed="another")
    assert encode_run(other) != encode_run(runs[0])
    document = json.loads(encode_run(runs[0]))
    assert [agent["agentId"] for agent in document["agents"]] == list(NAMES) and document["ticksPlayed"] == 30
    check(runs[0].exchange)


def test_agents_see_the_same_quotes_and_the_order_of_fills_is_drawn() -> None:
    both: dict[int, Action] = {tick: BuyPrediction(MARKET, "yes", 300.0) for tick in range(20)}
    run = play(make_market(), {"a": scripted(both, ONE_TICK), "b": scripted(both, ONE_TICK)})
    paid = [
        (one.price, other.price)
        for one, other in zip(run.records["a"].outcomes, run.records["b"].outcomes, strict=True)
        if isinstance(one, Fill) and isinstance(other, Fill)
    ]
    first = [one < other for one, other in paid]
    assert 3 < sum(first) < 17


def test_scripts_leave_what_they_would_have_been_asked_on_request() -> None:
    scenario = generate(preset("hour", seed=5))
    run = play(scenario, {"a": factory("balanced", scenario)}, game=ONE_TICK_GAME)
    calls = run.records["a"].calls
    assert list(calls) == list(range(12)) and {call.model for call in calls.values()} == {"scripted/balanced"}
    for call in calls.values():
        schema = call.response_format
        assert schema is not None
        answer = json.loads(call.response)
        trade = schema["json_schema"]["schema"]["anyOf"][0]["properties"]
        assert answer == {"action": "hold"} or (answer["action"] in trade["action"]["enum"] and answer["market"] in trade["market"]["enum"])
    assert not play(scenario, {"a": factory("balanced", scenario)}).records["a"].calls
    free = play(scenario, {"a": factory("balanced", scenario, "free")}, game=POSITIONS)
    assert json.loads(free.records["a"].calls[0].response)["action"] in ("hold", "buy", "sell")
    with pytest.raises(MarketError, match="balanced trades under the free mandate; the game posts is played under one-tick"):
        play(scenario, {"a": factory("balanced", scenario, "free")}, game=POSTS)


class Own:
    """An agent without a mandate."""

    name = "own"

    def __init__(self, answer: Callable[[Observation], Any]) -> None:
        self._answer = answer

    def decide(self, seen: Observation) -> Any:
        return self._answer(seen)


def test_an_own_agents_nonsense_costs_its_turn() -> None:
    answers = [None, "buy", Invalid("cannot make up my mind"), {"action": "hold"}, Hold()]
    run = play(make_market(), {"a": lambda agent_id, seed: Own(lambda seen: answers[min(seen.tick, 4)])})
    record = run.records["a"]
    assert record.invalid == {"not an action: NoneType": 1, "not an action: str": 1, "cannot make up my mind": 1, "not an action: dict": 1}
    assert set(record.actions) == {Hold()} and record.decisions == 20 and run.complete
    assert record.mandate == "free"


def test_an_own_agents_error_is_its_own() -> None:
    def broken(seen: Observation) -> Action:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        play(make_market(), {"a": lambda agent_id, seed: Own(broken)})


def test_a_factory_gets_its_seat_and_a_seed_of_its_market() -> None:
    made: list[tuple[str, int | str]] = []

    def make(agent_id: str, seed: int | str) -> Script:
        made.append((agent_id, seed))
        return Script({})

    for market in (make_market(), make_market(), make_market((50.0,) * 21)):
        play(market, {"a": make}, seed=0)
    assert made[0] == made[1] and made[0][0] == made[2][0] == "a" and made[0][1] != made[2][1]


def test_what_the_progress_callback_raises_ends_the_run() -> None:
    def stop(played: int, of: int) -> None:
        if played == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(make_market(), {"a": scripted({})}, on_tick=stop)


def test_start_balances_are_each_agents_own() -> None:
    run = play(make_market(), {"a": scripted({}), "b": scripted({})}, start_balance={"a": 5.0, "b": 70.0})
    assert [record.equity[0] for record in run.records.values()] == [5.0, 70.0] and run.pnl_usd == {"a": 0.0, "b": 0.0}
    with pytest.raises(MarketError, match="'b' cannot start"):
        play(make_market(), {"b": scripted({})}, start_balance={"a": 5.0})


def test_the_agent_of_the_docs_plays() -> None:
    block = DOCS.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["run"].complete and not names["run"].records["mine"].invalid and names["run"].exchange.accounts["mine"].trades > 0
