"""Answers become actions, or say why not."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.market.simulation.actions import (
    REASON_CHARACTERS,
    Action,
    BuyPrediction,
    ClosePerp,
    Hold,
    Invalid,
    OpenPerp,
    SellPrediction,
    WritePost,
    parse_action,
    response_format,
)
from babylon_rl_tests.market.simulation.markets import actions
from babylon_rl_tests.repeatable import repeatable


@repeatable(60)
@given(action=st.one_of(actions(st.floats(1.0, 1e6)), st.builds(WritePost, st.text(min_size=1, alphabet=st.characters(codec="utf-8")))))
def test_an_action_survives_its_text(action: Action) -> None:
    assert parse_action(msgspec.json.encode(action).decode()) == action


@repeatable(60)
@given(text=st.text())
def test_no_answer_raises(text: str) -> None:
    result = parse_action(text)
    assert not isinstance(result, Invalid) or result.reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"action": "hold"}', Hold()),
        ('```json\n{"action": "hold", "why": "no news"}\n```', Hold()),
        ('{"action": "buy_prediction", "market": "Q1", "side": "no", "usd": 5}', BuyPrediction("Q1", "no", 5.0)),
        ('{"action": "sell_prediction", "market": "Q1", "side": "yes"}', SellPrediction("Q1", "yes", 1.0)),
        ('{"action": "open_perp", "ticker": "ACME", "side": "short", "usd": 5.5, "leverage": 3}', OpenPerp("ACME", "short", 5.5, 3.0)),
        ('{"action": "close_perp", "ticker": "BOLT", "share": 0.5}', ClosePerp("BOLT", 0.5)),
        ("I would buy", Invalid("not JSON: JSON is malformed: invalid character (byte 0)")),
        ('{"action": "dance"}', Invalid("not an action: Invalid value 'dance' - at `$.action`")),
        ('{"action": "buy_prediction", "market": "Q1", "side": "no"}', Invalid("not an action: Object missing required field `usd`")),
    ],
)
def test_answers(text: str, expected: Action | Invalid) -> None:
    assert parse_action(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"action": "hold", "x": ' + "[" * 100_000, "nested too deeply"),
        ('{"action": "' + "x" * 5000 + '"}', "not an action"),
        ("x" * 100_000, "not JSON"),
        ("```" + " " * 200_000 + "x", "not JSON"),
    ],
)
def test_an_answer_of_any_size_or_depth_is_refused_in_few_words(text: str, words: str) -> None:
    result = parse_action(text)
    assert isinstance(result, Invalid)
    assert words in result.reason and len(result.reason) <= REASON_CHARACTERS


def test_the_schema_has_one_form_per_kind_and_names_only_what_is_there() -> None:
    schema = response_format(["Q1"], ["ACME"])["json_schema"]["schema"]
    assert [form["properties"]["action"]["const"] for form in schema["anyOf"]] == [
        "hold", "buy_prediction", "sell_prediction", "open_perp", "close_perp", "post",
    ]  # fmt: skip
    assert "Q1" in json.dumps(schema) and "ACME" in json.dumps(schema)
    without_markets = response_format((), ())["json_schema"]["schema"]["anyOf"]
    assert [form["properties"]["action"]["const"] for form in without_markets] == ["hold", "post"]
