"""Client of Dagster's webserver: launch and look up runs, load the code location again, through GraphQL.

A plain HTTP client, as this room knows no Dagster.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any

from babylon_rl.api_errors import ApiError
from babylon_rl.settings import AutomationSettings
from babylon_rl.training.backends.protocol import GPU

TIMEOUT_S = 20.0
LOCATION, REPOSITORY, BATCHES = "babylon_rl", "__repository__", "batch"
TRAIN_JOB, HOURS_JOB, SCORE_JOB = "train", "hours", "score"
SCORING_JOBS = (HOURS_JOB, SCORE_JOB)
TRAINING_ASSETS = ("training_batch", "trained_checkpoint")
QUEUE_TAG = "dagster-celery/queue"
HOURS, TRAINER, GPU_TRAINER, EVIDENCE = "hours", "trainer", "trainer-gpu", "evidence"
QUEUES = (HOURS, TRAINER, GPU_TRAINER, EVIDENCE)
PARTITION_TAG = "dagster/partition"
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
_REPOSITORY = {"repositoryName": REPOSITORY, "repositoryLocationName": LOCATION}
LIVE_STATES = ("QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING")  # states of a run that has not ended
_RUNS = """
query($filter: RunsFilter!) {
  runsOrError(filter: $filter, limit: 10) { __typename ... on Runs { results { runId } } ... on Error { message } }
}"""
_ADD = """
mutation($name: String!, $key: String!, $repository: RepositorySelector!) {
  addDynamicPartition(partitionsDefName: $name, partitionKey: $key, repositorySelector: $repository) {
    __typename ... on Error { message }
  }
}"""
_LAUNCH = """
mutation($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } ... on Error { message } }
}"""

_RELOAD = """
mutation($location: String!) {
  reloadRepositoryLocation(repositoryLocationName: $location) { __typename ... on Error { message } }
}"""


def trained_assets(settings: AutomationSettings) -> tuple[str, ...] | None:
    """The assets of a training's run; None: all of its batch.

    With workers those of the trainer's queue: finish_evidence requests the others then, for a machine that need have no GPU.
    """
    return None if settings.celery_broker_url is None else TRAINING_ASSETS


def training_tags(settings: AutomationSettings, backend: str) -> dict[str, str]:
    """The tags of a training's run: with workers, the queue of machines that can train a batch of that ``backend``."""
    return {} if settings.celery_broker_url is None else {QUEUE_TAG: GPU_TRAINER if backend == GPU else TRAINER}


def hour_tags(first: str, last: str) -> dict[str, str]:
    """The tags of a run of the hours from ``first`` to ``last``, both inclusive."""
    return {PARTITION_TAG: first} if first == last else {RANGE_START: first, RANGE_END: last}


class DagsterClient:
    """Client of the webserver at ``url``; every method raises ApiError (503) when it does not answer or refuses."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        # The webserver is on this machine or in its network, never behind the proxy to the outside.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def live_runs(self, *, job: str, tags: Mapping[str, str] | None = None) -> list[str]:
        """Return the ids of runs that are queued or under way."""
        wanted = [{"key": key, "value": value} for key, value in (tags or {}).items()]
        answer = self._ask(_RUNS, {"filter": {"pipelineName": job, "statuses": LIVE_STATES, "tags": wanted}}, "Runs")
        return [run["runId"] for run in answer["results"]]

    def launch_training(self, batch_id: str, assets: Sequence[str] | None, tags: Mapping[str, str]) -> str:
        """Launch the run of a frozen batch, unless there is one; return its id."""
        partition = {"name": BATCHES, "key": batch_id, "repository": _REPOSITORY}
        # A run of a partition that Dagster does not know would be refused; that it is there already is fine.
        self._ask(_ADD, partition, "AddDynamicPartitionSuccess", "DuplicateDynamicPartitionError")
        # The sensor starts runs of pending batches too.
        live = self.live_runs(job=TRAIN_JOB, tags={PARTITION_TAG: batch_id})
        return live[0] if live else self._launch(TRAIN_JOB, {PARTITION_TAG: batch_id, **tags}, assets)

    def launch_scoring(self, first: str, last: str) -> str:
        """Launch a run that scores the hours from ``first`` to ``last``, both inclusive."""
        return self._launch(SCORE_JOB, hour_tags(first, last))

    def reload(self) -> None:
        """Load the code location again. Runs under way end with what they were started with."""
        self._ask(_RELOAD, {"location": LOCATION}, "WorkspaceLocationEntry")

    def _launch(self, job: str, tags: Mapping[str, str], assets: Sequence[str] | None = None) -> str:
        selection = None if assets is None else [{"path": [asset]} for asset in assets]
        params = {
            "selector": {**_REPOSITORY, "jobName": job, "assetSelection": selection},
            "runConfigData": {},
            "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in tags.items()]},
        }
        run_id: str = self._ask(_LAUNCH, {"params": params}, "LaunchRunSuccess")["run"]["runId"]
        return run_id

    def _ask(self, query: str, variables: Mapping[str, Any], *wanted: str) -> dict[str, Any]:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self._url}/graphql", body, {"content-type": "application/json"})
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                answer = json.loads(response.read())
            if answer.get("errors"):
                raise self._failed(f"it failed: {answer['errors'][0]['message']}", "its log has the reason")
            (result,) = answer["data"].values()
        except (OSError, HTTPException, ValueError, KeyError, TypeError, AttributeError) as failed:
            raise self._failed(str(failed) or type(failed).__name__, "start `babylon-rl dev`, or set DAGSTER_URL") from None
        if result["__typename"] not in wanted:
            raise self._failed(f"it refused: {result.get('message') or result['__typename']}", "its UI shows what is loaded")
        return dict(result)

    def _failed(self, reason: str, advice: str) -> ApiError:
        return ApiError(503, f"Dagster at {self._url} cannot be asked ({reason.splitlines()[0][:300]}): {advice}.", "dagster_unavailable")
