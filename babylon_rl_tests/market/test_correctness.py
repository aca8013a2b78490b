"""Was an action right: whom it named, which side it took, and what came of it."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.market.correctness import Correctness, HourMarket, Intent, Targets, correctness, intent

LONG_NAME = "Atlantic Council of Concern"
ORGANIZATIONS = [
    ("openlie", "OpenLIE"), ("atlantic-council-of-concern", LONG_NAME), ("anti-social-capital", "Anti-Social Capital"),
    ("anti-social-cabal", "Anti-Social Cabal"), ("btc", "Bit Con"),
]  # fmt: skip
QUESTIONS = [
    ("m1", 12, "Will it rain?", True),
    ("m2", 13, "Will it snow?", False),
    ("m3", 14, "Will it hail?", None),
    ("m4", None, "Odd?", True),
]
TARGETS = Targets(ORGANIZATIONS, QUESTIONS)
CHANGES = {"openlie": 2.0, "atlantic-council-of-concern": -0.001, "anti-social-capital": 3.0, "anti-social-cabal": -3.0, "btc": 0.0}
HOUR = HourMarket(CHANGES, {"OPENLIE": "openlie", "ANTISOCIALCA": "anti-social-cabal", "ANTISOCIALCA~2": "anti-social-capital"})


def said(action_type: str = "TRADING_DECISION", **parameters: Any) -> Intent | None:
    return intent(action_type, json.dumps(parameters).encode())


def came(action_type: str = "TRADING_DECISION", **parameters: Any) -> Correctness:
    found = said(action_type, **parameters)
    assert found is not None
    return correctness(found, TARGETS, HOUR)


@pytest.mark.parametrize("name", ["OPENLIE", "openlie", "OpenLIE", "$OPENLIE", " OpenLie "])
def test_a_stock_is_known_by_all_its_names(name: str) -> None:
    found = came(ticker=name, side="long", marketType="perp")
    assert (found.organization_id, found.change_percent, found.correct) == ("openlie", 2.0, True)


@pytest.mark.parametrize("name", [LONG_NAME, LONG_NAME.upper(), "ATLANTICCOUN", "atlantic-council-of-concern"])
def test_a_name_longer_than_a_column_is_whole(name: str) -> None:
    assert came(ticker=name, side="short") == Correctness("atlantic-council-of-concern", None, None, -0.001, True)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ANTISOCIALCA", None), ("$antisocialca", None), ("anti-social-capital", "anti-social-capital"),
        ("Anti-Social Cabal", "anti-social-cabal"), ("ANTISOCIALCA~2", "anti-social-capital"), ("nobody", None),
    ],
)  # fmt: skip
def test_two_organizations_with_one_engine_ticker_are_told_apart_by_id_and_name_only(name: str, meant: str | None) -> None:
    found = came(ticker=name, side="long")
    assert found.organization_id == meant
    assert (found.correct is None) == (meant is None)


def test_an_id_that_is_another_ones_name_is_nobodys() -> None:
    targets = Targets([("acme", "Other"), ("zeta", "acme")], [])
    assert targets.organization("acme", {}) is None
    assert targets.organization("zeta", {}) == "zeta"


def test_test_data_is_known_where_the_game_knows_it() -> None:
    assert came("BUY_SHARES", ticker="$BTC", shares=3, price=1.5) == Correctness("btc", None, None, 0.0, None)
    assert came("BUY_SHARES", ticker="$ETH", shares=3, price=1.5) == Correctness()


@pytest.mark.parametrize(
    ("action_type", "side", "taken"),
    [
        ("TRADING_DECISION", "long", "UP"), ("TRADING_DECISION", "SHORT", "DOWN"), ("TRADING_DECISION", "buy", "UP"),
        ("TRADING_DECISION", "sell", "DOWN"), ("BUY_SHARES", None, "UP"), ("SELL_SHARES", None, "DOWN"), ("SELL_SHARES", "sell", "DOWN"),
        ("SELL_SHARES", "long", "DOWN"), ("SELL_SHARES", "short", "UP"), ("TRADING_DECISION", None, None),
        ("TRADING_DECISION", "long or short", None),
    ],
)  # fmt: skip
def test_sides_of_stocks(action_type: str, side: str | None, taken: str | None) -> None:
    found = said(action_type, ticker="OpenLIE", **({} if side is None else {"side": side}))
    assert found == Intent("stock", "OpenLIE", taken)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("action_type", "parameters", "taken"),
    [
        ("TRADING_DECISION", {"side": "YES"}, "YES"), ("TRADING_DECISION", {"side": "no"}, "NO"),
        ("BUY_SHARES", {"side": "buy_yes"}, "YES"),
        ("TRADING_DECISION", {"side": "sell_yes"}, "NO"), ("SELL_SHARES", {"side": "NO"}, "YES"), ("BUY_SHARES", {"amount": 3}, None),
        ("BUY_SHARES", {"outcome": "executed", "prediction": True}, "YES"), ("TRADING", {"position": 4, "direction": "NO"}, "NO"),
    ],
)  # fmt: skip
def test_sides_of_predictions(action_type: str, parameters: dict[str, Any], taken: str | None) -> None:
    assert said(action_type, marketId="m1", **parameters) == Intent("prediction", "m1", taken)  # type: ignore[arg-type]


@pytest.mark.parametrize("parameters", [{"marketId": "m1"}, {"question": "will it RAIN?"}, {"questionNumber": 12}, {"market": "Q12"}])
def test_a_question_is_known_by_market_number_and_text(parameters: dict[str, Any]) -> None:
    assert came(**parameters, side="YES") == Correctness(None, "m1", "YES", None, True)
    assert came(**parameters, side="NO").correct is False


def test_a_market_without_a_question_counts_by_its_own_answer() -> None:
    assert came(marketId="m4", side="NO") == Correctness(None, "m4", "YES", None, False)


def test_what_is_not_known_is_not_guessed() -> None:
    assert came(marketId="m3", side="YES") == Correctness(None, "m3", None, None, None)
    assert came(marketId="test-0", side="YES") == Correctness()
    assert came("BUY_SHARES", marketId="m1", amount=5) == Correctness(None, "m1", "YES", None, None)


def test_a_perp_that_names_its_stock_as_market_is_a_stock() -> None:
    assert came(marketId="openlie", side="long", marketType="perp").organization_id == "openlie"


@pytest.mark.parametrize(
    ("action_type", "parameters"),
    [
        ("HOLD", {"ticker": "OpenLIE", "side": "long"}), ("CREATE_POST", {"marketId": "m1", "side": "YES"}),
        ("TRADING_DECISION", {"method": "a2a", "pnlChange": 3}), ("TRADING_DECISION", {"ticker": "  ", "marketId": None}),
    ],
)  # fmt: skip
def test_what_is_no_trade_or_names_nothing_is_left_out(action_type: str, parameters: dict[str, Any]) -> None:
    assert said(action_type, **parameters) is None


@pytest.mark.parametrize(
    "text", [b"null", b"[]", b"3", b'{"ticker": "\\ud800", "side": "long"}', b'{"ticker": 1' + b"0" * 5000 + b"}", b"["]
)
def test_odd_parameters_are_no_error(text: bytes) -> None:
    intent("BUY_SHARES", text)


@given(st.text(), st.text(), st.sampled_from(["TRADING_DECISION", "BUY_SHARES", "SELL_SHARES"]))
def test_only_a_known_outcome_makes_right_or_wrong(name: str, side: str, action_type: str) -> None:
    for parameters in ({"ticker": name, "side": side}, {"marketId": name, "side": side, "marketType": "prediction"}):
        found = said(action_type, **parameters)
        if found is not None:
            result = correctness(found, TARGETS, HOUR)
            assert result.correct is None or (result.outcome is not None) != (result.change_percent is not None)
