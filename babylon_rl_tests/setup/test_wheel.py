"""The wheel works where there is no clone: its command migrates, plays and reads an embedded database and starts Dagster's commands."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from babylon_rl.settings import Settings
from babylon_rl_tests.store.servers import ROOT

pytestmark = pytest.mark.slow
Installed = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out], cwd=ROOT, capture_output=True, check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, packaged_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """``installed("migrate")``: the command of the wheel, in a venv outside the clone that sees the locked packages."""
    place = tmp_path_factory.mktemp("elsewhere")
    venv.create(place / "venv", with_pip=False, symlinks=True)
    python = place / "venv" / "bin" / "python"
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(place / "venv"), "platbase": str(place / "venv")}))
    # A directory on the path, whose own .pth files, with the clone among them, are not read.
    (packages / "locked.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed"]
    subprocess.run([*pip, "--disable-pip-version-check", wheel], check=True)
    inherited = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields and name != "PYTHONPATH"}

    def run(*arguments: str, program: str = "babylon-rl") -> subprocess.CompletedProcess[str]:
        environment = inherited | {"BABYLON_RL_HOME": str(place / "home"), "LOCAL_BASE_MODEL": str(packaged_base)}
        return subprocess.run(
            [python.parent / program, *arguments], cwd=place, env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_the_wheel_holds_what_stands_beside_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for path in [*ROOT.glob("migrations/*.sql"), ROOT / "workspace.yaml"]:
            assert archive.read(f"babylon_rl/{path.relative_to(ROOT)}") == path.read_bytes()
    beside = {str(path.relative_to(ROOT)) for path in ROOT.glob("babylon_rl/**/*") if path.is_file() and "__pycache__" not in path.parts}
    assert beside <= names
    assert not [name for name in names if name.startswith(("babylon_rl_tests", "benchmarks"))]


@pytest.mark.long
def test_the_commands_work_from_an_empty_database_on(installed: Installed) -> None:
    found = installed("-c", "import babylon_rl; print(babylon_rl.__file__)", program="python").stdout
    assert "elsewhere" in found and str(ROOT / "babylon_rl") not in found
    migrated = json.loads(installed("migrate", "--json").stdout)
    assert migrated["applied"][0] == "0001_contract_tables"
    played = installed("spawn-agents", "--agents", "5", "--windows", "1", "--duration", "5", "--start", "2025-10-29T14:00", "--json")
    assert played.returncode == 0, played.stderr
    assert " of 1, done in " in played.stderr
    (window,) = json.loads(installed("windows", "--json").stdout)["windows"]
    assert (window["window"], window["agents"]) == ("2025-10-29T14:00", 5)


@pytest.mark.long
def test_dagster_finds_the_definitions_of_the_wheel(installed: Installed) -> None:
    listed = installed("dagster", "job", "list", "-m", "babylon_rl.definitions")
    assert listed.returncode == 0, listed.stderr
    assert "Job: train" in listed.stdout
