"""Actions of an agent, as JSON tagged by ``action``, and their reading from answers.

The schema constrains a model that is served with grammars; whatever any other endpoint answers is read by `parse_action`, which never
raises: an answer that cannot be used is an ``Invalid`` that says why, and costs the turn.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

MAX_POST_CHARACTERS = 280
REASON_CHARACTERS = 200  # of the fault of an answer, which may quote it

Outcome = Literal["yes", "no"]
Side = Literal["long", "short"]


class Hold(msgspec.Struct, frozen=True, tag_field="action", tag="hold"):
    """Do nothing."""


class BuyPrediction(msgspec.Struct, frozen=True, tag_field="action", tag="buy_prediction"):
    """Buy ``usd`` dollars of YES or NO shares of a question. The fee comes on top."""

    market: str
    side: Outcome
    usd: float


class SellPrediction(msgspec.Struct, frozen=True, tag_field="action", tag="sell_prediction"):
    """Sell a share (0 < share <= 1) of the shares of one side of a question."""

    market: str
    side: Outcome
    share: float = 1.0


class OpenPerp(msgspec.Struct, frozen=True, tag_field="action", tag="open_perp"):
    """Go long or short in a stock with ``usd`` dollars of margin. Times ``leverage`` (1 to 10); the fee comes on top."""

    ticker: str
    side: Side
    usd: float
    leverage: float = 1.0


class ClosePerp(msgspec.Struct, frozen=True, tag_field="action", tag="close_perp"):
    """Close a share (0 < share <= 1) of the position in a stock."""

    ticker: str
    share: float = 1.0


class WritePost(msgspec.Struct, frozen=True, tag_field="action", tag="post"):
    """Post a text; it moves no market."""

    text: str


class Invalid(msgspec.Struct, frozen=True):
    """An answer that is no action; ``reason`` says why in words."""

    reason: str


Action = Hold | BuyPrediction | SellPrediction | OpenPerp | ClosePerp | WritePost

_decoder: msgspec.json.Decoder[Action] = msgspec.json.Decoder(Action)


def kind(action: Action) -> str:
    """The action's tag, such as ``hold``."""
    return str(action.__struct_config__.tag)


def parse_action(text: str) -> Action | Invalid:
    """Read an answer: one JSON object, alone or in a code fence. Whether its market exists is the exchange's to say."""
    try:
        return _decoder.decode(unfenced(text))
    except msgspec.ValidationError as error:
        return _invalid(f"not an action: {error}")
    except (msgspec.DecodeError, UnicodeError) as error:
        return _invalid(f"not JSON: {error}")
    except RecursionError:
        return _invalid("not JSON: nested too deeply to be read")


def unfenced(text: str) -> str:
    """The text inside a code fence, where there is one."""
    body = text.strip()
    if body.startswith("```") and body.endswith("```") and len(body) >= 6:
        return body[3:-3].removeprefix("json")
    return text


def _invalid(reason: str) -> Invalid:
    return Invalid(reason if len(reason) <= REASON_CHARACTERS else f"{reason[: REASON_CHARACTERS - 3]}...")


def response_format(markets: Sequence[str], tickers: Sequence[str]) -> dict[str, Any]:
    """The schema of an action over these questions and stocks, as OpenAI's ``response_format``."""
    share = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
    usd = {"type": "number", "minimum": 1}
    forms = [form({"action": {"const": "hold"}})]
    if markets:
        one = {"market": {"enum": list(markets)}, "side": {"enum": ["yes", "no"]}}
        forms.append(form({"action": {"const": "buy_prediction"}, **one, "usd": usd}))
        forms.append(form({"action": {"const": "sell_prediction"}, **one, "share": share}))
    if tickers:
        ticker = {"ticker": {"enum": list(tickers)}}
        leverage = {"type": "number", "minimum": 1, "maximum": 10.0}
        sides = {"side": {"enum": ["long", "short"]}}
        forms.append(form({"action": {"const": "open_perp"}, **ticker, **sides, "usd": usd, "leverage": leverage}))
        forms.append(form({"action": {"const": "close_perp"}, **ticker, "share": share}))
    forms.append(form({"action": {"const": "post"}, "text": {"type": "string", "minLength": 1, "maxLength": MAX_POST_CHARACTERS}}))
    return any_of("action", forms)


def form(properties: dict[str, Any]) -> dict[str, Any]:
    """The schema of an object with these properties and no others."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def any_of(name: str, forms: list[dict[str, Any]]) -> dict[str, Any]:
    """The schema of an answer in one of some forms, as OpenAI's ``response_format``."""
    return {"type": "json_schema", "json_schema": {"name": name, "schema": {"anyOf": forms}}}
