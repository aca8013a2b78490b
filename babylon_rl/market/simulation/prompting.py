"""Chat messages that ask a model for a decision, by version of the prompt.

Versions are files in babylon_rl/market/prompts; what a version's placeholders hold is here and does not change once models were trained
on it. ``trader-v1`` shows markets, news and the last profit; ``trader-v2`` also positions, posts, memory and questions' time left.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

from babylon_rl.errors import MarketError
from babylon_rl.market.simulation.actions import Action, Hold, Invalid, encode_action
from babylon_rl.market.simulation.agents import ONE_TICK, Choice, Mandate
from babylon_rl.market.simulation.choices import choice_format, choice_text, labels
from babylon_rl.market.simulation.fills import QuestionQuote, Refusal
from babylon_rl.market.simulation.observation import Heard, Held, Observation
from babylon_rl.market.simulation.record import Call, Remembered

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
