"""The source documents' one-call step, chats of many messages, and log-probabilities in every form that endpoints return."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from openai.types.chat import ChatCompletionMessage

from babylon_rl.episodes.reading import read_window
from babylon_rl.errors import UsageError
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl_tests.recorder.builders import ASKED, LOGPROBS, Recorded, add_users, store
from babylon_rl_tests.rows import WINDOW

CHAT = [
    {"role": "system", "content": "You trade."},
    {"role": "user", "content": "What now?"},
    {"role": "assistant", "content": "Tell me the price."},
    {"role": "user", "content": "It is 7."},
]


def record_one(**step: Any) -> Recorded:
    recorded = Recorded()
    with recorded.recorder.trajectory("agent-1") as begun:
        recorded.recorder.record_step(begun, **step)
    return recorded


def test_the_documents_one_call_step_is_mapped_to_the_databases_names() -> None:
    recorded = record_one(
        step_number=1,
        environment_state={"balance": 1000, "pnl": 50},
        action={"type": "trade", "params": {"side": "YES"}},
        reward=0.8,
        llm_calls=[ASKED],
        provider_accesses=[{"provider": "MARKETS", "payload": {"price": 7}, "purpose": "prices"}],
    )
    (step,) = recorded.steps
    moment = step["timestamp"]
    assert step["environmentState"] == {"agentBalance": 1000, "agentPnL": 50, "openPositions": 0, "timestamp": moment}
    assert step["action"] == {"actionType": "trade", "parameters": {"side": "YES"}, "success": True}
    assert (step["stepNumber"], step["reward"], recorded.columns["totalReward"]) == (0, 0.8, 0.8)
    assert step["providerAccesses"] == [{"providerName": "MARKETS", "data": {"price": 7}, "purpose": "prices"}]
    assert step["llmCalls"][0]["userPrompt"] == "What now?"


def test_a_one_call_step_by_the_databases_names_is_the_same_as_by_the_calls() -> None:
    recorded = record_one(
        environment_state={"openPositions": 2, "agentPnL": 125.5, "agentBalance": 10_000.0, "activeMarkets": 3},
        action={"actionType": "BUY_SHARES", "parameters": {}, "success": False, "error": "too dear", "result": None},
        reward=0,
    )
    (step,) = recorded.steps
    assert list(step["environmentState"]) == ["agentBalance", "agentPnL", "openPositions", "activeMarkets", "timestamp"]
    assert step["action"] == {"actionType": "BUY_SHARES", "parameters": {}, "success": False, "error": "too dear"}
    assert recorded.columns["finalStatus"] == "completed_with_errors"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"environment_state": {"balance": 1}}, "no 'pnl'"),
        ({"action": {"params": {}}}, "no 'type'"),
        ({"reward": float("nan")}, "reward is nan"),
        ({"llm_calls": [ASKED | {"response": 7}]}, "response is 7"),
    ],
)
def test_nothing_of_a_one_call_step_is_recorded_when_a_part_cannot_be(changes: dict[str, Any], words: str) -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    step = {"environment_state": {"balance": 1, "pnl": 2}, "action": {"type": "HOLD"}, "reward": 0.0}
    with pytest.raises(UsageError, match=words):
        recorded.recorder.record_step(begun, **(step | changes))
    recorded.recorder.record_step(begun, **step)
    recorded.recorder.end_trajectory(begun)
    assert (len(recorded.steps), recorded.kept[0].calls) == (1, ())


ENTRY = {"token": '{"', "logprob": -0.5, "bytes": [123, 34], "top_logprobs": []}


@pytest.mark.parametrize(
    "given",
    [
        [ENTRY],
        {"content": [ENTRY], "refusal": None},
        SimpleNamespace(content=[SimpleNamespace(**ENTRY)], refusal=None),
        [SimpleNamespace(**ENTRY)],
    ],
)
def test_logprobs_of_an_openai_endpoint_are_taken_as_they_came(given: Any) -> None:
    recorded = record_one(
        environment_state={"balance": 1, "pnl": 2}, action={"type": "HOLD"}, reward=0, llm_calls=[ASKED | {"logprobs": given}]
    )
    assert recorded.steps[0]["llmCalls"][0]["logprobs"] == [{"token": '{"', "logprob": -0.5}]
    assert json.loads(recorded.kept[0].calls[0]["metadata"])["logprobs"] == [{"token": '{"', "logprob": -0.5}]


@pytest.mark.parametrize("entry", [{"token_id": 17}, {"tokenId": 17}, {"token": "token_id:17"}])
def test_token_ids_are_recorded_where_the_endpoint_tells_them(entry: dict[str, Any]) -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    recorded.step(begun, logprobs=[{"token": "a", "logprob": -1.0} | entry])
    recorded.recorder.end_trajectory(begun)
    assert recorded.steps[0]["llmCalls"][0]["logprobs"][0]["tokenId"] == 17


def test_a_token_that_only_looks_like_an_id_is_its_text() -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    token = "token_id:" + "9" * 5000
    recorded.step(begun, logprobs=[{"token": token, "logprob": -1.0}])
    recorded.recorder.end_trajectory(begun)
    assert recorded.steps[0]["llmCalls"][0]["logprobs"] == [{"token": token, "logprob": -1.0}]


def test_minus_infinity_is_a_log_probability() -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    recorded.step(begun, logprobs=[{"token": "a", "logprob": float("-inf")}])
    recorded.recorder.end_trajectory(begun)
    assert recorded.steps[0]["llmCalls"][0]["logprobs"] == [{"token": "a", "logprob": -9999.0}]


def test_why_an_answer_ended_is_recorded_in_step_and_log() -> None:
    recorded = record_one(
        environment_state={"balance": 1, "pnl": 2}, action={"type": "HOLD"}, reward=0, llm_calls=[ASKED | {"finish_reason": "length"}]
    )
    assert recorded.steps[0]["llmCalls"][0]["finishReason"] == "length"
    assert json.loads(recorded.kept[0].calls[0]["metadata"])["finishReason"] == "length"


def test_a_chat_is_recorded_by_what_its_roles_and_contents_mean() -> None:
    parts = [{"type": "text", "text": "What "}, {"type": "text", "text": "now?"}]
    chat = [{"role": "developer", "content": "You trade."}, {"role": "assistant", "content": None}, {"role": "user", "content": parts}]
    recorded = record_one(
        environment_state={"balance": 1, "pnl": 2}, action={"type": "HOLD"}, reward=0, llm_calls=[ASKED | {"messages": chat}]
    )
    assert json.loads(recorded.kept[0].calls[0]["messagesJson"]) == [
        {"role": "system", "content": "You trade."}, {"role": "assistant", "content": ""}, {"role": "user", "content": "What now?"},
    ]  # fmt: skip


USER = {"role": "user", "content": "Buy?"}
OF_CLIENTS = {
    "openai": (ChatCompletionMessage(role="assistant", content="Hold."), "assistant", "Hold."),
    "openai without a text": (ChatCompletionMessage(role="assistant", content=None), "assistant", ""),
    "openai, refused": (ChatCompletionMessage(role="assistant", content=None, refusal="No."), "assistant", "No."),
    "langchain, human": (SimpleNamespace(type="human", content="Buy?"), "user", "Buy?"),
    "langchain, ai": (SimpleNamespace(type="ai", content=["Ho", {"type": "text", "text": "ld."}], tool_calls=[]), "assistant", "Hold."),
    "langchain, system": (SimpleNamespace(type="system", content="Trade."), "system", "Trade."),
    "objects as parts": (SimpleNamespace(role="user", content=[SimpleNamespace(type="text", text="Buy?")]), "user", "Buy?"),
    "a tuple of parts": ({"role": "assistant", "content": ({"type": "output_text", "text": "Hold."},)}, "assistant", "Hold."),
    "a user's without a text": ({"role": "user", "content": None}, "user", ""),
    "a user's without a content": ({"role": "user"}, "user", ""),
}


@pytest.mark.parametrize("kind", OF_CLIENTS)
def test_messages_are_taken_as_client_libraries_hold_them(kind: str) -> None:
    given, role, content = OF_CLIENTS[kind]
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    recorded.step(begun, messages=iter([USER, given, USER]))
    recorded.recorder.end_trajectory(begun)
    messages = json.loads(recorded.kept[0].calls[0]["messagesJson"])
    assert messages == [USER, {"role": role, "content": content}, USER]


TOOL_CALL = ChatCompletionMessage.model_validate(
    {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
)


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (ChatCompletionMessage(role="assistant", content="Hold."), "Hold."),
        ({"role": "assistant", "content": "Hold."}, "Hold."),
        ([{"type": "text", "text": "Ho"}, {"type": "text", "text": "ld."}], "Hold."),
        (SimpleNamespace(type="ai", content="Hold."), "Hold."),
        (None, ""),
        (ChatCompletionMessage(role="assistant", content=None), ""),
        (TOOL_CALL, ""),
        ({"role": "assistant", "content": "", "function_call": {"name": "f"}}, ""),
    ],
)
def test_an_answer_is_taken_as_client_libraries_hold_it(response: Any, text: str) -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    recorded.step(begun, response=response)
    recorded.recorder.end_trajectory(begun)
    assert (recorded.steps[0]["llmCalls"][0]["response"], recorded.kept[0].calls[0]["response"]) == (text, text)


@pytest.mark.parametrize("nothing", [None, [], {"content": None}])
def test_an_endpoint_without_logprobs_leaves_the_key_out(nothing: Any) -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    recorded.step(begun, logprobs=nothing)
    recorded.recorder.end_trajectory(begun)
    assert "logprobs" not in recorded.steps[0]["llmCalls"][0]


def test_a_chat_of_many_messages_is_read_back_message_by_message(connection: Connection, settings: Settings) -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    recorded.step(begun, messages=CHAT, model_version="v1.0.0", logprobs=LOGPROBS)
    recorded.step(begun)
    recorded.recorder.end_trajectory(begun)
    store(connection, recorded)
    (episode,) = read_window(connection, WINDOW, settings).episodes
    assert [sequence.messages for sequence in episode.sequences] == [CHAT, ASKED["messages"]]
    assert [(sequence.source, sequence.step) for sequence in episode.sequences] == [("llm_call_logs", 0), ("llm_call_logs", 1)]
    assert (episode.sequences[0].logprobs, episode.sequences[0].model_version) == (LOGPROBS, "v1.0.0")


def test_a_call_without_a_system_prompt_reads_the_same_from_steps_and_log(connection: Connection, settings: Settings) -> None:
    recorded, asked = Recorded(), [{"role": "user", "content": "What now?"}]
    begun = recorded.recorder.start_trajectory("agent-1")
    recorded.step(begun, messages=asked)
    recorded.recorder.end_trajectory(begun)
    store(connection, recorded)
    embedded = read_window(connection, WINDOW, settings).episodes[0].sequences[0]
    connection.execute('UPDATE trajectories SET "stepsJson" = %s', (json.dumps([{**recorded.steps[0], "llmCalls": []}]),))
    logged = read_window(connection, WINDOW, settings).episodes[0].sequences[0]
    assert embedded.messages == logged.messages == asked


def test_every_recorded_call_that_trains_is_read_back_as_it_was_recorded(connection: Connection, settings: Settings) -> None:
    recorded = Recorded()
    begun = recorded.recorder.start_trajectory("agent-1")
    texts = ["plain", '{"a": "\\"quoted\\""}', "line\nbreak\ttab", "\\u0041 \\", "ünï 😀 \u2028", "x" * 5000]
    for words in texts:
        recorded.step(begun, messages=[{"role": "system", "content": words}, {"role": "user", "content": words * 2}], response=words)
    recorded.recorder.end_trajectory(begun)
    add_users(connection, "someone-else")
    store(connection, recorded)
    (episode,) = read_window(connection, WINDOW, settings).episodes
    assert [(one.messages[0]["content"], one.messages[1]["content"], one.response) for one in episode.sequences] == [
        (words, words * 2, words) for words in texts
    ]
    assert [one.call_id for one in episode.sequences] == [call["callId"] for call in recorded.kept[0].calls]
