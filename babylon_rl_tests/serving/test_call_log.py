"""Recording behind the answers: what a call becomes in the database, and that no fault loses a call or writes it twice."""

import json
import os
import random
import re
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import openai
import psycopg
import pytest
from pydantic import SecretStr

from babylon_rl.episodes.messages import logged_call, sequence
from babylon_rl.errors import SettingsError
from babylon_rl.serving.call_writer import write_waiting
from babylon_rl.serving.chat_request import CallContext
from babylon_rl.serving.gateway_process import running_gateway as gateway_in_a_thread
from babylon_rl.serving.recorded_privacy import RecordedPrivacy, agent_hash
from babylon_rl.settings import Settings
from babylon_rl.store.connection import connect
from babylon_rl.store.database import Database
from babylon_rl.store.embedded.cluster import Cluster
from babylon_rl.store.trajectories import call_log_rows
from babylon_rl_tests.serving.gateways import MESSAGES, RunningGateway, rows, running_gateway, wait_for
from babylon_rl_tests.serving.model_stand_in import ModelStandIn, completion
from babylon_rl_tests.store.servers import ROOT

PLACE = {"x-babylon-agent": "a1", "x-babylon-trajectory": "t1", "x-babylon-step": "3"}


def logs(database: Database, expected: int) -> list[dict]:  # type: ignore[type-arg]
    """The recorded calls once there are that many, with their metadata decoded."""
    wait_for(lambda: len(rows(database, "SELECT 1 FROM babylon_rl.gateway_calls")) >= expected, f"{expected} calls in the database")
    found = rows(database, 'SELECT * FROM llm_call_logs ORDER BY "timestamp", "callId"')
    return [row | {"metadata": json.loads(row["metadata"])} for row in found]


def chat(gateway: RunningGateway, **more: object) -> None:
    options: dict[str, object] = {"model": "babylon-agent", "messages": MESSAGES, "extra_headers": PLACE} | more
    answer = gateway.client().chat.completions.create(**options)  # type: ignore[call-overload]
    if more.get("stream"):
        list(answer)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_recorded_with_its_place_and_logprobs_and_is_a_sequence_that_trains(
    recording: Settings, database: Database, stream: bool
) -> None:
    with running_gateway(recording, database, writes=True) as gateway:
        chat(gateway, stream=stream, temperature=0.7, max_tokens=9)
        (row,) = logs(database, 1)
    assert (row["trajectoryId"], row["stepId"], row["purpose"], row["model"]) == ("t1", "t1-step-3", "action", "v1.0.0")
    assert (row["systemPrompt"], row["userPrompt"], row["response"]) == ("You trade.", "Prices?", "hold your position")
    assert (row["temperature"], row["maxTokens"], row["latencyMs"] >= 0) == (0.7, 9, True)
    assert row["metadata"]["modelVersion"] == "v1.0.0" and row["metadata"]["finishReason"] == "stop"
    with connect(database.url) as connection:
        (stored,) = call_log_rows(connection, ["t1"])
    read = sequence(logged_call(stored), "t1", 3, 0, "llm_call_logs")
    assert read is not None and read.messages == MESSAGES and read.response == "hold your position"
    assert [token["logprob"] for token in read.logprobs or ()] == [-0.5, -0.5, -0.5]


@pytest.mark.slow
def test_every_routed_call_has_a_row_and_answered_ones_count_as_inferences(
    recording: Settings, database: Database, upstream: ModelStandIn
) -> None:
    with running_gateway(recording, database, writes=True) as gateway:
        chat(gateway)
        upstream.behaviour["v1.0.0"] = "500"
        chat(gateway)
        logs(database, 2)
    calls = rows(database, 'SELECT * FROM babylon_rl.gateway_calls ORDER BY "at"')
    assert [(call["agentId"], call["chosenVersion"], call["version"], call["fallback"], call["status"]) for call in calls] == [
        ("a1", "v1.0.0", "v1.0.0", None, 200), ("a1", "v1.0.0", None, "server_error", 200),
    ]  # fmt: skip
    assert calls[0]["completionTokens"] == 3
    assert rows(database, 'SELECT "totalInferences" FROM trained_models') == [{"totalInferences": 1}]


COUNTS = 'SELECT "promptTokens", "completionTokens", status FROM babylon_rl.gateway_calls ORDER BY "at"'


@pytest.mark.slow
def test_tokens_of_streams_are_the_server_s_or_counted_from_its_tokens(
    recording: Settings, database: Database, upstream: ModelStandIn
) -> None:
    with running_gateway(recording, database, writes=True) as gateway:
        for fault in ("", "no usage", "no done", "breaks later"):
            upstream.behaviour["v1.0.0"] = fault
            with pytest.raises(openai.APIError) if fault == "breaks later" else nullcontext():
                chat(gateway, stream=True, logprobs=False)
        texts = logs(database, 4)
    counts = [(11, 3, 200), (None, 3, 200), (11, 3, 200), (None, 2, 502)]
    assert [tuple(call.values()) for call in rows(database, COUNTS)] == counts
    assert [(row["promptTokens"], row["completionTokens"], row["totalTokens"]) for row in texts] == [
        (11, 3, 14), (None, 3, None), (11, 3, 14),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("counted", [None, -1, 3_000_000_000])
def test_an_answer_with_counts_that_cannot_be_is_passed_on_and_recorded_without_them(
    recording: Settings, database: Database, upstream: ModelStandIn, counted: int | None
) -> None:
    upstream.answer = lambda model: completion(model) | {"usage": {"prompt_tokens": 11, "completion_tokens": counted}}
    with running_gateway(recording, database, writes=True) as gateway:
        chat(gateway)
        (row,) = logs(database, 1)
    assert (row["model"], row["response"]) == ("v1.0.0", "hold your position")
    assert [tuple(call.values()) for call in rows(database, COUNTS)] == [(None, None, 200)]


def test_a_client_gets_the_event_with_counts_when_it_asks_for_it(recording: Settings, database: Database, upstream: ModelStandIn) -> None:
    def counted(**options: Any) -> list[int]:
        parts = gateway.client().chat.completions.create(model="auto", messages=MESSAGES, stream=True, **options)
        return [part.usage.total_tokens for part in parts if part.usage is not None]

    with running_gateway(recording, database) as gateway:
        assert counted() == [] and counted(stream_options={"include_usage": False}) == []
        assert counted(stream_options={"include_usage": True}) == [14]
    assert [body["stream_options"]["include_usage"] for body in upstream.seen] == [True, False, True]


@pytest.mark.slow
def test_a_broken_stream_is_a_call_without_texts(recording: Settings, database: Database, upstream: ModelStandIn) -> None:
    upstream.behaviour["v1.0.0"] = "breaks later"
    with running_gateway(recording, database, writes=True) as gateway:
        with pytest.raises(Exception, match="ended before"):
            chat(gateway, stream=True)
        assert logs(database, 1) == []
    assert [call["status"] for call in rows(database, "SELECT status FROM babylon_rl.gateway_calls")] == [502]


@pytest.mark.slow
def test_a_chat_that_no_sequence_can_hold_is_kept_whole_and_does_not_train(
    recording: Settings, database: Database, upstream: ModelStandIn
) -> None:
    calls = [{"id": "t", "type": "function", "function": {"name": "trade", "arguments": "{}"}}]
    upstream.answer = lambda model: completion(model, (), content=None, tool_calls=calls)
    tools = [{"type": "function", "function": {"name": "trade", "parameters": {}}}]
    with running_gateway(recording, database, writes=True) as gateway:
        chat(gateway, tools=tools)
        (row,) = logs(database, 1)
    assert (row["systemPrompt"], row["userPrompt"], row["response"]) == ("", "", "")
    assert json.loads(row["messagesJson"]) == MESSAGES and row["metadata"]["toolCalls"] == calls


@pytest.mark.slow
def test_an_answer_after_blank_lines_is_recorded(recording: Settings, database: Database, upstream: ModelStandIn) -> None:
    upstream.behaviour["v1.0.0"] = "blank lines"  # some servers send them until the answer is there
    with running_gateway(recording, database, writes=True) as gateway:
        chat(gateway)
        (row,) = logs(database, 1)
    assert row["response"] == "hold your position" and len(row["metadata"]["logprobs"]) == 3


@pytest.mark.slow
def test_odd_texts_are_recorded_as_far_as_the_database_can_hold_them(recording: Settings, database: Database) -> None:
    with running_gateway(recording, database, writes=True) as gateway:
        chat(gateway, messages=[{"role": "user", "content": "a\x00b 😀"}], extra_headers=PLACE | {"x-babylon-step": "odd"})
        (row,) = logs(database, 1)
    assert (row["userPrompt"], row["stepId"]) == ("a\ufffdb 😀", "odd")


@pytest.mark.slow
def test_provider_accesses_come_by_a_header(recording: Settings, database: Database) -> None:
    accesses = [{"providerName": "prices", "data": {"BTC": 1, "wei": 10**20}, "purpose": "trade"}]
    with running_gateway(recording, database, writes=True) as gateway:
        chat(gateway, extra_headers=PLACE | {"x-babylon-provider-accesses": json.dumps(accesses)})
        (row,) = logs(database, 1)
    assert row["metadata"]["providerAccesses"] == accesses


@pytest.mark.slow
def test_a_name_and_json_in_utf8_headers_mean_the_same_as_in_the_body(recording: Settings, database: Database) -> None:
    accesses = [{"providerName": "NEWS", "data": {"headline": "Zürich, BTC ↑ 😀"}, "purpose": "p"}]
    given = {"x-babylon-agent": "Jürgen", "x-babylon-trajectory": "tick-Zürich", "x-babylon-action-type": "KÄUFE"}
    with running_gateway(recording, database, writes=True) as gateway:
        for headers in (given, given | {"x-babylon-provider-accesses": json.dumps(accesses, ensure_ascii=False)}, {}):
            asked = Request(
                f"{gateway.url}/chat/completions",
                json.dumps({"model": "babylon-agent", "messages": MESSAGES, "user": "Jürgen"}).encode(),
                # As curl sends them: bytes in UTF-8.
                {name: value.encode().decode("latin-1") for name, value in headers.items()} | {"content-type": "application/json"},
            )
            urlopen(asked).close()
        first, second, _ = logs(database, 3)
        agents = [row["agentId"] for row in rows(database, "SELECT * FROM babylon_rl.gateway_calls")]
    assert (first["trajectoryId"], first["actionType"], agents) == ("tick-Zürich", "KÄUFE", ["Jürgen"] * 3)
    assert second["metadata"]["providerAccesses"] == accesses


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("Jürgen".encode(), "Jürgen"),
        ("Jürgen".encode("latin-1"), "Jürgen"),
        ("агент-7".encode(), "агент-7"),
        ("取引 😀".encode(), "取引 😀"),
        (b"agent-7", "agent-7"),
        ("Ã¼".encode(), "Ã¼"),
    ],
)
def test_a_name_in_a_header_is_read_as_utf8_else_as_latin_1(sent: bytes, read: str) -> None:
    assert CallContext.of({"x-babylon-agent": sent.decode("latin-1")}).agent_id == read


@pytest.mark.slow
def test_private_fields_are_not_recorded(recording: Settings, database: Database) -> None:
    private = recording.model_copy(update={"record_private_fields": "agent=hash, prompts"})
    with running_gateway(private, database, writes=True) as gateway:
        chat(gateway)
        (row,) = logs(database, 1)
    stored = json.dumps(row, default=str) + json.dumps(rows(database, "SELECT * FROM babylon_rl.gateway_calls"), default=str)
    assert '"a1"' not in stored and "Prices?" not in stored and row["response"] == "hold your position"
    # The secret of this gateway is also known to the processes that judge rollouts with its state directory.
    recorded = agent_hash(private)
    assert recorded is not None and recorded("a1") in stored
    with pytest.raises(SettingsError, match="prompts=hash"):
        RecordedPrivacy.of(recording.model_copy(update={"record_private_fields": "prompts=hash"}))


def test_gateways_with_one_key_hash_an_agent_alike_and_others_do_not(settings: Settings, tmp_path: Path) -> None:
    def hashed(home: str, key: str | None) -> str | None:
        chosen = {"record_private_fields": "agent=hash", "babylon_rl_home": tmp_path / home}
        chosen |= {"record_hash_key": None if key is None else SecretStr(key)}
        call = {"agentId": "a1"}
        RecordedPrivacy.of(settings.model_copy(update=chosen)).apply(call, None)
        return call["agentId"]

    assert hashed("one", "key") == hashed("two", "key") != hashed("one", "another")
    assert hashed("one", None) == hashed("one", None) != hashed("two", None)


def test_gateways_that_start_at_once_share_one_secret(settings: Settings) -> None:
    private = settings.model_copy(update={"record_private_fields": "agent=hash"})
    with ThreadPoolExecutor(8) as threads:
        assert len({found.secret for found in threads.map(RecordedPrivacy.of, [private] * 8)}) == 1
    (file,) = (private.home / "gateway").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_is_recorded(recording: Settings, database: Database, upstream: ModelStandIn, stream: bool) -> None:
    upstream.answer = lambda model: completion(model, reasoning_content="because")
    upstream.behaviour["v1.0.0"] = "reasons"
    with running_gateway(recording, database, writes=True) as gateway:
        chat(gateway, stream=stream)
        (row,) = logs(database, 1)
    assert (row["reasoning"], row["response"]) == ("because", "hold your position")


@pytest.mark.slow
def test_a_trajectory_is_sampled_whole_or_not_at_all_as_the_recorder_decides(recording: Settings, database: Database) -> None:
    names = [f"t{number}" for number in range(12)]
    chosen = sorted(name for name in names if random.Random(name).random() < 0.3)
    assert 0 < len(chosen) < len(names)
    with running_gateway(recording.model_copy(update={"trajectory_sampling_rate": 0.3}), database, writes=True) as gateway:
        for step, name in ((str(step), name) for step in range(2) for name in names):
            chat(gateway, extra_headers=PLACE | {"x-babylon-trajectory": name, "x-babylon-step": step})
        found = logs(database, 2 * len(names))
    assert sorted(row["stepId"] for row in found) == [f"{name}-step-{step}" for name in chosen for step in range(2)]


@pytest.mark.slow
def test_without_recording_calls_are_counted_and_their_texts_are_nowhere(recording: Settings, database: Database) -> None:
    with running_gateway(recording.model_copy(update={"record_agent_trajectories": False}), database, writes=True) as gateway:
        chat(gateway)
        assert logs(database, 1) == []


@pytest.mark.slow
def test_the_least_role_of_a_gateway_reads_what_is_deployed_and_writes_calls(
    recording: Settings, database: Database, request: pytest.FixtureRequest
) -> None:
    names = {"role": f"pipeline-{os.getpid()}", "gateway": f"gateway-{os.getpid()}"}
    given = [part for name, value in names.items() for part in ("-v", f"{name}={value}")]
    psql, script = Cluster(Path()).programs / "psql", ROOT / "docs" / "howto" / "least-privilege.sql"
    quiet = os.environ | {"PGOPTIONS": "-c client_min_messages=warning"}
    subprocess.run([psql, "-q", "-X", *given, "-f", script, database.url], check=True, stdout=subprocess.DEVNULL, env=quiet)

    def drop() -> None:
        with psycopg.connect(database.url, autocommit=True) as owner:
            for name in reversed(names.values()):
                owner.execute(f'REASSIGN OWNED BY "{name}" TO CURRENT_USER')
                owner.execute(f'DROP OWNED BY "{name}" CASCADE')
                owner.execute(f'DROP ROLE "{name}"')

    request.addfinalizer(drop)
    with psycopg.connect(database.url) as owner:
        owner.execute(f"""ALTER ROLE "{names["gateway"]}" PASSWORD 'x'""")
    url = re.sub("//[^@]*@", f"//{names['gateway']}:x@", database.url)
    with running_gateway(recording, Database(url, url), writes=True) as gateway:
        chat(gateway)
        (row,) = logs(database, 1)
    assert row["metadata"]["modelVersion"] == "v1.0.0"
    with psycopg.connect(url) as least, pytest.raises(psycopg.errors.InsufficientPrivilege):
        least.execute("SELECT * FROM trajectories")


def test_a_gateway_in_a_thread_routes_by_the_registry_and_ends_with_its_calls_in_the_database(
    recording: Settings, database: Database
) -> None:
    settings = recording.model_copy(update={"database_url": SecretStr(database.url)})
    with gateway_in_a_thread(settings) as (url, key), openai.OpenAI(base_url=url, api_key=key) as client:
        client.chat.completions.create(model="auto", messages=MESSAGES, extra_headers=PLACE)
    assert [(row["agentId"], row["version"]) for row in rows(database, "SELECT * FROM babylon_rl.gateway_calls")] == [("a1", "v1.0.0")]


@pytest.mark.slow
def test_calls_that_a_killed_gateway_left_on_disk_are_written(recording: Settings, database: Database) -> None:
    with running_gateway(recording, database) as gateway:
        chat(gateway)
    assert rows(database, "SELECT * FROM babylon_rl.gateway_calls") == []
    write_waiting(recording.model_copy(update={"database_url": SecretStr(database.url)}))
    assert len(rows(database, "SELECT * FROM llm_call_logs")) == 1
