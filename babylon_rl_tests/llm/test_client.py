"""The client against real HTTP answers, good and bad; the endpoint plays a script."""

import asyncio
import gc
import json
import math
import time
import warnings
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from babylon_rl.errors import ModelUnavailable, UsageError
from babylon_rl.llm.client import ChatAnswer, ChatClient
from babylon_rl_tests.http_stand_in import Handler, served

GOOD = {
    "model": "served-name",
    "choices": [
        {
            "message": {"role": "assistant", "content": "yes"},
            "logprobs": {"content": [{"token": "yes", "logprob": -0.5, "token_id": 7}, {"token": "token_id:2", "logprob": 0.0}]},
        }
    ],
    "usage": {"prompt_tokens": 11, "completion_tokens": 2},
}


@dataclass
class Endpoint:
    """Answers with the script's entries in turn, the last one for ever: (status, headers, body), or None to hang up."""

    script: list[tuple[int, dict[str, str], bytes] | None]
    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)
    delay_s: float = 0.0


@contextmanager
def endpoint(*script: Any, delay_s: float = 0.0) -> Iterator[Endpoint]:
    scripted = Endpoint([entry if entry is None or len(entry) == 3 else (entry[0], {}, entry[1]) for entry in script], delay_s=delay_s)

    class Answers(Handler):
        def do_POST(self) -> None:
            body = json.loads(self.body())
            scripted.seen.append({"path": self.path, "key": self.headers.get("authorization"), "headers": dict(self.headers), **body})
            entry = scripted.script[min(len(scripted.seen), len(scripted.script)) - 1]
            time.sleep(scripted.delay_s)
            if entry is None:
                self.connection.close()
                return
            status, headers, content = entry
            self.answer(content, status, **headers)

    with served(Answers) as address:
        scripted.url = f"{address}/v1"
        yield scripted


def good() -> tuple[int, bytes]:
    return 200, json.dumps(GOOD).encode()


def ask_now(url: str, key: str | None = "secret", **options: Any) -> ChatAnswer:
    with ChatClient(url, key, "m", **options) as client:
        return client.complete_now([{"role": "user", "content": "?"}], seed=5, temperature=0.5)


def ask_async(url: str, key: str | None = "secret", **options: Any) -> ChatAnswer:
    async def ask() -> ChatAnswer:
        async with ChatClient(url, key, "m", **options) as client:
            return await client.complete([{"role": "user", "content": "?"}], seed=5, temperature=0.5)

    return asyncio.run(ask())


both = pytest.mark.parametrize("ask", [ask_now, ask_async])
Ask = Callable[..., ChatAnswer]


@both
def test_a_good_answer_is_read_whole(ask: Ask) -> None:
    with endpoint(good()) as served:
        answer = ask(served.url)
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens, answer.model) == ("yes", 11, 2, "served-name")
    assert answer.logprobs == [{"token": "yes", "logprob": -0.5, "tokenId": 7}, {"token": "token_id:2", "logprob": 0.0, "tokenId": 2}]
    assert answer.latency_ms > 0
    seen = served.seen[0]
    assert (seen["path"], seen["key"], seen["model"], seen["seed"], seen["temperature"]) == (
        "/v1/chat/completions",
        "Bearer secret",
        "m",
        5,
        0.5,
    )
    assert "response_format" not in seen


@both
@pytest.mark.parametrize(
    ("sent", "read"),
    [("-Infinity", -9999.0), ("-1e999", -9999.0), ("-2", -2.0), ("0", 0.0), ("-1e-9", -1e-9), ("NaN", None), ("Infinity", None)],
)
def test_numbers_that_json_does_not_know_are_read_and_the_reason_of_the_end_is_kept(ask: Ask, sent: str, read: float | None) -> None:
    token = {"token": "x", "logprob": "SENT", "token_id": 7}
    choice = {"finish_reason": "length", "message": {"content": "HALF x"}, "logprobs": {"content": [token]}}
    body = json.dumps({"created": math.nan, "choices": [choice]}).replace('"SENT"', sent).replace("HALF", r"\ud83d")
    with endpoint((200, body.encode())) as served:
        if read is None:
            with pytest.raises(ModelUnavailable, match="as to its logprobs"):
                ask(served.url, attempts=1)
            return
        answer = ask(served.url)
    assert (answer.text, answer.finish_reason) == ("\ufffd x", "length")
    assert answer.logprobs == [{"token": "x", "logprob": read, "tokenId": 7}]


@both
@pytest.mark.parametrize("first", [(503, b"busy"), (429, {"retry-after": "0.01"}, b"{}"), (500, b""), None])
def test_what_a_retry_can_help_is_retried(ask: Ask, first: Any) -> None:
    with endpoint(first, good()) as served:
        assert ask(served.url).text == "yes"
    assert len(served.seen) == 2


@both
def test_retry_after_is_honoured(ask: Ask) -> None:
    with endpoint((429, {"retry-after": "0.6"}, b"{}"), good()) as served:
        started = time.monotonic()
        ask(served.url)
    assert time.monotonic() - started >= 0.6


@both
def test_a_wait_longer_than_the_time_limit_is_not_begun(ask: Ask) -> None:
    with endpoint((429, {"retry-after": "3600"}, b'{"error": {"message": "slow down"}}')) as served:
        started = time.monotonic()
        with pytest.raises(ModelUnavailable, match=r"does not answer \(1 tries\): status 429: slow down"):
            ask(served.url)
    assert time.monotonic() - started < 600


@both
def test_an_endpoint_that_never_answers_costs_the_time_limit(ask: Ask) -> None:
    with endpoint(good(), delay_s=30) as served:
        started = time.monotonic()
        with pytest.raises(ModelUnavailable, match="does not answer"):
            ask(served.url, timeout_s=0.3)
        assert time.monotonic() - started < 20


@both
def test_nobody_listening_is_said_after_the_last_try(ask: Ask) -> None:
    with pytest.raises(ModelUnavailable, match=r"127\.0\.0\.1:9/v1/chat/completions does not answer \(2 tries\)"):
        ask("http://127.0.0.1:9/v1", attempts=2)


@both
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>Sign in</html>", "without a chat completion: <html>Sign in</html>"),
        (b"x" * 5000, r"\(\d+ characters\)"),
        (b"{}", "without a chat completion"),
        (b'{"choices": []}', "without a chat completion"),
        (b'{"choices": [{"message": {"content": null}}]}', "no text"),
        (b'{"choices": [{"message": {"content": "x"}}], "usage": {"prompt', "without a chat completion"),
        (b'{"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"token": "x"}]}}]}', "without a chat completion"),
    ],
)
def test_a_200_that_is_no_chat_completion_is_an_error(ask: Ask, body: bytes, said: str) -> None:
    with endpoint((200, body)) as served, pytest.raises(ModelUnavailable, match=said):
        ask(served.url, attempts=1)


@both
def test_what_is_no_chat_completion_may_be_one_the_next_time(ask: Ask) -> None:
    with endpoint((200, b"<html>One moment</html>"), good()) as served:
        assert ask(served.url).text == "yes"


@both
def test_an_endpoint_without_a_key_is_told_none_of_the_environments(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "sk-of-somebody-else")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with endpoint(good()) as served:
        ask(served.url, key=None)
    assert served.seen[0]["key"] is None and "sk-of-somebody-else" not in str(served.seen[0]["headers"])


def test_a_password_in_the_address_is_sent_instead_of_the_key() -> None:
    with endpoint(good()) as served:
        ask_now(served.url.replace("http://", "http://me:word@"))
    assert served.seen[0]["key"] == f"Basic {b64encode(b'me:word').decode()}"


@both
def test_a_password_in_the_address_is_in_no_sentence_though_the_server_repeats_it(ask: Ask) -> None:
    sent = b64encode(b"me:word").decode()
    with endpoint((403, f"no: Basic {sent}, me, word".encode())) as served, pytest.raises(ModelUnavailable) as refused:
        ask(served.url.replace("http://", "http://me:word@"))
    assert "word" not in str(refused.value) and sent not in str(refused.value) and served.url in str(refused.value)


def test_a_socks_proxy_is_refused_where_it_would_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(UsageError, match="SOCKS proxy, and only HTTP proxies work"):
        ask_now("http://agents.example/v1")
    monkeypatch.setenv("NO_PROXY", "agents.example")
    with pytest.raises(ModelUnavailable, match="does not answer") as away:
        ask_now("http://agents.example/v1", attempts=1)
    assert "proxy" not in str(away.value)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_server_of_this_machine_is_asked_without_the_environments_proxy(
    variable: str, proxy: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, proxy)
    monkeypatch.setenv("NO_PROXY", "corp.example")
    with endpoint(good()) as served:
        assert ask_now(served.url.replace("127.0.0.1", host)).text == "yes"


@pytest.mark.parametrize("script", [(403, b"<html>Blocked</html>"), (503, b"no such host"), (407, b""), None])
def test_a_failure_behind_a_proxy_names_the_proxy_without_its_password(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with endpoint(script) as proxy:
        address = proxy.url.removeprefix("http://").removesuffix("/v1")
        monkeypatch.setenv("HTTP_PROXY", f"http://us:word@{address}")
        with pytest.raises(ModelUnavailable, match=f"through the environment's proxy {address}") as failed:
            ask_now("http://agents.example/v1", attempts=1)
    assert "word" not in str(failed.value)


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_request_goes_through_the_proxy_of_the_environment(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with endpoint(good()) as proxy:
        monkeypatch.setenv("HTTP_PROXY", scheme + "us%40er:word@" + proxy.url.removeprefix("http://").removesuffix("/v1"))
        assert ask_now("http://agents.example/v1").text == "yes"
    assert proxy.seen[0]["path"] == "http://agents.example/v1/chat/completions"
    assert proxy.seen[0]["headers"]["Proxy-Authorization"] == f"Basic {b64encode(b'us@er:word').decode()}"


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/", "/v1/chat/completions", "/v1/chat/completions/"])
def test_an_address_means_the_same_with_and_without_its_version(end: str) -> None:
    with endpoint(good()) as served:
        ask_now(served.url.removesuffix("/v1") + end)
    assert served.seen[0]["path"] == "/v1/chat/completions"


def test_an_answer_with_long_headers_is_read() -> None:
    with endpoint((200, {"x-why": "a" * 20_000}, json.dumps(GOOD).encode())) as served:
        assert ask_now(served.url).text == "yes"


@both
def test_a_date_to_retry_after_is_read(ask: Ask) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    with endpoint((429, {"retry-after": later}, b"{}")) as served, pytest.raises(ModelUnavailable, match=r"\(1 tries\): status 429"):
        ask(served.url)


@pytest.mark.slow
def test_threads_that_ask_at_once_share_a_client() -> None:
    with endpoint(good()) as served, ChatClient(served.url, None, "m") as client, ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda seed: client.complete_now([{"role": "user", "content": "?"}], seed=seed).text, range(40)))
    assert answers == ["yes"] * 40 and sorted(seen["seed"] for seen in served.seen) == list(range(40))


def unclosed() -> list[str]:
    """What the collector says of connections that nobody closed."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        gc.collect()
    return [str(warning.message) for warning in seen]


def test_two_event_loops_at_a_time_close_their_own_connections() -> None:
    with endpoint(good()) as served, ChatClient(served.url, None, "m") as client:

        async def ask() -> None:
            await client.complete([{"role": "user", "content": "?"}])
            await asyncio.to_thread(client.complete_now, [{"role": "user", "content": "?"}])
            await client.aclose()

        asyncio.run(ask())
        assert client.complete_now([{"role": "user", "content": "?"}]).text == "yes"
    assert not unclosed()


@pytest.mark.long
def test_closing_while_threads_ask_leaves_no_connection_open() -> None:
    with endpoint((503, b"busy")) as served, ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            client = ChatClient(served.url, None, "m", attempts=1)
            client._started()
            asked = [threads.submit(client.complete_now, [{"role": "user", "content": "?"}]) for _ in range(8)]
            client.close()
            wait(asked)
            client.close()  # a request that came after the first has started anew
            del asked, client
    assert not unclosed()


@both
def test_a_refusal_is_not_retried_and_never_shows_the_key(ask: Ask) -> None:
    with (
        endpoint((401, b'{"error": {"message": "bad key"}}')) as served,
        pytest.raises(ModelUnavailable, match="status 401: bad key") as failed,
    ):
        ask(served.url)
    assert len(served.seen) == 1
    assert "secret" not in str(failed.value)


def test_one_client_serves_several_event_loops_one_after_another() -> None:
    with endpoint(good()) as served:
        client = ChatClient(served.url, None, "m")

        async def ask() -> str:
            answer = (await client.complete([{"role": "user", "content": "?"}])).text
            await client.aclose()
            return answer

        assert [asyncio.run(ask()) for _ in range(2)] == ["yes", "yes"]


def test_a_bare_host_gets_openais_version_path() -> None:
    assert ChatClient("http://localhost:8000", None, "m").base_url == "http://localhost:8000/v1"
    assert ChatClient("http://localhost:8000/v1/", None, "m").base_url == "http://localhost:8000/v1"
    assert ChatClient("https://host/api/v3", None, "m").base_url == "https://host/api/v3"
