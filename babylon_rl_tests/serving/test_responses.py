"""The Responses API at the gateway, asked by the official client and as raw HTTP."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from babylon_rl.serving.responses import ResponseObject
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.serving.acting_stand_in import SAID, ActingStandIn, acting_stand_in
from babylon_rl_tests.serving.gateways import RunningGateway, add_version, rows, running_gateway, wait_for

TOOL: Any = {
    "type": "function", "name": "price", "description": "A price.", "strict": True,
    "parameters": {"type": "object", "properties": {"ticker": {"type": "string"}}, "required": ["ticker"], "additionalProperties": False},
}  # fmt: skip
ARGUMENTS = '{"ticker": "BTC"}'
USER: Any = {"role": "user", "content": "Price of BTC?"}


@pytest.fixture
def acting() -> Iterator[ActingStandIn]:
    with acting_stand_in() as stand_in:
        yield stand_in


@pytest.fixture
def gateway(settings: Settings, database: Database, acting: ActingStandIn) -> Iterator[RunningGateway]:
    add_version(database, "v1.0.0")
    with running_gateway(settings.model_copy(update={"local_endpoint": acting.url}), database, writes=True) as running:
        yield running


def post(gateway: RunningGateway, **body: Any) -> httpx2.Response:
    return httpx2.post(f"{gateway.url}/responses", json={"model": "gpt-4o-mini", "input": "Buy?", **body}, timeout=30)


def ask(gateway: RunningGateway, **body: Any) -> tuple[Any, list[Any]]:
    """The response to a request, whole or streamed, and the events of a stream."""
    client = gateway.client()
    if not body.get("stream"):
        return client.responses.create(**{"model": "gpt-4o-mini", "input": "Buy?", **body}), []
    events = list(client.responses.create(**{"model": "gpt-4o-mini", "input": "Buy?", **body}))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events[-1].response, events


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_is_asked_for_answered_and_recorded_as_a_chat(
    gateway: RunningGateway, acting: ActingStandIn, database: Database, stream: bool
) -> None:
    response, events = ask(
        gateway, stream=stream, instructions="You trade.", temperature=0.5, max_output_tokens=9, user="agent-7", store=False
    )
    assert response.output_text.strip() == SAID and response.status == "completed"
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.input_tokens_details.cached_tokens) == (11, 7, 3)
    assert (response.instructions, response.max_output_tokens, response.model) == ("You trade.", 9, "v1.0.0")
    (asked,) = acting.seen
    assert asked["messages"] == [{"role": "system", "content": "You trade."}, {"role": "user", "content": "Buy?"}]
    assert (asked["temperature"], asked["max_tokens"], asked["user"]) == (0.5, 9, "agent-7")
    assert "store" not in asked and "input" not in asked
    if stream:
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta").strip() == SAID
        assert [event.type for event in events if "delta" not in event.type] == [
            "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
            "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
        ]  # fmt: skip
    wait_for(lambda: rows(database, "SELECT 1 FROM llm_call_logs"), "the call")
    statement = 'SELECT "agentId", "systemPrompt", "userPrompt", response FROM babylon_rl.gateway_calls JOIN llm_call_logs USING ("callId")'
    (row,) = rows(database, statement)
    assert (row["agentId"], row["systemPrompt"], row["userPrompt"]) == ("agent-7", "You trade.", "Buy?") and row["response"].strip() == SAID


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("before", ["", "#before "])
def test_a_tool_is_called_and_its_result_sent_back(gateway: RunningGateway, acting: ActingStandIn, stream: bool, before: str) -> None:
    asked = {"role": "user", "content": f"{before}Price?"}
    tools = [TOOL, TOOL | {"name": "volume"}]
    response, events = ask(gateway, stream=stream, input=[asked], tools=tools, tool_choice="required")
    *texts, first, second = response.output
    assert [text.content[0].text.strip() for text in texts] == (["Let me see."] if before else [])
    assert [(call.type, call.name, call.call_id, call.arguments) for call in (first, second)] == [
        ("function_call", "price", "call_0", ARGUMENTS), ("function_call", "volume", "call_1", ARGUMENTS),
    ]  # fmt: skip
    if stream:
        done = [event.item for event in events if event.type == "response.output_item.done"]
        assert [item.id for item in done] == [item.id for item in response.output]
        deltas = [event for event in events if event.type == "response.function_call_arguments.delta"]
        assert "".join(event.delta for event in deltas if event.item_id == second.id) == ARGUMENTS
    assert acting.seen[0]["tools"][0] == {"type": "function", "function": {name: TOOL[name] for name in TOOL if name != "type"}}
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "100"} for call in (first, second)]
    history = [asked, *(item.model_dump(exclude_none=True) for item in response.output), *results]
    last, _ = ask(gateway, stream=stream, input=history, tools=tools)
    assert last.output_text.strip() == SAID
    calls, *answers = acting.seen[1]["messages"][1:]
    assert (calls["content"] or "").strip() == ("Let me see." if before else "") and len(calls["tool_calls"]) == 2
    assert calls["tool_calls"][0] == {"id": "call_0", "type": "function", "function": {"name": "price", "arguments": ARGUMENTS}}
    assert answers == [{"role": "tool", "tool_call_id": f"call_{place}", "content": "100"} for place in (0, 1)]


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ([{"type": "message", **USER}], [USER]),
        ([{"role": "developer", "content": "Trade."}, USER], [{"role": "developer", "content": "Trade."}, USER]),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}],
            [{"role": "user", "content": "ab"}],
        ),
        (
            [USER, {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "id": "msg_1"}, USER],
            [USER, {"role": "assistant", "content": "No."}, USER],
        ),
        ([USER, {"type": "reasoning", "id": "rs_1", "summary": []}, USER], [USER, USER]),
        (
            [
                USER, {"type": "function_call", "call_id": "c", "name": "a", "arguments": "{}"}, {"role": "assistant", "content": "Wait."},
                {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "1"}]},
            ],
            [
                USER,
                {
                    "role": "assistant", "content": "Wait.",
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "a", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "c", "content": "1"},
            ],
        ),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "http://x/y"}]}],
            [
                {"role": "user", "content": [
                    {"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "http://x/y", "detail": "auto"}},
                ]},
            ],
        ),
    ],
)  # fmt: skip
def test_items_of_every_kind_become_messages(gateway: RunningGateway, acting: ActingStandIn, items: list[Any], messages: list[Any]) -> None:
    assert post(gateway, input=items).status_code == 200
    assert acting.seen[0]["messages"] == messages


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"text": {"format": {"type": "text"}}}, {}),
        (
            {"text": {"format": {"type": "json_object"}, "verbosity": "low"}},
            {"response_format": {"type": "json_object"}, "verbosity": "low"},
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "a", "strict": True, "schema": {"enum": ["buy"]}}}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {"enum": ["buy"]}}}},
        ),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "name": "price"}},
            {"tool_choice": {"type": "function", "function": {"name": "price"}}},
        ),
        ({"include": ["reasoning.encrypted_content"], "truncation": "disabled", "background": False, "metadata": {"a": "b"}}, {}),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"top_k": 5, "previous_response_id": None}, {"top_k": 5}),
    ],
)  # fmt: skip
def test_fields_are_sent_under_their_names_in_a_chat(gateway: RunningGateway, acting: ActingStandIn, given: Any, sent: Any) -> None:
    assert post(gateway, **given).status_code == 200
    (asked,) = acting.seen
    tools = {"tools": asked["tools"]} if "tools" in given else {}
    added = {name: asked[name] for name in ("logprobs", "return_token_ids") if name in asked}
    assert asked == added | {"model": "v1.0.0", "messages": [{"role": "user", "content": "Buy?"}], **tools, **sent}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [TOOL, {"type": "file_search", "vector_store_ids": ["v"]}]}, "tools[1]"),
        ({"tools": [{"type": "mcp", "server_label": "a"}]}, "tools[0]"),
        ({"tools": [{"type": "custom", "name": "a"}]}, "tools[0]"),
        ({"tools": [TOOL], "tool_choice": {"type": "web_search_preview"}}, "tool_choice"),
        ({"include": ["web_search_call.action.sources"]}, "include[0]"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [USER, {"type": "web_search_call", "id": "ws_1"}]}, "input[1]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0]"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"text": "json"}, "text"),
    ],
)
def test_what_needs_a_store_or_a_program_at_openai_is_refused_by_its_name(
    gateway: RunningGateway, acting: ActingStandIn, given: Any, param: str
) -> None:
    answer = post(gateway, **given)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and param in error["message"] and not acting.seen


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"input": 1e999}', b"[" * 2000, b'{"input": {"a": []}}', b'{"tools": 5, "input": "x"}']
)
def test_what_is_no_request_is_a_400(gateway: RunningGateway, body: bytes) -> None:
    answer = httpx2.post(f"{gateway.url}/responses", content=body)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_cut_is_incomplete_and_a_refusal_is_one(gateway: RunningGateway, stream: bool) -> None:
    cut, _ = ask(gateway, stream=stream, input="#cut Buy?")
    assert (cut.status, cut.incomplete_details.reason, cut.output[0].status) == ("incomplete", "max_output_tokens", "incomplete")
    refused, _ = ask(gateway, stream=stream, input="#refuse Buy?")
    assert refused.output[0].content[0].refusal.strip() == "I cannot do that." and refused.status == "completed"


def test_a_stream_that_breaks_is_an_error_of_the_client_and_no_answer(gateway: RunningGateway) -> None:
    with pytest.raises(openai.APIError, match="stream"):
        list(gateway.client().responses.create(model="gpt-4o-mini", input="#break Buy?", stream=True))
    events = post(gateway, input="#break Buy?", stream=True).text
    assert events.count("event: error\n") == events.count("event: response.failed\n") == 1 and "completed" not in events


def test_errors_and_headers_are_those_of_a_chat(gateway: RunningGateway) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        gateway.client().responses.create(model="v9.9.9", input="Buy?")
    assert unknown.value.code == "model_not_found"
    answered = post(gateway)
    assert answered.headers["x-babylon-version"] == "v1.0.0" and int(answered.headers["content-length"]) == len(answered.content)
    assert httpx2.get(f"{gateway.url}/responses").status_code == 405
    assert httpx2.get(f"{gateway.url}/responses/resp_1").json()["error"]["code"] == "not_found"


def test_typed_answers_are_parsed_by_the_official_client(gateway: RunningGateway) -> None:
    form = {"type": "json_schema", "name": "a", "schema": {"type": "object", "properties": {"ticker": {"type": "string"}}}}
    response, _ = ask(gateway, text={"format": form})
    assert json.loads(response.output_text) == {"ticker": "BTC"}


def test_half_a_surrogate_pair_in_a_request_is_the_replacement_character(gateway: RunningGateway, acting: ActingStandIn) -> None:
    answer = httpx2.post(f"{gateway.url}/responses", content=rb'{"model": "gpt-4o", "input": "up \ud83d"}')
    assert answer.status_code == 200 and acting.seen[0]["messages"][0]["content"] == "up \N{REPLACEMENT CHARACTER}"


def test_a_character_in_two_halves_and_events_that_say_nothing_are_one_text() -> None:
    said = [r'{"content": "up \ud83d"}', "{}", r'{"content": "\ude00 end"}']
    chunks = [f'data: {{"choices": [{{"index": 0, "delta": {delta}}}]}}\n\n'.encode() for delta in said]
    chunks += [
        b": ping\n\n",
        b"data: null\n\n",
        b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": null}\n\n',
    ]
    answer = ResponseObject({"stream": True})
    events = b"".join(answer.events(chunk) for chunk in [*chunks, b"data: [DONE]\n\n"])
    last = json.loads(events.strip().rpartition(b"data: ")[2])["response"]
    assert last["output"][0]["content"][0]["text"] == "up \N{GRINNING FACE} end" and last["status"] == "completed"


def test_an_empty_usage_does_not_take_the_place_of_counts() -> None:
    response = ResponseObject({"stream": True})
    for usage in ({"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}, {}, {"prompt_tokens": 0, "total_tokens": 0}):
        response.events(b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": usage}).encode() + b"\n\n")
    ended = response.events(b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n')
    assert json.loads(ended.rstrip().rpartition(b"data: ")[2])["response"]["usage"]["input_tokens"] == 11
