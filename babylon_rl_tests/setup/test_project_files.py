"""The files that set-up relies on are what their generators make, and say nothing about where they were made."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from babylon_rl.serving.dagster_client import LOCATION
from babylon_rl.settings import GROUPS, Settings

ROOT = Path(__file__).resolve().parents[2]
LOCKS = (
    "requirements.lock", "requirements-art.lock", "requirements-gpu.lock", "requirements-tools.lock", "requirements-torch.lock",
    "requirements-vllm.lock", "requirements-weights.lock", "babylon_rl_tests/serving/python_packages/requirements.lock",
)  # fmt: skip


def requirements(name: str) -> list[str]:
    """The entries of a lock, one string each, continuation lines joined, comments left out."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    return [entry.strip() for entry in "\n".join(lines).replace("\\\n", " ").splitlines() if entry.strip()]


def test_env_example_is_what_the_settings_make() -> None:
    rendered = subprocess.run([sys.executable, "scripts/env_example.py"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert (ROOT / ".env.example").read_text() == rendered, "run `make env-example`"


def test_every_setting_is_in_one_group() -> None:
    names = [name for group in GROUPS for name in group.model_fields]
    assert len(names) == len(set(names)) and set(names) == set(Settings.model_fields)
    assert all(issubclass(Settings, group) for group in GROUPS)


@pytest.mark.long
def test_a_setting_that_nothing_reads_says_so() -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "babylon_rl").rglob("*.py")]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    read |= {f"{provider}_api_key" for provider in ("openai", "anthropic", "openpipe")}  # by judge_key_variable
    without_effect = {name for name, field in Settings.model_fields.items() if "No effect" in (field.description or "")}
    assert without_effect == set(Settings.model_fields) - read


def test_every_locked_package_has_an_exact_version_and_hashes() -> None:
    entries = [entry for name in LOCKS for entry in requirements(name)]
    assert len(entries) > 100
    assert [entry for entry in entries if not re.match(r"[a-z0-9-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", entry)] == []


def test_locks_name_no_index_and_no_torch() -> None:
    for name in (*LOCKS, *(lock.replace(".lock", ".in") for lock in LOCKS)):
        text = (ROOT / name).read_text()
        assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", text), name
    names = {entry.split("==")[0] for entry in requirements("requirements.lock")}
    assert not [name for name in names if name in {"torch", "triton"} or name.startswith("nvidia-")]


def test_every_direct_dependency_is_locked() -> None:
    locked = {entry.split("==")[0] for entry in requirements("requirements.lock")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = ("train", "judge", "wandb", "remote", "dev")
    asked = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    names = {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower().replace("_", "-") for line in asked}  # type: ignore[index]
    assert names - locked == {"torch", "babylon-rl"}


def test_exact_pins_of_the_project_and_of_the_lock_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {entry.split(" ")[0] for entry in requirements("requirements.lock")}
    pins = [line for line in [*project["dependencies"], *project["optional-dependencies"]["remote"]] if "==" in line]
    assert pins and set(pins) <= locked


PIN = re.compile(r"==|!=|~=|<")
REASON = re.compile(r"\w{3}.* \(?20\d\d-[01]\d")
NAME = re.compile(r"[\w.-]+")


def commented(text: str) -> Iterator[tuple[str, str]]:
    """Each requirement, and its comment: on its line, else the nearest lines above it that hold nothing else."""
    comment, joined = "", False
    for line in text.splitlines():
        asked, _, said = line.partition("#")
        if asked.strip():
            yield asked.partition(";")[0].strip(), said or comment
        else:
            comment = f"{comment} {said}" if joined else said
        joined = not asked.strip()


def test_every_pin_has_its_reason_and_the_day_of_its_review_beside_it() -> None:
    files = [*ROOT.glob("requirements*.in"), *(ROOT / "babylon_rl_tests").rglob("requirements*.in")]
    asked = [entry for file in files for entry in commented(file.read_text())]
    assert len([one for one, _ in asked if PIN.search(one)]) > 15
    assert [one for one, comment in asked if PIN.search(one) and not REASON.search(comment)] == []
    # Those of pyproject.toml are explained there too, as it says.
    explained = {name[0].lower() for one, comment in asked if REASON.search(comment) and (name := NAME.match(one))}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["project"]["optional-dependencies"].values()
    ranges = [*project["build-system"]["requires"], *project["project"]["dependencies"], *(one for group in groups for one in group)]
    pinned = {name[0].lower() for one in ranges if PIN.search(one) and (name := NAME.match(one))}
    assert "openpipe-art" in pinned and pinned <= explained


def test_dg_finds_the_definitions_under_the_name_that_the_admin_api_asks_for() -> None:
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["dg"]
    project = tool["project"]
    assert (tool["directory_type"], project["root_module"]) == ("project", "babylon_rl")
    definitions = importlib.import_module(project["code_location_target_module"])
    assert isinstance(definitions.defs, dg.Definitions) and definitions.__name__.startswith(f"{project['root_module']}.")
    (loaded,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    found = (project["code_location_name"], project["code_location_target_module"])
    assert found == (loaded["python_module"]["location_name"], loaded["python_module"]["module_name"]) and found[0] == LOCATION


def test_ci_runs_the_command_of_the_readme() -> None:
    assert {"make test", "make test-long", "make audit AUDIT=--print-advisories"} <= set((ROOT / ".ci" / "run").read_text().splitlines())
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert "`make test`" in (ROOT / "README.md").read_text()
