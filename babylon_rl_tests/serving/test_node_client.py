"""The official Node client against the gateway; skipped unless `npm install openai` was run in this directory, or where NODE_PATH says."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.serving.gateways import add_version, running_gateway
from babylon_rl_tests.serving.model_stand_in import model_stand_in

SCRIPT = Path(__file__).with_name("node_client.mjs")


def test_the_official_node_client_works_unchanged(settings: Settings, database: Database, tmp_path: Path) -> None:
    modules = Path(os.environ.get("NODE_PATH", SCRIPT.parent / "node_modules"))
    if shutil.which("node") is None or not (modules / "openai").is_dir():
        pytest.skip("no node, or no openai package: npm install --prefix DIR openai, then NODE_PATH=DIR/node_modules")
    # Modules are resolved from the script's directory, not from NODE_PATH.
    (tmp_path / "node_modules").symlink_to(modules.resolve())
    shutil.copy(SCRIPT, tmp_path)
    add_version(database, "v1.0.0")
    with model_stand_in() as upstream, running_gateway(settings.model_copy(update={"local_endpoint": upstream.url}), database) as gateway:
        command = ["node", str(tmp_path / SCRIPT.name), gateway.url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["answer"], told["streamed"], told["version"]) == ("hold your position",) * 2 + ("v1.0.0",)
    assert "babylon-agent-v1.0.0" in told["models"]
    assert told["error"] == {"name": "NotFoundError", "status": 404, "code": "model_not_found"}
