"""What counts as a trained job, from events in any order and from a checkpoint's own metrics; and which backend the settings choose."""

import asyncio
import math
import random
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from babylon_rl.errors import BatchConflict, NoTrainer, SettingsError
from babylon_rl.settings import load_settings
from babylon_rl.training.backends.gpu import GpuTrainer, with_signs_of_life
from babylon_rl.training.backends.openpipe_art import JobEvent, JobProgress, of_checkpoint, read_events
from babylon_rl.training.backends.protocol import trainer_choice

LOSSES = st.lists(st.floats(-10, 10), max_size=8)


def make_events(losses: list[float], announced: int | None = None, end: str = "training_ended") -> list[JobEvent]:
    steps = [
        JobEvent(f"s{n}", "gradient_step", {"loss": loss, "grad_norm": 2.0, "num_trainable_tokens": 3}) for n, loss in enumerate(losses)
    ]
    started = JobEvent("a", "training_started", {"num_sequences": len(losses) if announced is None else announced})
    return [started, *steps, JobEvent("z", end, {"error_message": "no room"} if end == "training_failed" else {})]


@pytest.mark.slow
@given(LOSSES, st.randoms(use_true_random=False))
def test_the_order_of_events_and_their_repetition_change_nothing(losses: list[float], rng: random.Random) -> None:
    events = make_events(losses)
    mixed = [*events, *rng.sample(events, k=rng.randint(0, len(events)))]
    rng.shuffle(mixed)
    found, expected = read_events(mixed), read_events(events)
    assert (found.sequences, found.ended, found.tokens) == (len(losses), True, 3 * len(losses)) and found.all_seen(JobProgress())
    assert (found.loss is None and not losses) or found.loss == pytest.approx(expected.loss)


@given(LOSSES.filter(bool), st.sampled_from([math.nan, math.inf, -math.inf, None, "much"]))
def test_one_loss_that_is_no_number_spoils_the_job(losses: list[float], bad: object) -> None:
    events = make_events(losses)
    spoilt = [*events, JobEvent("x", "gradient_step", {"loss": bad})]
    assert math.isnan(read_events(spoilt).loss)


def test_what_was_announced_is_not_what_was_trained() -> None:
    assert read_events(make_events([], announced=12)).sequences == 0
    fewer, none = read_events(make_events([0.5], announced=2)), read_events(make_events([], announced=2))
    assert not fewer.all_seen(JobProgress()) and fewer.all_seen(fewer) and not none.all_seen(none)
    assert not read_events([]).ended
    failed = read_events(make_events([0.5], end="training_failed"))
    assert failed.failure == "no room" and not failed.ended


@pytest.mark.parametrize(
    ("metrics", "sequences", "loss"),
    [
        ({"loss": 0.5, "num_sequences": 4.0}, 4, 0.5),
        ({"policy_loss": -0.1, "train_tokens": 9}, 9, -0.1),
        ({"reward": 1.0}, None, None),
        ({}, None, None),
    ],
)
def test_a_checkpoint_tells_what_it_tells(metrics: dict[str, float], sequences: int | None, loss: float | None) -> None:
    assert of_checkpoint(metrics) == (sequences, loss)


def test_a_key_chooses_the_service_and_its_base(settings) -> None:
    chosen = settings.model_copy(update={"wandb_api_key": SecretStr("k"), "base_model": "some/base"})
    assert (trainer_choice(chosen).backend, trainer_choice(chosen).base_model) == ("serverless", "some/base")
    assert trainer_choice(settings.model_copy(update={"wandb_api_key": SecretStr("")})).backend == "dry"


@pytest.mark.skipif(find_spec("unsloth") is not None, reason="the packages for a GPU are installed")
def test_a_gpu_without_its_packages_is_said(settings) -> None:
    with pytest.raises(NoTrainer, match="requirements-gpu.lock.*not installed here"):
        GpuTrainer(settings)


def test_a_training_on_a_gpu_gives_signs_of_life_and_stops_with_its_batch() -> None:
    stopped, beats = [], []

    async def trains(seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            stopped.append(seconds)
            raise
        return "trained"

    def beat() -> None:
        beats.append(1)
        if len(beats) == 4:
            raise BatchConflict("cancelled")

    assert asyncio.run(with_signs_of_life(trains(0.05), beat, 0.02)) == "trained" and beats and not stopped
    with pytest.raises(BatchConflict):
        asyncio.run(with_signs_of_life(trains(30), beat, 0.01))
    assert stopped == [30]


def test_an_address_with_a_password_is_refused_and_not_repeated(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="SERVERLESS_BASE_URL is .a secret.: must hold no user or password") as refused:
        load_settings(serverless_base_url="https://user:hush@train.example/v1")
    assert "hush" not in str(refused.value)
