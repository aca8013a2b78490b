"""Keys under attack: guesses open nothing, and a key that floods takes nothing from the others."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import openai
import pytest

from babylon_rl.api_errors import ApiError
from babylon_rl.serving import access
from babylon_rl.serving.access import Access, key_hash, new_key
from babylon_rl.settings import Settings
from babylon_rl.store.client_keys import ClientKey, create_key
from babylon_rl.store.connection import connect
from babylon_rl.store.database import Database
from babylon_rl_tests.serving.gateways import MESSAGES, running_gateway, wait_for
from babylon_rl_tests.serving.scripted_upstream import DONE, chunk, completion, said, scripted_upstream

NOW = datetime(2025, 11, 1, 12)


def _status(clients: Access, key: str) -> int:
    try:
        clients.admit(None, {"authorization": f"Bearer {key}"})
    except ApiError as refused:
        return refused.status
    return 200


def test_guesses_are_compared_by_their_hash_and_nothing_near_a_key_is_one() -> None:
    """A key has 256 random bits, and the time of a comparison of hashes says nothing of the key."""
    key = new_key()
    clients = Access()
    clients.update([ClientKey("game", key_hash(key), None, None, NOW)])
    assert len(key) - len("brl-") == 43 and new_key() != key
    near = [key[:end] for end in range(len(key))] + [
        key + "A",
        key.swapcase(),
        key[4:],
        f"{key}\0",
        key_hash(key),
        key.replace("brl-", "BRL-"),
    ]
    assert {_status(clients, guess) for guess in near} == {401}
    assert {_status(clients, new_key()) for _ in range(2_000)} == {401}
    assert _status(clients, key) == 200, "guesses lock nobody out: a stranger behind the same proxy could"


def test_a_key_that_floods_is_held_back_and_others_are_served(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "MOST_OPEN", 4)
    with connect(database.url) as connection:
        for name in ("flood", "other"):
            create_key(connection, ClientKey(name, key_hash(f"brl-{name}"), None, None, NOW))
    released = threading.Event()

    def waits() -> Iterator[bytes | float]:
        while not released.is_set():
            yield 0.02
        yield from (chunk({"content": "hold"}), chunk({}, "stop"), DONE)

    with scripted_upstream() as upstream:
        upstream.answer = lambda body: waits() if body.get("stream") else said(completion())  # type: ignore[assignment, return-value]
        changed = settings.model_copy(update={"local_endpoint": upstream.url, "rl_fallback_to_base": False})
        with running_gateway(changed, database) as gateway, ThreadPoolExecutor(4) as pool:

            def ask(key: str, stream: bool = False) -> str:
                try:
                    answer = gateway.client(key).chat.completions.create(model="base", messages=MESSAGES, stream=stream)
                    list(answer)
                except openai.RateLimitError as limited:
                    assert limited.response.headers["retry-after"] == "1" and "4 open calls" in str(limited)
                    return "limited"
                return "answered"

            waiting = [pool.submit(ask, "brl-flood", True) for _ in range(4)]
            wait_for(lambda: gateway.open_calls() == 4, "four calls to be open")
            assert [ask("brl-flood") for _ in range(20)] == ["limited"] * 20
            assert [ask("brl-other") for _ in range(3)] == ["answered"] * 3
            released.set()
            assert [one.result(60) for one in waiting] == ["answered"] * 4
            wait_for(lambda: gateway.open_calls() == 0, "the calls to end")
            assert ask("brl-flood") == "answered"
