"""The bodies that the gateway and the model server read."""

import json

from hypothesis import given

from babylon_rl.api_errors import ApiError
from babylon_rl.errors import RequestRefused
from babylon_rl.http_server import refuse_nesting
from babylon_rl.models.chat_request import read_request
from babylon_rl.serving.chat_request import CallContext, ChatRequest, read_object
from babylon_rl.serving.responses import chat_request
from babylon_rl_tests.fuzz.inputs import corpus, odd_bytes
from babylon_rl_tests.repeatable import repeatable


def check(raw: bytes) -> None:
    """A body is refused with a sentence, or passed on as a request with the same messages."""
    try:
        refuse_nesting(raw)
    except ApiError as refused:
        assert refused.status == 400
        return
    check_chat(raw)
    try:
        asked = chat_request(read_object(raw)[0])
        ChatRequest.of(json.dumps(asked).encode())
    except ApiError as refused:
        assert refused.status == 400 and str(refused)
    try:
        read_request(raw).completion_request()
    except RequestRefused as refused:
        assert str(refused)
    try:
        context = CallContext.of({"x-babylon-provider-accesses": raw.decode("latin-1"), "x-babylon-agent": raw[:300].decode("latin-1")})
        json.dumps(context.provider_accesses)
    except ApiError as refused:
        assert refused.status == 400 and str(refused)


def check_chat(raw: bytes) -> None:
    try:
        request = ChatRequest.of(raw)
    except ApiError as refused:
        assert refused.status == 400 and str(refused)
        return
    sent, _ = read_object(request.body_for("base", request.open_fields))
    assert sent["model"] == "base"
    others = {*request.open_fields, "model"}
    assert all(sent[name] == value for name, value in request.document.items() if name not in others)


def test_every_kept_body_is_passed_on_or_refused_with_a_sentence() -> None:
    for raw in corpus("gateway"):
        check(raw)


@repeatable(200)
@given(odd_bytes("gateway"))
def test_any_body_is_passed_on_or_refused_with_a_sentence(raw: bytes) -> None:
    check(raw)
