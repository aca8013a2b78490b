"""A stand-in for a model server: it answers chat completions by rules that read the prompt, and counts what it was asked."""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from random import Random
from typing import Any
from zlib import crc32

from babylon_rl.evaluation.snapshots import benchmark_snapshots, confirmation_snapshots, fresh_hours
from babylon_rl.market.headlines import EDITIONS, edition_named
from babylon_rl_tests.http_stand_in import Handler, served

Rule = Callable[[str, list[str]], str]
MARKETS_KNOWN, CONFIRMATIONS_KNOWN = 48, 192


ORIGIN = re.compile(r"^(Rumour: |(Event|Rumour) related to: [^?]*\? )")


@cache
def _directions() -> dict[str, int]:
    """What every headline of the benchmark, and every headline of an edition without its origin, says: +1, -1 or 0."""
    known = (*benchmark_snapshots(MARKETS_KNOWN), *confirmation_snapshots(0, CONFIRMATIONS_KNOWN))
    said = {
        text.format(c=company): direction
        for edition in map(edition_named, EDITIONS)
        for direction, texts in (
            (1, (*edition.good, *edition.toward_yes)), (-1, (*edition.bad, *edition.toward_no)), (0, (*edition.neutral, *edition.no_news)),
        )
        for text, (company, _) in product(texts, edition.companies)
    }  # fmt: skip
    return said | {event.text: event.direction for snapshot in known for event in snapshot.scenario.events}


def _direction(text: str) -> int:
    said = _directions()
    return said[text] if text in said else said[ORIGIN.sub("", text)]


def hold(prompt: str, markets: list[str]) -> str:
    return '{"action": "hold"}'


def always_buy(prompt: str, markets: list[str]) -> str:
    return json.dumps({"action": "buy", "market": markets[0]})


def babble(prompt: str, markets: list[str]) -> str:
    return "I would rather not say."


def reads_news(prompt: str, markets: list[str]) -> str:
    """Trades on the headline as its words say; holds when there is none that says anything."""
    for market, text in re.findall(r"^\[(.+?)\] (.+)$", prompt, re.MULTILINE):
        if market in markets and (direction := _direction(text)):
            return json.dumps({"action": "buy" if direction > 0 else "sell", "market": market})
    return hold(prompt, markets)


def reads_wrongly(prompt: str, markets: list[str]) -> str:
    """As ``reads_news``, in the other direction."""
    answer = reads_news(prompt, markets)
    return answer.replace("buy", "sell") if "buy" in answer else answer.replace("sell", "buy")


def noise(prompt: str, markets: list[str]) -> str:
    """Any answer that the grammar allows, each as likely."""
    drawn = Random(prompt)
    answers = [{"action": "hold"}, *({"action": action, "market": market} for market in markets for action in ("buy", "sell"))]
    return json.dumps(drawn.choice(answers))


def alternates(prompt: str, markets: list[str]) -> str:
    """Trades without a view: which way depends on the prompt's length alone."""
    return json.dumps({"action": "buy" if len(prompt) % 2 else "sell", "market": markets[0]})


def at_size(rule: Rule, size: str = "medium") -> Rule:
    """Answers as in the game amounts: the same trade at a stake."""

    def sized(prompt: str, markets: list[str]) -> str:
        answer = json.loads(rule(prompt, markets))
        return json.dumps(answer | ({"size": size} if "market" in answer else {}))

    return sized


def reads_fresh(wrong: float) -> Rule:
    """Follows the headlines of fresh training hours, but for the share ``wrong`` of texts, which it reads the other way."""
    words = {event.text: event.direction for snapshot in fresh_hours() for event in snapshot.scenario.events}

    def rule(prompt: str, markets: list[str]) -> str:
        for market, text in re.findall(r"^\[(.+?)\] (.+)$", prompt, re.MULTILINE):
            if market in markets and (direction := words.get(text, 0)):
                buys = (direction > 0) != (crc32(text.encode()) % 100 < 100 * wrong)
                return json.dumps({"action": "buy" if buys else "sell", "market": market})
        return hold(prompt, markets)

    return rule


@dataclass
class Endpoint:
    """``asked`` counts the requests of every model; after ``breaks_after`` of them in all it refuses."""

    rules: Mapping[str, Rule]
    url: str = ""
    breaks_after: int | None = None
    asked: dict[str, int] = field(default_factory=dict)
    starts: int = 0
    temperatures: set[float] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: dict[str, Any]) -> str | None:
        with self.lock:
            if self.breaks_after is not None and sum(self.asked.values()) >= self.breaks_after:
                return None
            self.asked[body["model"]] = self.asked.get(body["model"], 0) + 1
            self.temperatures.add(body["temperature"])
        trade = body["response_format"]["json_schema"]["schema"]["anyOf"][0]
        return self.rules[body["model"]](body["messages"][-1]["content"], trade["properties"]["market"]["enum"])

    @contextmanager
    def serving(self, settings: object, adapters: Mapping[str, object]) -> Iterator[str]:
        """As babylon_rl.market.model_endpoints.served_here, for these rules."""
        self.starts += 1
        yield self.url


@contextmanager
def endpoint(**rules: Rule) -> Iterator[Endpoint]:
    """``endpoint(base=hold, **{"v1.0.0": reads_news})``."""
    chats = Endpoint(rules)

    class Answers(Handler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            text = chats.answer(json.loads(self.body()))
            content = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
            self.answer(content, 200 if text is not None else 400)

    with served(Answers) as address:
        chats.url = f"{address}/v1"
        yield chats
