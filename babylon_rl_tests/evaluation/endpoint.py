"""A stand-in for a model server: it answers chat completions by rules that read the prompt, and counts what it was asked."""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from babylon_rl.market.headlines import HELD_OUT

Rule = Callable[[str, list[str]], str]
_GOOD = [text.replace("{c}", "").strip() for text in (*HELD_OUT.good, *HELD_OUT.toward_yes)]
_BAD = [text.replace("{c}", "").strip() for text in (*HELD_OUT.bad, *HELD_OUT.toward_no)]


def hold(prompt: str, markets: list[str]) -> str:
    return '{"action": "hold"}'


def always_buy(prompt: str, markets: list[str]) -> str:
    return json.dumps({"action": "buy", "market": markets[0]})


def babble(prompt: str, markets: list[str]) -> str:
    return "I would rather not say."


def reads_news(prompt: str, markets: list[str]) -> str:
    """Trades on the headline as its words say; holds when there is none that it knows."""
    for market, text in re.findall(r"^\[(.+?)\] (.+)$", prompt, re.MULTILINE):
        for words, action in ((_GOOD, "buy"), (_BAD, "sell")):
            if market in markets and any(phrase in text for phrase in words):
                return json.dumps({"action": action, "market": market})
    return hold(prompt, markets)


def alternates(prompt: str, markets: list[str]) -> str:
    """Trades without a view: which way depends on the prompt's length alone."""
    return json.dumps({"action": "buy" if len(prompt) % 2 else "sell", "market": markets[0]})


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
        """As babylon_rl.market.serving.served_here, for these rules."""
        self.starts += 1
        yield self.url


@contextmanager
def endpoint(**rules: Rule) -> Iterator[Endpoint]:
    """``endpoint(base=hold, **{"v1.0.0": reads_news})``."""
    served = Endpoint(rules)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            text = served.answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            content = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
            self.send_response(200 if text is not None else 400)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

    with Quiet(("127.0.0.1", 0), Handler) as listening:
        served.url = f"http://127.0.0.1:{listening.server_port}/v1"
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield served
        finally:
            listening.shutdown()
            thread.join()
