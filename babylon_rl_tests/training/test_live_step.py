"""The one paid step of `make test-live`, tried against the stand-in: so that it runs when there is a key."""

import asyncio
from pathlib import Path

import pytest
from pydantic import SecretStr

from babylon_rl.settings import Settings
from babylon_rl_tests.live import serverless
from babylon_rl_tests.live.serverless import assert_all_that_is_relied_upon, one_step
from babylon_rl_tests.training.serverless_stand_in import Service, standing_in
from babylon_rl_tests.training.serverless_stand_in.base import base_tokenizer
from babylon_rl_tests.training.serverless_stand_in.chat import Chat

pytestmark = pytest.mark.slow


def at_stand_in(settings: Settings, url: str, base: Path) -> Settings:
    return settings.model_copy(update={"wandb_api_key": SecretStr("x"), "serverless_base_url": url, "base_model": str(base)})


def test_the_live_step_holds_at_the_stand_in_and_leaves_nothing(settings: Settings, base_directory: Path) -> None:
    tokenizer = base_tokenizer()
    with standing_in(Service(len(tokenizer), job_s=0.5, lag_s=0.2), Chat(tokenizer)) as served:
        assert_all_that_is_relied_upon(
            asyncio.run(one_step(at_stand_in(settings, served.url, base_directory), "live-test-1")), "live-test-1"
        )
        (job,) = served.service.jobs
        assert job.payload.sequences == 2 and not job.payload.problems
        assert not served.service.models


@pytest.mark.parametrize("fault", ["fails", "zero", "nan", "no_step"])
def test_the_live_step_fails_where_the_service_does(
    settings: Settings, base_directory: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serverless, "LISTED_WITHIN_S", 0.1)
    tokenizer, service = base_tokenizer(), Service()
    service.job_faults = [fault]  # type: ignore[list-item]
    with standing_in(service, Chat(tokenizer)) as served:
        with pytest.raises(AssertionError):
            assert_all_that_is_relied_upon(asyncio.run(one_step(at_stand_in(settings, served.url, base_directory), "live")), "live")
        assert not service.models  # deleted whatever happens
