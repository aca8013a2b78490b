"""Finite schemas of a language model's answers, and the reading of an answer.

Servers with grammars accept the schemas.

Under the one-tick mandate an answer is buy, sell or hold of a market by the name that it is shown under: {"action": "buy", "market":
"Bluff Social"}. Under the free mandate it is an action in full, with amounts from a short list, and only what is held can be closed.
"""

import json
from functools import lru_cache
from typing import Any

import msgspec

from babylon_rl.market.simulation.actions import Action, Invalid, parse_action, unfenced
from babylon_rl.market.simulation.agents import FREE, ONE_TICK, Choice, Mandate
from babylon_rl.market.simulation.observation import Observation

USD_STEPS = (100, 250, 500, 1000, 2500)
LEVERAGES = (1, 2, 5)
SHARES = (0.5, 1)
SHOWN_CHARACTERS = 40

_choices: msgspec.json.Decoder[Choice] = msgspec.json.Decoder(Choice)
_anything: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def labels(seen: Observation) -> dict[str, str]:
    """Tickers and questions' ids by the names they are shown under. A stock's is its company's where no other stock has the same."""
    return _labels(tuple((stock.ticker, stock.name) for stock in seen.stocks), tuple(question.market for question in seen.questions))


@lru_cache(maxsize=256)
def _labels(stocks: tuple[tuple[str, str], ...], questions: tuple[str, ...]) -> dict[str, str]:
    names = [name for _, name in stocks]
    found = {name if name and names.count(name) == 1 and name not in questions else ticker: ticker for ticker, name in stocks}
    return found | {market: market for market in questions}


def format_name(mandate: Mandate) -> str:
    """Name of the schemas of a mandate's answers."""
    return "trade" if mandate == ONE_TICK else "action"


def choice_format(seen: Observation) -> dict[str, Any]:
    """The schema of a choice, as OpenAI's ``response_format``. It covers all that can be traded now, and must not be changed in place."""
    return format_of(tuple(labels(seen)))


@lru_cache(maxsize=256)
def format_of(markets: tuple[str, ...]) -> dict[str, Any]:
    """The same over markets by the names they are shown under."""
    forms = [_form({"action": {"const": "hold"}})]
    if markets:
        forms.insert(0, _form({"action": {"enum": ["buy", "sell"]}, "market": {"enum": list(markets)}}))
    return _format(format_name(ONE_TICK), forms)


def choice_text(choice: Choice, seen: Observation) -> str:
    """A choice as the text that the grammar serves."""
    if choice.market is None:
        return json.dumps({"action": choice.action})
    named = {market: label for label, market in labels(seen).items()}
    return json.dumps({"action": choice.action, "market": named[choice.market]})


def parse_choice(text: str, seen: Observation) -> Choice | Invalid:
    """Read an answer, alone or in a code fence. An answer outside the schema is ``Invalid`` with the reason. Never raises."""
    body = unfenced(text)
    try:
        choice = _choices.decode(body)
    except msgspec.ValidationError:
        return Invalid(_why_no_choice(body))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return Invalid(f"not JSON: {error}")
    if choice.action == "hold":
        return Choice("hold")
    known = labels(seen)
    if choice.market not in known:
        return Invalid(f"unknown market {str(choice.market)[:SHOWN_CHARACTERS]!r}")
    return Choice(choice.action, known[choice.market])


def _why_no_choice(body: str) -> str:
    try:
        answer = _anything.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return f"not JSON: {error}"
    if isinstance(answer, dict) and answer.get("action") in ("buy", "sell", "hold"):
        return f"unknown market {str(answer.get('market'))[:SHOWN_CHARACTERS]!r}"
    return "no action among buy, sell, hold"


def action_format(seen: Observation) -> dict[str, Any]:
    """The finite schema of an action in full. Amounts that the balance covers, sales of held positions."""
    amounts = tuple(usd for usd in USD_STEPS if usd * 1.02 <= seen.balance)
    held = tuple((position.market, position.side) for position in seen.positions)
    return _action_format(
        tuple(stock.ticker for stock in seen.stocks), tuple(question.market for question in seen.questions), amounts, held
    )


@lru_cache(maxsize=256)
def _action_format(
    tickers: tuple[str, ...], questions: tuple[str, ...], amounts: tuple[int, ...], held: tuple[tuple[str, str], ...]
) -> dict[str, Any]:
    forms = [_form({"action": {"const": "hold"}})]
    share, usd = {"enum": list(SHARES)}, {"enum": list(amounts)}
    for market, side in held:
        if side in ("yes", "no") and market in questions:
            sale = {"market": {"const": market}, "side": {"const": side}, "share": share}
            forms.append(_form({"action": {"const": "sell_prediction"}, **sale}))
        elif market in tickers:
            forms.append(_form({"action": {"const": "close_perp"}, "ticker": {"const": market}, "share": share}))
    if amounts and questions:
        bought = {"market": {"enum": list(questions)}, "side": {"enum": ["yes", "no"]}, "usd": usd}
        forms.append(_form({"action": {"const": "buy_prediction"}, **bought}))
    if amounts and tickers:
        opened = {"ticker": {"enum": list(tickers)}, "side": {"enum": ["long", "short"]}, "usd": usd, "leverage": {"enum": list(LEVERAGES)}}
        forms.append(_form({"action": {"const": "open_perp"}, **opened}))
    return _format(format_name(FREE), forms)


def parse_full(text: str, seen: Observation) -> Action | Invalid:
    """Read an action in full; anything else is ``Invalid`` with the reason. Never raises."""
    return parse_action(text, [question.market for question in seen.questions], [stock.ticker for stock in seen.stocks])


def _form(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _format(name: str, forms: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": name, "schema": {"anyOf": forms}}}
