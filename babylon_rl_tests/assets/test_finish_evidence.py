"""The sensor ``finish_evidence``: a completed batch is compared, or its run is asked for again."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
import pytest

from babylon_rl.assets.partitions import batches
from babylon_rl.assets.resources import ENDED_TAG, GOES_ON_AFTER_TAG, WAITS
from babylon_rl.automation.launch import job_definition
from babylon_rl.automation.sensors import end_dead_runs, finish_evidence, start_training
from babylon_rl.errors import ModelUnavailable
from babylon_rl.store.benchmarks import begin_confirmation, end_confirmation, undecided_batches
from babylon_rl.store.registry import note_tracking
from babylon_rl.store.releases import ReleaseAuthor, insert_rollout
from babylon_rl.windows import utc_now
from babylon_rl_tests.assets.conftest import DRY, NOW, TRAINING, Bench, ask
from babylon_rl_tests.assets.dead_runs import gone, hold


@pytest.mark.long
def test_a_completed_batch_without_a_decision_is_asked_for_thrice(ready: Bench):
    assert ask(ready, finish_evidence) == dg.SkipReason("Every completed batch has been decided on.")
    batch = ask(ready, start_training).run_requests[0].partition_key
    ready.instance.add_dynamic_partitions(batches.name, [batch])
    ready.run("train", batch, asset_selection=TRAINING)
    job = job_definition("train", ready.babylon)

    def add_run(status: dg.DagsterRunStatus, key: str) -> str:
        tags = {"dagster/partition": batch, "dagster/run_key": key}
        return str(ready.instance.create_run_for_job(job, tags=tags, status=status).run_id)

    (request,) = ask(ready, finish_evidence).run_requests
    assert request.run_key == f"{batch}/benchmark/1"
    assert request.asset_selection == [dg.AssetKey(name) for name in ("benchmark_report", "released_model", "leaderboard")]
    lost = add_run(dg.DagsterRunStatus.STARTED, request.run_key)
    assert ask(ready, finish_evidence) == dg.SkipReason(f"{batch} has a live run.")
    hold(ready, lost, gone())
    ask(ready, end_dead_runs)
    for attempt in (2, 3, 4):  # one that was lost with its machine does not count
        (request,) = ask(ready, finish_evidence).run_requests
        assert request.run_key == f"{batch}/benchmark/{attempt}" and request.tags[GOES_ON_AFTER_TAG] == lost
        lost = add_run(dg.DagsterRunStatus.FAILURE, request.run_key)
    assert "given up after 3 runs" in ask(ready, finish_evidence).skip_message


@pytest.mark.slow
def test_evidence_that_waits_for_a_service_is_asked_for_again_and_never_given_up(ready: Bench, make_bench: Callable[..., Bench]):
    batch = ask(ready, start_training).run_requests[0].partition_key
    ready.instance.add_dynamic_partitions(batches.name, [batch])
    ready.run("train", batch, asset_selection=TRAINING)

    def asked(after: timedelta) -> Any:
        return ask(make_bench(ready.babylon.database, now=utc_now() + after, **DRY), finish_evidence)

    tags = {"dagster/partition": batch, ENDED_TAG: WAITS}
    runs = []
    for attempt in range(1, 6):
        (request,) = asked(timedelta(hours=1)).run_requests
        assert request.run_key == f"{batch}/benchmark/{attempt}"
        own = tags | {"dagster/run_key": request.run_key}
        job = job_definition("train", ready.babylon)
        runs.append(ready.instance.create_run_for_job(job, tags=own, status=dg.DagsterRunStatus.FAILURE).run_id)
    assert "could not be compared, as its last run says; it is tried again at" in asked(timedelta(minutes=15)).skip_message
    ready.instance.delete_run(runs[0])  # a key that was used is not used again
    assert asked(timedelta(minutes=17)).run_requests[0].run_key == f"{batch}/benchmark/6"


@pytest.mark.long
def test_a_batch_whose_report_failed_is_finished_by_the_run_that_is_asked_for(ready: Bench):
    batch = ask(ready, start_training).run_requests[0].partition_key
    ready.instance.add_dynamic_partitions(batches.name, [batch])
    ready.run("train", batch, asset_selection=TRAINING)
    (request,) = ask(ready, finish_evidence).run_requests

    begun = iter([NOW])  # a run asks once for the time before its first step

    def away() -> datetime:
        for moment in begun:
            return moment
        raise ModelUnavailable("The store does not answer.")

    waiting = Bench(ready.instance, replace(ready.babylon, now=away))
    with pytest.raises(dg.Failure):
        waiting.run("train", batch, asset_selection=[dg.AssetKey("benchmark_report"), dg.AssetKey("released_model")])
    assert ready.instance.get_runs(limit=1)[0].tags[ENDED_TAG] == WAITS
    with ready.babylon.database.connect(autocommit=True) as connection:
        note_tracking(connection, batch, "https://wandb.test/run", NOW)
    ready.run("train", batch, asset_selection=request.asset_selection)
    released = ready.materializations("released_model")[batch].metadata
    assert released["decision"].value == "not_compared"
    links = {name: entry.url for name, entry in released.items() if isinstance(entry, dg.UrlMetadataValue)}
    assert links == {"admin_page": f"{ready.babylon.settings.admin_url}/admin", "weights_and_biases": "https://wandb.test/run"}
    assert ask(ready, finish_evidence) == dg.SkipReason("Every completed batch has been decided on.")


@pytest.fixture
def decided_batch(ready: Bench) -> str:
    """A batch whose run went to its end, the gate's decision included."""
    batch = ask(ready, start_training).run_requests[0].partition_key
    ready.instance.add_dynamic_partitions(batches.name, [batch])
    ready.run("train", batch)
    return batch


@pytest.mark.slow
def test_a_confirmation_that_was_interrupted_is_asked_for_again(ready: Bench, decided_batch: str):
    version = ready.materializations("released_model")[decided_batch].metadata["version"].value
    decided = dg.SkipReason("Every completed batch has been decided on.")
    assert ask(ready, finish_evidence) == decided
    with ready.babylon.database.connect(autocommit=True) as connection:
        test = begin_confirmation(connection, str(version), None, 24, lambda outcomes: 0.01, NOW)
        (request,) = ask(ready, finish_evidence).run_requests
        assert request.partition_key == decided_batch
        connection.execute("BEGIN")
        insert_rollout(connection, str(version), "candidate", "gradual", 0.0, (), None, ReleaseAuthor("a", "b", NOW))
        assert undecided_batches(connection, NOW) == {}, "a person has taken it up"
        connection.execute("ROLLBACK")
        end_confirmation(connection, test.number, 0.0, 1.0, NOW)
        assert ask(ready, finish_evidence) == decided


@pytest.mark.slow
def test_a_pass_that_nothing_followed_from_is_asked_for_again(ready: Bench, decided_batch: str):
    with ready.babylon.database.connect(autocommit=True) as connection:
        connection.execute("""UPDATE babylon_rl.releases SET "decision" = 'pass', "decidedAt" = %s""", [NOW])
        (request,) = ask(ready, finish_evidence).run_requests
        assert request.partition_key == decided_batch
        assert undecided_batches(connection, NOW + timedelta(days=2)) == {}, "it was refused, or is from before there were rollouts"
