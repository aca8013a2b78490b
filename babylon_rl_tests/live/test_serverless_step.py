"""The serverless service trains one step on two answers of the model itself, and the step is there afterwards."""

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from babylon_rl.settings import Settings
from babylon_rl_tests.live.serverless import one_step

# A cold service needs minutes to load the base.
pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(3600)]


def test_one_training_step_advances_the_model(keys: Settings, wandb_key: str | None, tmp_path: Path) -> None:
    if wandb_key is None:
        pytest.skip("WANDB_API_KEY is not set: set it to train BASE_MODEL for one paid step, on two short answers of its own")
    trained = asyncio.run(one_step(keys, wandb_key, f"live-test-{uuid4().hex[:8]}", tmp_path))
    assert trained.after == trained.before + 1, f"the job ended and the model is still at step {trained.after}"
