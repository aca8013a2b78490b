"""Who trades: the five scripted strategies, do-nothing, and agents that ask a language model.

Every agent sees the same ``Observation`` and answers with a ``Decision``. Scripted strategies see no more than a language
model does; what they would have been prompted with is recorded beside their answer, marked ``scripted/<strategy>``.
"""

import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from babylon_rl.errors import MarketError

PROMPT_VERSION = "trader-v1"
STRATEGIES = ("conservative", "balanced", "aggressive", "momentum", "contrarian")
STAKES_USD = {"conservative": 1000.0, "balanced": 1500.0, "aggressive": 2000.0, "momentum": 1500.0, "contrarian": 1500.0}
MODEL_STAKE_USD = 1500.0
MOMENTUM_THRESHOLD = 2.0  # percent, or points of probability
QUESTION_STAKE = 0.35  # of the stake: questions move further than stocks


@dataclass(frozen=True)
class Quote:
    """One market as agents see it; ``change`` is in percent for stocks and in points of probability for questions."""

    market: str
    price: float
    change: float
    question: str | None = None

    @property
    def line(self) -> str:
        """Its line in the prompt."""
        if self.question is None:
            return f"{self.market} ${self.price:.0f} {self.change:+.1f}%"
        return f"{self.market} YES {self.price * 100:.0f}% {self.change:+.0f}: {self.question}"


@dataclass(frozen=True)
class News:
    """One headline and the market that it is about."""

    market: str
    text: str
    direction: int
    rumour: bool


@dataclass(frozen=True)
class Observation:
    """What an agent knows when it decides."""

    quotes: tuple[Quote, ...]
    news: tuple[News, ...]
    balance: float
    pnl: float
    last: str

    @property
    def markets(self) -> tuple[str, ...]:
        """The names that an answer may use."""
        return tuple(quote.market for quote in self.quotes)


@dataclass(frozen=True)
class Decision:
    """``action`` is buy, sell or hold; ``market`` is None for hold. ``invalid`` says why an answer could not be used."""

    action: str
    market: str | None = None
    invalid: str | None = None

    @property
    def text(self) -> str:
        """The answer as JSON text, in the wording that the grammar serves."""
        return json.dumps({"action": self.action} if self.market is None else {"action": self.action, "market": self.market})


@cache
def _prompt(part: str) -> str:
    return (Path(__file__).parent / "prompts" / f"{PROMPT_VERSION}.{part}.txt").read_text(encoding="utf-8").strip()


def messages(seen: Observation) -> list[dict[str, str]]:
    """The chat messages that ask for a decision."""
    user = _prompt("user").format(
        markets="\n".join(quote.line for quote in seen.quotes),
        news="\n".join(f"[{news.market}] {news.text}" for news in seen.news) or "nothing",
        balance=f"{seen.balance:.0f}",
        last=seen.last,
    )
    return [{"role": "system", "content": _prompt("system")}, {"role": "user", "content": user}]


def response_format(markets: tuple[str, ...]) -> dict[str, Any]:
    """The action schema over these markets, as OpenAI's ``response_format``."""
    hold = {"type": "object", "properties": {"action": {"const": "hold"}}, "required": ["action"], "additionalProperties": False}
    trade = {
        "type": "object",
        "properties": {"action": {"enum": ["buy", "sell"]}, "market": {"enum": list(markets)}},
        "required": ["action", "market"],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "trade", "schema": {"anyOf": [trade, hold]}}}


def parse_decision(text: str, markets: tuple[str, ...]) -> Decision:
    """Read a model's answer; anything outside the schema is a hold that says why, and costs the turn."""
    try:
        answer = json.loads(text)
    except json.JSONDecodeError as error:
        return Decision("hold", invalid=f"not JSON: {error.msg}")
    if not isinstance(answer, dict) or answer.get("action") not in ("buy", "sell", "hold"):
        return Decision("hold", invalid="no action among buy, sell, hold")
    if answer["action"] == "hold":
        return Decision("hold")
    if answer.get("market") not in markets:
        return Decision("hold", invalid=f"unknown market {str(answer.get('market'))[:40]!r}")
    return Decision(answer["action"], answer["market"])


class Strategy(Protocol):
    """A scripted way of deciding; randomness comes in, so the same seed gives the same decisions."""

    def __call__(self, seen: Observation, rng: random.Random) -> Decision: ...


def _signed(direction: float, market: str) -> Decision:
    return Decision("hold") if direction == 0 else Decision("buy" if direction > 0 else "sell", market)


def _strongest_move(seen: Observation) -> Quote:
    return max(seen.quotes, key=lambda quote: (abs(quote.change), quote.market))


def _conservative(seen: Observation, rng: random.Random) -> Decision:
    solid = [news for news in seen.news if not news.rumour and news.direction]
    if not solid:
        return Decision("hold")
    return _signed(solid[0].direction, solid[0].market)


def _balanced(seen: Observation, rng: random.Random) -> Decision:
    if not seen.news or rng.random() < 0.08:
        return _signed(rng.choice((1, -1)), rng.choice(seen.markets))
    return _signed(seen.news[0].direction, seen.news[0].market)


def _aggressive(seen: Observation, rng: random.Random) -> Decision:
    if seen.news and rng.random() < 0.4:
        return _signed(seen.news[0].direction or 1, seen.news[0].market)
    return _signed(rng.choice((1, 1, -1)), rng.choice(seen.markets))


def _momentum(seen: Observation, rng: random.Random) -> Decision:
    moved = _strongest_move(seen)
    return Decision("hold") if abs(moved.change) < MOMENTUM_THRESHOLD else _signed(moved.change, moved.market)


def _contrarian(seen: Observation, rng: random.Random) -> Decision:
    if seen.news and rng.random() < 0.5:
        return _signed(-seen.news[0].direction, seen.news[0].market)
    moved = _strongest_move(seen)
    return _signed(-moved.change, moved.market)


_SCRIPTS: dict[str, Strategy] = {
    "conservative": _conservative,
    "balanced": _balanced,
    "aggressive": _aggressive,
    "momentum": _momentum,
    "contrarian": _contrarian,
    "nothing": lambda seen, rng: Decision("hold"),
}


def strategy(name: str) -> Strategy:
    """The strategy of that name.

    Raises:
        MarketError: there is none.
    """
    if name not in _SCRIPTS:
        raise MarketError(f"There is no strategy {name!r}; there are {', '.join(_SCRIPTS)}.")
    return _SCRIPTS[name]
