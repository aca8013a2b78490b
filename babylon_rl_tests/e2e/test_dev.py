"""``babylon-rl dev``: what a person sees in a real browser, a backfill of hours that runs, and that nothing of it stays behind."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from babylon_rl.serving.dagster_client import SCORE_JOB, TRAIN_JOB, DagsterClient
from babylon_rl_tests.e2e.browser import browser_page, find_browser
from babylon_rl_tests.e2e.dev import ask, living, running_dev
from babylon_rl_tests.e2e.graph import GRAPH_SIZE, open_graph

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
STARTED = 3  # dagster dev, its code server, and another process: the webserver's or the code server's own
HOURS = ["2025-10-29T14:00", "2025-10-29T15:00"]
QUIET = {"AUTOMATION_STATUS": "stopped"}  # only what is asked for runs


@pytest.fixture(scope="module")
def ui(server: str, template: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running UI; at the end it is seen that all of it ends on Ctrl-C."""
    with psycopg.connect(server, autocommit=True) as administrator:
        administrator.execute(f"CREATE DATABASE ui TEMPLATE {template('sample')}")
        url = f"{server.rpartition('/')[0]}/ui"
        with running_dev(tmp_path_factory.mktemp("ui") / "home", DATABASE_URL=url, **QUIET) as dev:
            yield dev.url()
            started = dev.group(4)
            os.killpg(dev.process.pid, signal.SIGINT)  # as a terminal does
            dev.process.send_signal(signal.SIGINT)
            assert dev.process.wait(60) == 0
            assert living(started, 1) == []
            assert "Stopped." in dev.log.read_text()
        administrator.execute("DROP DATABASE ui WITH (FORCE)")


@pytest.fixture(scope="module")
def backfill(ui: str) -> str:
    """The id of a backfill of two hours, which runs meanwhile."""
    launched = ask(
        ui,
        "mutation($what: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $what) "
        "{ __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
        what={"assetSelection": [{"path": ["window_groups"]}], "partitionNames": HOURS},
    )["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    return str(launched["backfillId"])


def test_the_lineage_page_shows_every_asset(ui: str, backfill: str, tmp_path: Path):
    program = find_browser()
    if program is None:
        pytest.skip("there is no Chromium here (Debian: apt install chromium)")
    assets = [node["assetKey"]["path"][-1] for node in ask(ui, "{ assetNodes { assetKey { path } } }")["assetNodes"]]
    assert len(assets) == 14
    with browser_page(program, tmp_path / "profile", *GRAPH_SIZE) as page:
        open_graph(page, ui)
        text = page.wait_for("Global asset lineage", *assets)
    assert "Loading" not in text and text.count("% filled") == 7 and text.count("Passed") == 7


def test_the_first_visit_begins_without_a_dialog(ui: str):
    assert ask(ui, "{ shouldShowNux }") == {"shouldShowNux": False}


def test_the_rest_of_a_killed_command_is_stopped(tmp_path: Path):
    with running_dev(tmp_path / "home") as dev:
        started = [*dev.group(STARTED), dev.postgres()]
        dev.process.kill()
        dev.process.wait()
        # It began on a database without tables, and made them.
        assert "Migrated 127.0.0.1:" in dev.log.read_text()
        # Dagster warns of the dagster.yaml in the working directory, which is the clone's.
        assert "Dagster's warning of dagster.yaml in this folder" in dev.log.read_text()
        said = dev.babylon_rl("stop")
        assert "dagster dev" in said and "embedded database" in said
        assert living(started, 1) == []
        assert dev.babylon_rl("stop").startswith("Nothing that was started")


def test_the_admin_api_s_client_launches_a_training_and_a_scoring_once(ui: str):
    client = DagsterClient(ui)
    training, scoring = client.launch_training("batch-unknown", None, {}), client.launch_scoring(*HOURS)
    query = "query($id: ID!) { runOrError(runId: $id) { ... on Run { jobName tags { key value } } } }"
    runs = [ask(ui, query, id=run)["runOrError"] for run in (training, scoring)]
    # They need not run, and are ended before most of them have begun.
    end = "mutation($ids: [String!]!) { terminateRuns(runIds: $ids, terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY) { __typename } }"
    assert ask(ui, end, ids=[training, scoring])["terminateRuns"]["__typename"] == "TerminateRunsResult"
    assert [run["jobName"] for run in runs] == [TRAIN_JOB, SCORE_JOB]
    partitions = [{tag["value"] for tag in run["tags"] if "partition" in tag["key"]} for run in runs]
    assert "batch-unknown" in partitions[0] and set(HOURS) <= partitions[1]


def wait_for(ui: str, backfill: str) -> None:
    query = (
        "query($id: String!) { partitionBackfillOrError(backfillId: $id) "
        "{ ... on PartitionBackfill { status error { message } } ... on Error { message } } }"
    )
    deadline = time.monotonic() + 400
    while (found := ask(ui, query, id=backfill)["partitionBackfillOrError"])["status"] == "REQUESTED":
        assert time.monotonic() < deadline, found
        time.sleep(1)
    assert found == {"status": "COMPLETED_SUCCESS", "error": None}


def test_hours_are_backfilled(ui: str, backfill: str):
    wait_for(ui, backfill)
    query = (
        'query { assetNodeOrError(assetKey: {path: ["window_groups"]}) { ... on AssetNode { assetMaterializations '
        "{ partition metadataEntries { label ... on IntMetadataEntry { intValue } } } } } }"
    )
    made = ask(ui, query)["assetNodeOrError"]["assetMaterializations"]
    rows = {m["partition"]: entry["intValue"] for m in made for entry in m["metadataEntries"] if entry["label"] == "rows"}
    assert sorted(rows) == HOURS and min(rows.values()) > 0


CHECKS = """query { assetNodeOrError(assetKey: {path: ["window_groups"]}) { ... on AssetNode { repository { name location { name } }
    assetChecksOrError { ... on AssetChecks { checks { name executionForLatestMaterialization { runId status } } } } } } }"""
NEWEST = """query($name: String!) { assetCheckExecutions(assetKey: {path: ["window_groups"]}, checkName: $name, limit: 1)
    { runId status evaluation { description partition } } }"""


def test_execute_all_of_a_checks_tab_gives_list_and_detail_one_verdict(ui: str, backfill: str):
    wait_for(ui, backfill)
    node = ask(ui, CHECKS)["assetNodeOrError"]
    names = [check["name"] for check in node["assetChecksOrError"]["checks"]]
    chosen = [{"assetKey": {"path": ["window_groups"]}, "name": name} for name in names]
    location, repository = node["repository"]["location"]["name"], node["repository"]["name"]
    selector = {"repositoryLocationName": location, "repositoryName": repository, "jobName": "__ASSET_JOB"}
    params = {"selector": selector | {"assetSelection": [], "assetCheckSelection": chosen}, "runConfigData": {}, "mode": "default"}
    launch = "mutation($params: ExecutionParams!) { launchRun(executionParams: $params) { ... on LaunchRunSuccess { run { runId } } } }"
    run = ask(ui, launch, params=params)["launchRun"]["run"]["runId"]
    deadline = time.monotonic() + 120
    status = "query($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"
    while (found := ask(ui, status, run=run)["runOrError"]["status"]) not in ("SUCCESS", "FAILURE", "CANCELED"):
        assert time.monotonic() < deadline, found
        time.sleep(1)
    assert found == "SUCCESS"
    for check in ask(ui, CHECKS)["assetNodeOrError"]["assetChecksOrError"]["checks"]:
        (newest,) = ask(ui, NEWEST, name=check["name"])["assetCheckExecutions"]
        assert check["executionForLatestMaterialization"] == {"runId": run, "status": newest["status"]} and newest["runId"] == run
        assert newest["evaluation"]["partition"] is None and newest["status"] == "SUCCEEDED"
        assert newest["evaluation"]["description"] == "Nothing found in 2 hours."
