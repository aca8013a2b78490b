"""One step of serverless training with openpipe-art, from registering a model to deleting it."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from babylon_rl.settings import Settings

PROMPT = [{"role": "user", "content": "The stock OPENLIE was just upgraded. Answer in one word: buy, sell or hold?"}]
ANSWER_WITHIN_S = 1200
TRAINED_WITHIN_S = 1800
LISTED_WITHIN_S = 60


@dataclass(frozen=True)
class Trained:
    """The model's step before and after one job."""

    before: int
    after: int


async def one_step(settings: Settings, key: str, name: str, directory: Path) -> Trained:
    """Train a new model of BASE_MODEL on two of its own answers, one rewarded; it is deleted whatever happens.

    The answers are the service's, with the log-probabilities and token ids that it served: without them it trains nothing and says so
    by nothing but the step.
    """
    import art

    backend = art.ServerlessBackend(api_key=key, base_url=settings.serverless_base_url)
    model = art.TrainableModel(
        name=name, project=settings.wandb_project, entity=settings.wandb_entity, base_model=settings.base_model, base_path=str(directory)
    )
    try:
        await model.register(backend)
        try:
            return await _trained(art, backend, model)
        finally:
            await backend.delete(model)
    finally:
        await backend.close()


async def _trained(art: Any, backend: Any, model: Any) -> Trained:
    before = await model.get_step()
    client = model.openai_client()
    try:
        answer = await client.chat.completions.create(
            model=model.get_inference_name(), messages=PROMPT, n=2, temperature=1.0, max_tokens=8, logprobs=True, timeout=ANSWER_WITHIN_S
        )
    finally:
        await client.close()
    for choice in answer.choices:
        tokens = choice.logprobs.content if choice.logprobs is not None else None
        assert tokens, "the service gave no log-probabilities, and without them it trains nothing"
        assert all(entry.token.startswith("token_id:") for entry in tokens), "tokens came as text, which would train as other tokens"
    episodes = [art.Trajectory(messages_and_choices=[*PROMPT, choice], reward=float(rank)) for rank, choice in enumerate(answer.choices)]
    async with asyncio.timeout(TRAINED_WITHIN_S):  # the client itself polls for ever
        await backend.train(model, [art.TrajectoryGroup(episodes)], learning_rate=1e-6)
    after = await model.get_step()
    for _ in range(LISTED_WITHIN_S):  # the list of checkpoints may lag behind the job
        if after > before:
            break
        await asyncio.sleep(1)
        after = await model.get_step()
    return Trained(before, after)
