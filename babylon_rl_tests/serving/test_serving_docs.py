"""The curl lines of docs/howto/gateway.md and admin-api.md, run as they stand against servers of the test."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from pydantic import SecretStr

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.evaluation.conftest import MakeVersion, write_tensors
from babylon_rl_tests.serving.admin_server import dagster_stand_in, running_admin
from babylon_rl_tests.serving.gateways import add_version, running_gateway
from babylon_rl_tests.serving.model_stand_in import ModelStandIn
from babylon_rl_tests.store.servers import ROOT
from babylon_rl_tests.training.conftest import connection, read_sample

__all__ = ["connection", "read_sample"]
pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")


def scripts(page: str, address: str) -> list[str]:
    """The blocks of a page in which curl asks an address, without other commands."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", (ROOT / "docs" / "howto" / page).read_text(), re.DOTALL | re.MULTILINE)
    found = []
    for block in blocks:
        commands = [re.sub(r"^[\d* ]+ (?=curl)", "", line) for line in block.replace("\\\n", " ").splitlines()]
        asking = [line for line in commands if line.startswith("sha=") or (line.startswith("curl") and address in line)]
        if asking:
            found.append("\n".join(asking))
    return found


def run(script: str, address: str, url: str, workplace: Path) -> str:
    """Run a script against the test's server; every request has to succeed."""
    script = "set -e\n" + re.sub(r"^curl (-s )?", "curl -sS --fail-with-body ", script, flags=re.MULTILINE).replace(address, url)
    environment = os.environ | {"CRON_SECRET": "of the page"}
    done = subprocess.run(["bash", "-c", script], cwd=workplace, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_curl_lines_of_the_gateway_s_page(settings: Settings, database: Database, upstream: ModelStandIn, tmp_path: Path) -> None:
    add_version(database, "v1.0.0")
    (script,) = scripts("gateway.md", "http://127.0.0.1:8080")
    with running_gateway(settings.model_copy(update={"local_endpoint": upstream.url}), database) as gateway:
        said = run(script, "http://127.0.0.1:8080", f"http://127.0.0.1:{gateway.port}", tmp_path)
    assert "hold your position" in said


@pytest.mark.slow
def test_the_curl_lines_of_the_admin_api_s_page(
    settings: Settings, read_sample: Database, make_version: MakeVersion, tmp_path: Path
) -> None:
    make_version("v1.0.3")
    write_tensors(tmp_path / "adapter_model.safetensors", 9.0)
    address = "http://127.0.0.1:8090"
    # A training takes the next version, so that the page's upload comes first.
    found = sorted(scripts("admin-api.md", address), key=lambda script: "upload-model" not in script)
    easy = {"training_min_trajectories": 10, "training_min_groups": 1, "data_quality_threshold": 0.0}
    with dagster_stand_in() as dagster:
        changed = settings.model_copy(
            update=easy
            | {"dagster_url": dagster.url, "train_rl_local": True, "local_base_model": "dry", "cron_secret": SecretStr("of the page")}
        )
        with running_admin(changed, read_sample, starts_a_minute=1000) as server:
            said = [run(script, address, server.url, tmp_path) for script in found]
        assert len(dagster.launched) == 1
    assert len(found) == 4 and '"version":"v1.0.4"' in said[0]
    assert '"openapi":"3.1.0"' in said[1] and '"state":"rolled_back"' in said[2] and '"scoring":' in said[3]
