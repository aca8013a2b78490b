"""Traces against a real receiver: what a run, a training and a gateway's call send, and what a collector that is gone costs."""

import io
import json
import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from uuid import UUID

import dagster as dg
import psycopg
import pytest
from pydantic import SecretStr

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.logs import start_logs
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.traces import span, start_traces, stop_traces
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.assets.conftest import Bench, make_bench
from babylon_rl_tests.judge.model_judge import NOW, asking, filled
from babylon_rl_tests.judge.scripted_server import judging
from babylon_rl_tests.serving.gateways import MESSAGES, add_version, running_gateway
from babylon_rl_tests.serving.model_stand_in import model_stand_in
from babylon_rl_tests.setup.test_logs import logger
from babylon_rl_tests.trace_receiver import TraceReceiver, trace_receiver

__all__ = ["logger", "make_bench"]

DRY = {
    "train_rl_local": True, "local_base_model": "dry", "iterations": 1, "training_min_trajectories": 5, "training_min_groups": 1,
    "training_min_group_size": 1, "data_quality_threshold": 0.0,
}  # fmt: skip
KEY = "sk-a-key-of-the-judge"
STATEMENT = "db.query.text"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def receiver() -> Iterator[TraceReceiver]:
    with trace_receiver() as receiver:
        yield receiver
        stop_traces()


@pytest.mark.long
def test_a_run_is_a_trace_of_its_steps_judge_requests_and_iterations(
    make_bench: Callable[..., Bench], database: Database, settings: Settings, receiver: TraceReceiver, logger: logging.Logger
) -> None:
    windows, out = filled(database, 2), io.StringIO()
    with judging() as judge, database.connect(autocommit=True) as connection:
        chosen = asking(settings.model_copy(update=DRY), judge.url)
        names = (*DRY, "judge_model", "judge_base_url", "judge_timeout_seconds", "judge_disagreement")
        traced = {"otel_exporter_otlp_endpoint": receiver.url, "openai_api_key": SecretStr(KEY)}
        bench = make_bench(database, NOW, **{name: getattr(chosen, name) for name in names}, **traced)
        start_logs(bench.babylon.settings, out)
        scored = bench.run("score", windows[0], windows[1])
        sync_windows(connection, windows, bench.babylon.settings, NOW)
        batch = freeze(connection, bench.babylon.settings, NOW).batch
        assert batch is not None
        bench.instance.add_dynamic_partitions("batch", [batch.batch_id])
        trained = bench.run("train", batch.batch_id, asset_selection=[dg.AssetKey("training_batch"), dg.AssetKey("trained_checkpoint")])
        decided = bench.run("train", batch.batch_id, asset_selection=[dg.AssetKey("benchmark_report"), dg.AssetKey("released_model")])
        connection.execute("ALTER TABLE babylon_rl.episode_scores RENAME TO gone")
        failed = bench.run("score", windows[0], raise_on_error=False)
    stop_traces()
    # Its log says the same: what happened to the run's hours, its batch and its version, and why a run failed.
    said = [json.loads(line) for line in out.getvalue().splitlines()]
    events = {run.run_id: [line["event"] for line in said if line["run"] == run.run_id] for run in (scored, trained, decided, failed)}
    assert events[scored.run_id] == ["a run of score began", "2 hours are judged", "it ended"]
    assert {line["window"] for line in said if line["run"] == scored.run_id} == {windows[0]}
    assert "iteration 1 of 1 is trained" in events[trained.run_id]
    (gate,) = [line for line in said if line.get("decision")]
    assert gate["event"].startswith(f"the gate's decision on {batch.version} is not_compared: ")
    assert (gate["run"], gate["batch"], gate["version"]) == (decided.run_id, batch.batch_id, batch.version)
    *_, ended = [line for line in said if line["run"] == failed.run_id]
    assert (ended["level"], ended["window"]) == ("error", windows[0]) and ended["event"].startswith("it failed: ")
    assert "episode_scores" in ended["event"] and KEY not in out.getvalue()
    # The trace of a run has the run's own id, a step in it, and in the step what it asked and trained.
    (run,) = [each for each in receiver.named("run score") if each.trace == UUID(scored.run_id).hex]
    (step,) = [each for each in receiver.named("step scored_groups") if each.parent == run.span]
    assert run.parent == "" and step.trace == run.trace
    assert step.attributes == {
        "babylon.run": scored.run_id, "babylon.window": f"{windows[0]}...{windows[1]}",
    }  # fmt: skip
    asked = receiver.named("judge request")
    assert len(asked) == 4 and {(each.parent, each.kind) for each in asked} == {(step.span, "client")}
    assert asked[0].attributes["gen_ai.request.model"] == "openai/scripted" and int(asked[0].attributes["gen_ai.usage.input_tokens"]) > 0
    (iteration,), (made,) = receiver.named("training iteration"), receiver.named("step trained_checkpoint")
    assert iteration.trace == UUID(trained.run_id).hex and iteration.parent == made.span
    assert iteration.attributes["babylon.batch"] == batch.batch_id and iteration.attributes["babylon.version"] == batch.version
    assert made.attributes["babylon.batch"] == batch.batch_id and made.attributes["babylon.version"] == batch.version
    assert receiver.services == {"babylon-rl"}
    # No text of a prompt or an answer, and no key.
    values = [value for each in receiver.spans for name, value in each.attributes.items() if isinstance(value, str) and name != STATEMENT]
    statements = [each.attributes[STATEMENT] for each in receiver.spans if STATEMENT in each.attributes]
    assert statements and not [text for text in statements if "what now" in text or KEY in text]
    assert max(map(len, values)) < 60 and not [value for value in values if "what now" in value or "hold" in value or KEY in value]


def test_a_call_continues_its_clients_trace_and_its_models_server_gets_it(
    database: Database, settings: Settings, receiver: TraceReceiver
) -> None:
    add_version(database, "v1.0.0")
    start_traces(receiver.url)
    with model_stand_in() as upstream:
        upstream.behaviour["v1.0.0"] = "500"
        with running_gateway(settings.model_copy(update={"local_endpoint": upstream.url}), database) as gateway:
            client = gateway.client(key=KEY)
            headers = {"traceparent": CALLER, "tracestate": "shop=1"}
            client.chat.completions.create(model="base", messages=MESSAGES, extra_headers=headers)
            client.chat.completions.create(model="babylon-agent", messages=MESSAGES)
    stop_traces()
    first, second = receiver.named("POST /v1/chat/completions")
    asked, *others = receiver.named("POST")  # at the model, by aiohttp
    assert (f"00-{first.trace}", first.parent, first.kind, first.failed) == (CALLER[:35], CALLER[36:52], "server", False)
    assert f"traceparent: 00-{first.trace}-{asked.span}-01\r\ntracestate: shop=1\r\n" in upstream.heads[0]
    assert (asked.parent, asked.kind) == (first.span, "client")
    assert first.attributes["http.response.status_code"] == "200" and first.attributes["babylon.version"] == "base"
    # The failed version's request and the base's belong to the same call, whose trace begins here.
    assert second.parent == "" and second.attributes["babylon.fallback"] == "server_error"
    # The version is asked once more without what the gateway adds.
    assert [second.trace in head for head in upstream.heads] == [False, True, True, True]
    assert [(each.parent, each.failed) for each in others] == [(second.span, True), (second.span, True), (second.span, False)]
    # What the gateway's threads read are traces of their own, without values.
    statements = [each.attributes[STATEMENT] for each in receiver.spans if STATEMENT in each.attributes]
    assert any("babylon_rl" in statement for statement in statements)
    assert not [value for each in receiver.spans for value in each.attributes.values() if KEY in str(value) or "Prices?" in str(value)]


def test_an_error_is_marked_by_its_class_and_secrets_in_a_name_are_redacted(receiver: TraceReceiver) -> None:
    start_traces(receiver.url, [KEY])
    with pytest.raises(ValueError, match="a prompt"), span("work", model=f"openai/{KEY}", tokens=3, missing=None):
        raise ValueError("a prompt that nobody should see")
    stop_traces()
    (sent,) = receiver.spans
    assert sent.failed and sent.attributes == {"gen_ai.request.model": "openai/***", "babylon.tokens": "3", "error.type": "ValueError"}


def test_a_statement_that_fails_says_nothing_of_its_row(database: Database, receiver: TraceReceiver) -> None:
    start_traces(receiver.url)
    with database.connect() as connection, pytest.raises(psycopg.errors.InvalidTextRepresentation, match="a secret"):
        connection.execute("SELECT %s::integer", ["a secret"])
    stop_traces()
    [failed] = [each for each in receiver.named("SELECT") if each.failed]
    assert failed.attributes[STATEMENT] == "SELECT %s::integer" and b"a secret" not in receiver.raw


@pytest.mark.slow
def test_a_collector_that_never_answers_keeps_nobody_waiting() -> None:
    with trace_receiver(answers=False) as receiver:
        start_traces(receiver.url)
        for _ in range(3000):  # more than wait in memory: the oldest are lost
            with span("work"):
                pass
        stop_traces()
        assert not receiver.answers.is_set() and receiver.spans == []


@pytest.mark.slow
def test_a_collector_that_is_gone_is_told_once_and_fails_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        start_traces(f"http://127.0.0.1:{closed.getsockname()[1]}")
        with caplog.at_level(logging.INFO):
            for _ in range(1200):  # three batches
                with span("work"):
                    pass
            stop_traces()
    assert [record.name for record in caplog.records] == ["babylon_rl.traces"] and "could not be sent" in caplog.text


@pytest.mark.slow
def test_without_an_address_nothing_of_opentelemetry_is_imported() -> None:
    code = (
        "import sys, babylon_rl.serving.gateway, babylon_rl.judge.client, babylon_rl.training.lifecycle\n"
        "from babylon_rl.traces import note, span, start_traces, traced_app\n"
        "start_traces(None)\n"
        "with span('work', window='x') as traced:\n"
        "    traced.note(tokens=1); note(version='v1.0.0'); assert traced_app(print) is print\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"
