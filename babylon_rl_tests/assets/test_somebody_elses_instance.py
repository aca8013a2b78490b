"""The code location in a Dagster instance of which nothing is ours: SQLite, the default launcher, no dagster.yaml, a second location."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.schedules import schedules
from babylon_rl.automation.sensors import sensors
from babylon_rl.definitions import defs
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.assets.conftest import NOW, Bench
from babylon_rl_tests.store.servers import ROOT, free_port

pytestmark = pytest.mark.long

FIRST, LAST = "2025-10-29T13:00", "2025-10-29T15:00"
ANOTHER = """
import dagster as dg

@dg.asset
def numbers() -> int:
    return 1

defs = dg.Definitions([numbers], jobs=[dg.define_asset_job("hours", [numbers])])
"""
LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries { name locationOrLoadError { __typename
    ... on PythonError { message } } } } } }"""
LAUNCH = """mutation($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message } } }"""
STATUS = """query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"""
STALE = """query($hour: String!) { assetNodes(assetKeys: [{path: ["scored_groups"]}]) { staleStatus(partition: $hour) } }"""


@pytest.fixture
def environment(sample_database: Database, tmp_path: Path) -> dict[str, str]:
    """Variables of a person who runs Dagster without our commands."""
    ours = {"DAGSTER_HOME", "BABYLON_RL_DAGSTER_URL", "DAGSTER_EVENT_BATCH_SIZE"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    home = {"BABYLON_RL_HOME": str(tmp_path / "state"), "DATABASE_URL": sample_database.url, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    return kept | home | {"AUTOMATION_STATUS": "stopped", "DAGSTER_DISABLE_TELEMETRY": "1"}


def test_hours_are_observed_and_made_on_sqlite_by_plain_commands(
    environment: dict[str, str], sample_database: Database, settings: Settings, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()

    def dagster(*arguments: str) -> None:
        command = [sys.executable, "-m", "dagster", *arguments]
        ended = subprocess.run(command, cwd=tmp_path, env=environment | {"DAGSTER_HOME": str(home)}, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr[-3000:]

    where = ("-m", "babylon_rl.definitions")
    dagster("job", "execute", *where, "-j", "observe")
    dagster("asset", "materialize", *where, "--select", "window_groups,market_outcomes,hindsight,scored_groups",
            "--partition-range", f"{FIRST}...{LAST}")  # fmt: skip
    with dg.DagsterInstance.from_config(str(home)) as instance:
        bench = Bench(instance, Babylon(settings, sample_database, lambda: NOW))
        assert {"raw_trajectories", "market_data"} == {name for name in ("raw_trajectories", "market_data") if bench.observed(name)}
        for name in ("window_groups", "market_outcomes", "hindsight", "scored_groups"):
            assert set(bench.materializations(name)) == {FIRST, "2025-10-29T14:00", LAST}
        assert bench.look("swept")[2] == "No hour changed."
        result = dg.evaluate_automation_conditions(defs, instance)
        assert FIRST not in result.get_requested_partitions(dg.AssetKey("scored_groups"))
        ticked = list(ticks(bench))
    assert {"start_training", "end_dead_runs", "send_alerts", "score_settled", "clean_up_nightly"} <= set(ticked)


def ticks(bench: Bench) -> Iterator[str]:
    """Evaluate every sensor and schedule once; the names of those that answered."""
    repository, resources = defs.get_repository_def(), {"babylon": bench.babylon}
    for sensor in sensors:
        if not isinstance(sensor, dg.AutomationConditionSensorDefinition | dg.RunStatusSensorDefinition):
            context = dg.build_sensor_context(bench.instance, repository_def=repository, resources=resources)
            assert isinstance(sensor(context), dg.SkipReason | dg.SensorResult), sensor.name
            yield sensor.name
    for schedule in schedules:
        context = dg.build_schedule_context(bench.instance, repository_def=repository, resources=resources, scheduled_execution_time=NOW)
        assert schedule(context) is not None, schedule.name
        yield schedule.name


def test_dagster_dev_serves_and_runs_it_without_a_home_beside_a_second_location(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "another.py").write_text(ANOTHER)
    port = free_port()
    where = ("-m", "babylon_rl.definitions", "-m", "another", "-h", "127.0.0.1", "-p", str(port))
    command = [sys.executable, "-m", "dagster", "dev", *where]
    with open(tmp_path / "log", "w") as log:
        dev = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        ask = Asked(f"http://127.0.0.1:{port}/graphql", tmp_path / "log")
        entries = ask.until(lambda: ask(LOCATIONS)["workspaceOrError"]["locationEntries"])
        loaded = {entry["name"]: entry["locationOrLoadError"]["__typename"] for entry in entries}
        assert loaded == {"babylon_rl.definitions": "RepositoryLocation", "another": "RepositoryLocation"}
        tags = [
            {"key": "dagster/asset_partition_range_start", "value": FIRST},
            {"key": "dagster/asset_partition_range_end", "value": LAST},
        ]
        for location, of_run in (("babylon_rl.definitions", tags), ("another", [])):
            selector = {"repositoryName": "__repository__", "repositoryLocationName": location, "jobName": "hours"}
            params = {"selector": selector, "runConfigData": {}, "executionMetadata": {"tags": of_run}}
            launched = ask(LAUNCH, params=params)["launchRun"]
            assert launched["__typename"] == "LaunchRunSuccess", launched
            run_id = launched["run"]["runId"]

            def ended(run_id: str = run_id) -> str | None:
                status = ask(STATUS, id=run_id)["runOrError"]["status"]
                return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

            assert ask.until(ended) == "SUCCESS", (tmp_path / "log").read_text()[-3000:]
        assert ask(STALE, hour=FIRST) == {"assetNodes": [{"staleStatus": "FRESH"}]}
    finally:
        os.killpg(dev.pid, signal.SIGINT)
        try:
            dev.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(dev.pid, signal.SIGKILL)
            dev.wait()


class Asked:
    """GraphQL of a webserver that may not be up yet."""

    def __init__(self, url: str, log: Path) -> None:
        self.url, self.log = url, log

    def __call__(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(self.url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
        assert not answer.get("errors"), answer
        return answer["data"]

    def until(self, look: Any, seconds: float = 150) -> Any:
        """What ``look`` returns once it is neither refused nor empty."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if found := look():
                    return found
            except OSError:
                pass
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.3)
