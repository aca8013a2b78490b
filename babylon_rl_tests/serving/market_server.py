"""A served market on a real socket, and a client that speaks to it as any language would: plain HTTP and JSON."""

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request

from babylon_rl.evaluation.snapshots import Snapshot
from babylon_rl.http_server import in_thread, uvicorn_server
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.generation import generate
from babylon_rl.serving.market_server import create_app


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Player:
    """One agent's connection, from an ``address`` of this machine; ``token`` is set by ``start``."""

    def __init__(self, url: str, address: str = "127.0.0.1") -> None:
        self.url, self.address = url, address
        self.token = ""

    def start(self, **said: str) -> dict[str, Any]:
        """A new session's opening."""
        status, opening = self.post("/start", json.dumps(said))
        assert status == 201, opening
        self.token = opening["token"]
        return opening

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        return self._ask(Request(self.url + path, headers=self._headers()))

    def post(self, path: str, body: str | bytes = "") -> tuple[int, Any]:
        """Status and JSON of an answer."""
        raw = body if isinstance(body, bytes) else body.encode()
        return self._ask(Request(self.url + path, data=raw, headers=self._headers(), method="POST"))

    def play_on(self) -> dict[str, Any]:
        """Hold to the end; the result."""
        while True:
            status, answer = self.post("/advance")
            assert status == 200, answer
            if answer["done"]:
                result: dict[str, Any] = answer["result"]
                return result

    def _headers(self) -> dict[str, str]:
        return {"content-type": "application/json"} | ({"Authorization": f"Bearer {self.token}"} if self.token else {})

    def _ask(self, request: Request) -> tuple[int, Any]:
        line = HTTPConnection(urlsplit(self.url).netloc, timeout=20, source_address=(self.address, 0))
        with closing(line):
            line.request(request.get_method(), request.selector, request.data, dict(request.header_items()))
            answer = line.getresponse()
            return answer.status, json.load(answer)


def small_market(minutes: int = 30, seed: int = 3) -> Snapshot:
    """A quick market; the oracle does not play it."""
    return Snapshot(f"snapshot-{seed}", generate(preset("quick", seed=seed, minutes=minutes)), 1000.0, 10_000.0)


@contextmanager
def served(market: Snapshot, *, idle_s: float = 600.0, results: Path | None = None, clock: Clock | None = None) -> Iterator[str]:
    """The address of a server in a thread, which ends with the block."""
    server = uvicorn_server(create_app(market, idle_s=idle_s, results=results, clock=clock or Clock()))
    with in_thread(server, "market", lambda: "The market did not start.") as url:
        yield url
