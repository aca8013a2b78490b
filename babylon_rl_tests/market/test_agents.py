"""Strategies on observations made by hand, and what a model's answer is read as."""

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.errors import MarketError
from babylon_rl.market.agents import STAKES_USD, STRATEGIES, Decision, messages, parse_decision, response_format, strategy
from babylon_rl.models.grammar import compile_grammar
from babylon_rl_tests.market.builders import OTHER, QUESTION, STOCK, make_news, make_observation

MARKETS = (STOCK, OTHER, QUESTION)
GOOD, BAD, RUMOUR, NEUTRAL = make_news(), make_news(OTHER, -1), make_news(rumour=True), make_news(direction=0)


def shares(name: str, *news: Any, changes: tuple[float, float, float] = (0.0, 0.0, 0.0), draws: int = 400) -> dict[str, float]:
    """How often a strategy says what, by the answer's text without its braces."""
    seen, rng = make_observation(*news, changes=changes), random.Random(0)
    answers = [strategy(name)(seen, rng) for _ in range(draws)]
    texts = [answer.action if answer.market is None else f"{answer.action} {answer.market}" for answer in answers]
    return {text: texts.count(text) / draws for text in set(texts)}


def test_conservative_trades_reports_alone() -> None:
    assert shares("conservative", GOOD)[f"buy {STOCK}"] > 0.85
    assert shares("conservative", BAD)[f"sell {OTHER}"] > 0.85
    for news in (RUMOUR, NEUTRAL):
        assert shares("conservative", news) == {"hold": 1.0}
    assert shares("conservative") == {"hold": 1.0}
    assert shares("conservative", RUMOUR, BAD)[f"sell {OTHER}"] > 0.85


def test_balanced_follows_the_news_whatever_it_is_and_guesses_without_any() -> None:
    assert shares("balanced", RUMOUR)[f"buy {STOCK}"] > 0.8
    assert shares("balanced", BAD)[f"sell {OTHER}"] > 0.8
    assert len(shares("balanced")) == 6


def test_aggressive_never_holds() -> None:
    for news in ([], [GOOD], [BAD], [NEUTRAL]):
        assert "hold" not in shares("aggressive", *news)
    assert shares("aggressive", BAD)[f"sell {OTHER}"] > 0.3


@pytest.mark.parametrize(("name", "sign"), [("momentum", 1), ("contrarian", -1)])
def test_momentum_goes_with_the_strongest_move_and_contrarian_against_it(name: str, sign: int) -> None:
    up, down = ("buy", "sell") if sign > 0 else ("sell", "buy")
    assert shares(name, changes=(0.5, -2.0, 1.0)) == {f"{down} {OTHER}": 1.0}
    assert shares(name, changes=(0.5, 1.0, 3.0)) == {f"{up} {QUESTION}": 1.0}
    assert shares(name) == {"hold": 1.0}


def test_contrarian_trades_against_the_news_half_of_the_time() -> None:
    found = shares("contrarian", GOOD, changes=(0.0, -2.0, 0.0))
    assert found[f"sell {STOCK}"] == pytest.approx(0.5, abs=0.1)
    assert found[f"buy {OTHER}"] == pytest.approx(0.5, abs=0.1)


def test_doing_nothing_is_a_strategy_and_an_unknown_one_is_an_error() -> None:
    assert shares("nothing", GOOD, changes=(9.0, 0.0, 0.0)) == {"hold": 1.0}
    with pytest.raises(MarketError, match="conservative, balanced"):
        strategy("clairvoyant")


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_a_stake_and_decides_the_same_for_the_same_seed(name: str) -> None:
    assert STAKES_USD[name] > 0
    seen = make_observation(GOOD, changes=(1.0, 0.0, 0.0))
    once, again = ([strategy(name)(seen, rng) for _ in range(30)] for rng in (random.Random(5), random.Random(5)))
    assert once == again


@pytest.mark.parametrize(
    "answer",
    ["", "hold", "null", "[]", "{", '{"action": "dance"}', '{"action": null}', '{"action": ["buy"]}', '{"market": "Q7"}', "NaN", '"buy"'],
)
def test_what_is_no_action_is_a_hold_that_says_why(answer: str) -> None:
    decision = parse_decision(answer, MARKETS)
    assert (decision.action, decision.market) == ("hold", None)
    assert decision.invalid


@pytest.mark.parametrize("market", ["Bluff", "", "bluff social", None, 7, ["Q7"], {"Q7": 1}, "x" * 5000])
def test_a_market_that_was_not_shown_is_a_hold_that_names_it_shortly(market: Any) -> None:
    decision = parse_decision(json.dumps({"action": "buy", "market": market}), MARKETS)
    assert decision.action == "hold"
    assert decision.invalid is not None and decision.invalid.startswith("unknown market") and len(decision.invalid) < 80


@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda some: st.lists(some) | st.dictionaries(
    st.sampled_from(("action", "market", "x")), some)).map(json.dumps))  # fmt: skip
def test_no_answer_is_an_error(answer: str) -> None:
    assert parse_decision(answer, MARKETS).action in ("buy", "sell", "hold")


def test_every_answer_of_the_grammar_reads_back_as_itself(tokenizer: Any) -> None:
    texts = compile_grammar(response_format(MARKETS), tokenizer).texts
    decisions = [parse_decision(text, MARKETS) for text in texts]
    assert len(texts) == 1 + 2 * len(MARKETS)
    assert all(decision.invalid is None for decision in decisions)
    assert [decision.text for decision in decisions] == list(texts)


@pytest.mark.parametrize("name", [*STRATEGIES, "nothing"])
def test_what_a_strategy_decides_can_be_said_in_the_grammar(tokenizer: Any, name: str) -> None:
    texts = compile_grammar(response_format(MARKETS), tokenizer).texts
    rng = random.Random(1)
    for news in ((), (GOOD,), (BAD,), (NEUTRAL,)):
        assert strategy(name)(make_observation(*news, changes=(1.0, 2.0, -4.0)), rng).text in texts


def test_names_beyond_ascii_are_said_as_the_grammar_says_them(tokenizer: Any) -> None:
    markets = ('Café "Ü"', "Q1")
    assert Decision("buy", markets[0]).text in compile_grammar(response_format(markets), tokenizer).texts


def test_the_prompt_shows_markets_news_and_the_account() -> None:
    system, user = messages(make_observation(GOOD, changes=(1.26, 0.0, -4.0)))
    assert (system["role"], user["role"]) == ("system", "user")
    for shown in (f"{STOCK} $57 +1.3%", f"{QUESTION} YES 62% -4: Will it happen?", f"[{STOCK}] news about {STOCK}", "$9876", "-$12"):
        assert shown in user["content"]
    assert "nothing" in messages(make_observation())[1]["content"]
