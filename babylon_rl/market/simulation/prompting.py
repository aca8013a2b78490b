"""Chat messages that ask a model for a decision, by version of the prompt, and the finite schemas of its answers.

Versions are files in babylon_rl/market/prompts; what a version's placeholders hold is here and does not change once models were trained
on it. ``trader-v1`` shows markets, news and the last profit; ``trader-v2`` also positions, posts, memory and questions' time left.

Servers with grammars accept the schemas. An answer is buy, sell or hold of a market by the name that it is shown under:
{"action": "buy", "market": "Bluff Social"}; in a game with sizes it also names its stake: {..., "size": "medium"}. Where positions last,
what is held can be closed, {"action": "close", "market": "Bluff Social"}, and until then only added to.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache, lru_cache
from pathlib import Path
from string import Formatter
from typing import Any

import msgspec

from babylon_rl.market.simulation.actions import (
    Action,
    BuyPrediction,
    ClosePerp,
    Invalid,
    OpenPerp,
    SellPrediction,
    any_of,
    form,
    unfenced,
)
from babylon_rl.market.simulation.agents import (
    FREE,
    HOLDING,
    LEVERAGES,
    ONE_TICK,
    QUESTION_STAKE,
    SIZES_USD,
    STAKE_USD,
    Choice,
    Size,
    SizedChoice,
    closing,
    leveraged,
    order,
)
from babylon_rl.market.simulation.games import ONE_TICK_GAME, POSITIONS, TRADER_V1, VERSIONS, Game
from babylon_rl.market.simulation.ledger import Refusal
from babylon_rl.market.simulation.observation import Heard, Observation
from babylon_rl.market.simulation.record import HOLD, Call, Remembered

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
def format_of(
    markets: tuple[str, ...],
    game: Game = ONE_TICK_GAME,
    held: tuple[tuple[str, str], ...] = (),
    sizes: tuple[Size, ...] = tuple(SIZES_USD),
) -> dict[str, Any]:
    """The schema of a choice among markets by the names that they are shown under, as OpenAI's ``response_format``; not to be changed.

    Args:
        held: markets with positions that last, each with the action that adds to it; the other side is opened once it is closed.
        sizes: those that can be named; without one nothing can be opened.
    """
    size = {"size": {"enum": list(sizes)}} if game.names_size else {}
    opened = [([market], [action]) for market, action in held]
    others = [market for market in markets if market not in dict(held)]
    if others:
        opened.insert(0, (others, ["buy", "sell"]))
    forms = [form({"action": {"enum": actions}, "market": {"enum": named}} | size) for named, actions in opened if sizes]
    if held:
        forms.append(form({"action": {"const": "close"}, "market": {"enum": [market for market, _ in held]}}))
    return any_of(game.grammar, [*forms, form({"action": {"const": "hold"}})])


def choice_text(choice: Choice, seen: Observation) -> str:
    """A choice as the text that the grammar serves."""
    if choice.market is None:
        return json.dumps({"action": choice.action})
    named = {market: label for label, market in labels(seen).items()}
    size = {"size": choice.size} if isinstance(choice, SizedChoice) else {}
    return json.dumps({"action": choice.action, "market": named.get(choice.market, choice.market), **size})


def parse_choice(text: str, seen: Observation, game: Game = ONE_TICK_GAME) -> Choice | Invalid:
    """Read an answer, alone or in a code fence. An answer outside the schema is ``Invalid`` with the reason. Never raises."""
    body = unfenced(text)
    try:
        choice = _sized.decode(body) if game.names_size else _choices.decode(body)
    except msgspec.ValidationError:
        return Invalid(_why_no_choice(body, game))
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return Invalid(f"not JSON: {error}")
    if choice.action == "hold":
        return HOLDING
    if choice.action not in _actions(game):
        return Invalid(_why_no_choice(body, game))
    known = labels(seen)
    if choice.market not in known:
        return Invalid(f"unknown market {str(choice.market)[:SHOWN_CHARACTERS]!r}")
    market = known[choice.market]
    if choice.action == "close":
        return Choice("close", market) if seen.held(market) else Invalid(f"nothing is held of {choice.market!r}")
    if isinstance(choice, SizedChoice) and choice.size is None:
        return Invalid(_OTHER_SIZE)
    if game.mandate == FREE and (why := _not_now(choice, market, seen)):
        return Invalid(why)
    return msgspec.structs.replace(choice, market=market)


def _not_now(choice: Choice, market: str, seen: Observation) -> str:
    """Why a position that lasts cannot be opened now; empty where it can."""
    held = seen.held(market)
    if held is not None and held.direction != choice.direction:
        return f"{choice.market!r} is held {held.side}: close it first"
    return "" if not isinstance(choice, SizedChoice) or choice.size in _covered(seen) else f"the balance does not cover {choice.size}"


def _actions(game: Game) -> tuple[str, ...]:
    return ("buy", "sell", "close", "hold") if game.mandate == FREE else ("buy", "sell", "hold")


def _why_no_choice(body: str, game: Game) -> str:
    try:
        answer = _anything.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return f"not JSON: {error}"
    if isinstance(answer, dict) and answer.get("action") in _actions(game):
        if isinstance(answer.get("market"), str):
            return _OTHER_SIZE
        return f"unknown market {str(answer.get('market'))[:SHOWN_CHARACTERS]!r}"
    return f"no action among {', '.join(_actions(game))}"


def on_menu(action: Action, seen: Observation) -> Action:
    """The nearest action of the game of positions that an answer can name; hold where there is none."""
    choice = choice_of(action, POSITIONS, _covered(seen))
    held = None if choice.market is None else seen.held(choice.market)
    if choice.action == "close":
        return HOLD if held is None else closing(held)
    return HOLD if held is not None and held.direction != choice.direction else _order(choice, seen, POSITIONS)


def _covered(seen: Observation) -> tuple[Size, ...]:
    """The sizes whose dollars the balance covers in every market, as positions that last tie them up."""
    needed = {size: usd * max(1.0 / LEVERAGES[size], QUESTION_STAKE) for size, usd in SIZES_USD.items()}
    return tuple(size for size in SIZES_USD if needed[size] * 1.02 <= seen.balance)


def messages(seen: Observation, version: str) -> list[dict[str, str]]:
    """The system and the user message."""
    named = {market: label for label, market in labels(seen).items()}
    return [{"role": "system", "content": _part(version, "system")}, {"role": "user", "content": _user(seen, version, named)}]


def version_of(given: Iterable[Mapping[str, Any]]) -> str | None:
    """Version that wrote these messages, by all of their text; None if none can have.

    A text that two versions would write alike is the older one's, so that a new version renames no checkpoint.
    """
    system, *rest = [(message.get("role"), str(message.get("content") or "").strip()) for message in given] or [(None, "")]
    if system[0] != "system" or [role for role, _ in rest] != ["user"]:
        return None
    written = (version for version in VERSIONS if system[1] == _part(version, "system") and _user_pattern(version).fullmatch(rest[0][1]))
    return next(written, None)


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
    known = labels(seen)
    if game.mandate == ONE_TICK:
        return messages(seen, game.prompt_version), format_of(tuple(known), game)
    named = {market: label for label, market in known.items()}
    held = {named[one.market]: "buy" if one.direction > 0 else "sell" for one in seen.positions if one.market in named}
    return messages(seen, game.prompt_version), format_of(tuple(known), game, tuple(held.items()), _covered(seen))


def ordered(text: str, seen: Observation, game: Game) -> Action | Invalid:
    """The order of an answer in a game; ``Invalid`` with the reason for one that cannot be used. Never raises."""
    choice = parse_choice(text, seen, game)
    return choice if isinstance(choice, Invalid) else _order(choice, seen, game)


def _order(choice: Choice, seen: Observation, game: Game) -> Action:
    held = None if choice.market is None else seen.held(choice.market)
    if choice.action == "close" and held is not None:
        return closing(held)
    if not isinstance(choice, SizedChoice) or choice.size is None or choice.usd is None:
        return order(choice, seen, STAKE_USD)
    return leveraged(choice, seen, choice.usd, LEVERAGES[choice.size] if game.mandate == FREE else 1.0)


def scripted_call(name: str, seen: Observation, action: Action | Invalid, game: Game) -> Call:
    """The request and the answer that a script would have had. An order that is not on the game's menu is served under no schema."""
    asked, schema = request(seen, game)
    legal = game.mandate == ONE_TICK or (not isinstance(action, Invalid) and on_menu(action, seen) == action)
    text = action.reason if isinstance(action, Invalid) else choice_text(choice_of(action, game), seen)
    return Call(f"scripted/{name}", asked, text, game.prompt_version, schema if legal else None, max_tokens=game.max_tokens)


def choice_of(action: Action, game: Game = ONE_TICK_GAME, sizes: Collection[Size] = SIZES_USD) -> Choice:
    """The choice that an action stands for, of an opening order in a game with sizes the nearest of these too; hold for anything else."""
    if isinstance(action, ClosePerp | SellPrediction) and game.mandate == FREE:
        return Choice("close", action.ticker if isinstance(action, ClosePerp) else action.market)
    if not isinstance(action, OpenPerp | BuyPrediction) or action.side not in ("long", "short", "yes", "no"):
        return HOLDING
    market = action.ticker if isinstance(action, OpenPerp) else action.market
    choice = Choice("buy" if action.side in ("long", "yes") else "sell", market)
    if not game.names_size:
        return choice
    stake = stake_usd(action)
    nearest = min(sizes, key=lambda size: abs(SIZES_USD[size] - stake), default=None)
    return HOLDING if nearest is None else SizedChoice(choice.action, market, nearest)


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
    choice, brought = choice_of(turn.action, POSITIONS), _dollars(turn.brought_usd)
    if choice.market is not None:
        return f"{choice.action} {named.get(choice.market, choice.market)} {brought}"
    return f"{turn.outcome.kind} {brought}" if turn.outcome.kind != "hold" or abs(turn.brought_usd) >= 0.5 else "hold"


def _dollars(usd: float) -> str:
    return f"{'+' if usd >= 0 else '-'}${abs(usd):.0f}"
