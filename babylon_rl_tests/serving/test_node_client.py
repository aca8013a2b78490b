"""OpenAI's Node client and the AI SDK against the gateway, as docs/howto/gateway.md shows them; skipped where they are not installed.

`scripts/node_packages.sh` installs them.
"""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.serving.acting_stand_in import SAID, acting_stand_in
from babylon_rl_tests.serving.gateways import add_version, rows, running_gateway, wait_for
from babylon_rl_tests.serving.model_stand_in import model_stand_in
from babylon_rl_tests.store.servers import ROOT

SCRIPT, RESPONSES = (Path(__file__).with_name(name) for name in ("node_client.mjs", "responses_client.mjs"))
MODULES = ROOT / "build" / "node" / "node_modules"
OPENAI, AI_SDK = re.findall(r"^```ts\n(.*?)^```$", (ROOT / "docs" / "howto" / "gateway.md").read_text(), re.M | re.S)
Node = Callable[..., str]


@pytest.fixture
def upstream_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server of v1.0.0: the stand-in that is the fixture's parameter."""
    with getattr(request, "param", model_stand_in)() as upstream:
        yield upstream.url


@pytest.fixture
def node(settings: Settings, database: Database, tmp_path: Path, upstream_url: str) -> Iterator[Node]:
    """``node(code, package, model)``: output of a module that needs a package, with a gateway in front of v1.0.0."""

    def run(code: str, package: str, model: str = "") -> str:
        if shutil.which("node") is None or not (MODULES / package).is_dir():
            pytest.skip(f"no node, or no {package}: scripts/node_packages.sh installs it")
        # Modules are resolved from the script's directory.
        (tmp_path / "node_modules").symlink_to(MODULES)
        (tmp_path / "agent.mjs").write_text(code)
        environment = os.environ | {"OPENAI_BASE_URL": gateway.url, "OPENAI_API_KEY": "none", "MODEL": model}
        done = subprocess.run(
            ["node", str(tmp_path / "agent.mjs")], env=environment, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    add_version(database, "v1.0.0")
    changed = settings.model_copy(update={"local_endpoint": upstream_url})
    with running_gateway(changed, database, writes=True) as gateway:
        yield run


def test_the_official_node_client_works_unchanged(node: Node, database: Database) -> None:
    told = json.loads(node(SCRIPT.read_text(), "openai"))
    assert (told["answer"], told["streamed"], told["version"]) == ("hold your position",) * 2 + ("v1.0.0",)
    assert "babylon-agent-v1.0.0" in told["models"]
    assert told["error"] == {"name": "NotFoundError", "status": 404, "code": "model_not_found"}
    statement = 'SELECT DISTINCT "agentId" FROM babylon_rl.gateway_calls'
    wait_for(lambda: rows(database, statement) == [{"agentId": "agent-7"}], "the agent's calls")


@pytest.mark.parametrize(("code", "package", "step"), [(OPENAI, "openai", 0), (AI_SDK, "@ai-sdk/openai", 1)], ids=["openai", "ai-sdk"])
def test_the_code_of_the_page_gives_the_agent_and_the_call_s_place(
    node: Node, database: Database, code: str, package: str, step: int
) -> None:
    assert node(code, package) == "hold your position\n"
    wait_for(lambda: rows(database, "SELECT 1 FROM llm_call_logs"), "the call")
    (row,) = rows(database, 'SELECT "agentId", "trajectoryId", "stepId" FROM babylon_rl.gateway_calls JOIN llm_call_logs USING ("callId")')
    assert row == {"agentId": "agent-7", "trajectoryId": "trajectory-1", "stepId": f"trajectory-1-step-{step}"}


@pytest.mark.parametrize("upstream_url", [acting_stand_in], indirect=True)
@pytest.mark.parametrize("model", ["gpt-4o-mini", "gpt-5-mini"])
def test_the_responses_api_is_answered_as_the_clients_ask_it(node: Node, model: str) -> None:
    told = json.loads(node(RESPONSES.read_text(), "@ai-sdk/openai", model))
    assert "stream" in told.pop("broken")
    assert told == {
        "text": SAID, "again": SAID, "streamed": SAID, "tokens": 11, "outputs": ["BTC"] * 3, "object": {"ticker": "BTC"},
        "node": [SAID, SAID, 400, "previous_response_id"],
    }  # fmt: skip
