"""Correctness of actions: predictions against official answers, sides against price changes.

Pure rules. An action names its target in one of the forms that the game's producers use, and a side; ``Targets`` resolves the name. An
ambiguous name resolves to nothing. Unknown facts are None, never a guess.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from babylon_rl.market.outcomes import engine_ticker

Kind = Literal["prediction", "stock"]
Side = Literal["YES", "NO", "UP", "DOWN"]

TRADES = ("TRADING", "BUY", "SELL")
NO_TRADE = "HOLD"
TARGET_CHARACTERS = 200
_SIDE_CHARACTERS = 100
_QUESTION_KEYS = ("marketId", "predictionMarketId", "questionId", "market_id", "question_id", "questionNumber", "question", "market")
_STOCK_KEYS = ("ticker", "symbol", "stock", "organizationId", "organization", "company", "asset", "coin", "market", "marketId")
_SIDE_KEYS = ("side", "direction", "position", "outcome", "prediction", "predictedOutcome", "decision")
_UP, _DOWN = frozenset({"long", "up", "bull", "bullish", "call"}), frozenset({"short", "down", "bear", "bearish", "put"})
_YES, _NO = frozenset({"yes", "true"}), frozenset({"no", "false"})
_SAID = _UP | _DOWN | _YES | _NO | {"buy", "sell"}
_NUMBERED = re.compile(r"(?:q|#|question)?\s*#?(\d{1,9})", re.IGNORECASE | re.ASCII)
_OPPOSITE: dict[Side, Side] = {"YES": "NO", "NO": "YES", "UP": "DOWN", "DOWN": "UP"}


@dataclass(frozen=True)
class Intent:
    """Target and side of a trade, as recorded; the side is None if not recorded."""

    kind: Kind
    target: str
    side: Side | None


@dataclass(frozen=True)
class HourMarket:
    """Known market facts of an hour.

    ``changes``: percent by organization id. ``tickers``: organization ids by the ticker of market_outcomes.
    """

    changes: Mapping[str, float]
    tickers: Mapping[str, str]


@dataclass(frozen=True)
class Correctness:
    """Resolved target, result and correctness of a trade; None while unknown.

    The result is the answer for predictions, the change in percent for stocks.
    """

    organization_id: str | None = None
    market_id: str | None = None
    outcome: str | None = None
    change_percent: float | None = None
    correct: bool | None = None


class Targets:
    """Resolves recorded names of trade targets.

    Organizations are found by their four aliases, questions and markets by id, number or text.
    """

    def __init__(self, organizations: Iterable[tuple[str, str]], questions: Iterable[tuple[str, int | None, str, bool | None]]) -> None:
        """Takes (id, name) per organization and (id, number, text, official answer) per question."""
        self._exact: defaultdict[str, set[str]] = defaultdict(set)
        self._engine: defaultdict[str, set[str]] = defaultdict(set)
        self._loose: defaultdict[str, set[str]] = defaultdict(set)
        for organization_id, name in organizations:
            ticker = engine_ticker(organization_id)
            self._exact[organization_id].add(organization_id)
            self._exact[name].add(organization_id)
            self._engine[ticker].add(organization_id)
            # Loose aliases ignore case and blanks.
            for alias in (organization_id, name, ticker):
                self._loose[_plain(alias)].add(organization_id)
        self.answers: dict[str, bool | None] = {}
        self._numbers: dict[int, str] = {}
        self._texts: defaultdict[str, set[str]] = defaultdict(set)
        for market_id, number, text, answer in questions:
            self.answers[market_id] = answer
            self._texts[_plain(text)].add(market_id)
            if number is not None:
                self._numbers[number] = market_id

    def organization(self, name: str, tickers: Mapping[str, str]) -> str | None:
        """The organization with this name; None if there is none, or more than one.

        The name may be its id, its name, its ticker in market_outcomes or in the engine, in upper or lower case.
        """
        bare = name.strip().removeprefix("$").strip()
        # From the strictest match to the loosest; the first that matches decides.
        for matches in (self._exact.get(bare), self._engine.get(bare), self._loose.get(_plain(bare))):
            if matches:
                return next(iter(matches)) if len(matches) == 1 else None
        return tickers.get(bare)

    def question(self, name: str) -> str | None:
        """The market with this name; None if there is none, or more than one.

        The name may be its id, the question's number (12, Q12, #12) or its text.
        """
        bare = name.strip()
        if bare in self.answers:
            return bare
        numbered = _NUMBERED.fullmatch(bare)
        if numbered is not None:
            return self._numbers.get(int(numbered[1]))
        matches = self._texts.get(_plain(bare), ())
        return next(iter(matches)) if len(matches) == 1 else None


@lru_cache(maxsize=1024)  # agents repeat themselves
def intent(action_type: str, parameters: bytes) -> Intent | None:
    """Target and side that a trading step names; None without a target.

    ``parameters`` is JSON; whether the step was carried out does not matter.
    """
    if action_type == NO_TRADE or not any(word in action_type for word in TRADES):
        return None
    values = _object(parameters)
    # The first key with a known word for a side decides; the kind follows from it.
    words = next((words for words in (_words(values[key]) for key in _SIDE_KEYS if key in values) if words & _SAID), frozenset())
    kind = _kind(values, words)
    target = next(_names(values, _QUESTION_KEYS if kind == "prediction" else _STOCK_KEYS), None)
    if kind is None or target is None:
        return None
    return Intent(kind, target[:TARGET_CHARACTERS], _side(kind, words, action_type))


def correctness(intent: Intent, targets: Targets, hour: HourMarket) -> Correctness:
    """Correctness of a trade in an hour, by the facts known now. A change of exactly zero makes nobody right or wrong."""
    if intent.kind == "prediction":
        market_id = targets.question(intent.target)
        answer = targets.answers.get(market_id) if market_id is not None else None
        outcome: Side | None = None if answer is None else "YES" if answer else "NO"
        right = None if outcome is None or intent.side is None else intent.side == outcome
        return Correctness(market_id=market_id, outcome=outcome, correct=right)
    organization_id = targets.organization(intent.target, hour.tickers)
    change = hour.changes.get(organization_id) if organization_id is not None else None
    correct = None if not change or intent.side is None else intent.side == ("UP" if change > 0 else "DOWN")
    return Correctness(organization_id=organization_id, change_percent=change, correct=correct)


def _kind(parameters: Mapping[str, Any], side: frozenset[str]) -> Kind | None:
    market = str(parameters.get("marketType", "")).lower()
    if "predict" in market:
        return "prediction"
    if "perp" in market or "stock" in market:
        return "stock"
    # A market type is the best evidence, then the side's words, then the names of the keys.
    if side & (_YES | _NO):
        return "prediction"
    if side & (_UP | _DOWN):
        return "stock"
    if any(_names(parameters, _STOCK_KEYS[:-2])):
        return "stock"
    return "prediction" if any(_names(parameters, _QUESTION_KEYS)) else None


def _words(value: Any) -> frozenset[str]:
    text = str(value) if isinstance(value, str | bool) else ""
    return frozenset(re.findall(r"[a-z]+", text.lower())) if len(text) <= _SIDE_CHARACTERS else frozenset()


def _side(kind: Kind, words: frozenset[str], action_type: str) -> Side | None:
    """The side of a trade, if it can be read. A sale of a position (sell_yes, SELL_SHARES of a long) bets on the other side."""
    positions: tuple[frozenset[str], frozenset[str]] = (_YES, _NO) if kind == "prediction" else (_UP, _DOWN)
    sides: tuple[Side, Side] = ("YES", "NO") if kind == "prediction" else ("UP", "DOWN")
    named = [side for side, names in zip(sides, positions, strict=True) if words & names]
    if len(named) > 1:
        return None
    # A side that is named can still be sold; without a name, buy and sell themselves give the side.
    # A type such as SELL_SHARES says it where no word does; "buy" among the words wins over it.
    sells = "sell" in words or ("buy" not in words and "SELL" in action_type)
    if named:
        return _OPPOSITE[named[0]] if sells else named[0]
    if kind == "prediction":
        return None  # shares of which side it bought is not recorded
    if sells:
        return "DOWN"
    # A type such as BUY is believed only where no words for a side were recorded.
    return "UP" if "buy" in words or (not words and "BUY" in action_type) else None


def _object(text: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _names(values: Mapping[str, Any], keys: Iterable[str]) -> Iterator[str]:
    for key in keys:
        value = values.get(key)
        if (isinstance(value, str) and value.strip()) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18):
            yield str(value)


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())
