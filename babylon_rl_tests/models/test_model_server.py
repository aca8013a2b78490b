import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from starlette.testclient import TestClient

from babylon_rl.cli import run
from babylon_rl.errors import ModelUnavailable
from babylon_rl.llm.client import ChatClient
from babylon_rl.models import batcher as batching
from babylon_rl.models.batcher import Batcher, PendingAnswer
from babylon_rl.models.checkpoint_store import checkpoint_named
from babylon_rl.models.policy import Completion, CompletionRequest, Policy
from babylon_rl.models.server import bind, create_app, serve
from babylon_rl.models.server_process import RunningServer, kept_open, running_server
from babylon_rl.settings import Settings
from babylon_rl_tests.tiny_model import make_adapter

pytestmark = pytest.mark.slow  # torch is imported

MESSAGES = [{"role": "user", "content": "The price of TESLAI rose. Decide."}]


@pytest.fixture(scope="module")
def server(tiny_base: Path, tiny_adapter: Path) -> Iterator[RunningServer]:
    with running_server(tiny_base, {"v1.0.0": tiny_adapter}) as running:
        yield running


def post(server: RunningServer, **body: Any) -> httpx2.Response:
    return httpx2.post(f"{server.url}/chat/completions", json={"model": "base", "messages": MESSAGES, **body}, timeout=30)


@pytest.mark.long
def test_health_and_models_say_what_is_served(server: RunningServer) -> None:
    assert httpx2.get(server.url.removesuffix("/v1") + "/health").json() == {"status": "ok"}
    assert [one["id"] for one in httpx2.get(f"{server.url}/models").json()["data"]] == ["base", "v1.0.0"]


def test_an_answer_has_openais_shape_and_the_token_ids(server: RunningServer, trade_format: dict[str, Any], tokenizer: Any) -> None:
    document = post(server, response_format=trade_format, seed=3, logprobs=True).json()
    choice = document["choices"][0]
    assert choice["finish_reason"] == "stop"
    json.loads(choice["message"]["content"])
    entries = choice["logprobs"]["content"]
    assert entries[-1]["token_id"] == tokenizer.eos_token_id
    assert "".join(entry["token"] for entry in entries[:-1]) == choice["message"]["content"]
    assert bytes(value for entry in entries[:-1] for value in entry["bytes"]).decode() == choice["message"]["content"]
    assert document["usage"]["completion_tokens"] == len(entries)


def test_the_openai_package_can_talk_to_it(server: RunningServer, trade_format: dict[str, Any]) -> None:
    openai = pytest.importorskip("openai", reason="the openai package is optional")
    with openai.OpenAI(base_url=server.url, api_key="none") as client:
        answer = client.chat.completions.create(
            model="v1.0.0", messages=MESSAGES, seed=1, temperature=0, logprobs=True, max_tokens=64, response_format=trade_format
        )
    assert json.loads(answer.choices[0].message.content)["action"] in {"hold", "buy", "sell"}
    assert answer.choices[0].logprobs.content[0].logprob <= 0


def test_concurrent_clients_get_what_each_would_get_alone(server: RunningServer, trade_format: dict[str, Any]) -> None:
    async def ask_all() -> list[Any]:
        async with ChatClient(server.url, None, "base") as base, ChatClient(server.url, None, "v1.0.0") as adapter:
            clients = [base, adapter] * 20
            return await asyncio.gather(
                *(client.complete(MESSAGES, response_format=trade_format, seed=n) for n, client in enumerate(clients))
            )

    together = asyncio.run(ask_all())
    with ChatClient(server.url, None, "base") as base, ChatClient(server.url, None, "v1.0.0") as adapter:
        for n in range(6):
            alone = (base, adapter)[n % 2].complete_now(MESSAGES, response_format=trade_format, seed=n)
            assert alone.text == together[n].text
            assert alone.logprobs is not None
            assert [entry["tokenId"] for entry in alone.logprobs] == [entry["tokenId"] for entry in together[n].logprobs]
    assert {answer.model for answer in together} == {"base", "v1.0.0"}


def test_the_server_serves_what_the_policy_says(server: RunningServer, policy: Policy, trade_format: dict[str, Any]) -> None:
    with ChatClient(server.url, None, "v1.0.0") as client:
        served = client.complete_now(MESSAGES, response_format=trade_format, temperature=0)
    local = policy.complete([CompletionRequest(MESSAGES, trade_format, temperature=0, adapter="v1.0.0")])[0]
    assert served.text == local.text
    assert served.prompt_tokens == local.prompt_tokens


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "v9"}, 404, "'v9' is not served here; served: base, v1.0.0"),
        ({"messages": []}, 400, "messages is empty"),
        ({"messages": "hello"}, 400, "not a chat completion"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "string"}}}}, 400, "any string"),
        ({"temperature": -1}, 400, "temperature"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"n": 2}, 400, "n is served as 1 alone"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "text parts"),
    ],
)
def test_a_bad_request_is_refused_in_openais_shape(server: RunningServer, body: dict[str, Any], status: int, said: str) -> None:
    answer = post(server, **body)
    assert answer.status_code == status
    assert said in answer.json()["error"]["message"]


def test_a_body_that_is_not_json_is_refused(server: RunningServer) -> None:
    answer = httpx2.post(f"{server.url}/chat/completions", content=b"\xff{", timeout=30)
    assert answer.status_code == 400


def test_text_parts_and_the_text_format_are_understood(server: RunningServer) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "The price of TESLAI rose. "}, {"type": "text", "text": "Decide."}]}]
    one = post(server, messages=parts, temperature=0, max_completion_tokens=3, response_format={"type": "text"}).json()
    other = post(server, temperature=0, max_tokens=3).json()
    assert one["choices"][0]["message"] == other["choices"][0]["message"]


@pytest.mark.long
def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(ModelUnavailable, match=r"(?s)while starting\. The end of its log:.*cannot be loaded as a model"),
        running_server(tmp_path),
    ):
        pass


def test_a_server_that_is_too_slow_is_stopped(tiny_base: Path) -> None:
    with pytest.raises(ModelUnavailable, match="did not start in time"), running_server(tiny_base, start_timeout_s=0.05):
        pass


@pytest.mark.long
def test_a_port_in_use_is_said_and_the_server_ends_with_the_block(tiny_base: Path) -> None:
    with running_server(tiny_base) as running:
        assert _alive(running.pid)
        with (
            pytest.raises(ModelUnavailable, match=f"Port {running.port} on 127.0.0.1 cannot be used"),
            running_server(tiny_base, port=running.port),
        ):
            pass
    assert not _alive(running.pid)


@pytest.mark.long
def test_the_server_ends_when_its_parent_is_killed(tiny_base: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from babylon_rl.models.server_process import running_server\n"
        "with running_server(Path(sys.argv[1])) as running:\n"
        "    print(running.pid, flush=True); time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", script, str(tiny_base)], stdout=subprocess.PIPE, cwd=root) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def test_a_version_that_is_published_later_is_loaded_when_it_is_asked_for_and_answers_as_alone(
    tiny_base: Path, published: Path, trade_format: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "REMEMBERED_S", 0.0)
    directories: dict[str, Path] = {}
    app = create_app(Policy.load(tiny_base, dtype=torch.float32), find_adapter=directories.get)
    with TestClient(app) as client:
        body = {"messages": MESSAGES, "response_format": trade_format, "seed": 3}
        assert client.post("/v1/chat/completions", json=body | {"model": "v1.0.0"}).status_code == 404
        directories["v1.0.0"] = published
        names = ("v1.0.0", "base", "v1.0.0")
        answers = [client.post("/v1/chat/completions", json=body | {"model": name}).json() for name in names]
        listed = [model["id"] for model in client.get("/v1/models").json()["data"]]
    alone = Policy.load(tiny_base, published, dtype=torch.float32, adapter_name="v1.0.0")
    for answer, adapter in zip(answers, ("v1.0.0", None, "v1.0.0"), strict=True):
        expected = alone.complete([CompletionRequest(MESSAGES, trade_format, 1.0, 3, 256, adapter)])[0]
        assert answer["choices"][0]["message"]["content"] == expected.text
    assert listed == ["base", "v1.0.0"]


def test_a_damaged_version_is_not_found_and_the_others_go_on(tiny_base: Path, tmp_path: Path) -> None:
    app = create_app(Policy.load(tiny_base, dtype=torch.float32), find_adapter=lambda name: tmp_path if name == "v1.0.0" else None)
    with TestClient(app) as client:
        refused = client.post("/v1/chat/completions", json={"model": "v1.0.0", "messages": MESSAGES})
        assert refused.status_code == 404 and "cannot be loaded" in refused.json()["error"]["message"]
        assert client.post("/v1/chat/completions", json={"model": "base", "messages": MESSAGES, "max_tokens": 2}).status_code == 200


def test_a_decision_that_comes_while_its_thread_loads_a_version_is_answered(
    tiny_base: Path, published: Path, trade_format: dict[str, Any]
) -> None:
    loading, go_on = threading.Event(), threading.Event()

    class HeldPath(type(published)):  # type: ignore[misc]
        def __str__(self) -> str:
            loading.set()
            go_on.wait(30)
            return super().__str__()

    policy = Policy.load(tiny_base, dtype=torch.float32)

    async def ask() -> PendingAnswer:
        torch.set_num_threads(1)  # no other finisher
        batcher = Batcher(policy, lambda name: HeldPath(published))
        worker = asyncio.create_task(batcher.run())
        served = asyncio.create_task(batcher.serves("v1.0.0"))
        await asyncio.to_thread(loading.wait)
        asked = batcher.ask(policy.row(CompletionRequest(MESSAGES, trade_format)))
        await asyncio.sleep(10 * batching.LINGER_S)  # its batch is taken meanwhile
        go_on.set()
        await asyncio.wait([asyncio.ensure_future(asked.more()), worker], return_when=asyncio.FIRST_COMPLETED)
        assert not worker.done() and await served
        worker.cancel()
        return asked

    assert asyncio.run(ask()).ended


def test_a_server_that_can_answer_nothing_any_more_fails_its_requests_and_ends(
    policy: Policy, trade_format: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "FEWEST_APART", None)  # a defect in making batches
    ready, ended = threading.Event(), list[TypeError]()
    bound = bind("127.0.0.1", 0)

    def run() -> None:
        try:
            serve(policy, bound, lambda line: ready.set())
        except TypeError as failure:
            ended.append(failure)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait()
    url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1/chat/completions"
    body = {"model": "base", "messages": MESSAGES, "response_format": trade_format}
    assert httpx2.post(url, json=body, timeout=30).status_code == 500
    thread.join(30)
    assert len(ended) == 1


def test_free_text_goes_on_while_a_version_is_looked_for_once_for_all_who_ask(policy: Policy) -> None:
    go_on, looked_for = threading.Event(), list[str]()

    def find(name: str) -> None:
        looked_for.append(name)
        go_on.wait(30)

    async def ask() -> list[bool]:
        batcher = Batcher(policy, find)
        worker = asyncio.create_task(batcher.run())
        served = [asyncio.create_task(batcher.serves("v9.9.9")) for _ in range(3)]
        asked = batcher.ask(policy.row(CompletionRequest(MESSAGES, max_tokens=3)))
        while await asked.more():
            pass
        assert not go_on.is_set() and not any(one.done() for one in served)
        go_on.set()
        answers = [*await asyncio.gather(*served), await batcher.serves("v9.9.9")]
        worker.cancel()
        return answers

    assert asyncio.run(ask()) == [False] * 4
    assert looked_for == ["v9.9.9"]


def test_a_storage_that_fails_is_answered_as_unavailable_and_no_storage_as_not_found(
    policy: Policy, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    stored = settings.model_copy(update={"model_storage_url": f"file://{tmp_path}/file/models"})
    answers = []
    for chosen in (stored, settings):
        with TestClient(create_app(policy, find_adapter=lambda name, chosen=chosen: checkpoint_named(name, chosen))) as client:
            answers.append(client.post("/v1/chat/completions", json={"model": "v9.9.9", "messages": MESSAGES}))
    assert [answer.status_code for answer in answers] == [503, 404]
    assert "cannot be fetched" in answers[0].json()["error"]["message"]


def test_a_stream_is_the_whole_answer_in_events(server: RunningServer, trade_format: dict[str, Any]) -> None:
    openai = pytest.importorskip("openai", reason="the openai package is optional")
    with openai.OpenAI(base_url=server.url, api_key="none") as client:
        asked: dict[str, Any] = {"model": "v1.0.0", "messages": MESSAGES, "response_format": trade_format, "seed": 5}
        whole = client.chat.completions.create(**asked).choices[0].message.content
        parts = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole and parts[-1].choices[0].finish_reason


def test_free_text_is_streamed_as_its_tokens_come(server: RunningServer) -> None:
    asked: dict[str, Any] = {"seed": 5, "max_tokens": 12, "logprobs": True}
    whole = post(server, **asked).json()
    events = post(server, **asked, stream=True).text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    tokens = [entry for chunk in chunks[:-1] for entry in chunk["choices"][0]["logprobs"]["content"]]
    assert len(chunks) > 4 and chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole["choices"][0]["message"]["content"]
    assert tokens == whole["choices"][0]["logprobs"]["content"]
    assert len({chunk["id"] for chunk in chunks}) == 1 and not any("usage" in chunk for chunk in chunks)


def test_a_short_text_ends_before_a_long_one_that_began_earlier_and_a_text_nobody_waits_for_is_given_up(policy: Policy) -> None:
    async def ask_all() -> list[PendingAnswer]:
        batcher = Batcher(policy, lambda name: None)
        worker = asyncio.create_task(batcher.run())
        long, short, decision = (batcher.ask(policy.row(CompletionRequest(MESSAGES, seed=3, max_tokens=most))) for most in (400, 2, 400))
        while await short.more():
            pass
        long.left = decision.left = True
        while await long.more():
            pass
        worker.cancel()
        return [long, short]

    long, short = asyncio.run(ask_all())
    assert len(short.tokens) <= 2 < len(long.tokens) + 2 and len(long.tokens) < 100


def test_decisions_of_two_versions_are_answered_at_the_same_time_as_each_alone(
    tiny_base: Path, tiny_adapter: Path, trade_format: dict[str, Any], tmp_path: Path
) -> None:
    adapters = {"v1.0.0": tiny_adapter, "v1.0.1": make_adapter(tiny_base, tmp_path / "other", seed=2)}
    policy = Policy.load(tiny_base, dtype=torch.float32)
    requests = [CompletionRequest(MESSAGES, trade_format, seed=seed, adapter=name) for seed in range(4) for name in (None, *adapters)]

    async def ask_all() -> list[Completion]:
        threads = torch.get_num_threads()
        torch.set_num_threads(3)  # as many batches at once
        batcher = Batcher(policy, adapters.get)
        torch.set_num_threads(threads)
        worker = asyncio.create_task(batcher.run())
        assert all([await batcher.serves(name) for name in adapters]) and not await batcher.serves("v9.9.9")
        asked = [batcher.ask(policy.row(request)) for request in requests]
        for one in asked:
            while await one.more():
                pass
        worker.cancel()
        return [policy.completion(one.row) for one in asked]

    together = asyncio.run(ask_all())
    alone = [policy.complete([request])[0] for request in requests]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert len({answer.text for answer in together}) > 1


@pytest.mark.long
def test_a_kept_server_answers_again_unless_other_models_are_needed_or_it_failed(
    tiny_base: Path, tiny_adapter: Path, settings: Settings
) -> None:
    started: list[int] = []

    @contextmanager
    def serving(_: Settings, adapters: Mapping[str, Path]) -> Iterator[str]:
        with running_server(tiny_base, adapters) as server:
            started.append(server.pid)
            yield server.url

    def models(url: str) -> list[str]:
        return [one["id"] for one in httpx2.get(f"{url}/models").json()["data"]]

    def ends(pid: int) -> bool:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    with kept_open(serving) as kept:
        with kept(settings, {"v1.0.0": tiny_adapter, "v1.0.1": tiny_adapter}) as first:
            assert models(first) == ["base", "v1.0.0", "v1.0.1"]
        with kept(settings, {"v1.0.0": tiny_adapter}) as again:
            assert again == first
            assert len(started) == 1
        with kept(settings, {"v1.0.2": tiny_adapter}) as other:
            assert models(other) == ["base", "v1.0.2"]
            assert ends(started[0])
        with pytest.raises(httpx2.HTTPError), kept(settings, {}) as killed:
            assert killed == other
            os.kill(started[1], signal.SIGKILL)
            models(killed)
        with kept(settings, {}) as anew:
            assert models(anew) == ["base"]
    assert len(started) == 3
    assert ends(started[2])


def test_an_unknown_version_is_said_with_those_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoints" / "v1.0.0").mkdir(parents=True)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path))
    assert run(["serve", "model", "v9.9.9"]) == 3
    assert "no checkpoint v9.9.9 in" in (said := capsys.readouterr().err)
    assert "base, v1.0.0" in said


def test_an_endpoint_that_failed_or_did_not_start_is_not_used_again_however_often_it_is_kept(settings: Settings, tmp_path: Path) -> None:
    open_now: list[str] = []
    starts = 0

    @contextmanager
    def serving(_: Settings, adapters: Mapping[str, Path]) -> Iterator[str]:
        nonlocal starts
        starts += 1
        if "absent" in adapters:
            raise ModelUnavailable("it does not start")
        open_now.append(url := f"endpoint {starts}")
        try:
            yield url
        finally:
            open_now.remove(url)

    with kept_open(serving) as outer, kept_open(outer) as kept:
        with kept(settings, {}) as first:
            assert open_now == [first]
        with pytest.raises(ModelUnavailable), kept(settings, {"absent": tmp_path}):
            pass
        with kept(settings, {}) as second:
            assert second != first and open_now == [second]
        with pytest.raises(ConnectionError), kept(settings, {}) as again:
            assert again == second
            raise ConnectionError
        assert open_now == []
        with kept(settings, {}) as third:
            assert third != second and open_now == [third]
    assert open_now == []
