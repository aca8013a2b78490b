"""Answers of models' servers: completions and errors, as the gateway, the judge's client and a recorder read them."""

import json
from typing import Any

from hypothesis import given

from babylon_rl.errors import UsageError
from babylon_rl.llm.retries import CallFailed
from babylon_rl.llm.transports import OpenAITransport
from babylon_rl.recorder.calls import token_logprobs
from babylon_rl.serving.responses import ResponseObject
from babylon_rl.serving.server_sent_events import read_usage
from babylon_rl.serving.upstreams import ReportedError
from babylon_rl.tolerant_json import NotJson, objects, read_json
from babylon_rl_tests.fuzz.inputs import corpus, odd_bytes
from babylon_rl_tests.repeatable import repeatable

SECRET = "sk-secretsecret"
JUDGE = OpenAITransport("http://127.0.0.1:9/v1", "m", SECRET)


def check(raw: bytes) -> None:
    """An answer is read or refused with a sentence, and no key is passed on."""
    error = ReportedError.read(raw, (SECRET,))
    assert error.status is None or 400 <= error.status < 600
    assert isinstance(error.message, str) and error.names(()) is False
    shown = (error.body(400), error.api_error(502, "It failed.").body)
    assert all(json.loads(one)["error"] and SECRET.encode() not in one for one in shown)
    try:
        answer = JUDGE._read(raw)
    except CallFailed as failed:
        assert str(failed)
    else:
        assert answer.text is None or isinstance(answer.text, str)
        json.dumps([answer.logprobs, answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens])
    try:
        completion = read_json(raw)
    except NotJson:
        return
    if isinstance(completion, dict) and (choices := objects(completion.get("choices"))):
        check_completion(completion, choices, raw)


def check_completion(completion: dict[str, Any], choices: list[dict[str, Any]], raw: bytes) -> None:
    read_usage(completion)
    response = json.loads(ResponseObject({"include": ["message.output_text.logprobs"]}).whole(raw))
    assert response["status"] in ("completed", "incomplete")
    for choice in choices:
        try:
            json.dumps(token_logprobs(choice.get("logprobs")), allow_nan=False)
        except UsageError as refused:
            assert str(refused)


def test_every_kept_answer_is_read_or_refused_with_a_sentence() -> None:
    for raw in corpus("upstreams"):
        check(raw)


@repeatable(200)
@given(odd_bytes("upstreams"))
def test_any_answer_is_read_or_refused_with_a_sentence(raw: bytes) -> None:
    check(raw)
