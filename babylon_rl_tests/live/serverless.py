"""One step of serverless training through this pipeline's own adapter, from registering a model to deleting it."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from babylon_rl.llm.client import ChatAnswer, ChatClient
from babylon_rl.models.checkpoints import RemoteCheckpoint
from babylon_rl.settings import Settings
from babylon_rl.training.backends.base_tokens import BaseTokens
from babylon_rl.training.backends.openpipe_art import JobProgress, art_groups, count_groups, of_checkpoint, read_events, sent_groups
from babylon_rl.training.backends.protocol import TrainSequence
from babylon_rl.training.backends.serverless.service import ServerlessService

PROMPT = [{"role": "user", "content": "The stock OPENLIE was just upgraded. Answer in one word: buy, sell or hold?"}]
PATIENCE_S = 60.0
ANSWER_WITHIN_S = 1200.0
TRAINED_WITHIN_S = 1800.0
LISTED_WITHIN_S = 60.0
POLL_S = 1.0

Found = TypeVar("Found")


@dataclass(frozen=True)
class Trained:
    """What a job was seen to do.

    The step before and after it; its events; (sequences, loss) by the metrics of its checkpoint; where agents call its step, and what that
    answered; the steps that are left after its step was deleted.
    """

    before: int
    after: int
    progress: JobProgress
    weighed: tuple[int | None, float | None]
    pointer: RemoteCheckpoint
    answer: ChatAnswer
    left: list[int]


async def one_step(settings: Settings, name: str) -> Trained:
    """Train a new model ``name`` of BASE_MODEL on two of its own answers, one rewarded; the model is deleted whatever happens."""
    settings = settings.model_copy(update={"art_model_name": name})
    async with ServerlessService(settings, settings.base_model, PATIENCE_S, lambda: None) as service:
        try:
            return await _trained(settings, service)
        finally:
            await service._backend.delete(service._model)  # a whole model is nothing that this pipeline ever deletes


def assert_all_that_is_relied_upon(trained: Trained, name: str) -> None:
    """What this pipeline takes for granted of the service."""
    assert trained.progress.failure is None and _counted(trained.progress)
    assert (trained.progress.sequences or 0) > 0 and trained.progress.tokens > 0 and _finite(trained.progress.loss)
    assert trained.after == trained.before + 1, f"the job ended and the model is at step {trained.after}"
    sequences, loss = trained.weighed  # all that is known of a job whose id was never learnt
    assert (sequences or 0) > 0 and _finite(loss)
    assert trained.pointer.inference_name.endswith(f"/{name}:step{trained.after}") and trained.answer.logprobs
    assert trained.after not in trained.left


def _counted(progress: JobProgress) -> bool:
    """Whether the service counts its sequences and has shown a step of each."""
    return progress.all_seen(JobProgress())


def _finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)


async def _trained(settings: Settings, service: ServerlessService) -> Trained:
    before, _ = await service.newest()
    base = BaseTokens(settings, settings.base_model)
    untrained = service.remote(before, None)
    answers = [await _ask(settings, untrained, untrained.inference_name.rpartition(":step")[0], seed) for seed in (0, 1)]
    groups = sent_groups([_sequence(number, answer) for number, answer in enumerate(answers)], base)
    counted = count_groups(groups, base, False)
    assert counted.sequences == len(answers), f"answers of the service that this pipeline cannot train: {dict(counted.untrained)}"
    arguments = service.installed.accepted({"learning_rate": 1e-6})
    job_id = await service.post(art_groups(groups, "live-test", 1, False), arguments, lambda: None)

    async def progress() -> JobProgress:
        return read_events(await service.events(job_id))

    seen = await _until(progress, lambda found: _counted(found) or found.failure is not None, TRAINED_WITHIN_S)
    newest, metrics = await _until(service.newest, lambda found: found[0] > before, LISTED_WITHIN_S)
    pointer = service.remote(newest, job_id)
    answer = await _ask(settings, pointer, pointer.inference_name, 0)
    await service.delete([newest])
    left = await _until(service.steps, lambda found: newest not in found, LISTED_WITHIN_S)
    return Trained(before, newest, seen, of_checkpoint(metrics), pointer, answer, left)


async def _ask(settings: Settings, pointer: RemoteCheckpoint, model: str, seed: int) -> ChatAnswer:
    assert settings.wandb_api_key is not None
    key = settings.wandb_api_key.get_secret_value()
    async with ChatClient(pointer.inference_url, key, model, timeout_s=ANSWER_WITHIN_S, attempts=20) as client:
        return await client.complete(PROMPT, seed=seed, max_tokens=8)


def _sequence(number: int, answer: ChatAnswer) -> TrainSequence:
    return TrainSequence(
        messages=PROMPT, response=answer.text, response_format=None, logprobs=answer.logprobs, advantage=0.0,
        window="2025-11-15T10:00", agent_id=f"agent-{number}", trajectory_id=f"t-{number}", call_id=f"c-{number}", score=float(number),
        step=0, source="embedded", purpose="action", model="base",
    )  # fmt: skip


async def _until(ask: Callable[[], Awaitable[Found]], enough: Callable[[Found], bool], within_s: float) -> Found:
    """Ask until it is enough, or the time is over; then what was found last."""
    found = await ask()
    waited_s = 0.0
    while not enough(found) and waited_s < within_s:
        await asyncio.sleep(POLL_S)
        waited_s += POLL_S
        found = await ask()
    return found
