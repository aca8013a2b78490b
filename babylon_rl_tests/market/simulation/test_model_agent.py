"""The model agent over real HTTP: what it asks, how answers become orders, and answers or endpoints that are not what they should be."""

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from babylon_rl.llm.client import ChatClient
from babylon_rl.market.simulation.actions import BuyPrediction, ClosePerp, Hold, OpenPerp, SellPrediction
from babylon_rl.market.simulation.agents import ONE_TICK
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.games import GAMES, POSITIONS, Game
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.model_agent import model_agent, request_seed
from babylon_rl.market.simulation.prompting import messages
from babylon_rl.market.simulation.run import Run, encode_run, play
from babylon_rl.market.simulation.scenario import WorldEvent, from_paths
from babylon_rl.market.simulation.strategies import factory
from babylon_rl.models.grammar import language
from babylon_rl.tolerant_json import whole_text
from babylon_rl_tests.market.simulation.agents import Scribe, Script
from babylon_rl_tests.market.simulation.markets import MARKET, STOCK, make_market
from babylon_rl_tests.market.stand_in import Answer, StandIn, by_seed, stand_in


def asked(answer: Answer = by_seed, *, agents: int = 1, scenario: Any = None, seed: int = 0, **options: Any) -> tuple[Run, StandIn]:
    market = scenario if scenario is not None else generate(preset("hour", seed=2))
    with stand_in(answer) as endpoint, ChatClient(endpoint.url, None, "m", attempts=1) as client:
        seats = {f"agent-{number}": model_agent(client, **options) for number in range(agents)}
        return play(market, seats, seed=seed), endpoint


def saying(*texts: str) -> Callable[[dict[str, Any]], str]:
    """These answers, then holds."""
    left = list(texts)
    return lambda request: left.pop(0) if left else '{"action": "hold"}'


def test_a_decision_is_asked_as_policies_are_trained() -> None:
    """Prompt, schema and wording to the letter: a word that changes here is another prompt version."""
    prices, crowd = (57.4, 58.2, *[58.2] * 19), (0.62, 0.58, *[0.58] * 19)
    base = make_market(prices, crowd)
    told = WorldEvent(1, STOCK, "Acme beats estimates", 1, 0.9, False, "deal", 1.0, "true", 0.0, 1)
    scenario = from_paths(tick_seconds=300, assets=base.assets, questions=base.questions[:1], events=[told])
    run, endpoint = asked(saying('{"action": "buy", "market": "Acme"}'), scenario=scenario)
    first, second = endpoint.seen[:2]
    system = "You are a trader. Good news lifts a price, bad news sinks it. Buy, sell or hold. Answer in JSON."
    opening = "Acme $57 +0.0%\nBolt $57 +0.0%\nQ1 YES 62% +0: Will it?\nNews:\nnothing\nYou: $10000, last none"
    later = "Acme $58 +1.4%\nBolt $57 -1.4%\nQ1 YES 58% -4: Will it?\nNews:\n[Acme] Acme beats estimates\nYou: $10018, last +$18"
    for request, user in ((first, opening), (second, later)):
        assert request["messages"] == [{"role": "system", "content": system}, {"role": "user", "content": user}]
        assert request["response_format"] == {
            "type": "json_schema",
            "json_schema": {"name": "trade", "schema": {"anyOf": [
                {"type": "object", "properties": {"action": {"enum": ["buy", "sell"]}, "market": {"enum": ["Acme", "Bolt", "Q1"]}},
                 "required": ["action", "market"], "additionalProperties": False},
                {"type": "object", "properties": {"action": {"const": "hold"}}, "required": ["action"], "additionalProperties": False},
            ]}},
        }  # fmt: skip
        assert request["max_tokens"] == 48
    assert run.records["agent-0"].name == "m" and run.records["agent-0"].mandate == ONE_TICK


def test_answers_become_orders_of_a_fixed_stake_that_last_one_tick() -> None:
    answers = (
        '{"action": "buy", "market": "Acme"}',
        '{"action": "sell", "market": "Q1"}',
        '```json\n{"action": "buy", "market": "Q2"}\n```',
    )
    run, _ = asked(saying(*answers), scenario=make_market())
    record = run.records["agent-0"]
    assert record.actions[:4] == [
        OpenPerp(STOCK, "long", 1500.0),
        BuyPrediction(MARKET, "no", 525.0),
        BuyPrediction("Q2", "yes", 525.0),
        Hold(),
    ]
    assert [len(record.turn(tick).closed) for tick in range(4)] == [1, 1, 1, 0] and not record.invalid
    call = record.calls[0]
    assert (call.response, call.prompt_version, call.prompt_tokens, call.temperature) == (answers[0], "trader-v1", 99, 1.0)
    assert call.logprobs is not None and call.logprobs[0]["logprob"] == -0.25
    assert record.turn(0).latency_ms >= call.latency_ms > 0.0


@pytest.mark.slow
@pytest.mark.parametrize("game", GAMES.values(), ids=lambda game: game.name)
def test_the_same_seed_asks_the_same_and_every_answer_of_the_grammar_is_an_action(game: Game) -> None:
    scenario = generate(preset("quick", seed=4))
    runs = [asked(agents=2, scenario=scenario, game=game, seed=seed)[0] for seed in (0, 0, 1)]
    assert encode_run(runs[0]) == encode_run(runs[1]) != encode_run(runs[2])
    for record in runs[0].records.values():
        assert not record.invalid and set(record.refused) <= {"opposite_side"} and record.account.trades > 5
    assert runs[0].records["agent-0"].actions != runs[0].records["agent-1"].actions


def test_where_positions_last_the_grammar_offers_what_can_be_done() -> None:
    opened = ['{"action": "buy", "market": "Acme", "size": "large"}'] * 9
    run, endpoint = asked(saying(*opened, '{"action": "close", "market": "Acme"}'), scenario=make_market(), game=POSITIONS)
    texts = [language(request["response_format"]["json_schema"]["schema"]) for request in endpoint.seen]
    assert not any("close" in text for text in texts[0]) and any('"sell", "market": "Acme"' in text for text in texts[0])
    # What is held is added to or closed; its other side is opened afterwards.
    assert opened[0] in texts[1] and '{"action": "close", "market": "Acme"}' in texts[1]
    assert not any('"sell", "market": "Acme"' in text for text in texts[1]) and any('"sell", "market": "Q1"' in text for text in texts[1])
    # Nine stakes of $5,000 at leverage 5 leave less than a question's large stake.
    assert all(len(one) < 40 for one in texts) and not any("large" in text for text in texts[9])
    assert any("medium" in text for text in texts[9]) and texts[10] == texts[0] and not run.records["agent-0"].account.perps
    prompt = endpoint.seen[1]["messages"][1]["content"]
    assert ", hold Acme long -$" in prompt and ", last buy Acme -$" in prompt
    assert endpoint.seen[10]["messages"][1]["content"].endswith("; close Acme -$0")
    assert [action.leverage for action in run.records["agent-0"].actions[:9] if isinstance(action, OpenPerp)] == [5.0] * 9
    assert run.records["agent-0"].account.fees == pytest.approx(2 * 9 * 5.0, rel=0.02)


def test_an_account_without_money_can_only_hold() -> None:
    with stand_in(saying()) as endpoint, ChatClient(endpoint.url, None, "m", attempts=1) as client:
        run = play(make_market(), {"a": model_agent(client, game=POSITIONS)}, start_balance=400.0)
    texts = {language(request["response_format"]["json_schema"]["schema"]) for request in endpoint.seen}
    assert texts == {('{"action": "hold"}',)} and run.complete


def test_the_newer_prompt_shows_posts_memory_and_time_left() -> None:
    scribe, scenario = Scribe(factory("balanced", generate(preset("hour", seed=2)))("a", 0)), generate(preset("hour", seed=2))
    play(scenario, {"a": lambda agent_id, seed: scribe})
    shown = [messages(seen, "trader-v2")[1]["content"] for seen in scribe.seen]
    assert any(post.text in text and f"{post.author} ({post.trust * 100:.0f}%)" in text for post in scenario.posts for text in shown)
    assert "last none" in shown[0] and all("$" in text.rpartition("last ")[2] for text in shown[2:])
    assert "m): " in shown[-1] and "{" not in "".join(shown)
    older = [messages(seen, "trader-v1")[1]["content"] for seen in scribe.seen]
    assert sum(map(len, shown)) / 12 - sum(map(len, older)) / 12 < 240  # about four characters a token


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I would rather not say.", "not JSON"),
        ("", "not JSON"),
        ("[" * 100_000, "no action among buy, sell, hold|not JSON"),
        ('{"action": "hold", "x": ' + "[" * 100_000, "not JSON"),
        ('{"action": "sing"}', "no action among buy, sell, hold"),
        ('"hold"', "no action among buy, sell, hold"),
        ('{"action": "buy"}', "unknown market 'None'"),
        ('{"action": "buy", "market": 7}', "unknown market '7'"),
        ('{"action": "buy", "market": "Nowhere Inc"}', "unknown market 'Nowhere Inc'"),
        ('{"action": "buy", "market": "' + "x" * 5000 + '"}', "unknown market 'x{40}'"),
        ('{"action": "hold"} or so', "not JSON"),
        ("\ud800", "not JSON"),
    ],
)
def test_an_invalid_answer_costs_its_turn_and_says_why(answer: str, reason: str) -> None:
    run, endpoint = asked(saying(answer), scenario=make_market())
    record = run.records["agent-0"]
    ((said, times),) = record.invalid.items()
    assert re.search(reason, said) and times == 1 and len(said) < 300
    assert record.actions == [Hold()] * 20 and run.complete and len(endpoint.seen) == 20
    assert record.calls[0].response == whole_text(answer) and record.pnl_usd == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"action": "close", "market": "Acme"}', "nothing is held of 'Acme'"),
        ('{"action": "close", "market": "Nowhere Inc"}', "unknown market 'Nowhere Inc'"),
        ('{"action": "close"}', "unknown market 'None'"),
        ('{"action": "close", "market": 7}', "unknown market '7'"),
        ('{"action": "buy", "market": "Acme"}', "a size other than small, medium, large"),
        ('{"action": "open_perp", "ticker": "ACME"}', "no action among buy, sell, close, hold"),
        ('{"action": "hold", "x": ' + "[" * 100_000, "not JSON"),
        ('{"action": "' + "x" * 5000 + '"}', "no action among buy, sell, close, hold"),
    ],
)
def test_an_invalid_answer_costs_its_turn_where_positions_last_too(answer: str, reason: str) -> None:
    run, _ = asked(saying(answer), scenario=make_market(), game=POSITIONS)
    ((said, times),) = run.records["agent-0"].invalid.items()
    assert said.startswith(reason) and times == 1 and len(said) < 300 and run.complete


def test_nothing_can_be_closed_where_the_mandate_closes() -> None:
    run, _ = asked(saying('{"action": "close", "market": "Acme"}'), scenario=make_market())
    assert dict(run.records["agent-0"].invalid) == {"no action among buy, sell, hold": 1}


def test_what_cannot_be_opened_now_costs_the_turn_and_says_why() -> None:
    """An endpoint without grammars may answer what the schema does not offer."""
    opened = ['{"action": "buy", "market": "Acme", "size": "large"}'] * 10
    other = [f'{{"action": "{action}", "market": "Q1", "size": "small"}}' for action in ("buy", "sell")]
    run, endpoint = asked(saying(*other, *opened), scenario=make_market(), game=POSITIONS)
    record = run.records["agent-0"]
    assert record.invalid == {"'Q1' is held yes: close it first": 1, "the balance does not cover large": 2}
    assert endpoint.seen[2]["messages"][1]["content"].endswith("; invalid") and not record.refused


def test_a_refused_order_is_told_in_the_next_prompt() -> None:
    refused = Script({0: ClosePerp(STOCK)})
    seen = Scribe(refused)
    play(make_market(), {"a": lambda agent_id, seed: seen})
    assert messages(seen.seen[1], "trader-v2")[1]["content"].endswith("last refused")


def test_an_agents_order_in_a_market_that_is_not_there_is_refused_and_recorded() -> None:
    wrong = Script({0: ClosePerp("NOPE"), 1: SellPrediction("Q9", "yes"), 2: OpenPerp("NOPE", "long", 100.0)})
    record = play(make_market(), {"a": lambda agent_id, seed: wrong}, game=POSITIONS).records["a"]
    assert sum(record.refused.values()) == 3 and json.loads(record.calls[0].response) == {"action": "close", "market": "NOPE"}


def test_an_endpoint_that_goes_down_ends_the_run_with_what_was_played() -> None:
    def dies(request: dict[str, Any]) -> str | None:
        return '{"action": "buy", "market": "Acme"}' if len(endpoint.seen) <= 5 else None

    with stand_in(dies) as endpoint, ChatClient(endpoint.url, None, "m", attempts=1) as client:
        run = play(make_market(), {"a": model_agent(client), "b": factory("nothing", make_market())})
    assert not run.complete and run.ticks_played == 5
    assert run.stopped is not None and run.stopped.startswith("Stopped at tick 5 of 20: ") and "500" in run.stopped
    assert run.records["a"].decisions == run.records["b"].decisions == 5 and len(run.records["a"].equity) == 6
    assert run.records["a"].pnl_usd < 0.0 and len(run.records["a"].calls) == 5
    assert json.loads(encode_run(run))["stopped"] == run.stopped


@pytest.mark.slow
def test_an_endpoint_that_is_too_slow_ends_the_run_with_a_message() -> None:
    woken = threading.Event()

    def sleeps(request: dict[str, Any]) -> str:
        if len(endpoint.seen) > 2:
            woken.wait(20.0)
        return '{"action": "hold"}'

    with stand_in(sleeps) as endpoint:
        with ChatClient(endpoint.url, None, "m", attempts=1, timeout_s=3.0) as client:
            run = play(make_market(), {"a": model_agent(client)})
        woken.set()
    assert run.ticks_played == 2 and run.stopped is not None and "does not answer" in run.stopped


def test_an_endpoint_that_fails_once_is_asked_again() -> None:
    def fails_once(request: dict[str, Any]) -> str | None:
        return '{"action": "hold"}' if len(endpoint.seen) != 3 else None

    with stand_in(fails_once) as endpoint, ChatClient(endpoint.url, None, "m", attempts=3) as client:
        run = play(make_market(), {"a": model_agent(client)})
    assert run.complete and len(endpoint.seen) == 21


def test_the_agents_of_a_tick_are_asked_at_once() -> None:
    everybody = threading.Barrier(4)

    def together(request: dict[str, Any]) -> str:
        everybody.wait(20.0)  # passes when all four are under way
        return '{"action": "hold"}'

    run, endpoint = asked(together, agents=4, scenario=make_market())
    assert run.complete and len(endpoint.seen) == 80


def test_a_requests_seed_is_the_same_everywhere() -> None:
    assert request_seed(0, "a", 3) == request_seed("0", "a", "3") == 1342542074
    assert request_seed(0, "a", 4) != request_seed(0, "a", 3)
