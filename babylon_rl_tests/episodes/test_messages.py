"""Where a trajectory's calls come from, which of them train, and that they are exactly what was served."""

import json
from datetime import timedelta
from typing import Any

import pytest

from babylon_rl.episodes.reading import read_window
from babylon_rl.episodes.trajectories import valid_messages
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection
from babylon_rl.types import Episode, ServedSequence
from babylon_rl_tests.rows import START, WINDOW, insert, make_call, make_log, make_step, make_trajectory


def episode_of(connection: Connection, settings: Settings, rows: list[dict[str, Any]], logs: list[dict[str, Any]] | None = None) -> Episode:
    insert(connection, "trajectories", rows)
    insert(connection, "llm_call_logs", logs or [])
    (episode,) = read_window(connection, WINDOW, settings).episodes
    return episode


def sequences(
    connection: Connection, settings: Settings, steps: list[dict[str, Any]], logs: list[dict[str, Any]] | None = None
) -> tuple[ServedSequence, ...]:
    return episode_of(connection, settings, [make_trajectory(steps=steps)], logs).sequences


def test_a_call_is_kept_as_it_was_served(connection: Connection, settings: Settings) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "trade", "schema": {}}}
    logprobs = [{"token": "{", "logprob": -0.1, "tokenId": 7}]
    call = make_call(reasoning="never trained", modelVersion="v1.0.1", responseFormat=schema, logprobs=logprobs, latencyMs=1.5)
    (served,) = sequences(connection, settings, [make_step(3, calls=[call])])
    assert served == ServedSequence(
        trajectory_id="t1", call_id="t1-call-3-0", step=3, source="embedded", purpose="action", model="qwen/qwen3-32b",
        messages=[{"role": "system", "content": "You trade."}, {"role": "user", "content": "What now?"}],
        response='{"action": "hold"}', model_version="v1.0.1", response_format=schema, logprobs=logprobs, minute=5,
    )  # fmt: skip
    assert not served.scripted


def test_scripted_prompts_are_marked(connection: Connection, settings: Settings) -> None:
    (served,) = sequences(connection, settings, [make_step(calls=[make_call(model="scripted/momentum")])])
    assert served.scripted


def test_action_calls_train_and_others_do_not(connection: Connection, settings: Settings) -> None:
    steps = [make_step(0, calls=[make_call(purpose="reasoning", response="r"), make_call(response="a")])]
    steps += [make_step(1, action="CREATE_POST", calls=[make_call(purpose="response", response="p")])]
    assert [served.response for served in sequences(connection, settings, steps)] == ["a"]


@pytest.mark.parametrize(
    ("recorded", "served"),
    [
        (
            [{"role": "developer", "content": "You trade."}, {"role": "user", "content": "Now?"}],
            [("system", "You trade."), ("user", "Now?")],
        ),
        ([{"role": "assistant", "content": None}, {"role": "user", "content": "Now?"}], [("assistant", ""), ("user", "Now?")]),
        ([{"role": "user", "content": [{"type": "text", "text": "No"}, {"type": "text", "text": "w?"}]}], [("user", "Now?")]),
        ([{"role": "user", "content": "Now?", "name": "game"}], [("user", "Now?")]),
    ],
)
def test_messages_are_read_by_what_their_roles_and_contents_mean(recorded: Any, served: Any) -> None:
    found = valid_messages(json.dumps(recorded).encode())
    assert found is not None and [(message["role"], message["content"]) for message in found] == served


@pytest.mark.parametrize(
    "recorded",
    [
        [{"role": "tool", "content": "7"}, {"role": "user", "content": "Now?"}],
        [{"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}, {"role": "user", "content": "Now?"}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{"role": "user", "content": None}],
        ["Now?"],
    ],
)
def test_messages_that_no_sequence_can_hold_are_none(recorded: Any) -> None:
    assert valid_messages(json.dumps(recorded).encode()) is None


@pytest.mark.parametrize("action", ["TRADING_DECISION", "BUY_SHARES", "SELL_SHARES", "HOLD"])
def test_first_call_of_a_trading_step_without_an_action_call_trains(connection: Connection, settings: Settings, action: str) -> None:
    calls = [make_call(purpose="reasoning", response="first"), make_call(purpose="other", response="second")]
    assert [served.response for served in sequences(connection, settings, [make_step(action=action, calls=calls)])] == ["first"]


def test_purposes_that_train_are_a_setting(connection: Connection, settings: Settings) -> None:
    steps = [make_step(action="CREATE_POST", calls=[make_call(purpose="response", response="p"), make_call(response="a")])]
    chosen = settings.model_copy(update={"train_purposes": "response"})
    assert [served.response for served in sequences(connection, chosen, steps)] == ["p"]


@pytest.mark.parametrize("change", [{"response": ""}, {"response": None}, {"userPrompt": ...}, {"userPrompt": 5}])
def test_a_call_without_prompt_or_response_is_no_sequence(connection: Connection, settings: Settings, change: dict[str, Any]) -> None:
    episode = episode_of(connection, settings, [make_trajectory(steps=[make_step(calls=[make_call(**change)])])])
    assert episode.sequences == () and episode.message_sources["embedded"] == 1


def test_steps_win_over_the_log(connection: Connection, settings: Settings) -> None:
    found = sequences(connection, settings, [make_step(calls=[make_call(response="mine")])], [make_log("t1", response="logged")])
    assert [(served.response, served.source) for served in found] == [("mine", "embedded")]


def test_log_calls_belong_to_the_step_they_name_or_the_last_that_had_begun(connection: Connection, settings: Settings) -> None:
    steps = [make_step(0), make_step(1), make_step(2)]
    logs = [
        make_log("t1", 0, step=2, timestamp=START, response="named"),
        make_log("t1", 1, stepId="uuid", timestamp=START + timedelta(seconds=15), response="in time"),
        make_log("t1", 2, stepId="other", timestamp=START - timedelta(hours=1), response="before all"),
    ]
    found = sequences(connection, settings, steps, logs)
    assert [(served.step, served.response) for served in found] == [(0, "before all"), (1, "in time"), (2, "named")]
    assert {served.source for served in found} == {"llm_call_logs"}


def test_calls_of_a_pending_step_are_left_out(connection: Connection, settings: Settings) -> None:
    steps = [make_step(0), make_step(1, action="pending")]
    logs = [make_log("t1", 0, step=0, response="kept"), make_log("t1", 1, step=1, response="dropped")]
    assert [served.response for served in sequences(connection, settings, steps, logs)] == ["kept"]


def test_calls_made_while_a_step_was_pending_are_left_out(connection: Connection, settings: Settings) -> None:
    steps = [make_step(0), make_step(1, action="pending"), make_step(2)]
    logs = [make_log("t1", number, stepId="uuid", timestamp=START + timedelta(seconds=10 * number + 1)) for number in range(3)]
    assert [served.call_id for served in sequences(connection, settings, steps, logs)] == ["t1-call-0-0", "t1-call-0-2"]


def test_steps_without_a_number_are_those_of_their_place(connection: Connection, settings: Settings) -> None:
    steps = [make_step(0, action="pending", stepNumber=None), make_step(1, stepNumber=None)]
    logs = [make_log("t1", 0, step=1, response="kept"), make_log("t1", 1, step=0), make_log("t1", 2, stepId="t1-step-" + "9" * 5000)]
    assert [(served.step, served.response) for served in sequences(connection, settings, steps, logs)] == [(1, "kept")]


@pytest.mark.parametrize(
    ("recorded", "first"),
    [
        ('[{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]', "S"),
        ("broken", "You trade."),
        ("[]", "You trade."),
        ('[{"role": "user"}]', "You trade."),
        ('[{"role": "user", "content": "U"}, {"role": "assistant", "content": "said"}]', "You trade."),
        (None, "You trade."),
    ],
)
def test_messages_json_is_preferred_where_valid(connection: Connection, settings: Settings, recorded: str | None, first: str) -> None:
    (served,) = sequences(connection, settings, [make_step()], [make_log("t1", messagesJson=recorded)])
    assert served.messages[0]["content"] == first


def test_metadata_of_a_log_row_gives_version_format_and_logprobs(connection: Connection, settings: Settings) -> None:
    metadata = {"modelVersion": "v2.0.0", "responseFormat": {"type": "json_schema"}, "logprobs": [{"token": "x", "logprob": -1.0}]}
    (served,) = sequences(connection, settings, [make_step()], [make_log("t1", metadata=json.dumps(metadata))])
    assert (served.model_version, served.response_format, served.logprobs) == ("v2.0.0", metadata["responseFormat"], metadata["logprobs"])


def test_an_episode_can_have_all_three_sources(connection: Connection, settings: Settings) -> None:
    rows = [
        make_trajectory("t1", minute=1),
        make_trajectory("t2", steps=[make_step()], minute=2),
        make_trajectory("t3", steps=[make_step()], minute=3),
    ]
    episode = episode_of(connection, settings, rows, [make_log("t2"), make_log("nobody")])
    assert episode.message_sources == {"embedded": 1, "llm_call_logs": 1, "synthetic": 1}
    assert episode.trainable_sequences == len(episode.sequences) == 6


def test_synthetic_texts_train_only_by_setting(connection: Connection, settings: Settings) -> None:
    rows = [make_trajectory(steps=[make_step(pnl=12.5)])]
    assert episode_of(connection, settings, rows).sequences == ()
    (episode,) = read_window(connection, WINDOW, settings.model_copy(update={"train_synthetic": True})).episodes
    assert episode.sequences[0].source == "synthetic" and "$12.50" in episode.sequences[0].messages[1]["content"]
