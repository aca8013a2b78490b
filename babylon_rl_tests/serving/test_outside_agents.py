"""docs/howto/outside-agents.md as it stands: both agents play a served market, and the gateway records every decision."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.serving.gateways import rows, running_gateway, wait_for
from babylon_rl_tests.serving.market_server import served, small_market
from babylon_rl_tests.serving.model_stand_in import ModelStandIn, completion
from babylon_rl_tests.store.servers import ROOT

LOOP, GRAPH = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "howto" / "outside-agents.md").read_text(), re.M | re.S)
ACTION = ('{"action": ', '"hold"}')


@pytest.fixture
def environment(settings: Settings, database: Database, upstream: ModelStandIn) -> Iterator[dict[str, str]]:
    """Variables of the page, with a served market, and a gateway in front of a model that holds."""
    upstream.answer = lambda model: completion(model, ACTION)
    chosen = settings.model_copy(update={"local_endpoint": upstream.url})
    with running_gateway(chosen, database, writes=True) as gateway, served(small_market(minutes=12)) as market:
        yield {"OPENAI_BASE_URL": gateway.url, "OPENAI_API_KEY": "none", "MARKET_URL": market}


def play(directory: Path, environment: dict[str, str], code: str) -> int:
    """Run an agent as a program of its own; returns the number of ticks that it played."""
    (directory / "agent.py").write_text(code)
    inherited = {"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "agent.py"], cwd=directory, env=inherited | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"\+0\.00 \$ in (\d+) ticks\n", done.stdout)
    assert found is not None, done.stdout
    return int(found[1])


def recorded(database: Database, name: str, decisions: int) -> None:
    """Every decision was asked for with the grammar of its tick and is a recorded call of one trajectory."""
    statement = f"SELECT 1 FROM babylon_rl.gateway_calls WHERE \"agentId\" = '{name}'"
    wait_for(lambda: len(rows(database, statement)) == decisions, f"{decisions} calls of {name}")
    logs = rows(database, 'SELECT "trajectoryId", "stepId", response, purpose FROM llm_call_logs')
    assert len({row["stepId"] for row in logs}) == decisions
    kept = {(row["trajectoryId"], row["response"], row["purpose"]) for row in logs}
    assert kept == {(logs[0]["trajectoryId"], "".join(ACTION), "action")}


@pytest.mark.long
def test_the_loop_plays_to_the_end_and_every_decision_is_recorded(
    environment: dict[str, str], database: Database, upstream: ModelStandIn, tmp_path: Path
) -> None:
    ticks = play(tmp_path, environment, LOOP)
    recorded(database, "plain-loop", ticks)
    (form,) = {json.dumps(seen["response_format"]["type"]) for seen in upstream.seen}
    assert form == '"json_schema"'
    assert re.search(r"\w+: \d+\.\d\d \([+-]\d+\.\d\d%\)", upstream.seen[1]["messages"][1]["content"])


@pytest.mark.long
def test_the_langgraph_agent_plays_to_the_end_and_every_decision_is_recorded(
    environment: dict[str, str], database: Database, tmp_path: Path
) -> None:
    pytest.importorskip("langgraph", reason="langgraph is not installed: make setup")
    parts = LOOP.partition("\n\nstep = market(")[0]
    assert parts != LOOP
    (tmp_path / "plain_loop_parts.py").write_text(parts)
    ticks = play(tmp_path, environment, GRAPH)
    recorded(database, "plain-loop", ticks)  # the name that `decide` gives
