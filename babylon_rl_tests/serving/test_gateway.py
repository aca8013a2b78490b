"""The official Python client against the gateway: answers, streams, faults of upstreams, and what the headers say."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress

import openai
import pytest

from babylon_rl.serving.routing import place
from babylon_rl.serving.server_sent_events import StreamReader
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.releases import BASE
from babylon_rl_tests.serving.gateways import MESSAGES, RunningGateway, add_version, rows, running_gateway, wait_for
from babylon_rl_tests.serving.model_stand_in import ModelStandIn, completion

FALLBACKS = {
    "429": "rate_limited", "500": "server_error", "503": "server_error", "404": "refused", "401": "refused", "html": "no_completion",
    "hangs up": "unreachable", "half body": "unreachable", "hangs": "timeout",
}  # fmt: skip
STREAM_FALLBACKS = {
    "breaks first": "unreachable",
    "error first": "broken",
    "nested": "broken",
    "500": "server_error",
    "html": "no_completion",
}


@pytest.fixture
def gateway(settings: Settings, database: Database, upstream: ModelStandIn) -> Iterator[RunningGateway]:
    """A gateway with v1.0.0 deployed."""
    add_version(database, "v1.0.0")
    changed = settings.model_copy(update={"local_endpoint": upstream.url, "gateway_timeout_seconds": 1.0})
    with running_gateway(changed, database) as running:
        yield running


def require_nothing_left(gateway: RunningGateway, upstream: ModelStandIn) -> None:
    """No task is left over, and no connection to the model but the pooled one."""
    wait_for(lambda: gateway.quiet() and upstream.open <= 1, "no task or connection to be left")


def test_a_chat_is_answered_by_the_deployed_version_and_says_so(gateway: RunningGateway, upstream: ModelStandIn) -> None:
    raw = gateway.client().chat.completions.with_raw_response.create(
        model="babylon-agent", messages=MESSAGES, extra_headers={"x-request-id": "mine", "x-babylon-agent": "a1"}
    )
    assert raw.parse().choices[0].message.content == "hold your position"
    assert raw.headers["x-babylon-version"] == "v1.0.0" and raw.headers["x-babylon-arm"] == "named"
    assert raw.headers["x-request-id"] == "mine"
    assert upstream.seen[0]["model"] == "v1.0.0" and upstream.seen[0]["logprobs"] is True


def test_everything_else_in_a_request_reaches_the_model_unchanged(gateway: RunningGateway, upstream: ModelStandIn) -> None:
    calls = [{"id": "t1", "type": "function", "function": {"name": "trade", "arguments": "{}"}}]
    upstream.answer = lambda model: completion(model, (), content=None, tool_calls=calls)
    tools = [{"type": "function", "function": {"name": "trade", "parameters": {"type": "object", "properties": {}}}}]
    answer = gateway.client().chat.completions.create(
        model="base", messages=MESSAGES, n=2, temperature=0.3, logprobs=False, response_format={"type": "json_object"}, tools=tools,  # type: ignore[list-item]
        extra_body={"guided_choice": ["a"]},
    )  # fmt: skip
    assert answer.choices[0].message.tool_calls and answer.choices[0].message.tool_calls[0].id == "t1"
    sent = {"model": "base", "messages": MESSAGES, "n": 2, "temperature": 0.3, "logprobs": False, "tools": tools}
    assert upstream.seen[0] == sent | {"response_format": {"type": "json_object"}, "guided_choice": ["a"]}


@pytest.mark.slow
def test_a_stream_comes_whole_and_in_order(gateway: RunningGateway) -> None:
    stream = gateway.client().chat.completions.create(model="babylon-agent", messages=MESSAGES, stream=True)
    deltas = [part.choices[0].delta.content for part in stream]
    assert "".join(filter(None, deltas)) == "hold your position"
    wait_for(gateway.quiet, "no task to be left")


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "cause"), FALLBACKS.items())
def test_a_version_that_fails_is_replaced_by_the_base(gateway: RunningGateway, upstream: ModelStandIn, fault: str, cause: str) -> None:
    upstream.behaviour["v1.0.0"] = fault
    raw = gateway.client().chat.completions.with_raw_response.create(model="v1.0.0", messages=MESSAGES)
    assert raw.parse().model == "base" and raw.headers["x-babylon-version"] == "base" and raw.headers["x-babylon-arm"] == "named"
    assert raw.headers["x-babylon-reason"].startswith(f"fallback from v1.0.0: {cause} ")
    assert raw.headers["x-babylon-reason"].endswith(f" at {upstream.url}/v1")
    require_nothing_left(gateway, upstream)


@pytest.mark.parametrize(("fault", "cause"), STREAM_FALLBACKS.items())
def test_a_stream_that_breaks_before_its_first_token_is_the_base_s(
    gateway: RunningGateway, upstream: ModelStandIn, fault: str, cause: str
) -> None:
    upstream.behaviour["v1.0.0"] = fault
    raw = gateway.client().chat.completions.with_raw_response.create(model="v1.0.0", messages=MESSAGES, stream=True)
    parts = list(raw.parse())
    assert {part.model for part in parts} == {"base"}
    assert raw.headers["x-babylon-reason"].startswith(f"fallback from v1.0.0: {cause} ")
    assert raw.headers["x-babylon-reason"].endswith(f" at {upstream.url}/v1")
    require_nothing_left(gateway, upstream)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["breaks later", "half a chunk", "stalls"])
def test_a_stream_that_breaks_or_pauses_too_long_after_its_first_token_ends_as_an_error(
    gateway: RunningGateway, upstream: ModelStandIn, fault: str
) -> None:
    upstream.behaviour["v1.0.0"] = fault
    parts = []
    with pytest.raises(openai.APIError, match="ended before its answer did"):
        for part in gateway.client().chat.completions.create(model="v1.0.0", messages=MESSAGES, stream=True):
            parts.append(part)
    assert [part.choices[0].delta.content for part in parts if part.choices[0].delta.content] == ["hold ", "your "]
    assert {part.model for part in parts} == {"v1.0.0"} and [body["model"] for body in upstream.seen] == ["v1.0.0"]
    wait_for(gateway.quiet, "no task to be left")


def test_an_answer_that_says_the_words_of_the_end_does_not_end_the_stream() -> None:
    said = b'data: {"choices": [{"index": 0, "delta": {"content": "data: [DONE]"}, "finish_reason": null}]}\n\n'
    reader = StreamReader()
    assert [event.raw for event in reader.feed(said + b"data: [DO")] == [said]
    assert reader.begun and not reader.closed and not reader.finished and reader.fault is None


def test_a_stream_without_its_last_line_is_complete_when_it_says_that_it_has_finished(
    gateway: RunningGateway, upstream: ModelStandIn
) -> None:
    upstream.behaviour["v1.0.0"] = "no done"
    parts = list(gateway.client().chat.completions.create(model="v1.0.0", messages=MESSAGES, stream=True))
    assert parts[-1].choices[0].finish_reason == "stop"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("429", openai.RateLimitError),
        ("500", openai.InternalServerError),
        ("hangs", openai.InternalServerError),
        ("html", openai.InternalServerError),
    ],
)
def test_without_a_fallback_the_client_gets_an_error_in_openai_s_shape(
    settings: Settings, database: Database, upstream: ModelStandIn, fault: str, error: type[openai.APIStatusError]
) -> None:
    add_version(database, "v1.0.0")
    upstream.behaviour["v1.0.0"] = fault
    update = {"local_endpoint": upstream.url, "gateway_timeout_seconds": 1.0, "rl_fallback_to_base": False}
    with running_gateway(settings.model_copy(update=update), database) as gateway, pytest.raises(error) as raised:
        gateway.client().chat.completions.create(model="v1.0.0", messages=MESSAGES)
    assert raised.value.body["message"] and "secretsecret" not in str(raised.value.body)  # type: ignore[index]
    assert fault != "429" or raised.value.response.headers["retry-after"] == "7"


@pytest.mark.slow
def test_the_body_s_user_is_the_agent_where_no_header_names_one(settings: Settings, database: Database, upstream: ModelStandIn) -> None:
    add_version(database, "v1.0.0")
    settings = settings.model_copy(update={"local_endpoint": upstream.url, "rl_rollout_percentage": 50.0})
    places = {name: "v1.0.0" if place(name) < 50 else "base" for name in (f"agent-{number}" for number in range(6))}
    assert len(set(places.values())) == 2
    with running_gateway(settings, database, writes=True) as gateway:

        def version(user: object, **headers: str) -> str:
            asked = gateway.client().chat.completions.with_raw_response
            return asked.create(model="auto", messages=MESSAGES, extra_body={"user": user}, extra_headers=headers).headers[
                "x-babylon-version"
            ]

        assert {name: version(name) for name in places} == places
        assert {name: version("another", **{"x-babylon-agent": name}) for name in places} == places
        for odd in (7, "", "x" * 201, "a\nb"):
            version(odd)
        wait_for(lambda: len(rows(database, "SELECT 1 FROM babylon_rl.gateway_calls")) == 16, "the calls")
    agents = [row["agentId"] for row in rows(database, 'SELECT "agentId" FROM babylon_rl.gateway_calls ORDER BY "at"')]
    assert agents == [*places, *places, None, None, None, None]


@pytest.mark.slow
def test_a_server_that_is_away_is_named_to_the_client_and_once_in_the_log(
    settings: Settings, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    add_version(database, "v1.0.0")
    away = settings.model_copy(update={"local_endpoint": "http://user:secret@nobody.invalid:8000"})
    with running_gateway(away, database) as gateway, pytest.raises(openai.InternalServerError) as refused:
        gateway.client().chat.completions.create(model="v1.0.0", messages=MESSAGES)
    assert "The model's server http://nobody.invalid:8000/v1 cannot be reached (gaierror)." in str(refused.value)
    lines = [record.message for record in caplog.records if "fails: " in record.message]
    assert [line.partition(",")[0] for line in lines] == ["v1.0.0", BASE] and all("nobody.invalid" in line for line in lines)
    assert "secret" not in caplog.text


def test_a_version_that_keeps_failing_is_left_alone_for_a_while(gateway: RunningGateway, upstream: ModelStandIn) -> None:
    upstream.behaviour["v1.0.0"] = "500"
    client = gateway.client()
    reasons = [
        client.chat.completions.with_raw_response.create(model="v1.0.0", messages=MESSAGES).headers["x-babylon-reason"] for _ in range(7)
    ]
    causes = [reason.removeprefix("fallback from v1.0.0: ").partition(" ")[0] for reason in reasons]
    assert causes[4:] == ["server_error", "circuit_open", "circuit_open"]
    # Each of the five was asked once more without what the gateway adds; the last is the gateway's own.
    assert [body["model"] for body in upstream.seen].count("v1.0.0") == 11


@pytest.mark.parametrize("fault", ["500", "503", "hangs up", "html", "half body", "404"])
def test_requests_that_fail_by_their_content_close_a_model_to_nobody(gateway: RunningGateway, upstream: ModelStandIn, fault: str) -> None:
    upstream.behaviour["poison"] = fault
    client = gateway.client()
    for number in range(12):
        poison = [{"role": "user", "content": f"poison {number}"}]
        for model in ("v1.0.0", "base"):
            with suppress(openai.APIError):
                client.chat.completions.create(model=model, messages=poison, extra_headers={"x-babylon-agent": f"agent-{number}"})
    for model in ("v1.0.0", "base"):
        honest = client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES)
        assert honest.headers["x-babylon-version"] == model and "fallback" not in honest.headers["x-babylon-reason"]


def test_a_request_that_fails_by_its_content_keeps_no_circuit_open(gateway: RunningGateway, upstream: ModelStandIn) -> None:
    client = gateway.client()
    upstream.behaviour |= {"v1.0.0": "500", "poison": "500"}
    for _ in range(6):
        client.chat.completions.create(model="v1.0.0", messages=MESSAGES)
    del upstream.behaviour["v1.0.0"]
    breaker = gateway.gateway.upstreams.get("local")._breakers["v1.0.0"]
    breaker._opened_at = 0.0  # its time is over, and the request that tries is a bad one
    with suppress(openai.APIError):
        client.chat.completions.create(model="v1.0.0", messages=[{"role": "user", "content": "poison"}])
    answer = client.chat.completions.with_raw_response.create(model="v1.0.0", messages=MESSAGES)
    assert answer.headers["x-babylon-version"] == "v1.0.0"


def test_models_are_listed_and_unknown_ones_refused(gateway: RunningGateway) -> None:
    client = gateway.client()
    names = [model.id for model in client.models.list()]
    assert {"babylon-agent", "babylon-agent-v1.0.0", "v1.0.0", "base"} <= set(names)
    assert client.models.retrieve("v1.0.0").id == "v1.0.0"
    with pytest.raises(openai.NotFoundError, match="v9"):
        client.models.retrieve("v9.9.9")
    with pytest.raises(openai.NotFoundError, match=r"v9\.9\.9"):
        client.chat.completions.create(model="v9.9.9", messages=MESSAGES)


@pytest.mark.long
@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"), (b"[]", 400, "invalid_json"), (b"\xff", 400, "invalid_json"), (b"[" * 100_000, 400, "invalid_json"),
        (b"{}", 400, "invalid_type"), (b'{"messages": []}', 400, "invalid_type"), (b'{"messages": [1]}', 400, "invalid_type"),
        (b'{"messages": [{"role": "user", "content": "x"}], "model": 1}', 400, "invalid_type"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stream": "yes"}', 400, "invalid_type"),
        (b" " * (4 * 1024**2 + 1), 413, "body_too_large"),
    ],
)  # fmt: skip
def test_a_bad_body_is_refused_in_openai_s_shape(gateway: RunningGateway, body: bytes, status: int, code: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(f"{gateway.url}/chat/completions", body, {"content-type": "application/json"}))
    error = json.loads(refused.value.read())["error"]
    assert (refused.value.code, error["code"], error["type"]) == (status, code, "invalid_request_error") and error["message"]
    wait_for(gateway.quiet, "no task to be left")


def test_other_paths_and_methods_are_refused_in_openai_s_shape(gateway: RunningGateway) -> None:
    for path, status in (("/v1/images", 404), ("/v1/chat/completions", 405)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}{path}")
        assert refused.value.code == status and json.loads(refused.value.read())["error"]["message"]


def test_health_readiness_and_metrics_say_how_it_is(gateway: RunningGateway) -> None:
    gateway.client().chat.completions.create(model="babylon-agent", messages=MESSAGES)
    root = f"http://127.0.0.1:{gateway.port}"
    assert json.load(urllib.request.urlopen(f"{root}/health")) == {"status": "ok"}
    ready = json.load(urllib.request.urlopen(f"{root}/ready"))
    assert ready["ready"] and ready["database"] == "ok" and ready["serving"] == "as the registry says"
    samples = urllib.request.urlopen(f"{root}/metrics").read().decode()
    assert 'babylon_gateway_requests_total{arm="named",status="200",version="v1.0.0"} 1.0' in samples
    assert 'babylon_gateway_latency_seconds_bucket{le="+Inf",version="v1.0.0"} 1.0' in samples
