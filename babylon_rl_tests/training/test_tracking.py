"""A training at Weights & Biases: the real client, offline into files that `wandb sync` reads, online against a stand-in over HTTP."""

import os
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from babylon_rl.settings import Settings
from babylon_rl.store.batches import Batch, BatchEpisode
from babylon_rl.store.training_steps import TrainingStep
from babylon_rl.training.artifacts import log_artifact
from babylon_rl.training.tracking import ITERATIONS, STRIDE, Tracker, iteration_numbers
from babylon_rl.training.trainer import StepMetrics
from babylon_rl_tests.evaluation.weights_and_biases import Service, weights_and_biases

KEY = "0123456789abcdef0123456789abcdef01234567"
NOW = datetime(2025, 10, 30, 12)
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


def synced(directory: str, settings: Settings, service: Service, tmp_path: Path) -> list[dict[str, Any]]:
    """The rows that wandb's own reader finds in an offline run."""
    environment = os.environ | {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": service.url, "WANDB_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", "--entity", "me", "--project", "p", directory],
        env=environment, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return service.history["batch-1761825600000"]


def test_offline_wandb_reads_every_step_and_iteration_back(offline: Settings, tmp_path: Path) -> None:
    tracker = Tracker(make_batch(), offline)
    tell(tracker, (1, 2))
    steps = [make_step(1), make_step(2)]
    sent = tracker.finish(steps, {1: {"rewardMean": 0.5, "rewardSpread": 0.2}, 2: {"rewardMean": 0.6}}, {"version": "v1.0.2"})
    assert sent.link is not None and sent.words == f"Written for `wandb sync {sent.link}`."
    assert Path(sent.link).parent == offline.home / "wandb" and (Path(sent.link) / "run-batch-1761825600000.wandb").is_file()
    with weights_and_biases() as service:
        rows = synced(sent.link, offline, service, tmp_path)
    assert [row["_step"] for row in rows] == [STRIDE + 1, STRIDE + 2, 2 * STRIDE + 1, 2 * STRIDE + 2, ITERATIONS + 1, ITERATIONS + 2]
    assert [row["step/loss"] for row in rows[:4]] == pytest.approx([1 / 2, 1 / 3, 1 / 3, 1 / 4])
    last = rows[-1]
    assert {name: last[name] for name in ("iteration", "loss", "kl", "tokensPerSecond", "rewardMean")} == pytest.approx(
        {"iteration": 2, "loss": 0.5, "kl": 0.02, "tokensPerSecond": 50.0, "rewardMean": 0.6}
    )
    again = Tracker(make_batch(), offline).finish(steps, {}, {})
    assert (again.words, again.link) == ("As it is in Weights & Biases already.", sent.link)


def test_online_an_interrupted_training_is_one_run_without_a_repeated_step(settings: Settings) -> None:
    with weights_and_biases() as service:
        online = settings.model_copy(update={"wandb_api_key": SecretStr(KEY), "wandb_project": "p", "wandb_base_url": service.url})
        first = Tracker(make_batch(), online)
        tell(first, (1, 2))  # the second iteration does not end
        first.abandon()
        second = Tracker(make_batch(), online)
        tell(second, (1, 2))  # a crash before its row makes a trainer repeat the first one, too
        sent = second.finish([make_step(1), make_step(2)], {}, {"avgReward": 0.5})
        assert (sent.words, sent.link) == ("In Weights & Biases.", f"{service.url}/me/p/runs/batch-1761825600000")
    assert service.resumed == 1
    numbers = [row["_step"] for row in service.history["batch-1761825600000"]]
    assert numbers == [STRIDE + 1, STRIDE + 2, 2 * STRIDE + 1, 2 * STRIDE + 2, ITERATIONS + 1, ITERATIONS + 2]
    assert service.summary["avgReward"] == 0.5


def test_without_a_key_nothing_starts_and_a_service_that_is_down_is_a_sentence(settings: Settings) -> None:
    refused = Tracker(make_batch(), settings)
    tell(refused, (1, 2))
    assert "WANDB_API_KEY is not set" in refused.finish([make_step(1)], {}, {}).words
    assert not (settings.home / "wandb").exists()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
    down = settings.model_copy(update={"wandb_api_key": SecretStr(KEY), "wandb_base_url": nobody})
    tracker = Tracker(make_batch(), down, initTimeout=2.0)
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
    numbers = iteration_numbers([make_step(1), make_step(2)], episodes, make_batch(), {HOURS[0]: (0.1, 0.25), HOURS[1]: (0.3, None)})
    assert numbers[1] == pytest.approx(
        {"rewardMean": 0.4, "rewardSpread": 0.2, "judgeDisagreement": 0.1, "judgeUsd": 0.25, "groupsDropped": 2, "sequencesLeftOut": 1,
         "staleness": 0.5}
    )  # fmt: skip
    assert (numbers[2]["rewardMean"], numbers[2]["rewardSpread"]) == pytest.approx((0.6, 0.1))


def test_a_checkpoint_is_logged_as_an_artifact_of_its_batch(settings: Settings, tmp_path: Path) -> None:
    from babylon_rl.models.checkpoints import publish
    from babylon_rl.training.dry import DryTrainer, _write_adapter
    from babylon_rl_tests.tiny_model import make_manifest

    (tmp_path / "made").mkdir()
    _write_adapter(tmp_path / "made", "dry", bytes(range(32)))
    publish(tmp_path / "made", tmp_path / "v1.0.0", make_manifest(DryTrainer().base_identity(), batch_id="batch-9"))
    with weights_and_biases() as service:
        online = settings.model_copy(update={"wandb_api_key": SecretStr(KEY), "wandb_project": "p", "wandb_base_url": service.url})
        sent = log_artifact(tmp_path / "v1.0.0", online)
        assert sent.link == f"{service.url}/me/p/runs/batch-9", sent.words
    assert "artifact" in (sent.answer or {})
    assert any(path.endswith("adapter_model.safetensors") for path in service.files)
