"""Chat messages that ask a model for a decision, by version of the prompt, and the finite schemas of its answers.

Versions are files in babylon_rl/market/prompts; what a version's placeholders hold is here and does not change once models were trained
on it. ``trader-v1`` shows markets, news and the last profit; ``trader-v2`` also positions, posts, memory and questions' time left.

Servers with grammars accept the schemas. Under the one-tick mandate an answer is buy, sell or hold of a market by the name that it is shown
under: {"action": "buy", "market": "Bluff Social"}. Under the free mandate it is an action in full, with amounts from a short list, and only
what is held can be closed.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from string import Formatter
from typing import Any

import msgspec

from babylon_rl.errors import MarketError
from babylon_rl.market.simulation.actions import Action, Hold, Invalid, encode_action, parse_action, unfenced
from babylon_rl.market.simulation.agents import FREE, ONE_TICK, Choice, Mandate
from babylon_rl.market.simulation.ledger import QuestionQuote, Refusal
from babylon_rl.market.simulation.observation import Heard, Held, Observation
from babylon_rl.market.simulation.record import Call, Remembered

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


TRADER_V1 = "trader-v1"
TRADER_V2 = "trader-v2"
VERSIONS = (TRADER_V1, TRADER_V2)
POSTS_SHOWN = 2
DECISIONS_SHOWN = 2

_FOLDER = Path(__file__).parent.parent / "prompts"


def checked_version(version: str, mandate: Mandate) -> str:
    """The version itself. Raises MarketError: there is none of that name, or it has no words for that mandate."""
    if version not in VERSIONS:
        raise MarketError(f"There is no prompt {version!r}; there are {', '.join(VERSIONS)}.")
    if version == TRADER_V1 and mandate != ONE_TICK:
        raise MarketError(f"{TRADER_V1} asks for orders that last one tick; positions that last need {TRADER_V2}.")
    return version


def messages(seen: Observation, version: str, mandate: Mandate) -> list[dict[str, str]]:
    """The system and the user message."""
    system = "system" if mandate == ONE_TICK else "positions.system"
    named = {market: label for label, market in labels(seen).items()} if mandate == ONE_TICK else {}
    user = _v1(seen, named) if version == TRADER_V1 else _v2(seen, named)
    return [{"role": "system", "content": _part(version, system)}, {"role": "user", "content": user}]


def version_of(given: Iterable[Mapping[str, Any]]) -> str | None:
    """Version that wrote these messages, by all of their text; None if none can have.

    A text that two versions would write alike is the older one's, so that a new version renames no checkpoint.
    """
    system, *rest = [(message.get("role"), str(message.get("content") or "").strip()) for message in given] or [(None, "")]
    if system[0] != "system" or [role for role, _ in rest] != ["user"]:
        return None
    written = (version for version in VERSIONS if system[1] in _systems(version) and _user_pattern(version).fullmatch(rest[0][1]))
    return next(written, None)


def _systems(version: str) -> list[str]:
    return [_part(version, part) for part in ("system", "positions.system") if (_FOLDER / f"{version}.{part}.txt").is_file()]


@cache
def _user_pattern(version: str) -> re.Pattern[str]:
    """The user message of a version: its words, with as many posts and decisions as it shows."""
    line, turn = r"[^\n]*", r"(?:(?!; )[^\n])*"
    places = {
        "markets": rf"{line}(?:\n{line})*",
        "news": rf"nothing|\[{line}(?:\n\[{line})*",
        "posts": rf"{line}(?:\n{line}){{0,{POSTS_SHOWN - 1}}}",
        "memory": rf"{turn}(?:; {turn}){{0,{DECISIONS_SHOWN - 1}}}",
    }
    parts = Formatter().parse(_part(version, "user"))
    return re.compile("".join(re.escape(words) + (f"(?:{places.get(name, line)})" if name else "") for words, name, *_ in parts))


def scripted_call(name: str, seen: Observation, action: Action | Invalid, version: str, mandate: Mandate) -> Call:
    """The request and the answer that a script would have had. Its amounts are its own, so under the free mandate no schema is named."""
    if isinstance(action, Invalid):
        text = action.reason
    else:
        text = choice_text(choice_of(action), seen) if mandate == ONE_TICK else encode_action(action)
    schema = choice_format(seen) if mandate == ONE_TICK else None
    return Call(f"scripted/{name}", messages(seen, version, mandate), text, version, schema)


def choice_of(action: Action) -> Choice:
    """The choice that an opening order stands for; hold for anything else."""
    side = getattr(action, "side", "")
    if isinstance(action, Hold) or side not in ("long", "short", "yes", "no") or not hasattr(action, "usd"):
        return Choice("hold")
    market = getattr(action, "ticker", None) or getattr(action, "market", None)
    return Choice("buy" if side in ("long", "yes") else "sell", market)


@cache
def _part(version: str, part: str) -> str:
    return (_FOLDER / f"{version}.{part}.txt").read_text(encoding="utf-8").strip()


def _v1(seen: Observation, named: dict[str, str]) -> str:
    lines = [_stock_line(named.get(stock.ticker, stock.ticker), stock.price, stock.change) for stock in seen.stocks]
    lines += [f"{question.market} YES {question.yes * 100:.0f}% {question.change:+.0f}: {question.text}" for question in seen.questions]
    last = "none" if seen.last_profit is None else _dollars(seen.last_profit)
    return _part(TRADER_V1, "user").format(markets="\n".join(lines), news=_news(seen, named), balance=f"{seen.balance:.0f}", last=last)


def _v2(seen: Observation, named: dict[str, str]) -> str:
    lines = [_stock_line(named.get(stock.ticker, stock.ticker), stock.price, stock.change) for stock in seen.stocks]
    lines += [_question_line(seen, question) for question in seen.questions]
    posts = seen.recent_posts()[-POSTS_SHOWN:]
    memory = "; ".join(_remembered(turn, named) for turn in seen.memory(DECISIONS_SHOWN))
    return _part(TRADER_V2, "user").format(
        markets="\n".join(lines),
        news=_news(seen, named),
        posts="\n".join(_post(post) for post in posts) or "nothing",
        balance=f"{seen.balance:.0f}",
        held="".join(f", hold {_held(position, named)}" for position in seen.positions),
        memory=memory or "none",
    )


def _stock_line(label: str, price: float, change: float) -> str:
    return f"{label} ${price:.0f} {change:+.1f}%"


def _question_line(seen: Observation, question: QuestionQuote) -> str:
    minutes = seen.minutes_left(question)
    left = f"{minutes:.0f}m" if minutes < 120 else f"{minutes / 60:.0f}h" if minutes < 2880 else f"{minutes / 1440:.0f}d"
    return f"{question.market} YES {question.yes * 100:.0f}% {question.change:+.0f} ({left}): {question.text}"


def _news(seen: Observation, named: dict[str, str]) -> str:
    return "\n".join(f"[{named.get(news.about, news.about)}] {_one_line(news.text)}" for news in seen.recent_headlines()) or "nothing"


def _post(post: Heard) -> str:
    trust = "" if post.trust is None else f" ({post.trust * 100:.0f}%)"
    return f"{post.author}{trust}: {_one_line(post.text)}"


def _one_line(text: str) -> str:
    """Without line breaks: nobody's post can pass for a line of news."""
    return " ".join(text.split())


def _held(position: Held, named: dict[str, str]) -> str:
    return f"{named.get(position.market, position.market)} {position.side} {_dollars(position.profit)}"


def _remembered(turn: Remembered, named: dict[str, str]) -> str:
    if isinstance(turn.outcome, Invalid):
        return "invalid"
    if isinstance(turn.outcome, Refusal):
        return "refused"
    choice, brought = choice_of(turn.action), _dollars(turn.brought_usd)
    if choice.market is not None:
        return f"{choice.action} {named.get(choice.market, choice.market)} {brought}"
    return f"{turn.outcome.kind} {brought}" if turn.outcome.kind != "hold" or abs(turn.brought_usd) >= 0.5 else "hold"


def _dollars(usd: float) -> str:
    return f"{'+' if usd >= 0 else '-'}${abs(usd):.0f}"
