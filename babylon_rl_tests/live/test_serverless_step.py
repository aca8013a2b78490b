"""The serverless service trains one step on two answers of the model itself, and all that this pipeline asks of it holds there."""

import asyncio
from uuid import uuid4

import pytest

from babylon_rl.settings import Settings
from babylon_rl_tests.live.serverless import assert_all_that_is_relied_upon, one_step

# A cold service needs minutes to load the base.
pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(7200)]


def test_one_training_step_advances_the_model(keys: Settings, wandb_key: str | None) -> None:
    if wandb_key is None:
        pytest.skip("WANDB_API_KEY is not set: set it to train BASE_MODEL for one paid step, on two short answers of its own")
    name = f"live-test-{uuid4().hex[:8]}"
    assert_all_that_is_relied_upon(asyncio.run(one_step(keys, name)), name)
