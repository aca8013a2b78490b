"""What a model agent costs beside its model: `python benchmarks/model_agent_overhead.py` prints JSON.

A server in a process of its own answers at once, always the same. A bare request of the client is timed beside whole decisions of a run
(what is seen, the prompt, the schema, the request, the answer read and filled, everything kept); the difference is our own. The bound is
2 ms a decision.
"""

import json
import multiprocessing
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from babylon_rl.llm.client import ChatClient
from babylon_rl.market.simulation.config import preset
from babylon_rl.market.simulation.games import GAMES, Game
from babylon_rl.market.simulation.generation import generate
from babylon_rl.market.simulation.model_agent import model_agent
from babylon_rl.market.simulation.run import play

ROUNDS, REQUESTS = 5, 500
BOUND_MS = 2.0
ANSWER = {
    "model": "stub",
    "choices": [{"message": {"role": "assistant", "content": '{"action": "hold"}'}}],
    "usage": {"prompt_tokens": 150, "completion_tokens": 8},
}


def answer_for_ever(listening: socket.socket) -> None:
    """Answer every request on one connection after the other with ``ANSWER``, reading no more of it than its length."""
    body = json.dumps(ANSWER).encode()
    response = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    while True:
        connection, _ = listening.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, connection.makefile("rb") as stream:
            while line := stream.readline():
                length = 0
                while line not in (b"\r\n", b""):
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                    line = stream.readline()
                stream.read(length)
                connection.sendall(response)


@contextmanager
def stub() -> Iterator[str]:
    """The stub's base URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        process = multiprocessing.get_context("fork").Process(target=answer_for_ever, args=(listening,), daemon=True)
        process.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        finally:
            process.terminate()
            process.join()


def request_ms(client: ChatClient) -> float:
    """A bare request with a prompt of the usual size."""
    messages = [{"role": "system", "content": "You are a trader. " * 6}, {"role": "user", "content": "Gasly Motors $215 +0.4%\n" * 15}]
    began = time.perf_counter()
    for seed in range(REQUESTS):
        client.complete_now(messages, seed=seed, max_tokens=48)
    return 1000 * (time.perf_counter() - began) / REQUESTS


def decision_ms(client: ChatClient, game: Game) -> float:
    """A decision of one model agent that plays ten hours of minutes in a market of ten questions and five stocks."""
    scenario = generate(preset("week", minutes=REQUESTS))
    began = time.perf_counter()
    run = play(scenario, {"model": model_agent(client, game=game)})
    assert run.complete and not run.records["model"].invalid
    return 1000 * (time.perf_counter() - began) / scenario.ticks


def main() -> None:
    """Measure and print."""
    found: dict[str, float] = {}
    with stub() as url, ChatClient(url, None, "stub") as client:
        request_ms(client)
        bare = min(request_ms(client) for _ in range(ROUNDS))
        for game in GAMES.values():
            whole = min(decision_ms(client, game) for _ in range(ROUNDS))
            found[game.name] = round(whole - bare, 3)
    print(
        json.dumps(
            {
                "request_ms": round(bare, 3),
                "own_ms_per_decision": found,
                "bound_ms": BOUND_MS,
                "within_bound": max(found.values()) < BOUND_MS,
            }
        )
    )


if __name__ == "__main__":
    main()
