"""What `serve model` does with each field of a request: it is served, or refused by its name."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from starlette.testclient import TestClient

from babylon_rl.models.policy import Policy
from babylon_rl.models.server import create_app
from babylon_rl_tests.tiny_model import make_base
from babylon_rl_tests.tiny_tokenizer import TEMPLATE, make_tokenizer

pytestmark = pytest.mark.slow  # torch is imported

USER = {"role": "user", "content": "The price of TESLAI rose. Decide."}
FREE: dict[str, Any] = {"temperature": 0, "max_tokens": 40}


@pytest.fixture(scope="module")
def client(loaded_policy: Policy) -> Iterator[TestClient]:
    with TestClient(create_app(Policy(loaded_policy.model, loaded_policy.tokenizer))) as opened:
        yield opened


def post(client: TestClient, **body: Any) -> httpx2.Response:
    return client.post("/v1/chat/completions", json={"model": "base", "messages": [USER], **body})


def text(answer: httpx2.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def events(answer: httpx2.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("asked", ["one", "list", "four"])
@pytest.mark.parametrize("width", [1, 3, 7])
def test_a_stop_string_ends_the_text_before_it_and_counts_what_was_drawn(
    client: TestClient, tokenizer: Any, asked: str, width: int
) -> None:
    whole = text(post(client, **FREE))
    stop = whole[len(whole) // 2 :][:width]
    wanted = whole[: whole.index(stop)]
    given = {"one": stop, "list": [stop], "four": ["\0\0", stop, "\0\1", "\0\2"]}[asked]
    answer = post(client, stop=given, logprobs=True, **FREE)
    assert text(answer) == wanted
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    shown = tokenizer.decode([entry["token_id"] for entry in choice["logprobs"]["content"]])
    assert wanted.startswith(shown) and len(choice["logprobs"]["content"]) < answer.json()["usage"]["completion_tokens"] < 40
    parts = events(post(client, stop=given, logprobs=True, stream=True, **FREE))
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts) == wanted
    assert parts[-1]["choices"][0]["finish_reason"] == "stop"
    entries = [entry for part in parts[:-1] for entry in part["choices"][0]["logprobs"]["content"]]
    assert entries == choice["logprobs"]["content"]


def test_a_text_that_only_begins_like_a_stop_string_is_streamed_whole(client: TestClient) -> None:
    whole = text(post(client, **FREE))
    parts = events(post(client, stop=[whole[-3:] + "\0", "\0"], stream=True, **FREE))
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts) == whole


def test_an_answer_under_a_grammar_stops_too(client: TestClient, trade_format: dict[str, Any]) -> None:
    assert text(post(client, stop="action", response_format=trade_format)) == '{"'


def test_the_likeliest_tokens_are_given_in_order_with_the_one_that_was_taken(client: TestClient, trade_format: dict[str, Any]) -> None:
    entries = post(client, logprobs=True, top_logprobs=3, **FREE).json()["choices"][0]["logprobs"]["content"]
    for entry in entries:
        top = [one["logprob"] for one in entry["top_logprobs"]]
        assert len(top) == 3 and top == sorted(top, reverse=True)
        # At temperature 0 the likeliest was taken.
        assert entry["top_logprobs"][0]["token_id"] == entry["token_id"] and top[0] == entry["logprob"]
    bound = post(client, logprobs=True, top_logprobs=20, response_format=trade_format).json()["choices"][0]["logprobs"]["content"]
    for entry in bound:
        assert entry["token_id"] in [one["token_id"] for one in entry["top_logprobs"]]
        assert sum(2.718281828459045 ** one["logprob"] for one in entry["top_logprobs"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", list("abcde")), ("stop", [""]), ("stop", ""), ("stop", 3), ("top_logprobs", 3), ("top_logprobs", -1), ("top_logprobs", 21),
        ("n", 2), ("n", True), ("top_p", 0.9), ("frequency_penalty", 2.0), ("presence_penalty", -1), ("logit_bias", {"28": -100}),
        ("tools", [{"type": "function", "function": {"name": "price"}}]), ("functions", [{"name": "price"}]), ("tool_choice", "required"),
        ("modalities", ["audio"]), ("audio", {"voice": "alloy"}), ("prediction", {"type": "content", "content": "x"}),
        ("reasoning_effort", "high"), ("top_k", 5), ("guided_json", {}), ("temperature", -1), ("temperature", "hot"), ("max_tokens", 0),
        ("stream_options", {"include_usage": True}), ("response_format", {"type": "json_object"}), ("response_format", {"type": "grammar"}),
        ("response_format", {}), ("response_format", {"type": "json_schema"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "string"}}}), ("seed", "x"),
        ("messages", []), ("model", 3),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_by_its_name(client: TestClient, name: str, value: Any) -> None:
    answer = post(client, **{name: value})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == name, error
    assert name in error["message"] or (name in ("messages", "model") and error["type"] == "invalid_request_error")


def test_what_asks_for_nothing_is_served(client: TestClient) -> None:
    neutral = {
        "n": 1, "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}, "tools": [], "stop": None, "seed": None,
        "user": "agent", "metadata": {"a": "b"}, "store": False, "tool_choice": "none", "response_format": {"type": "text"},
        "top_logprobs": 0, "logprobs": False, "stream": False, "parallel_tool_calls": True, "unknown": None,
    }  # fmt: skip
    assert text(post(client, **neutral, **FREE)) == text(post(client, **FREE))


def test_a_limit_beyond_the_context_is_cut_to_what_is_left_and_a_prompt_beyond_it_is_refused_with_openais_code(client: TestClient) -> None:
    fits = post(client, max_tokens=100000, temperature=0, messages=[{"role": "user", "content": "x" * 470}]).json()
    assert fits["usage"]["total_tokens"] <= 512
    if fits["usage"]["total_tokens"] == 512:
        assert fits["choices"][0]["finish_reason"] == "length"
    error = post(client, messages=[{"role": "user", "content": "x" * 600}]).json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "messages", "context_length_exceeded")


def test_usage_is_streamed_in_an_event_of_its_own_where_it_is_asked_for(client: TestClient) -> None:
    whole = post(client, **FREE).json()
    parts = events(post(client, stream=True, stream_options={"include_usage": True}, **FREE))
    assert parts[-1]["choices"] == [] and parts[-1]["usage"] == whole["usage"]
    assert all(part["usage"] is None and len(part["choices"]) == 1 for part in parts[:-1])
    assert parts[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]


@pytest.mark.parametrize(
    ("message", "same_as"),
    [
        ({"role": "developer", "content": "You sell."}, {"role": "system", "content": "You sell."}),
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
        ({"role": "assistant"}, {"role": "assistant", "content": ""}),
        ({"role": "assistant", "content": []}, {"role": "assistant", "content": ""}),
        ({"role": "assistant", "content": None, "refusal": "No."}, {"role": "assistant", "content": "No."}),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, {"role": "assistant", "content": "No."}),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, {"role": "user", "content": "ab"}),
    ],
)
def test_roles_and_contents_are_read_as_what_they_mean(client: TestClient, message: dict[str, Any], same_as: dict[str, Any]) -> None:
    one, other = (post(client, messages=[first, USER], **FREE).json() for first in (message, same_as))
    assert (one["usage"], one["choices"]) == (other["usage"], other["choices"])


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "narrator", "content": "x"}, "role"),
        ({"role": "function", "name": "price", "content": "x"}, "role"),
        ({"role": "tool", "tool_call_id": "c", "content": "100"}, "role"),
        ({"role": "", "content": "x"}, "role"),
        ({"content": "x"}, "role"),
        ({"role": ["user"], "content": "x"}, "role"),
        ({"role": "user", "content": 5}, "content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "content"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "a"}}]}, "tool_calls"),
    ],
)
def test_a_message_that_is_no_text_of_a_known_role_is_refused_by_its_place(client: TestClient, message: dict[str, Any], param: str) -> None:
    answer = post(client, messages=[USER, message, USER])
    assert answer.status_code == 400 and answer.json()["error"]["param"] == f"messages[1].{param}"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (rb'{"model":"base","max_tokens":2,"messages":[{"role":"user","content":"up \ud83d"}]}', "up \N{REPLACEMENT CHARACTER}"),
        (rb'{"model":"base","max_tokens":2,"messages":[{"role":"user","content":"\ude00 up"}]}', "\N{REPLACEMENT CHARACTER} up"),
        (rb'{"model":"base","max_tokens":2,"user":"\ud83d","messages":[{"role":"user","content":"\ud83d\ude00"}]}', "\N{GRINNING FACE}"),
    ],
)
def test_half_a_surrogate_pair_is_the_replacement_character(client: TestClient, body: bytes, says: str) -> None:
    answer = client.post("/v1/chat/completions", content=body)
    other = post(client, messages=[{"role": "user", "content": says}], max_tokens=2)
    assert answer.status_code == 200 and answer.json()["usage"]["prompt_tokens"] == other.json()["usage"]["prompt_tokens"]


@pytest.mark.parametrize("body", [b"[" * 5000, b'{"a":' * 970 + b"1" + b"}" * 970, b"[]", b'{"model": "base"', b"\xff{", b""])
def test_what_is_no_request_is_refused_in_openais_shape(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("body", "place"), [(b'{"model": "base", "messages": [}', 31), (b'{"model": "\xff"}', 11), (b"{'model': 1}", 1)])
def test_a_body_that_is_no_json_is_refused_at_its_byte(client: TestClient, body: bytes, place: int) -> None:
    assert f"at byte {place}" in client.post("/v1/chat/completions", content=body).json()["error"]["message"]


def test_an_unknown_path_or_method_is_refused_in_openais_shape(client: TestClient) -> None:
    for answer, status in ((client.get("/v1/embeddings"), 404), (client.get("/v1/chat/completions"), 405)):
        assert answer.status_code == status and set(answer.json()["error"]) == {"message", "type", "param", "code"}


SAID = "System role not supported"
RAISES = f"{{% if messages[0]['role'] == 'system' %}}{{{{ raise_exception('{SAID}') }}}}{{% endif %}}{TEMPLATE}"


@pytest.mark.parametrize(("template", "said"), [(RAISES, SAID), (None, "chat_template"), ("{{ 1 + 'a' }}", "template")])
def test_a_template_that_raises_is_a_refusal_with_its_sentence(tmp_path: Path, template: str | None, said: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    with TestClient(create_app(Policy.load(make_base(tmp_path, tokenizer=tokenizer), dtype=torch.float32))) as served:
        answer = post(served, messages=[{"role": "system", "content": "You trade."}, USER])
        assert answer.status_code == 400 and said in answer.json()["error"]["message"] and answer.json()["error"]["param"] == "messages"


def test_every_end_token_of_the_generation_config_ends_an_answer(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    first = Policy.load(base, dtype=torch.float32)
    with TestClient(create_app(first)) as served:
        tokens = [entry["token_id"] for entry in post(served, logprobs=True, **FREE).json()["choices"][0]["logprobs"]["content"]]
    config = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [2, tokens[4]]}))
    with TestClient(create_app(Policy.load(base, dtype=torch.float32))) as served:
        choice = post(served, logprobs=True, **FREE).json()["choices"][0]
    ended = tokens[: tokens.index(tokens[4]) + 1]
    assert [entry["token_id"] for entry in choice["logprobs"]["content"]] == ended and choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == first.text(ended[:-1])
