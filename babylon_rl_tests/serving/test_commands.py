"""The commands of releases as scripts use them."""

import json
from typing import Any

import pytest

from babylon_rl.cli import run
from babylon_rl.serving.gateway_process import configuration
from babylon_rl.store.releases import read_routing
from babylon_rl.windows import utc_now
from babylon_rl_tests.serving.gateways import MESSAGES, add_version, running_gateway, wait_for
from babylon_rl_tests.serving.live_rows import insert_calls


@pytest.fixture
def command(database, monkeypatch, tmp_path, capsys):
    """``command("models", "deploy", ...)``: the JSON that a command printed, or its error."""
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("BABYLON_RL_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Any:
        code = run([*arguments, "--json"])
        printed = capsys.readouterr()
        return json.loads(printed.out) if code == 0 else (code, printed.err.strip())

    return call


def test_a_release_by_commands(command, make_version, connection) -> None:
    for version in ("v1.0.0", "v1.0.1"):
        make_version(version)
    insert_calls(connection, None, utc_now(), [f"agent-{n}" for n in range(50)])
    deployed = command("models", "deploy", "v1.0.0", "--strategy", "immediate", "--reason", "it is time")
    assert (deployed["success"], deployed["state"], deployed["agentsUpdated"]) == (True, "released", 50)
    insert_calls(connection, "v1.0.0", utc_now(), [f"agent-{n}" for n in range(50)])
    rolling = command("models", "deploy", "v1.0.1", "--percentage", "40")
    assert 10 < rolling["agentsUpdated"] < 30 and rolling["previousVersion"] == "v1.0.0"
    assert command("models", "pause")["state"] == "paused" and command("models", "resume")["state"] == "rolling"
    resolved = command("models", "resolve", "--agent", "agent-1")
    assert resolved["version"] in ("v1.0.0", "v1.0.1") and resolved["fallback"] == "base" and resolved["share"] in (40.0, 60.0)
    assert command("models", "resolve", "--model", "latest")["version"] == "v1.0.0"
    assert command("models", "rollback")["state"] == "rolled_back"
    code, said = command("models", "pause")
    assert code == 3 and said.startswith("No version is on trial")


def test_agents_that_are_not_on_the_expected_version_are_named(command, make_version, connection, monkeypatch) -> None:
    make_version("v1.0.0")
    command("models", "deploy", "v1.0.0", "--strategy", "immediate")
    insert_calls(connection, "v1.0.0", utc_now(), ["agent-1", "agent-2"])
    insert_calls(connection, "v1.0.0", utc_now(), ["agent-3"], failed=1)
    found = command("models", "agents")
    assert found["notOnExpectedVersion"] == ["agent-3"]
    assert [(row["version"], row["expected"], row["fallback"]) for row in found["agents"]][1:] == [
        ("v1.0.0", "v1.0.0", None), ("base", "v1.0.0", "timeout"),
    ]  # fmt: skip
    monkeypatch.setenv("RECORD_PRIVATE_FIELDS", "agent=hash")
    assert "versions cannot be listed" in command("models", "agents")[1]


@pytest.mark.long
def test_the_start_up_line_resolve_and_the_answer_s_headers_agree(command, connection, settings, database, upstream) -> None:
    agents = [f"agent-{n}" for n in range(6)]
    settings = settings.model_copy(update={"local_endpoint": upstream.url})
    for version in ("v1.0.0", "v1.0.1"):
        add_version(database, version, "ready")

    def agree(line: str) -> set[str]:
        """What the agents get, once the gateway says the same as ``resolve``, and the line holds ``line``."""
        assert line in configuration(settings, read_routing(connection))
        resolved = {agent: command("models", "resolve", "--agent", agent) for agent in agents}
        said = {agent: (found["version"] or "base", found["arm"], found["reason"]) for agent, found in resolved.items()}

        def headers(agent: str) -> tuple[str, str, str]:
            asked = gateway.client().chat.completions.with_raw_response
            given = asked.create(model="auto", messages=MESSAGES, extra_headers={"x-babylon-agent": agent}).headers
            return given["x-babylon-version"], given["x-babylon-arm"], given["x-babylon-reason"]

        wait_for(lambda: {agent: headers(agent) for agent in agents} == said, f"the gateway to say {said}")
        return {version for version, _, _ in said.values()}

    with running_gateway(settings, database) as gateway:
        assert agree("USE_RL_MODEL on, no version is deployed, at most 100 % of agents") == {"base"}
        command("models", "deploy", "v1.0.0", "--strategy", "immediate")
        command("models", "deploy", "v1.0.1", "--percentage", "50")
        assert agree("on, v1.0.0 is deployed, v1.0.1 is rolling for 50 % of agents, at most") == {"v1.0.0", "v1.0.1"}
        command("models", "rollback")
        command("ab", "start", "duel", "--versions", "v1.0.0,base", "--shares", "50,50")
        status = command("ab", "status", "duel")
        assert {"name", "arms", "difference", "sampleRatio", "verdict"} <= set(status)
        assert [set(arm) for arm in status["arms"]] == [{"version", "share", "agents", "windows", "pnl", "interval"}] * 2
        assert agree("on, v1.0.0 is deployed, A/B test duel (v1.0.0 50 %, base 50 %), at most") == {"v1.0.0", "base"}
    unknown = settings.model_copy(update={"rl_model_version": "v9.9.9"})
    assert "Warning: RL_MODEL_VERSION=v9.9.9: There is no version v9.9.9" in configuration(unknown, read_routing(connection))
    assert "pinned to v9.9.9, the registry does not answer" in configuration(unknown, None)
    with_password = settings.model_copy(update={"local_endpoint": "http://user:secret@localhost:8000"})
    assert configuration(with_password, None).endswith("LOCAL_ENDPOINT http://localhost:8000.")
