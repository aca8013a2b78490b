"""Chat messages that ask a model for a decision, by version of the prompt, and the finite schemas of its answers.

Versions are files in babylon_rl/market/prompts; what a version's placeholders hold is here and does not change once models were trained
on it. ``trader-v1`` shows markets, news and the last profit; ``trader-v2`` also positions, posts, memory and questions' time left.

Servers with grammars accept the schemas. Under the one-tick mandate an answer is buy, sell or hold of a market by the name that it is shown
under: {"action": "buy", "market": "Bluff Social"}; in a game with sizes it also names its stake: {..., "size": "medium"}. Under the free
mandate it is an action in full, with amounts from a short list, and only what is held can be closed.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from string import Formatter
from typing import Any

import msgspec

from babylon_rl.market.simulation.actions import (
    Action,
    BuyPrediction,
    Invalid,
    OpenPerp,
    any_of,
    encode_action,
    form,
    parse_action,
    unfenced,
)
from babylon_rl.market.simulation.agents import (
    FREE,
    HOLDING,
    ONE_TICK,
    QUESTION_STAKE,
    SIZES_USD,
    STAKE_USD,
    Choice,
    Mandate,
    Size,
    SizedChoice,
    order,
)
from babylon_rl.market.simulation.games import ONE_TICK_GAME, TRADER_V1, VERSIONS, Game
from babylon_rl.market.simulation.ledger import Refusal
from babylon_rl.market.simulation.observation import Heard, Observation
from babylon_rl.market.simulation.record import HOLD, Call, Remembered

USD_STEPS = (100, 250, 500, 1000, 2500)
LEVERAGES = (1, 2, 5)
SHARES = (0.5, 1)
SHOWN_CHARACTERS = 40
POSTS_SHOWN = 2
DECISIONS_SHOWN = 2
_OTHER_SIZE = f"a size other than {', '.join(SIZES_USD)}"

_FOLDER = Path(__file__).parent.parent / "prompts"
_choices: msgspec.json.Decoder[Choice] = msgspec.json.Decoder(Choice)
_sized: msgspec.json.Decoder[SizedChoice] = msgspec.json.Decoder(SizedChoice)
_anything: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


def labels(seen: Observation) -> dict[str, str]:
    """Tickers and questions' ids by the names they are shown under. A stock's is its company's where no other stock has the same."""
    return _labels(tuple((stock.ticker, stock.name) for stock in seen.stocks), tuple(question.market for question in seen.questions))


@lru_cache(maxsize=256)
def _labels(stocks: tuple[tuple[str, str], ...], questions: tuple[str, ...]) -> dict[str, str]:
    names = [name for _, name in stocks]
    found = {name if name and names.count(name) == 1 and name not in questions else ticker: ticker for ticker, name in stocks}
    return found | {market: market for market in questions}


@lru_cache(maxsize=256)
def format_of(markets: tuple[str, ...], game: Game = ONE_TICK_GAME) -> dict[str, Any]:
    """The schema of a choice among markets by the names that they are shown under, as OpenAI's ``response_format``; not to be changed."""
    forms = [form({"action": {"const": "hold"}})]
    if markets:
        size = {"size": {"enum": list(SIZES_USD)}} if game.names_size else {}
        forms.insert(0, form({"action": {"enum": ["buy", "sell"]}, "market": {"enum": list(markets)}} | size))
    return any_of(game.grammar, forms)


def choice_text(choice: Choice, seen: Observation) -> str:
    """A choice as the text that the grammar serves."""
    if choice.market is None:
        return json.dumps({"action": choice.action})
    named = {market: label for label, market in labels(seen).items()}
    size = {"size": choice.size} if isinstance(choice, SizedChoice) else {}
    return json.dumps({"action": choice.action, "market": named[choice.market], **size})


def parse_choice(text: str, seen: Observation, game: Game = ONE_TICK_GAME) -> Choice | Invalid:
    """Read an answer, alone or in a code fence. An answer outside the schema is ``Invalid`` with the reason. Never raises."""
    body = unfenced(text)
    try:
        choice = _sized.decode(body) if game.names_size else _choices.decode(body)
    except msgspec.ValidationError:
        return Invalid(_why_no_choice(body))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return Invalid(f"not JSON: {error}")
    if choice.action == "hold":
        return HOLDING
    known = labels(seen)
    if choice.market not in known:
        return Invalid(f"unknown market {str(choice.market)[:SHOWN_CHARACTERS]!r}")
    if isinstance(choice, SizedChoice) and choice.size is None:
        return Invalid(_OTHER_SIZE)
    return msgspec.structs.replace(choice, market=known[choice.market])


def _why_no_choice(body: str) -> str:
    try:
        answer = _anything.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return f"not JSON: {error}"
    if isinstance(answer, dict) and answer.get("action") in ("buy", "sell", "hold"):
        if isinstance(answer.get("market"), str):
            return _OTHER_SIZE
        return f"unknown market {str(answer.get('market'))[:SHOWN_CHARACTERS]!r}"
    return "no action among buy, sell, hold"


def action_format(seen: Observation) -> dict[str, Any]:
    """The finite schema of an action in full. Amounts that the balance covers, sales of held positions."""
    held = tuple((position.market, position.side) for position in seen.positions)
    return _action_format(
        tuple(stock.ticker for stock in seen.stocks), tuple(question.market for question in seen.questions), _covered(seen), held
    )


def _covered(seen: Observation) -> tuple[int, ...]:
    """The amounts of an action in full that the balance covers."""
    return tuple(usd for usd in USD_STEPS if usd * 1.02 <= seen.balance)


def on_menu(action: Action, seen: Observation) -> Action:
    """The opening order with the nearest amount and leverage of ``action_format``; hold where the balance covers none."""
    if not isinstance(action, OpenPerp | BuyPrediction):
        return action
    covered = _covered(seen)
    if not covered:
        return HOLD
    usd = min(covered, key=lambda step: abs(step - action.usd))
    if isinstance(action, BuyPrediction):
        return BuyPrediction(action.market, action.side, usd)
    return OpenPerp(action.ticker, action.side, usd, min(LEVERAGES, key=lambda times: abs(times - action.leverage)))


@lru_cache(maxsize=256)
def _action_format(
    tickers: tuple[str, ...], questions: tuple[str, ...], amounts: tuple[int, ...], held: tuple[tuple[str, str], ...]
) -> dict[str, Any]:
    forms = [form({"action": {"const": "hold"}})]
    share, usd = {"enum": list(SHARES)}, {"enum": list(amounts)}
    for market, side in held:
        if side in ("yes", "no") and market in questions:
            sale = {"market": {"const": market}, "side": {"const": side}, "share": share}
            forms.append(form({"action": {"const": "sell_prediction"}, **sale}))
        elif market in tickers:
            forms.append(form({"action": {"const": "close_perp"}, "ticker": {"const": market}, "share": share}))
    if amounts and questions:
        bought = {"market": {"enum": list(questions)}, "side": {"enum": ["yes", "no"]}, "usd": usd}
        forms.append(form({"action": {"const": "buy_prediction"}, **bought}))
    if amounts and tickers:
        opened = {"ticker": {"enum": list(tickers)}, "side": {"enum": ["long", "short"]}, "usd": usd, "leverage": {"enum": list(LEVERAGES)}}
        forms.append(form({"action": {"const": "open_perp"}, **opened}))
    return any_of("action", forms)


def messages(seen: Observation, version: str, mandate: Mandate) -> list[dict[str, str]]:
    """The system and the user message."""
    system = "system" if mandate == ONE_TICK else "positions.system"
    named = {market: label for label, market in labels(seen).items()} if mandate == ONE_TICK else {}
    return [{"role": "system", "content": _part(version, system)}, {"role": "user", "content": _user(seen, version, named)}]


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


def request(seen: Observation, game: Game) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """The messages of a decision in a game, and the schema of its answer."""
    schema = format_of(tuple(labels(seen)), game) if game.mandate == ONE_TICK else action_format(seen)
    return messages(seen, game.prompt_version, game.mandate), schema


def ordered(text: str, seen: Observation, game: Game) -> Action | Invalid:
    """The order of an answer in a game; ``Invalid`` with the reason for one that cannot be used. Never raises."""
    if game.mandate == FREE:
        return parse_action(text, [question.market for question in seen.questions], [stock.ticker for stock in seen.stocks])
    choice = parse_choice(text, seen, game)
    if isinstance(choice, Invalid):
        return choice
    return order(choice, seen, (choice.usd if isinstance(choice, SizedChoice) else None) or STAKE_USD)


def scripted_call(name: str, seen: Observation, action: Action | Invalid, game: Game) -> Call:
    """The request and the answer that a script would have had. An order that is not on the game's menu is served under no schema."""
    asked, schema = request(seen, game)
    legal = game.mandate == ONE_TICK or (not isinstance(action, Invalid) and on_menu(action, seen) == action)
    if isinstance(action, Invalid):
        text = action.reason
    else:
        text = encode_action(action) if game.mandate == FREE else choice_text(choice_of(action, game), seen)
    return Call(f"scripted/{name}", asked, text, game.prompt_version, schema if legal else None, max_tokens=game.max_tokens)


def choice_of(action: Action, game: Game = ONE_TICK_GAME) -> Choice:
    """The choice that an opening order stands for, in a game with sizes the nearest one too; hold for anything else."""
    if not isinstance(action, OpenPerp | BuyPrediction) or action.side not in ("long", "short", "yes", "no"):
        return HOLDING
    market = action.ticker if isinstance(action, OpenPerp) else action.market
    choice = Choice("buy" if action.side in ("long", "yes") else "sell", market)
    if not game.names_size:
        return choice
    stake = stake_usd(action)
    nearest: Size = min(SIZES_USD, key=lambda size: abs(SIZES_USD[size] - stake))
    return SizedChoice(choice.action, market, nearest)


def stake_usd(action: Action) -> float:
    """The stake that opens such a position: dollars times leverage, of a question before ``QUESTION_STAKE``; 0 for no opening order."""
    if isinstance(action, OpenPerp):
        return action.usd * action.leverage
    return action.usd / QUESTION_STAKE if isinstance(action, BuyPrediction) else 0.0


@cache
def _part(version: str, part: str) -> str:
    return (_FOLDER / f"{version}.{part}.txt").read_text(encoding="utf-8").strip()


def _user(seen: Observation, version: str, named: dict[str, str]) -> str:
    lines = [f"{named.get(stock.ticker, stock.ticker)} ${stock.price:.0f} {stock.change:+.1f}%" for stock in seen.stocks]
    for question in seen.questions:
        left = "" if version == TRADER_V1 else f" ({_left(seen.minutes_left(question))})"
        lines.append(f"{question.market} YES {question.yes * 100:.0f}% {question.change:+.0f}{left}: {question.text}")
    # A version shows those of them that it has places for.
    return _part(version, "user").format(
        markets="\n".join(lines),
        news="\n".join(f"[{named.get(news.about, news.about)}] {_one_line(news.text)}" for news in seen.recent_headlines()) or "nothing",
        posts="\n".join(_post(post) for post in seen.recent_posts()[-POSTS_SHOWN:]) or "nothing",
        balance=f"{seen.balance:.0f}",
        last="none" if seen.last_profit is None else _dollars(seen.last_profit),
        held="".join(f", hold {named.get(one.market, one.market)} {one.side} {_dollars(one.profit)}" for one in seen.positions),
        memory="; ".join(_remembered(turn, named) for turn in seen.memory(DECISIONS_SHOWN)) or "none",
    )


def _left(minutes: float) -> str:
    return f"{minutes:.0f}m" if minutes < 120 else f"{minutes / 60:.0f}h" if minutes < 2880 else f"{minutes / 1440:.0f}d"


def _post(post: Heard) -> str:
    trust = "" if post.trust is None else f" ({post.trust * 100:.0f}%)"
    return f"{post.author}{trust}: {_one_line(post.text)}"


def _one_line(text: str) -> str:
    """Without line breaks: nobody's post can pass for a line of news."""
    return " ".join(text.split())


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
