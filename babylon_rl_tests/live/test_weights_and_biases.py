"""The key of WANDB_API_KEY logs in, and an artifact that is stored in WANDB_PROJECT comes back as it was."""

from pathlib import Path
from uuid import uuid4

import pytest

from babylon_rl.settings import Settings

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]


def test_an_artifact_comes_back_as_it_was(keys: Settings, wandb_key: str | None, tmp_path: Path) -> None:
    if wandb_key is None:
        pytest.skip("WANDB_API_KEY is not set: set it to log in and store a small artifact in WANDB_PROJECT, deleted after")
    import wandb

    written = tmp_path / "checkpoint.txt"
    written.write_text(f"not a model: {uuid4()}\n")
    api = wandb.Api(api_key=wandb_key, timeout=60)
    assert api.viewer.username
    run = wandb.init(
        entity=keys.wandb_entity,
        project=keys.wandb_project,
        job_type="live-test",
        dir=tmp_path,
        settings=wandb.Settings(api_key=wandb_key, silent=True),
    )
    try:
        artifact = wandb.Artifact(f"live-test-{run.id}", type="live-test")
        artifact.add_file(str(written))
        stored = run.log_artifact(artifact).wait(timeout=120)
        fetched = api.artifact(stored.qualified_name)
        try:
            assert (Path(fetched.download(root=str(tmp_path / "fetched"))) / written.name).read_bytes() == written.read_bytes()
        finally:
            fetched.delete(delete_aliases=True)
    finally:
        run.finish()
        api.run(f"{run.entity}/{run.project}/{run.id}").delete()
