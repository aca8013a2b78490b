"""The commands of the Makefile and their scripts, as a user calls them, on copies that cost nothing."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Only what the scripts need, in a directory whose name has a blank."""
    copy = tmp_path / "a clone"
    copy.mkdir()
    shutil.copytree(ROOT / "scripts", copy / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "Makefile",
        "pyproject.toml",
        "requirements.lock",
        "requirements-torch.in",
        "requirements-torch.lock",
        "requirements-weights.lock",
    ):
        shutil.copy(ROOT / name, copy)
    return copy


def run(command: list[str], clone: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    of_the_caller = {"BABYLON_RL_HOME", "BABYLON_RL_VENV", "PYTHON", "MAKEFLAGS", "MAKELEVEL", "SSL_CERT_FILE"}
    inherited = {name: value for name, value in os.environ.items() if name not in of_the_caller and not name.startswith("UV_")}
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False, timeout=60, env={**inherited, **variables})


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_make_alone_lists_the_commands(clone: Path) -> None:
    shown = run(["make"], clone)
    assert shown.returncode == 0
    for command in ("setup", "demo", "test", "dev", "clean", "lint", "test-live", "evidence", "lock"):
        assert f"make {command} " in shown.stdout


def test_an_old_python_is_named_in_one_sentence(clone: Path, tmp_path: Path) -> None:
    old = executable(tmp_path / "bin" / "old", '#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit 0\nexit 1\n')
    refused = run(["make", "setup"], clone, PYTHON=str(old))
    assert refused.returncode == 2
    assert "is 3.9.2, and 3.11 or newer is needed" in refused.stderr
    assert not (clone / ".venv").exists()


def finished_setup(clone: Path, environment: str = ".venv", state: str = ".babylon", python: str = "exit 1") -> None:
    """Make a clone look as set-up leaves it; ``python`` is what the environment's interpreter does."""
    stamps = clone / environment / ".stamps"
    stamps.mkdir(parents=True)
    (clone / environment / "pyvenv.cfg").write_text(f"version = {'.'.join(map(str, sys.version_info[:3]))}\n")
    executable(clone / environment / "bin" / "python", f"#!/bin/sh\n{python}\n")
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in clone.iterdir() if path.is_file()}
    for stamp, content in (
        (stamps / "venv", str(clone)),
        (stamps / "packages", digests["requirements.lock"]),
        (stamps / "torch", digests["requirements-torch.lock"]),
        (stamps / "project", digests["pyproject.toml"]),
        (clone / state / "cache" / "wheels" / ".complete", digests["requirements-weights.lock"]),
    ):
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(content)


def test_a_finished_setup_does_nothing_and_says_nothing(clone: Path) -> None:
    finished_setup(clone)
    finished = run(["make", "setup"], clone)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


def test_packages_come_from_where_pip_would_take_them(clone: Path) -> None:
    configured = """cat << .
    global.index-url='https://packages.example/simple'
    global.extra-index-url='file:///a/simple\\nfile:///b/simple'
    install.index-url='https://installs.example/simple'
    :env:.find-links='/wheels /more'
    global.cert='/certificates.pem'
    ."""
    finished_setup(clone, python=configured.replace("    ", ""))
    executable(clone / ".venv" / "bin" / "uv", '#!/bin/sh\nenv > "$PWD/seen"\n')
    (clone / ".venv" / ".stamps" / "torch").unlink()
    done = run(["make", "setup"], clone, UV_FIND_LINKS="/chosen")
    assert done.returncode == 0, done.stderr
    seen = dict(line.split("=", 1) for line in (clone / "seen").read_text().splitlines() if line.startswith(("UV_", "SSL_CERT_FILE")))
    assert seen == {
        "UV_DEFAULT_INDEX": "https://installs.example/simple",
        "UV_INDEX": "file:///a/simple file:///b/simple",
        "UV_FIND_LINKS": "/chosen",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_HTTP_TIMEOUT": "180",
        "UV_SYSTEM_CERTS": "true",
        "SSL_CERT_FILE": "/certificates.pem",
    }


def test_another_python_runs_the_tests_in_an_environment_and_a_state_of_its_own(clone: Path) -> None:
    (clone / ".env.example").touch()
    version = "{}.{}".format(*sys.version_info)
    finished_setup(clone, f".venv-python{version}", f".babylon/python{version}", 'echo "$BABYLON_RL_HOME: $*"')
    tested = run(["make", "test-python", f"PYTHON={sys.executable}", "PYTEST_ARGS=-k name"], clone)
    assert tested.returncode == 0, tested.stderr
    assert tested.stdout.startswith(f"{clone}/.babylon/python{version}: -m pytest -n 3") and tested.stdout.endswith(" -k name\n")
    assert not (clone / ".venv").exists()
    assert run(["make", "clean"], clone).returncode == 0
    assert not list(clone.glob(".venv*"))


def test_without_a_named_python_the_tests_on_another_are_refused(clone: Path) -> None:
    refused = run(["make", "test-python"], clone)
    assert refused.returncode == 2 and "make test-python PYTHON=python3.13" in refused.stderr


def test_another_dagster_runs_its_tests_in_an_environment_of_its_own(clone: Path) -> None:
    (clone / ".env.example").touch()
    finished_setup(clone, ".venv-dagster1.13.20", ".babylon/dagster1.13.20", '[ "$1" = -c ] && echo 1.13.19 0.29.19 || echo "$*"')
    tested = run(["make", "test-dagster", "DAGSTER=1.13.20", "PYTEST_ARGS=-k name"], clone)
    assert tested.returncode == 0, tested.stderr
    installed, tests = tested.stdout.splitlines()
    integrations = "dagster-aws==0.29.20 dagster-celery==0.29.20 dagster-k8s==0.29.20 dagster-postgres==0.29.20"
    assert installed.endswith(f"dagster==1.13.20 dagster-webserver==1.13.20 {integrations}")
    assert tests.startswith("-m pytest -n 3") and tests.endswith(" babylon_rl_tests/assets babylon_rl_tests/e2e -k name")
    refused = run(["make", "test-dagster"], clone)
    assert refused.returncode == 2 and "make test-dagster DAGSTER=1.13.20" in refused.stderr


def test_a_state_directory_that_holds_the_project_is_refused(clone: Path) -> None:
    refused = run(["make", "setup"], clone, BABYLON_RL_HOME="..")
    assert refused.returncode != 0
    assert "holds this project" in refused.stderr


def test_clean_reads_no_marker_in_the_default_place(clone: Path) -> None:
    (clone / ".babylon" / "cache").mkdir(parents=True)
    assert run(["make", "clean"], clone).returncode == 0
    assert not (clone / ".babylon").exists()


@pytest.mark.slow
def test_clean_removes_what_was_made_and_nothing_else(clone: Path) -> None:
    for made in (".venv/bin", ".babylon/postgres", ".pytest_cache", "babylon_rl/store/__pycache__", "babylon_rl.egg-info", "build"):
        (clone / made).mkdir(parents=True)
    (clone / ".babylon" / ".babylon_rl_home").touch()
    for kept in ("babylon_rl/store/a.py", ".env", "notes.txt"):
        (clone / kept).touch()
    cleaned = run(["make", "clean"], clone)
    assert cleaned.returncode == 0, cleaned.stderr
    assert sorted(path.name for path in clone.iterdir()) == sorted(
        [
            "Makefile",
            "scripts",
            "pyproject.toml",
            "requirements.lock",
            "requirements-torch.in",
            "requirements-torch.lock",
            "requirements-weights.lock",
            "babylon_rl",
            ".env",
            "notes.txt",
        ]
    )
    assert [path.name for path in (clone / "babylon_rl").rglob("*")] == ["store", "a.py"]


@pytest.mark.slow
@pytest.mark.parametrize("marked", [True, False])
def test_clean_removes_a_state_directory_elsewhere_only_with_its_marker(clone: Path, tmp_path: Path, marked: bool) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "something").touch()
    if marked:
        (state / ".babylon_rl_home").touch()
    cleaned = run(["make", "clean"], clone, BABYLON_RL_HOME=str(state))
    assert cleaned.returncode == 0
    assert state.exists() is not marked
    assert ("stays" in cleaned.stderr) is not marked


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("BABYLON_RL_HOME=state", "{clone}/state"),
        ('export BABYLON_RL_HOME = "/var/b c"', "/var/b c"),
        ("#BABYLON_RL_HOME=no", "{clone}/.babylon"),
    ],
)
def test_the_scripts_read_the_state_directory_from_the_env_file_too(clone: Path, line: str, expected: str) -> None:
    (clone / ".env").write_text(line + "\n")
    shown = run(["bash", "-c", ". scripts/environment.sh; state_directory"], clone)
    assert shown.stdout.strip() == expected.format(clone=clone)
