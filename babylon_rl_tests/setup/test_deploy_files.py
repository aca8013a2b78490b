"""The files of docs/howto/deploy name commands, options, settings and paths that there are; systemd accepts the units."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from babylon_rl.cli import COMMANDS, load
from babylon_rl.serving.dagster_client import QUEUES
from babylon_rl.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "docs" / "howto" / "deploy"
OTHERS = {"GH_TOKEN", "POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD"}  # of the images and actions
OTHERS |= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"}  # of the driver of s3://
LINE = re.compile(r"(?:/opt/babylon-rl/bin/)?babylon-rl((?: [^\s;&>|]+)+)")


def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def workflow() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "github-actions.yml").read_text())


def command_lines() -> list[list[str]]:
    """Every command line of babylon-rl in the files, as its arguments."""
    lines = [service["command"] for service in compose()["services"].values() if "command" in service]
    lines += [words.split() for step in workflow()["jobs"]["train"]["steps"] for words in LINE.findall(step.get("run", ""))]
    for name in ("babylon-rl.service", "babylon-rl-worker@.service", "crontab"):
        lines += [words.split() for words in LINE.findall("\n".join(re.findall(r"^(?:Exec\w+=|\d).*", (DEPLOY / name).read_text(), re.M)))]
    lines += [["serve", name] for name in re.search(r"enable --now (.*)", (DEPLOY / "babylon-rl-serve@.service").read_text())[1].split()]  # type: ignore[index]
    return [[word.removeprefix("babylon-rl-serve@") for word in line] for line in lines]


@pytest.mark.parametrize("line", command_lines(), ids=" ".join)
def test_every_command_is_there_with_its_options(line: list[str]) -> None:
    assert line[0] in COMMANDS
    command, rest = load(line[0]), line[1:]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    options = {name for parameter in command.params for name in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= options


def test_every_variable_is_a_setting() -> None:
    named = set(compose()["x-babylon"]["environment"]) | set(workflow()["jobs"]["train"]["env"])
    for unit in DEPLOY.glob("*.service"):
        named |= set(re.findall(r"^Environment=(\w+)", unit.read_text(), re.M))
    assert {name.lower() for name in named - OTHERS} <= set(Settings.model_fields)


def test_the_worker_unit_names_queues() -> None:
    named = re.findall(r"babylon-rl-worker@(\w+)", (DEPLOY / "babylon-rl-worker@.service").read_text())
    assert named and set(named) <= set(QUEUES)


def test_no_port_is_open_to_the_network() -> None:
    ports = [port for service in compose()["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


@pytest.mark.slow
def test_docker_accepts_the_compose_file() -> None:
    client = shutil.which("docker")
    if client is None or subprocess.run([client, "compose", "version"], capture_output=True).returncode != 0:
        pytest.skip("docker has no command compose here (Debian: docker-compose-plugin)")
    command = [client, "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--format", "json"]
    answer = subprocess.run(command, env=os.environ | {"POSTGRES_PASSWORD": "x"}, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert set(json.loads(answer.stdout)["services"]) == set(compose()["services"])


def test_the_image_copies_what_there_is() -> None:
    lines = re.findall(r"^COPY (?!--)(.*)$", (DEPLOY / "Dockerfile").read_text(), re.M)
    sources = [source for line in lines for source in line.split()[:-1]]
    assert {"migrations", "babylon_rl", "requirements.lock"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)


def test_the_image_installs_nothing_without_hashes_and_torch_without_cuda_by_its_hash_of_the_lock() -> None:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    installs = re.findall(r"pip install [^&;]*", text)
    assert len(installs) == 4 and all(("--require-hashes" in one) != ("--no-index" in one) for one in installs)
    (chosen,) = re.findall(r"sed -n '([^']*)' /tmp/requirements-torch.lock", text)
    command = ["sed", "-n", chosen, "requirements-torch.lock"]
    entry = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (without_cuda,) = re.findall(r"^built_for_processors=(\S+)", (ROOT / "scripts" / "lock.sh").read_text(), re.M)
    assert re.findall(r"^(\w+)==", entry, re.M) == ["torch"] and f"--hash={without_cuda}" in entry


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed (Debian: systemd)")
def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    for unit in DEPLOY.glob("*.service"):
        # Neither the user nor the program is on this machine.
        text = unit.read_text().replace("/opt/babylon-rl/bin/babylon-rl", shutil.which("true") or "/bin/true")
        (tmp_path / unit.name.replace("@.", "@gateway.")).write_text(text.replace("User=babylon\n", ""))
    answer = subprocess.run(["systemd-analyze", "verify", *tmp_path.glob("*.service")], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")
