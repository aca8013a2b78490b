"""What the gateway adds to requests, what its clients see of that, the errors that they get, and which answers train."""

import json
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.serving.gateways import RunningGateway, add_version, rows, running_gateway
from babylon_rl_tests.serving.scripted_upstream import DONE, Answer, ScriptedUpstream, chunk, completion, event, said, scripted_upstream
from babylon_rl_tests.serving.test_streams import ask, recorded

ADDED = {"logprobs": True, "return_token_ids": True}
STREAMED = ADDED | {"stream_options": {"include_usage": True}}


@pytest.fixture
def scripted() -> Iterator[ScriptedUpstream]:
    with scripted_upstream() as upstream:
        yield upstream


@pytest.fixture
def settings_of(settings: Settings, database: Database, scripted: ScriptedUpstream) -> Settings:
    for version in ("v1.0.0", "v1.0.1"):
        add_version(database, version, "deployed" if version == "v1.0.0" else "ready")
    return settings.model_copy(update={"local_endpoint": scripted.url, "gateway_timeout_seconds": 5.0})


@pytest.fixture
def gateway(settings_of: Settings, database: Database) -> Iterator[RunningGateway]:
    with running_gateway(settings_of, database) as running:
        yield running


def sound(body: dict[str, Any]) -> Answer:
    return [chunk({"content": "hold"}), chunk({}, "stop"), DONE] if body.get("stream") else said(completion())


def refusal(of: str, status: int = 400, **error: Any) -> Callable[[dict[str, Any]], Answer]:
    """A server that does not take a field of the gateway."""
    return lambda body: said({"error": {"message": "No.", **error}}, status) if of in body else sound(body)


FAULTS: dict[str, tuple[str, Callable[[dict[str, Any]], Answer]]] = {
    "refused by name": ("logprobs", refusal("logprobs", message="logprobs is not supported", param="logprobs")),
    "refused by name, 422": ("stream_options", refusal("stream_options", 422, message="Extra inputs are not permitted: stream_options")),
    "unknown": ("return_token_ids", refusal("return_token_ids", message="Unrecognized request argument supplied: return_token_ids")),
    "refused without a name": ("", refusal("logprobs")),
    "fails": ("", refusal("logprobs", 500)),
    "fails by name": ("logprobs", refusal("logprobs", 501, message="logprobs not implemented")),
    "no completion": ("", lambda body: said(b"<html>") if "logprobs" in body else sound(body)),
    "an error event first": ("", lambda body: [event({"error": {"message": "no"}})] if "logprobs" in body else sound(body)),
    "an empty stream": ("", lambda body: [] if "logprobs" in body else sound(body)),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_refuses_or_fails_with_an_addition_is_asked_once_without_for_that_request_alone(
    gateway: RunningGateway, scripted: ScriptedUpstream, fault: str
) -> None:
    named, scripted.answer = FAULTS[fault]
    for _ in range(2):
        del scripted.seen[:]
        status, headers, content = ask(gateway)
        assert (status, headers["x-babylon-version"]) == (200, "v1.0.0") and b"hold" in content
        first, second = scripted.seen
        left = {name for name in STREAMED if named and name != named and not (named == "logprobs" and name == "return_token_ids")}
        assert [first.get(name) for name in STREAMED] == list(STREAMED.values()) and left == STREAMED.keys() & second
    scripted.answer = sound
    ask(gateway, model="v1.0.1")
    ask(gateway)
    assert [STREAMED.keys() - body for body in scripted.seen[-2:]] == [set(), set()]


@pytest.mark.parametrize("param", ["temperature", "messages", "messages[0].content", "messages.0.content", "max_tokens"])
def test_a_field_of_the_client_s_own_that_a_server_refuses_is_not_tried_again(
    gateway: RunningGateway, scripted: ScriptedUpstream, param: str
) -> None:
    scripted.answer = lambda _: said({"error": {"message": "No.", "param": param, "type": "invalid_request_error", "code": None}}, 400)
    status, _, content = ask(gateway, False, temperature=9, max_tokens=-1)
    assert status == 400 and json.loads(content)["error"]["param"] == param and len(scripted.seen) == 1


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, ADDED), ({"logprobs": None}, ADDED), ({"logprobs": False}, {"logprobs": False}), ({"logprobs": True}, ADDED),
        ({"return_token_ids": False}, {"logprobs": True, "return_token_ids": False}), ({"stream": True, "stream_options": None}, STREAMED),
        ({"stream": True, "stream_options": {"include_usage": False}}, ADDED | {"stream_options": {"include_usage": False}}),
        ({"stream": True, "stream_options": {"x": 1}}, ADDED | {"stream_options": {"x": 1, "include_usage": True}}),
    ],
)  # fmt: skip
def test_only_what_a_request_leaves_open_is_added(
    gateway: RunningGateway, scripted: ScriptedUpstream, given: dict[str, Any], sent: dict[str, Any]
) -> None:
    scripted.answer = sound
    assert ask(gateway, **({"stream": False} | given))[0] == 200
    assert {name: value for name, value in scripted.seen[0].items() if name in STREAMED} == sent


def test_all_else_of_a_request_keeps_its_bytes(gateway: RunningGateway, scripted: ScriptedUpstream) -> None:
    kept = [
        rb'"messages":[{"role":"user","content":"h\u00e9 \ud83d\ude00","n":1.50,"n":2}]', b'"temperature":1.0', b'"top_p":1e-7',
        b'"seed":12345678901234567890123', b'"tools":[{"a" : [1 ,2]}]', b'"huge":1e999', '"caf\u00e9":"\u2028"'.encode(),
    ]  # fmt: skip
    line = HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    line.request("POST", "/v1/chat/completions", b'{"model":"v1.0.0",' + b", ".join(kept) + b"}", {"content-type": "application/json"})
    assert line.getresponse().status == 200
    line.close()
    assert all(piece in scripted.raw[0] for piece in kept)


IDS = [7, 8, 2]
TOKENS = [{"token": token, "logprob": -0.5, "bytes": list(token.encode()), "top_logprobs": []} for token in ("ho", "ld", "")]


def vllm(body: dict[str, Any]) -> Answer:
    """What vLLM answers to ``return_token_ids``, and where it is started with ``--return-tokens-as-token-ids``."""
    tokens = [token | {"token": f"token_id:{place}"} for token, place in zip(TOKENS, IDS, strict=True)]
    ids = {"token_ids": IDS} if body.get("return_token_ids") else {}
    if not body.get("stream"):
        answer = completion(logprobs={"content": tokens}, stop_reason=None, **ids)
        return said(answer | ({"prompt_token_ids": [1, 2, 3]} if ids else {}))
    head = event({"id": "c", "prompt_token_ids": [1, 2, 3], "choices": [{"index": 0, "delta": {"role": "assistant"}}]})
    pieces = [
        chunk({"content": part}, logprobs={"content": [token]}, **({"token_ids": [one]} if ids else {}))
        for part, token, one in zip(("ho", "ld", ""), tokens, IDS, strict=True)
    ]
    return [head, *pieces, chunk({}, "stop", token_ids=None), DONE]


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_ids_of_tokens_are_recorded_and_shown_to_clients_that_asked_for_them_alone(
    settings_of: Settings, database: Database, scripted: ScriptedUpstream, stream: bool
) -> None:
    scripted.answer = vllm
    with running_gateway(settings_of, database, writes=True) as gateway:
        plain = ask(gateway, stream)[2]
        asked = ask(gateway, stream, return_token_ids=True, return_tokens_as_token_ids=True)[2]
        found = recorded(database, 2)
    assert b"token_id" not in plain and b'"token": "ho"' in plain and b"stop" in plain
    assert b'"token_ids": [7' in asked and b"token_id:7" in asked and b"prompt_token_ids" in asked
    documents = [json.loads(line[6:]) for line in plain.splitlines() if line.startswith(b"data: {")] if stream else [json.loads(plain)]
    assert all(one["choices"] for one in documents)
    for row in found:
        assert row["response"] == "hold" and [token["tokenId"] for token in row["metadata"]["logprobs"]] == IDS


THOUGHT = ["let ", "me see", "</think>", "\n\n"]


@pytest.mark.slow
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_ids_of_the_reasoning_are_not_the_answer_s(
    settings_of: Settings, database: Database, scripted: ScriptedUpstream, field: str
) -> None:
    texts = [*THOUGHT, "ho", "ld", "<|im_end|>"]
    tokens = [{"token": token, "logprob": -0.5, "bytes": list(token.encode())} for token in texts]
    whole = completion(message={field: "let me see"}, logprobs={"content": tokens}, token_ids=list(range(7)))
    no_answer = completion(None, "length", message={field: "let me see"}, logprobs={"content": tokens[:2]}, token_ids=[0, 1])
    other = completion("sell", message={field: "let me see"}, logprobs={"content": tokens}, token_ids=list(range(7)))
    pieces = [chunk({field: text}, logprobs={"content": [tokens[place]]}, token_ids=[place]) for place, text in enumerate(THOUGHT[:2])]
    pieces += [chunk({field: "", "content": "ho"}, logprobs={"content": tokens[4:5]}, token_ids=[4])]
    both = [chunk({field: "let me see", "content": "ho"}, logprobs={"content": tokens[:5]}, token_ids=list(range(5)))]
    end = [chunk({"content": "ld"}, logprobs={"content": tokens[5:6]}, token_ids=[5]), chunk({}, "stop"), DONE]
    answers: list[Answer] = [said(whole), said(no_answer), said(other), [*pieces, *end], [*both, *end]]
    with running_gateway(settings_of, database, writes=True) as gateway:
        for answer in answers:
            scripted.answer = lambda _, answer=answer: answer  # type: ignore[misc]
            assert ask(gateway, isinstance(answer, list))[0] == 200
        found = recorded(database, len(answers))
    ids = [[token["tokenId"] for token in row["metadata"].get("logprobs") or ()] for row in found]
    assert ids == [[4, 5, 6], [], [], [4, 5], [4, 5]]
    assert [row["response"] for row in found] == ["hold", "", "sell", "hold", "hold"]
    assert [row["reasoning"] for row in found] == ["let me see"] * 5


ERROR = {
    "message": "Too long. " + "Reduce it. " * 30,
    "type": "invalid_request_error",
    "param": "messages",
    "code": "context_length_exceeded",
}
ERRORS: list[tuple[int, Any, dict[str, Any]]] = [
    (400, {"error": ERROR}, ERROR), (409, {"error": ERROR}, ERROR), (413, {"error": ERROR}, ERROR), (422, {"error": ERROR}, ERROR),
    (400, {"error": ERROR | {"type": None, "code": "content_filter", "innererror": {"a": [1]}}},
     ERROR | {"type": None, "code": "content_filter", "innererror": {"a": [1]}}),
    (400, {"object": "error"} | ERROR | {"code": 40303}, {"object": "error"} | ERROR | {"code": 40303}),
    (422, {"detail": [{"loc": ["body", "temperature"], "msg": "bad"}]}, {"detail": [{"loc": ["body", "temperature"], "msg": "bad"}]}),
    (400, {"error": "no such thing"}, {"message": "no such thing", "type": "invalid_request_error", "param": None, "code": None}),
    (400, b"<html>no</html>", {"message": "<html>no</html>"}),
    (400, {"error": ERROR | {"message": "key sk-secretsecret"}}, ERROR | {"message": "key [key]"}),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_the_request_keeps_its_fields_and_headers(gateway: RunningGateway, scripted: ScriptedUpstream, stream: bool) -> None:
    headers = {"retry_after_ms": "300", "x_ratelimit_remaining_requests": "99", "x_internal": "1"}
    for status, document, expected in ERRORS:
        scripted.answer = lambda _, document=document, status=status: said(document, status, **headers)  # type: ignore[misc]
        got, given, content = ask(gateway, stream)
        error = json.loads(content)["error"]
        assert got == status and error["message"] and {name: error[name] for name in expected} == expected
        assert (given["retry-after-ms"], given["x-ratelimit-remaining-requests"]) == ("300", "99") and "x-internal" not in given
    scripted.answer = lambda _: said({"error": ERROR, "request_id": "r1"}, 400)
    assert json.loads(ask(gateway, stream)[2]) == {"error": ERROR, "request_id": "r1"}


@pytest.mark.parametrize("code", [400, "422", 413])
def test_a_stream_that_begins_with_a_refusal_is_that_refusal(gateway: RunningGateway, scripted: ScriptedUpstream, code: int | str) -> None:
    error = ERROR | {"code": code}
    scripted.answer = lambda _: [chunk({"role": "assistant"}), event({"error": error}), DONE]
    status, headers, content = ask(gateway)
    assert (status, json.loads(content)["error"], headers["x-babylon-version"]) == (int(code), error, "v1.0.0")


def test_a_limit_of_the_upstream_s_says_how_long_to_wait(settings_of: Settings, database: Database, scripted: ScriptedUpstream) -> None:
    error = {"message": "Slow down", "type": "tokens", "param": None, "code": "insufficient_quota"}
    scripted.answer = lambda _: said({"error": error}, 429, retry_after="7", retry_after_ms="300", x_ratelimit_limit_tokens="9")
    with running_gateway(settings_of.model_copy(update={"rl_fallback_to_base": False}), database) as gateway:
        status, headers, content = ask(gateway, False)
    assert (status, headers["retry-after"], headers["retry-after-ms"], headers["x-ratelimit-limit-tokens"]) == (429, "7", "300", "9")
    assert json.loads(content)["error"] | {"message": "Slow down"} == error and len(scripted.seen) == 1


HALF = rb'{"model":"v1.0.0","messages":[{"role":"user","content":%b}]%b}'


@pytest.mark.slow
def test_half_a_character_of_a_request_becomes_u_fffd(settings_of: Settings, database: Database, scripted: ScriptedUpstream) -> None:
    bodies = [
        HALF % (rb'"up \ud83d"', b""), HALF % (rb'"up \ud83d"', rb',"metadata":{"a":"\ud83d"}'),
        HALF % (rb'[{"type":"text","text":"up \ud83d"}]', b""),
        HALF % (b'"up \xed\xa0\xbd"', b""), HALF % (rb'"up \ude00"', rb',"user":"\ude00"'),
    ]  # fmt: skip
    with running_gateway(settings_of, database, writes=True) as gateway:
        for body in bodies:
            line = HTTPConnection("127.0.0.1", gateway.port, timeout=30)
            line.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            assert line.getresponse().status == 200
            line.close()
        assert [row["userPrompt"] for row in recorded(database, len(bodies))] == ["up \ufffd"] * len(bodies)
    assert all("\ufffd" in json.dumps(body, ensure_ascii=False) for body in scripted.seen)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"a" 1}', "byte 5"),
        (b'{"model": NaN}', "byte 10"),
        (b'{"a": "caf\xe9"}', "byte 10"),
        (b'{"a": 1', "byte 7"),
        (b'{"a": 1}}', "byte 8"),
    ],
)
def test_a_body_that_is_no_json_is_refused_with_the_byte_and_the_reason(gateway: RunningGateway, body: bytes, reason: str) -> None:
    line = HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    line.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
    response = line.getresponse()
    assert response.status == 400 and reason in json.loads(response.read())["error"]["message"]
    line.close()


@pytest.mark.slow
def test_chats_and_answers_as_the_world_writes_them_are_recorded_as_texts(
    settings_of: Settings, database: Database, scripted: ScriptedUpstream
) -> None:
    parts = [{"type": "text", "text": "You "}, {"type": "text", "text": "trade."}]
    user, seen = {"role": "user", "content": "Prices?"}, ("You trade.", "Prices?")
    chats: list[tuple[list[dict[str, Any]], tuple[str, str], list[dict[str, Any]] | None]] = [
        ([{"role": "developer", "content": "You trade."}, user], seen, None),
        ([{"role": "developer", "content": parts}, user], seen, None),
        ([{"role": "system", "content": ""}, {"role": "developer", "content": None}, user], ("", "Prices?"), [user]),
        ([user, {"role": "assistant"}, user], ("", "Prices?\n\nPrices?"), [user, {"role": "assistant", "content": ""}, user]),
        ([user, {"role": "assistant", "content": None, "refusal": "No."}, user], ("", "Prices?\n\nPrices?"), None),
        ([user, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, user], ("", "Prices?\n\nPrices?"), None),
        ([{"role": "narrator", "content": "x"}, user], ("", ""), None),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], ("", ""), None),
        (
            [user, {"role": "assistant", "content": None, "tool_calls": [{"id": "t"}]}, {"role": "tool", "content": "1"}, user],
            ("", ""),
            None,
        ),
    ]
    answers: list[tuple[dict[str, Any], str]] = [
        (completion(None, message={"refusal": "I cannot."}), "I cannot."), (completion(parts), "You trade."),
        (completion("", "length"), ""),
    ]  # fmt: skip
    with running_gateway(settings_of, database, writes=True) as gateway:
        for messages, *_ in chats:
            assert ask(gateway, False, messages=messages)[0] == 200
        for answer, _ in answers:
            scripted.answer = lambda _, answer=answer: said(answer)  # type: ignore[misc]
            assert ask(gateway, False)[0] == 200
        found = recorded(database, len(chats) + len(answers))
    for row, (messages, prompts, kept) in zip(found, chats, strict=False):
        assert (row["systemPrompt"], row["userPrompt"]) == prompts, messages
        assert kept is None or json.loads(row["messagesJson"]) == kept
    assert [row["response"] for row in found[len(chats) :]] == [text for _, text in answers]


@pytest.mark.slow
def test_a_whole_answer_that_did_not_end_by_itself_is_passed_on_and_never_trains(
    settings_of: Settings, database: Database, scripted: ScriptedUpstream
) -> None:
    with running_gateway(settings_of, database, writes=True) as gateway:
        for reason in ("error", "abort", "", None, "stop", "length"):
            scripted.answer = lambda _, reason=reason: said(completion("buy 5", reason))  # type: ignore[misc]
            status, headers, content = ask(gateway, False)
            assert (status, headers["x-babylon-version"]) == (200, "v1.0.0") and b"buy 5" in content
        found = recorded(database, 6)
        assert [row["metadata"].get("finishReason") for row in found] == ["", None, "stop", "length"]
        for raw in (b'{"choices":[{"message":{"content":"hold"},"logprobs":{"content":[{"token":"hold","logprob":-Infinity}]}}],"x":NaN}',):
            scripted.answer = lambda _, raw=raw: said(raw)  # type: ignore[misc]
            assert ask(gateway, False)[2] == raw
        assert recorded(database, 7)[-1]["metadata"]["logprobs"] == [{"token": "hold", "logprob": -9999.0}]
        for empty in (b'{"choices":[]}', b'{"choices":null}', b"[]", b'{"error":{"message":"no"}}'):
            scripted.answer = lambda body, empty=empty: said(empty) if body["model"] == "v1.0.0" else sound(body)  # type: ignore[misc]
            assert ask(gateway, False)[1]["x-babylon-reason"].startswith("fallback from v1.0.0: no_completion at http")
    assert {row["status"] for row in rows(database, "SELECT status FROM babylon_rl.gateway_calls")} == {200}
