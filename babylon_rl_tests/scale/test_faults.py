"""Workers by Celery on this machine: a short version of what `make scale-test` measures."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from babylon_rl.judge.scripted.judge import ScriptedJudge
from babylon_rl_tests.scale.machines import NO_REDIS, site
from babylon_rl_tests.scale.scenarios import SETTINGS, Scenarios
from babylon_rl_tests.trace_receiver import TraceReceiver, trace_receiver

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("redis-server") is None, reason=NO_REDIS),
]
HOURS = 30


@pytest.fixture(scope="module")
def receiver() -> Iterator[TraceReceiver]:
    with trace_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def scenarios(
    server: str, template: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory, receiver: TraceReceiver
) -> Iterator[Scenarios]:
    with psycopg.connect(server, autocommit=True) as administrator:
        administrator.execute(f"CREATE DATABASE several TEMPLATE {template('migrated')}")
        directory, url = tmp_path_factory.mktemp("several"), f"{server.rpartition('/')[0]}/several"
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
        with site(directory, url, ScriptedJudge(latency_s=0.3), **SETTINGS, **traced) as (made, redis):
            yield Scenarios(made, redis)
        administrator.execute("DROP DATABASE several WITH (FORCE)")


def test_a_worker_that_is_killed_loses_nothing_and_nothing_is_asked_twice_but_what_was_in_flight(scenarios: Scenarios):
    assert scenarios.worker_killed(HOURS).repeated <= 1


def test_redis_that_is_killed_and_comes_back_empty_loses_no_run(scenarios: Scenarios):
    assert scenarios.redis_emptied(HOURS).repeated == 0


def test_a_worker_with_older_code_refuses_a_run_and_ends_and_another_takes_it(
    scenarios: Scenarios, receiver: TraceReceiver, tmp_path: Path
):
    scenarios.older_code(tmp_path, 2)
    ((run,),) = scenarios.site.query("SELECT run_id FROM babylon_dagster.runs WHERE status = 'SUCCESS' ORDER BY id DESC LIMIT 1")
    # Its process ended right after it, and its spans were sent.
    assert UUID(str(run)).hex in {span.trace for span in receiver.spans if span.name.startswith("run ")}
