"""The checks of a checkpoint that read its calls again and ask where its weights lie: passed, failed, or not tried and said to be so."""

from dataclasses import replace

import dagster as dg
import pytest
from pydantic import SecretStr

from babylon_rl.assets.partitions import batches
from babylon_rl.models.checkpoints import RemoteCheckpoint, publish, write_document
from babylon_rl.store.batches import read_batch, read_batch_episodes
from babylon_rl.training import checkpoint_checks as look
from babylon_rl.training.backends.dry import DryTrainer
from babylon_rl.training.batches import prepare_batch, train_batch
from babylon_rl.training.freezing import freeze
from babylon_rl_tests.assets.conftest import make_bench
from babylon_rl_tests.tiny_model import make_manifest
from babylon_rl_tests.training.remote_play import PLAYED_NOW
from babylon_rl_tests.training.sample import NOW
from babylon_rl_tests.training.test_leaks import HOUR, an_agent, embedded_rows, plant

__all__ = ["make_bench"]


def trained(connection, settings, now=NOW, **given):
    batch = freeze(connection, settings, now, **given).batch
    prepare_batch(connection, batch.batch_id, settings, now)
    return batch.batch_id


@pytest.mark.slow
def test_a_leak_that_became_known_is_found_though_as_many_were_left_out_before(connection, settings):
    agent = an_agent(connection)
    batch_id = trained(connection, settings, windows=(HOUR, "2025-10-29T15:00"))
    left = [plant(connection, row) for row in embedded_rows(connection, agent)]  # hindsight has not seen them when the batch trains
    train_batch(connection, batch_id, settings, NOW)
    assert read_batch(connection, batch_id).preflight["leftOut"]["leak"] == sum(left) > 1
    found = look.read_finished(connection, batch_id)
    assert agent not in {episode.agent_id for episode in found.episodes}
    clean = look.no_leakage(connection, found, settings)
    assert clean.passed and clean.numbers == {"sequences": clean.numbers["sequences"], "missing": 0, "leaked": 0}
    other = next(e.agent_id for e in found.episodes if embedded_rows(connection, e.agent_id))
    assert plant(connection, embedded_rows(connection, other)[0], calls=1) == 1
    leaked = look.no_leakage(connection, found, settings)
    assert not leaked.passed and leaked.numbers["leaked"] == 1
    assert f"the first of {other} in {HOUR}" in leaked.words


@pytest.mark.slow
def test_calls_that_are_gone_are_no_leak_and_without_any_there_is_nothing_to_say(connection, settings):
    batch_id = trained(connection, settings, windows=(HOUR, "2025-10-29T15:00"))
    train_batch(connection, batch_id, settings, NOW)
    found = look.read_finished(connection, batch_id)
    first = found.episodes[0]
    ids = list(first.trajectory_ids)
    connection.execute('UPDATE trajectories SET "stepsJson" = \'[]\' WHERE "trajectoryId" = ANY(%s)', [ids])
    connection.execute('DELETE FROM llm_call_logs WHERE "trajectoryId" = ANY(%s)', [ids])
    some = look.no_leakage(connection, found, settings)
    assert some.passed and f"; {first.sequences} that trained are gone or have changed since." in some.words
    assert not look.no_leakage(connection, replace(found, episodes=[first]), settings).passed


@pytest.mark.slow
def test_calls_that_were_too_old_to_train_are_not_missed(connection, settings):
    fresh = settings.model_copy(update={"max_staleness_versions": 0, "lookback_hours": 200})
    first = trained(connection, fresh, windows=(HOUR, "2025-10-29T15:00"))
    version = train_batch(connection, first, fresh, NOW).model.version
    second = trained(connection, fresh, max_trajectories=100)
    kept = read_batch_episodes(connection, second)
    ids = [i for e in kept for i in e.trajectory_ids]
    connection.execute(
        """UPDATE trajectories SET "stepsJson" = replace("stepsJson", '"purpose":"action"', %s) WHERE "trajectoryId" = ANY(%s)""",
        [f'"purpose":"action","modelVersion":"{version}"', ids],
    )
    connection.commit()
    train_batch(connection, second, fresh, NOW)  # served by the newest version: of age 0 then, of age 1 by now
    found = look.read_finished(connection, second)
    assert found.batch.preflight["stalenessVersions"]["0"] > 0
    verdict = look.no_leakage(connection, found, settings)
    assert verdict.passed and verdict.numbers["missing"] == 0


@pytest.fixture
def remote_checkpoint(played, remote, stand_in, tmp_path):
    """A finished serverless batch whose pointer names the stand-in for its answers, too."""
    batch_id = trained(played, remote, PLAYED_NOW)
    train_batch(played, batch_id, remote, PLAYED_NOW)
    found = look.read_finished(played, batch_id)
    return lambda url: replace(found, model=replace(found.model, checkpoint=str(pointing(tmp_path, url, remote.base_model))))


def pointing(tmp_path, url, base):
    made, final = tmp_path / "made", tmp_path / f"at-{url.rpartition(':')[2]}"
    made.mkdir()
    write_document(made, RemoteCheckpoint(service=url, model="m", step=1, artifact="m:step1", inference_name="m:step1", inference_url=url))
    publish(made, final, make_manifest(DryTrainer(base).base_identity(), version="v1.0.0"))
    return final


@pytest.mark.slow
def test_a_version_at_a_service_is_asked_there(played, remote, stand_in, remote_checkpoint):
    found = remote_checkpoint(stand_in.url)
    before = len(stand_in.service.requests)
    said = look.answers(played, found, remote)
    assert said.passed and said.tried and said.words.startswith("v1.0.0 answered '{") and said.words.endswith(f"at {stand_in.url}.")
    assert stand_in.service.requests[before:] == [("POST", "/chat/completions")]
    refused = look.answers(played, found, remote.model_copy(update={"wandb_api_key": SecretStr("wrong")}))
    assert not refused.passed and refused.tried and "status 401" in refused.words
    untried = look.answers(played, found, remote.model_copy(update={"wandb_api_key": None}))
    assert (untried.passed, untried.tried) == (False, False) and untried.words.startswith("Nothing measured: ")


@pytest.mark.slow
def test_a_service_that_does_not_answer_is_said_to_be_so(played, remote, remote_checkpoint):
    found = remote_checkpoint("http://127.0.0.1:9")
    silent = look.answers(played, found, remote.model_copy(update={"wandb_base_url": "http://127.0.0.1:9"}))
    assert not silent.passed and silent.tried and "does not answer (2 tries)" in silent.words
    stranger = look.answers(played, found, remote)
    assert not stranger.tried and "so WANDB_API_KEY is not sent there" in stranger.words


def test_a_base_that_is_not_loaded_for_a_check_is_a_warning_that_nothing_was_tried(connection, settings):
    batch_id = trained(connection, settings, max_trajectories=60)
    train_batch(connection, batch_id, settings, NOW)
    found = look.read_finished(connection, batch_id)
    on_a_gpu = replace(found, batch=replace(found.batch, backend="gpu"), model=replace(found.model, base_model="big"))
    verdict = look.answers(connection, on_a_gpu, settings)
    assert (verdict.passed, verdict.tried) == (False, False) and verdict.words.startswith("Nothing measured: big is not loaded")


@pytest.mark.slow
def test_what_was_not_tried_is_a_warning_on_the_page(read_sample, connection, settings, make_bench):
    batch_id = trained(connection, settings, max_trajectories=60)
    train_batch(connection, batch_id, settings, NOW)
    connection.execute("UPDATE babylon_rl.batches SET \"backend\" = 'gpu'")
    connection.execute("UPDATE trained_models SET \"baseModel\" = 'big'")
    connection.commit()
    bench = make_bench(read_sample, NOW, **settings.model_dump())
    bench.instance.add_dynamic_partitions(batches.name, [batch_id])
    result = bench.run("train", batch_id, asset_selection=[dg.AssetKey("trained_checkpoint")])
    found = {check.check_name: check for check in result.get_asset_check_evaluations()}
    untried = found["checkpoint_answers"]
    assert (untried.passed, untried.severity) == (False, dg.AssetCheckSeverity.WARN) and "Nothing measured" in untried.description
    assert found["checkpoint_whole"].passed
