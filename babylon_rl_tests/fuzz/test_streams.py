"""The reader of streams, and what is recorded of a stream."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from babylon_rl.serving.call_entry import CallEntry
from babylon_rl.serving.responses import ResponseObject
from babylon_rl.serving.server_sent_events import StreamMeter, StreamReader
from babylon_rl_tests.fuzz.inputs import CUTS, TEXTS, corpus, halves, odd_bytes, pieces
from babylon_rl_tests.repeatable import repeatable


def verdict(parts: list[bytes], choices: int) -> dict[str, Any]:
    """All that a stream is found to be."""
    reader, events = StreamReader(choices), []
    for part in parts:
        events += reader.feed(part)
    events += reader.rest()
    meter = StreamMeter()
    for event in events:
        meter.count(event)
    said = [event.chunk for event in events if event.chunk or event.closes]
    passed_on = b"".join(event.raw for event in events).strip()
    return {"begun": reader.begun, "closed": reader.closed, "finished": reader.finished, "fault": reader.fault, "said": said,
            "usage": meter.usage, "raw": passed_on}  # fmt: skip


def recorded(request: dict[str, Any], answer: bytes) -> dict[str, Any] | None:
    """The row of llm_call_logs of an answer."""
    nothing = dict.fromkeys(("agent_id", "key_name", "trajectory_id", "step", "action_type", "chosen_version", "version", "fallback"))
    counts = dict.fromkeys(("first_token_ms", "prompt_tokens", "completion_tokens"))
    entry = CallEntry(
        call_id="c", request_id="r", at_ms=0, purpose="action", provider_accesses=[], arm="base", reason="base", model="base", status=200,
        latency_ms=1.0, request=json.dumps(request).encode(), answer=answer, **nothing, **counts,
    )  # fmt: skip
    return entry.log_row()


REQUEST = {"messages": [{"role": "user", "content": "?"}], "stream": True}


def check(raw: bytes) -> None:
    """A stream is the same in pieces of any length, and what is recorded of it is a row or nothing."""
    for choices in (1, 2):
        whole = verdict([raw], choices)
        for length in (1, 7):
            assert verdict([raw[at : at + length] for at in range(0, len(raw), length)], choices) == whole
    ResponseObject({"stream": True, "include": ["message.output_text.logprobs"]}).events(raw)
    recorded(REQUEST, raw if raw.lstrip()[:1] != b"{" else b"data: " + raw)


def test_every_kept_stream_is_the_same_however_it_is_cut() -> None:
    for raw in corpus("streams"):
        check(raw)


@repeatable(300)
@given(odd_bytes("streams"), CUTS, st.integers(1, 2))
def test_any_bytes_have_one_verdict_however_they_are_cut(raw: bytes, cuts: list[int], choices: int) -> None:
    assert verdict(pieces(raw, cuts), choices) == verdict([raw], choices)
    recorded(REQUEST, raw if raw.lstrip()[:1] != b"{" else b"data: " + raw)


ODD = st.sampled_from(
    [b"", b": ping", b"data:", b"data: null", b"data: []", b'data: {"choices": []}', b'data: {"choices": null}', b"event: ping\ndata: {}",
     b'data: {"usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}, "choices": []}', b"id: 7", b"retry: 10",
     b': {"choices": [{"index": 0,\ndata: {"usage":\ndata: null}\nevent: none',
     b'data: {"choices": [{"index": 0, "delta": {"content": null}, "logprobs": NaN}]}']
)  # fmt: skip


@repeatable(300)
@given(st.lists(TEXTS, min_size=1, max_size=5), st.lists(ODD, max_size=5), st.sampled_from([b"\n", b"\r\n", b"\r"]), CUTS, st.data())
def test_a_whole_stream_is_recorded_as_it_was_sent(
    texts: list[str], odd: list[bytes], end: bytes, cuts: list[int], data: st.DataObject
) -> None:
    said = "".join(texts)
    events = [chunk({"content": "?"}).replace(b'"?"', piece.encode()) for piece in halves(said, data.draw(CUTS))]
    for one in odd:
        events.insert(data.draw(st.integers(0, len(events))), one)
    raw = b"".join(event.replace(b"\n", end) + end + end for event in (*events, chunk({}, "stop"), b"data: [DONE]"))
    found = verdict(pieces(raw, cuts), 1)
    assert found["fault"] is None and found["closed"] and found["finished"] and found["raw"] == raw.strip()
    row = recorded(REQUEST, raw)
    assert row is not None and row["response"] == said.replace("\x00", "\ufffd")


@repeatable(200)
@given(st.lists(TEXTS, min_size=1, max_size=3), st.integers(0, 10_000), CUTS)
def test_a_stream_that_lacks_its_end_is_never_whole(texts: list[str], kept: int, cuts: list[int]) -> None:
    raw = b"".join(chunk({"content": text}) + b"\n\n" for text in texts) + chunk({}, "stop") + b"\n\n"
    shorter = raw[: kept % (len(raw) - len(chunk({}, "stop")) - 1)]
    assert not verdict(pieces(shorter, cuts), 1)["finished"] and not verdict(pieces(shorter + b"\n\ndata: [DONE]\n\n", cuts), 1)["closed"]


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    return b"data: " + json.dumps({"model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode()
