"""Streams as servers send them: which are whole, what says nothing, what breaks one, and what is recorded of each."""

import json
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.serving.server_sent_events import StreamReader
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.repeatable import repeatable
from babylon_rl_tests.serving.gateways import MESSAGES, RunningGateway, add_version, rows, running_gateway, wait_for
from babylon_rl_tests.serving.scripted_upstream import DONE, ScriptedUpstream, chunk, event, scripted_upstream

SOUND = [chunk({"role": "assistant"}), chunk({"content": "buy "}), chunk({"content": "50"}), chunk({}, "stop"), DONE]
ERROR = {"message": "EngineCore died", "type": "InternalServerError", "param": None, "code": 500}
USAGE = event({"id": "c", "choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 2, "total_tokens": 13}})


@pytest.fixture
def scripted() -> Iterator[ScriptedUpstream]:
    with scripted_upstream() as upstream:
        yield upstream


@pytest.fixture
def settings_of(settings: Settings, database: Database, scripted: ScriptedUpstream) -> Settings:
    add_version(database, "v1.0.0")
    return settings.model_copy(update={"local_endpoint": scripted.url, "gateway_timeout_seconds": 5.0})


def ask(gateway: RunningGateway, stream: bool = True, **fields: Any) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and content of a chat, as they came."""
    time.sleep(0.002)  # recorded calls are sorted by the millisecond
    line = HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    body = {"model": "v1.0.0", "messages": MESSAGES, "stream": stream} | fields
    line.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
    response = line.getresponse()
    content = response.read()
    line.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, content


def text(content: bytes) -> str:
    """The text of a stream, as a client reads it."""
    events = StreamReader().feed(content + b"\n\n")
    return "".join((choice.get("delta") or {}).get("content") or "" for event in events for choice in event.choices)


def recorded(database: Database, calls: int) -> list[dict[str, Any]]:
    """The texts of recorded calls, once there are that many calls."""
    wait_for(lambda: len(rows(database, "SELECT 1 FROM babylon_rl.gateway_calls")) >= calls, f"{calls} calls in the database")
    found = rows(database, 'SELECT * FROM llm_call_logs ORDER BY "timestamp", "callId"')
    return [row | {"metadata": json.loads(row["metadata"])} for row in found]


BROKEN = {
    "the end without a reason": [*SOUND[:3], DONE],
    "an empty reason": [*SOUND[:3], chunk({}, ""), DONE],
    "a reason that is no reason": [*SOUND[:3], chunk({}, "error"), DONE],
    "another": [*SOUND[:3], chunk({}, "abort"), DONE],
    "an error, then the end": [*SOUND[:2], event({"error": ERROR}), DONE],
    "an error after the reason": [*SOUND[:4], event({"error": ERROR}), DONE],
    "an error by the name of the event": [*SOUND[:3], b'event: error\ndata: {"message": "EngineCore died"}\n\n', *SOUND[3:]],
    "an error without an envelope": [*SOUND[:3], event({"object": "error"} | ERROR), DONE],
    "an error as a text": [*SOUND[:3], event({"error": "EngineCore died"}), *SOUND[3:]],
    "the first of two choices": [*SOUND[:2], chunk({"content": "sell"}, index=1), *SOUND[2:]],
    "no end and no reason": SOUND[:3],
    "broken off after the reason": [*SOUND[:4], 0.1, None],
    "broken off in an event": [*SOUND[:3], chunk({}, "stop")[:40], 0.1, None],
    "half an event at the end": [*SOUND[:2], chunk({"content": "5"})[:-8] + b"\n\n", *SOUND[3:]],
}


@pytest.mark.slow
def test_a_stream_that_does_not_end_whole_ends_with_an_error_and_never_trains(
    settings_of: Settings, database: Database, scripted: ScriptedUpstream
) -> None:
    with running_gateway(settings_of, database, writes=True) as gateway:
        for name, stream in BROKEN.items():
            scripted.answer = lambda _, stream=stream: stream  # type: ignore[misc]
            status, _, content = ask(gateway)
            assert (status, b"[DONE]" in content) == (200, False), name
            error = json.loads(content.rstrip().rpartition(b"data: ")[2])["error"]
            assert error["message"] == "EngineCore died" or error["message"].startswith("The model's stream "), name
            assert "error" not in name or (error["message"] == "EngineCore died" and text(content).startswith("buy ")), name
        scripted.answer = lambda _: [*SOUND[:2], event({"error": ERROR}), DONE]
        shown = json.loads(ask(gateway)[2].rstrip().rpartition(b"data: ")[2])["error"]
        assert shown == ERROR
        scripted.answer = lambda _: SOUND
        assert text(ask(gateway, n=2)[2]) == "buy 50"  # one of two
        assert recorded(database, len(BROKEN) + 2) == []
    assert {row["status"] for row in rows(database, "SELECT status FROM babylon_rl.gateway_calls")} == {502}


@pytest.mark.slow
@pytest.mark.parametrize(
    "stream",
    [
        [DONE], [chunk({"role": "assistant"}), DONE], [chunk({}, ""), DONE], [USAGE, DONE], [b": ping\n\n"],
        [event({"error": ERROR}), DONE], [event({"error": ERROR | {"code": "9" * 5000}}), DONE],
    ],
)  # fmt: skip
def test_a_stream_that_breaks_before_its_first_token_is_the_base_s(
    settings_of: Settings, database: Database, scripted: ScriptedUpstream, stream: list[bytes]
) -> None:
    scripted.answer = lambda body: SOUND if body["model"] == "base" else stream  # type: ignore[return-value]
    with running_gateway(settings_of, database) as gateway:
        status, headers, content = ask(gateway)
    assert (status, headers["x-babylon-version"], text(content)) == (200, "base", "buy 50")


WHOLE = {
    "as it should be": SOUND,
    "without the last event": SOUND[:4],
    "without the last blank line": [*SOUND[:4], b"data: [DONE]"],
    "in one piece": [b"".join(SOUND)],
    "byte by byte": [bytes([byte]) for byte in b"".join(SOUND)],
    "CRLF": [b"".join(SOUND).replace(b"\n", b"\r\n")],
    "CR": [b"".join(SOUND).replace(b"\n", b"\r")],
    "mixed line ends": [SOUND[0].replace(b"\n\n", b"\r\n\n"), *SOUND[1:]],
    "a byte order mark": [b"\xef\xbb\xbf", *SOUND],
    "the reason in the spelling of another": [*SOUND[:3], chunk({}, "STOP"), DONE],
    "content after the reason": [*SOUND[:4], event({"choices": [{"index": 0, "delta": {}, "content_filter_offsets": {}}]}), DONE],
    "no index": [event({"choices": [{"delta": {"content": "buy 50"}}]}), event({"choices": [{"finish_reason": "stop"}]}), DONE],
}
SILENT = [
    b"data:\n\n", b"data: \n\n", b"data\n\n", b"event: ping\ndata: {}\n\n",
    b"event: ping\n\n", b": keep-alive\n\n", b":\n\n", b"id: 1\nretry: 1000\n\n",
    b"data: null\n\n", b"data: []\n\n", b"data: 7\n\n", b'data: "[DONE]"\n\n', b"data: ping\n\n",
    b'data: {"choices":null}\n\n', b'data: {"choices":[]}\n\n',
    b'data: {"choices":[null, 3]}\n\n', b'data: {"choices":[{"index":0,"delta":null,"finish_reason":null}]}\n\n',
    b'data: {"error":null,"choices":[]}\n\n',
    b'data: {"error":{},"choices":[]}\n\n', b'data: {"guardrail":{"passed":true}}\n\n', b'data: {"choices":[],"created":NaN}\n\n',
    b'data: {"choices":[],"x":-Infinity,"usage":{"prompt_tokens":NaN}}\n\n', USAGE, b'data: {"usage":{"prompt_tokens":-1}}\n\n', b"\n\n",
]  # fmt: skip


@pytest.mark.slow
def test_what_says_nothing_is_passed_on_and_over_wherever_it_stands(
    settings_of: Settings, database: Database, scripted: ScriptedUpstream
) -> None:
    streams = list(WHOLE.values()) + [[silent, *SOUND] for silent in SILENT] + [[*SOUND[:2], silent, *SOUND[2:]] for silent in SILENT]
    streams += [[*SOUND[:4], silent, DONE] for silent in SILENT]
    with running_gateway(settings_of, database, writes=True) as gateway:
        for stream in streams:
            scripted.answer = lambda _, stream=stream: stream  # type: ignore[misc]
            status, headers, content = ask(gateway, stream_options={"include_usage": True})
            assert (status, headers["x-babylon-version"], text(content)) == (200, "v1.0.0", "buy 50"), stream
            assert content.startswith(b"".join(stream)) and b"[DONE]" in content, stream
        found = recorded(database, len(streams))
    assert [row["response"] for row in found] == ["buy 50"] * len(streams)


@pytest.mark.slow
def test_the_numbers_and_halves_of_characters_of_a_stream_are_recorded(
    settings_of: Settings, database: Database, scripted: ScriptedUpstream
) -> None:
    first, second = (event(rb'{"choices": [{"index": 0, "delta": {"content": "%b"}}]}' % half) for half in (rb"up \ud83d", rb"\ude00 50"))
    low = event(b'{"choices": [{"index": 0, "delta": {"content": "!"}, "logprobs": {"content": [{"token": "!", "logprob": -Infinity}]}}]}')
    bad = event(b'{"choices": [{"index": 0, "delta": {"content": "?"}, "logprobs": {"content": [{"token": "?", "logprob": NaN}]}}]}')
    lonely = event(rb'{"choices": [{"index": 0, "delta": {"content": "\ud83d"}}]}')
    with running_gateway(settings_of, database, writes=True) as gateway:
        for pieces in ([first, second], [low], [bad, low], [lonely]):
            scripted.answer = lambda _, pieces=pieces: [*pieces, *SOUND[3:]]  # type: ignore[misc]
            assert ask(gateway)[2] == b"".join([*pieces, *SOUND[3:]])
        found = recorded(database, 4)
    assert [row["response"] for row in found] == ["up 😀 50", "!", "?!", "\ufffd"]
    assert [row["metadata"].get("logprobs") for row in found] == [None, [{"token": "!", "logprob": -9999.0}], None, None]


@pytest.mark.slow
def test_a_client_that_leaves_once_its_answer_has_ended_has_a_whole_one_and_one_that_leaves_before_has_not(
    settings_of: Settings, database: Database, scripted: ScriptedUpstream
) -> None:
    def leave_after(gateway: RunningGateway, mark: bytes) -> None:
        line = HTTPConnection("127.0.0.1", gateway.port, timeout=30)
        body = json.dumps({"model": "v1.0.0", "messages": MESSAGES, "stream": True})
        line.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        response, got = line.getresponse(), b""
        while mark not in got:
            got += response.read1()
        response.close()
        line.close()

    scripted.answer = lambda _: [*SOUND[:3], 0.3, SOUND[3], 1.0, USAGE, DONE]
    with running_gateway(settings_of, database, writes=True) as gateway:
        leave_after(gateway, b'"finish_reason": "stop"')
        (row,) = recorded(database, 1)
        leave_after(gateway, b'"50"')
        assert len(recorded(database, 2)) == 1
    assert (row["response"], row["metadata"]["finishReason"], row["promptTokens"]) == ("buy 50", "stop", None)
    assert [row["status"] for row in rows(database, 'SELECT status FROM babylon_rl.gateway_calls ORDER BY "at"')] == [200, 499]


def test_a_server_that_keeps_its_connection_open_after_the_last_event_keeps_no_client_waiting(
    settings_of: Settings, database: Database, scripted: ScriptedUpstream
) -> None:
    scripted.answer = lambda _: [*SOUND, 4.0]
    with running_gateway(settings_of, database) as gateway:
        began = time.monotonic()
        assert text(ask(gateway)[2]) == "buy 50" and time.monotonic() - began < 3


PIECES = st.sampled_from([*SOUND, *SILENT, USAGE, event({"error": ERROR}), chunk({"content": "x"}, index=1), chunk({}, "stop", index=1)])


@pytest.mark.long
@repeatable(400)
@given(st.lists(PIECES | st.binary(max_size=30), max_size=12), st.integers(1, 40), st.integers(1, 2))
def test_any_stream_is_read_alike_however_it_is_cut_and_nothing_but_its_end_closes_it(stream: list[bytes], size: int, choices: int) -> None:
    raw = b"".join(stream)

    def read(pieces: list[bytes]) -> tuple[bytes, bool, bool, bool]:
        reader = StreamReader(choices)
        got = b"".join(one.raw for piece in pieces for one in reader.feed(piece))
        # A CRLF that is cut in two may end an event as two line ends.
        return got.rstrip(b"\r\n"), reader.closed, reader.finished, reader.fault is not None

    whole = read([raw])
    assert whole == read([raw[at : at + size] for at in range(0, len(raw), size)])
    got, closed, finished, failed = whole
    assert raw.startswith(got) and not (closed and failed) and (finished or not closed)
