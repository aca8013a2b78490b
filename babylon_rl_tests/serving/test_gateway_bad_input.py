"""Bad and vanishing clients: errors in OpenAI's shape, and nothing is left over, in the gateway or at the model."""

import json
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.repeatable import repeatable
from babylon_rl_tests.serving.gateways import MESSAGES, RunningGateway, add_version, running_gateway, wait_for
from babylon_rl_tests.serving.model_stand_in import ModelStandIn, model_stand_in

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)
FIELDS = ("model", "messages", "stream", "temperature", "n", "tools", "max_tokens", "logprobs", "response_format", "user")
VALID = {"model": "babylon-agent", "messages": MESSAGES}
SLOW_S = 0.3


@pytest.fixture(scope="module")
def upstream() -> Iterator[ModelStandIn]:
    """A model server without faults."""
    with model_stand_in() as stand_in:
        yield stand_in


@pytest.fixture
def gateway(settings: Settings, database: Database, upstream: ModelStandIn) -> Iterator[RunningGateway]:
    """A gateway whose patience with clients is short."""
    upstream.behaviour.clear()
    add_version(database, "v1.0.0")
    changed = settings.model_copy(update={"local_endpoint": upstream.url, "gateway_timeout_seconds": 20.0})
    with running_gateway(changed, database, client_timeout_s=SLOW_S) as running:
        yield running


@pytest.mark.long
@repeatable(150)
@given(
    st.binary()
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(FIELDS), JSON).map(lambda fields: json.dumps(VALID | fields).encode())
)
def test_any_body_is_answered_or_refused_in_openai_s_shape(gateway: RunningGateway, body: bytes) -> None:
    connection = HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    assert response.status in (200, 400, 404)
    if response.headers["content-type"] == "application/json":
        document = json.loads(content)
        assert "choices" in document if response.status == 200 else document["error"]["message"]
    else:
        assert content.endswith(b"data: [DONE]\n\n")
    wait_for(gateway.quiet, "no task to be left")


def request(gateway: RunningGateway, **more: Any) -> socket.socket:
    """A connection on which a whole request has been sent."""
    body = json.dumps(VALID | more).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
    line = socket.create_connection(("127.0.0.1", gateway.port), timeout=20)
    line.sendall(head.encode() + body)
    return line


def test_a_client_that_stops_reading_is_cut_off_and_its_request_cancelled(gateway: RunningGateway, upstream: ModelStandIn) -> None:
    upstream.behaviour["v1.0.0"] = "endless"
    line = request(gateway, stream=True)
    wait_for(lambda: gateway.open_calls() == 1, "the stream to begin")
    wait_for(gateway.quiet, "the call to end")
    wait_for(lambda: upstream.open == 0, "the request to be cancelled at the model")
    line.close()
    assert gateway.sample("requests_total", version="v1.0.0", arm="named", status="499") == 1


def test_clients_that_vanish_cancel_their_requests_at_the_model(gateway: RunningGateway, upstream: ModelStandIn) -> None:
    upstream.behaviour["v1.0.0"] = "hangs"
    asked, gone = len(upstream.seen), upstream.gone
    lines = [request(gateway, stream=number % 2 == 0) for number in range(8)]
    wait_for(lambda: len(upstream.seen) == asked + 8, "the model to be asked")
    for line in lines:
        line.close()
    wait_for(lambda: upstream.gone == gone + 8, "the model to be left")
    wait_for(gateway.quiet, "no task to be left")
    wait_for(lambda: not gateway.server.server_state.connections, "no connection to be left")
    assert gateway.sample("requests_total", version="v1.0.0", arm="named", status="499") == 8


@pytest.mark.slow
def test_clients_that_vanish_in_the_middle_of_a_stream_leave_nothing(gateway: RunningGateway, upstream: ModelStandIn) -> None:
    upstream.pause_s = 0.2
    try:
        for _ in range(4):
            with request(gateway, stream=True) as line:
                assert b"200" in line.recv(1000)
        wait_for(gateway.quiet, "no task to be left")
        wait_for(lambda: upstream.open == 0, "the model's connections to be closed")
    finally:
        upstream.pause_s = 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{", b"408"),
        (b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-long: " + b"a" * 100_000, b"400"),
        (b"\x16\x03\x01\x02\x00 this is TLS\r\n\r\n", b"400"),
    ],
)
def test_slow_bodies_long_heads_and_what_is_no_http_are_refused_and_the_connection_closed(
    gateway: RunningGateway, sent: bytes, status: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as line:
        line.sendall(sent)
        assert status in line.recv(65536).splitlines()[0]
        wait_for(lambda: not gateway.server.server_state.connections, "the connection to be closed")
    wait_for(gateway.quiet, "no task to be left")


def test_an_error_of_the_gateway_s_own_is_answered_in_openai_s_shape(gateway: RunningGateway) -> None:
    wait_for(lambda: gateway.gateway.state.reads, "the routing table")
    gateway.gateway.state.table = None  # type: ignore[assignment]
    with pytest.raises(openai.InternalServerError, match="The gateway failed; its log has the reason."):
        gateway.client().chat.completions.create(model="babylon-agent", messages=MESSAGES)
    wait_for(gateway.quiet, "no task to be left")
