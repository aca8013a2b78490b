"""The grammar of a choice: every answer of it reads back, whatever companies are called, and no other text is an error."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.market.simulation.actions import Invalid
from babylon_rl.market.simulation.agents import Choice
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.observation import Newsroom, Observation, observe
from babylon_rl.market.simulation.prompting import choice_text, format_of, labels, parse_choice
from babylon_rl.market.simulation.record import AgentRecord
from babylon_rl.market.simulation.scenario import Asset, Question, from_paths
from babylon_rl.models.grammar import compile_grammar


def shown(*names: str) -> Observation:
    """Stocks of these names and a question, Q7."""
    assets = [Asset(f"S{number}", name, (10.0, 10.0)) for number, name in enumerate(names)]
    scenario = from_paths(tick_seconds=300, assets=assets, questions=[Question("Q7", 7, "Will it?", True, (0.5, 0.5), 0, 9)])
    exchange = Exchange(scenario, ["a"])
    return observe(exchange, Newsroom(scenario), AgentRecord("a", "me", "one-tick", exchange.accounts["a"]))


SEEN = shown("Bluff Social", "Titan Diet")


@pytest.mark.parametrize("seen", [SEEN, shown('Café "Ü"', "naïve\\co"), shown("Same", "Same"), shown("Q7", "Other")])
def test_every_answer_of_the_grammar_reads_back_as_itself(tokenizer: Any, seen: Observation) -> None:
    texts = compile_grammar(format_of(tuple(labels(seen))), tokenizer).texts
    choices = [parse_choice(text, seen) for text in texts]
    assert len(texts) == 1 + 2 * 3 == len({repr(choice) for choice in choices})
    assert [choice_text(choice, seen) for choice in choices if isinstance(choice, Choice)] == list(texts)


@pytest.mark.parametrize(
    "answer",
    ["", "hold", "null", "[]", "{", '{"action": "dance"}', '{"action": null}', '{"action": ["buy"]}', '{"market": "Q7"}', "NaN", '"buy"'],
)
def test_what_is_no_action_says_why(answer: str) -> None:
    choice = parse_choice(answer, SEEN)
    assert isinstance(choice, Invalid) and choice.reason


@pytest.mark.parametrize("market", ["Bluff", "", "bluff social", None, 7, ["Q7"], {"Q7": 1}, "x" * 5000])
def test_a_market_that_was_not_shown_is_named_shortly(market: Any) -> None:
    choice = parse_choice(json.dumps({"action": "buy", "market": market}), SEEN)
    assert isinstance(choice, Invalid) and choice.reason.startswith("unknown market") and len(choice.reason) < 80


@pytest.mark.slow
@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda some: st.lists(some) | st.dictionaries(
    st.sampled_from(("action", "market", "x")), some)).map(json.dumps))  # fmt: skip
def test_no_answer_is_an_error(answer: str) -> None:
    assert isinstance(parse_choice(answer, SEEN), Choice | Invalid)
