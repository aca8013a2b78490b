"""A training at Weights & Biases: the real client, offline into files that `wandb sync` reads, online against a stand-in over HTTP."""

import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import msgspec
import pytest
from psycopg.types.json import Jsonb
from pydantic import SecretStr

from babylon_rl.assets.partitions import batches
from babylon_rl.assets.resources import Babylon
from babylon_rl.automation.launch import QUIET, job_definition
from babylon_rl.models.checkpoints import MANIFEST
from babylon_rl.settings import Settings
from babylon_rl.store.batches import Batch, BatchEpisode
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.registry import read_models
from babylon_rl.store.write_ahead import TrainingStep
from babylon_rl.training import tracking
from babylon_rl.training.backends.dry import DryTrainer
from babylon_rl.training.backends.protocol import StepMetrics
from babylon_rl.training.batches import prepare_batch
from babylon_rl.training.freezing import freeze
from babylon_rl.training.tracking import ITERATIONS, STRIDE, Tracker, batch_costs, iteration_numbers, log_artifact
from babylon_rl.types import Judgement
from babylon_rl_tests.training.sample import NOW as SAMPLE_NOW
from babylon_rl_tests.training.weights_and_biases import Service, weights_and_biases

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef0123456789abcdef01234567"
NOW = datetime(2025, 10, 30, 12)
CHECKPOINT = dg.AssetKey("trained_checkpoint")
HOURS = ("2025-10-29T14:00", "2025-10-29T13:00")


@pytest.fixture(autouse=True)
def nothing_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def offline(settings: Settings) -> Settings:
    return settings.model_copy(update={"wandb_mode": "offline", "wandb_project": "p"})


def make_batch(**changed: Any) -> Batch:
    preflight = {"stalenessVersions": {"0": 3, "2": 1, "unknown": 9}, "groupsDropped": {"no spread": 2}, "leftOut": {"leak": 1}}
    values = {
        "batch_id": "batch-1761825600000", "base_model": "org/base", "backend": "cpu", "parent_version": "v1.0.1", "version": "v1.0.2",
        "seed": 7, "attempt": 1, "state": "completed", "settings": {"iterations": 2, "epochs": 1}, "dropout": {}, "preflight": preflight,
        "created_at": NOW, "heartbeat_at": NOW, "started_at": NOW, "completed_at": NOW, "error": None, "loss": 0.25, "trajectories": 4,
        "windows": HOURS,
    }  # fmt: skip
    return Batch(**{**values, **changed})


def make_step(number: int) -> TrainingStep:
    metrics = {"kl": 0.01 * number, "entropy": 1.0, "clipFraction": 0.1, "gradientNorm": 0.5, "seconds": 2.0, "sequences": 4}
    return TrainingStep(number, 1, "cpu", number - 1, HOURS[:number], 4, NOW, NOW, "x", 1 / number, 100, metrics)


def tell(tracker: Tracker, iterations: tuple[int, ...]) -> None:
    for iteration in iterations:
        for step in (1, 2):
            tracker.step(StepMetrics(iteration, step, 2, 1 / (iteration + step), 50, {"tokensPerSecond": 1000.0}))


def synced(command: str, service: Service, tmp_path: Path) -> list[dict[str, Any]]:
    """The rows that wandb's own reader finds in the offline directories that a command names."""
    assert command.startswith("Written for `wandb sync ") and command.endswith("`.")
    directories = command.removeprefix("Written for `wandb sync ").removesuffix("`.").split()
    environment = os.environ | {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": service.url, "WANDB_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--entity", "me", "--project", "p", *directories],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = service.history
    return service.history[run]


def wait_for(true: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.long
def test_offline_wandb_reads_every_step_and_iteration_back(offline: Settings, tmp_path: Path) -> None:
    tracker = Tracker(make_batch(), offline)
    tell(tracker, (1, 2))
    steps = [make_step(1), make_step(2)]
    sent = tracker.finish(steps, {1: {"rewardMean": 0.5, "rewardSpread": 0.2}, 2: {"rewardMean": 0.6}}, {"version": "v1.0.2"})
    assert sent.link is not None and sent.words == f"Written for `wandb sync {sent.link}`."
    assert Path(sent.link).parent == offline.home / "wandb" and (Path(sent.link) / "run-batch-1761825600000.wandb").is_file()
    with weights_and_biases() as service:
        rows = synced(sent.words, service, tmp_path)
    assert [row["_step"] for row in rows] == [STRIDE + 1, STRIDE + 2, 2 * STRIDE + 1, 2 * STRIDE + 2, ITERATIONS + 1, ITERATIONS + 2]
    assert [row["step/loss"] for row in rows[:4]] == pytest.approx([1 / 2, 1 / 3, 1 / 3, 1 / 4])
    last = rows[-1]
    assert {name: last[name] for name in ("iteration", "loss", "kl", "tokensPerSecond", "rewardMean")} == pytest.approx(
        {"iteration": 2, "loss": 0.5, "kl": 0.02, "tokensPerSecond": 50.0, "rewardMean": 0.6}
    )
    again = Tracker(make_batch(), offline).finish(steps, {}, {}, sent.link)
    assert (again.words, again.link) == ("As it is in Weights & Biases already.", sent.link)


@pytest.mark.long
def test_offline_every_directory_of_an_interrupted_training_is_named_and_its_steps_agree(offline: Settings, tmp_path: Path) -> None:
    first = Tracker(make_batch(), offline)
    tell(first, (1,))  # its only iteration has ended; then the upload waits, say
    abandoned = first.abandon(limit_s=100)
    second = Tracker(make_batch(), offline)
    tell(second, (1,))  # a crash before its row makes a trainer repeat it
    sent = second.finish([make_step(1)], {}, {"version": "v1.0.2"})
    assert abandoned.link is not None and sent.link is not None
    assert sent.words == f"Written for `wandb sync {abandoned.link} {sent.link}`."
    with weights_and_biases() as service:
        rows = synced(sent.words, service, tmp_path)
    assert [row["_step"] for row in rows] == [STRIDE + 1, STRIDE + 2, STRIDE + 1, STRIDE + 2, ITERATIONS + 1]
    assert [row["step/loss"] for row in rows[:2]] == [row["step/loss"] for row in rows[2:4]]
    assert service.summary["version"] == "v1.0.2"


@pytest.mark.long
def test_offline_directories_that_began_within_one_second_are_all_named(offline: Settings) -> None:
    soon = [datetime.now() + timedelta(seconds=second) for second in range(-1, 59)]
    taken = [offline.home / "wandb" / f"offline-run-{moment:%Y%m%d_%H%M%S}-batch-1761825600000" for moment in soon]
    for directory in taken:
        directory.mkdir(parents=True)
    sent = Tracker(make_batch(), offline).finish([make_step(1)], {}, {})
    assert sent.link is not None and Path(sent.link) not in taken
    assert sent.words.startswith("Written for `wandb sync ")
    assert set(sent.words[24:-2].split()) == {sent.link, *map(str, taken)}


@pytest.mark.long
def test_a_killed_training_has_sent_the_iterations_that_it_ended(offline: Settings, tmp_path: Path) -> None:
    told = """
import sys, time
from babylon_rl.settings import load_settings
from babylon_rl.training.tracking import Tracker
from babylon_rl_tests.training.test_tracking import make_batch, tell
tracker = Tracker(make_batch(), load_settings(babylon_rl_home=sys.argv[1], wandb_mode="offline", wandb_project="p"))
tell(tracker, (1, 2))
print(tracker._process._child.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", told, str(offline.home)], stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        child = os.pidfd_open(int(training.stdout.readline()))
        wait_for(lambda: any((offline.home / "wandb").glob("offline-run-*")))  # it has its run, and the steps are on their way to it
        training.kill()
    assert select.select([child], [], [], 60)[0]  # it has ended
    os.close(child)
    sent = Tracker(make_batch(), offline).finish([make_step(1), make_step(2)], {}, {})
    with weights_and_biases() as service:
        rows = synced(sent.words, service, tmp_path)
    assert [row["_step"] for row in rows] == [STRIDE + 1, STRIDE + 2, 2 * STRIDE + 1, 2 * STRIDE + 2, ITERATIONS + 1, ITERATIONS + 2]


def test_a_wandb_that_lacks_a_setting_is_opened_without_it(offline: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb.py").write_text(
        """
from types import SimpleNamespace
from pydantic import BaseModel
class Settings(BaseModel, extra="forbid"):
    silent: bool
    init_timeout: float
def init(*, settings, **_):
    assert (settings.silent, settings.init_timeout) == (True, 45.0)
    nothing = lambda *_, **__: None
    return SimpleNamespace(resumed=False, dir="/a/files", define_metric=nothing, log=nothing, finish=nothing, summary={})
"""
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    sent = Tracker(make_batch(), offline).finish([make_step(1)], {}, {})
    assert sent.words == "Written for `wandb sync /a`."


@pytest.mark.long
def test_online_an_interrupted_training_is_one_run_without_a_repeated_step(settings: Settings) -> None:
    with weights_and_biases() as service:
        online = settings.model_copy(update={"wandb_api_key": SecretStr(KEY), "wandb_project": "p", "wandb_base_url": service.url})
        first = Tracker(make_batch(), online)
        tell(first, (1,))
        first.step(StepMetrics(2, 1, 2, 9.0, 50))  # the second iteration does not end
        first.abandon(limit_s=100)
        assert [row["_step"] for row in service.history["batch-1761825600000"]] == [STRIDE + 1, STRIDE + 2]
        second = Tracker(make_batch(), online)
        tell(second, (1, 2))  # a crash before its row makes a trainer repeat the first one, too
        sent = second.finish([make_step(1), make_step(2)], {}, {"avgReward": 0.5})
        assert (sent.words, sent.link) == ("In Weights & Biases.", f"{service.url}/me/p/runs/batch-1761825600000")
    assert service.resumed == 1
    numbers = [row["_step"] for row in service.history["batch-1761825600000"]]
    assert numbers == [STRIDE + 1, STRIDE + 2, 2 * STRIDE + 1, 2 * STRIDE + 2, ITERATIONS + 1, ITERATIONS + 2]
    assert service.summary["avgReward"] == 0.5


@pytest.mark.long
def test_without_a_key_nothing_starts_and_a_service_that_is_down_is_a_sentence(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Tracker(make_batch(), settings)
    tell(refused, (1, 2))
    assert "WANDB_API_KEY is not set" in refused.finish([make_step(1)], {}, {}).words
    assert not (settings.home / "wandb").exists()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
    down = settings.model_copy(update={"wandb_api_key": SecretStr(KEY), "wandb_base_url": nobody})
    monkeypatch.setattr(tracking, "INIT_TIMEOUT_S", 2.0)
    tracker = Tracker(make_batch(), down)
    tell(tracker, (1,))
    sent = tracker.finish([make_step(1)], {}, {})
    assert sent.link is None and sent.words.startswith("Not sent to Weights & Biases: ") and KEY not in sent.words


def test_a_state_directory_that_takes_nothing_is_a_sentence(offline: Settings) -> None:
    offline.home.mkdir(exist_ok=True)
    (offline.home / "wandb").write_text("in the way")
    tracker = Tracker(make_batch(), offline)
    tell(tracker, (1, 2))
    assert "cannot be started here" in tracker.finish([make_step(1)], {}, {}).words


def test_figures_of_an_iteration_are_those_of_its_own_hours() -> None:
    def episode(window: str, agent: str, score: float, dropped: str | None = None) -> BatchEpisode:
        return BatchEpisode(window, agent, ("t",), score, 1, 0.0, 1, dropped)

    episodes = [episode(HOURS[0], "a", 0.2), episode(HOURS[0], "b", 0.6), episode(HOURS[1], "a", 1.0), episode(HOURS[0], "c", 0.0, "gone")]
    judging = {HOURS[0]: (0.1, 0.25), HOURS[1]: (0.3, None)}
    numbers = iteration_numbers([make_step(1), make_step(2)], episodes, make_batch(), judging)
    assert numbers[1] == pytest.approx(
        {"rewardMean": 0.4, "rewardSpread": 0.2, "judgeDisagreement": 0.1, "judgeUsd": 0.25, "groupsDropped": 2, "sequencesLeftOut": 1,
         "staleness": 0.5}
    )  # fmt: skip
    assert (numbers[2]["rewardMean"], numbers[2]["rewardSpread"]) == pytest.approx((0.6, 0.1))


def test_an_hour_is_paid_in_the_first_iteration_that_uses_it_and_the_batch_costs_their_sum() -> None:
    steps = [replace(make_step(2), iteration=number, metrics={"trainingUsd": 0.5}) for number in range(1, 11)]  # the same two hours
    judging = {HOURS[0]: (0.1, 0.25), HOURS[1]: (0.3, 1.0)}
    numbers = iteration_numbers(steps[::-1], [], make_batch(), judging)
    assert [numbers[step.iteration]["judgeUsd"] for step in steps] == [1.25, *[0.0] * 9]
    left_out = {"2025-10-29T12:00": (0.0, 0.5)}  # judged, and without spread
    assert batch_costs(steps, judging | left_out) == {"judgeUsd": 1.75, "trainingUsd": 5.0}
    assert batch_costs([make_step(1)], {HOURS[0]: (0.1, None)}) == {}


@pytest.mark.long
def test_a_training_that_waited_for_its_upload_has_its_whole_curve_and_says_what_it_cost(
    connection: Connection, read_sample: Database, settings: Settings, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    offline = settings.model_copy(
        update={"wandb_mode": "offline", "wandb_project": "p", "iterations": 1, "model_storage_url": f"file://{there}"}
    )
    batch = freeze(connection, offline, SAMPLE_NOW).batch
    prepare_batch(connection, batch.batch_id, offline, SAMPLE_NOW)
    judgement = Judgement(
        orders=2, tau=1.0, requests=2, prompt_tokens=9, completion_tokens=9, usd=0.25, seconds=1.0, shown_version="as shown"
    )
    judged = connection.execute('UPDATE babylon_rl.group_scores SET "judgement" = %s', [Jsonb(msgspec.to_builtins(judgement))]).rowcount
    connection.commit()
    (there / batch.version).mkdir(parents=True)
    (there / batch.version / MANIFEST).write_text("of another checkpoint")
    job = job_definition("train", Babylon(offline, read_sample, lambda: SAMPLE_NOW))
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(str(batches.name), [batch.batch_id])

        def materialize() -> bool:
            made = job.execute_in_process(QUIET, instance, batch.batch_id, raise_on_error=False, asset_selection=[CHECKPOINT])
            return made.success

        assert not materialize()
        shutil.rmtree(there / batch.version)
        assert materialize()
        made = instance.get_latest_materialization_event(CHECKPOINT)
    directories = sorted(str(path) for path in (offline.home / "wandb").glob("offline-run-*"))
    assert made is not None and made.asset_materialization is not None
    assert len(directories) == 2 and made.asset_materialization.metadata["weights_and_biases"].value == directories[1]
    with weights_and_biases() as service:
        rows = synced(f"Written for `wandb sync {' '.join(directories)}`.", service, tmp_path)
    steps = DryTrainer().optimizer_steps
    assert [row["_step"] for row in rows] == [*range(STRIDE + 1, STRIDE + 1 + steps), ITERATIONS + 1]
    windows = len(batch.windows)
    assert windows == judged and service.summary["judgeUsd"] == pytest.approx(0.25 * windows)


@pytest.mark.long
def test_a_checkpoint_is_logged_as_an_artifact_of_its_batch(settings: Settings, tmp_path: Path) -> None:
    from babylon_rl.models.checkpoints import publish
    from babylon_rl.training.backends.dry import _write_adapter
    from babylon_rl_tests.tiny_model import make_manifest

    (tmp_path / "made").mkdir()
    _write_adapter(tmp_path / "made", "dry", bytes(range(32)))
    publish(tmp_path / "made", tmp_path / "v1.0.0", make_manifest(DryTrainer().base_identity(), batch_id="batch-9"))
    with weights_and_biases() as service:
        online = settings.model_copy(update={"wandb_api_key": SecretStr(KEY), "wandb_project": "p", "wandb_base_url": service.url})
        service.refused = {"CreateArtifact"}
        refused = log_artifact(tmp_path / "v1.0.0", online)
        assert refused.link is refused.artifact is None and "the storage of this account is full" in refused.words
        service.refused.clear()
        sent = log_artifact(tmp_path / "v1.0.0", online)
        assert sent.link == f"{service.url}/me/p/runs/batch-9", sent.words
    assert sent.artifact is not None
    assert any(path.endswith("adapter_model.safetensors") for path in service.files)


@pytest.mark.long
def test_a_training_here_that_is_tracked_online_logs_its_checkpoint_by_itself_and_no_failure_of_that_fails_it(
    connection: Connection, read_sample: Database, settings: Settings
) -> None:
    def artifact_of(batch_id: str) -> str | None:
        row = connection.execute('SELECT "wandbArtifactId" FROM trained_models WHERE "trainingBatch" = %s', [batch_id]).fetchone()
        connection.commit()
        assert row is not None
        return row[0]

    def materialize(chosen: Settings, batch: Batch) -> bool:
        job = job_definition("train", Babylon(chosen, read_sample, lambda: SAMPLE_NOW))
        with dg.DagsterInstance.ephemeral() as instance:
            instance.add_dynamic_partitions(str(batches.name), [batch.batch_id])
            return job.execute_in_process(QUIET, instance, batch.batch_id, asset_selection=[CHECKPOINT]).success

    with weights_and_biases() as service:
        online = settings.model_copy(
            update={
                "wandb_api_key": SecretStr(KEY),
                "wandb_project": "p",
                "wandb_base_url": service.url,
                "trainer": "local",
                "iterations": 1,
            }
        )
        frozen = []
        for most, refused in ((60, set[str]()), (None, {"CreateArtifact", "UpsertBucket"})):
            batch = freeze(connection, online, SAMPLE_NOW, max_trajectories=most).batch
            assert batch is not None and batch.backend == "dry"
            prepare_batch(connection, batch.batch_id, online, SAMPLE_NOW)
            connection.commit()
            service.refused = refused
            assert materialize(online, batch)
            frozen.append(batch)
    assert artifact_of(frozen[0].batch_id) == f"me/p/babylon-agent-{frozen[0].version}:{frozen[0].version}"
    assert artifact_of(frozen[1].batch_id) is None
    # The status says so of the newest version.
    model = next(model for model in read_models(connection) if model.training_batch == frozen[1].batch_id)
    assert (model.tracking_url, (model.tracking_refusal or "")[:30]) == (None, "Not sent to Weights & Biases: ")
