"""`make test-art`: skipped in a sentence, or an environment of its own made once and the contract tests run in it."""

from pathlib import Path

import pytest

from babylon_rl_tests.setup.test_make import ROOT, clone, executable, run

__all__ = ["clone"]

# Stands for a Python 3.12: makes environments out of itself, and writes down what it is asked for.
PYTHON = """#!/bin/sh
echo "$0 $*" >> "{log}"
case "$*" in
    -c*) exit {version_check} ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
esac
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def python(directory: Path, log: Path, version_check: int = 0) -> Path:
    return executable(directory / "python3.12", PYTHON.format(log=log, version_check=version_check))


def prepared(clone: Path) -> Path:
    for name in ("requirements-art.in", "requirements-art.lock", ".env.example"):
        (clone / name).write_bytes((ROOT / name).read_bytes())
    return clone


@pytest.mark.parametrize("version_check", [None, 1])
def test_without_a_python_that_is_new_enough_it_is_skipped_and_says_so(
    clone: Path, tmp_path: Path, log: Path, version_check: int | None
) -> None:
    named = tmp_path / "absent" if version_check is None else python(tmp_path, log, version_check)
    done = run(["make", "test-art"], prepared(clone), PYTHON312=str(named))
    assert done.returncode == 0 and "skipped: openpipe-art==" in done.stdout and "PYTHON312=" in done.stdout
    assert not list(clone.glob(".babylon/art*"))


def test_it_makes_its_environment_once_and_again_when_the_pins_change(clone: Path, tmp_path: Path, log: Path) -> None:
    named, state = str(python(tmp_path, log)), tmp_path / "the state"

    def asked() -> list[str]:
        log.unlink(missing_ok=True)
        done = run(["make", "test-art"], prepared(clone) if not state.exists() else clone, PYTHON312=named, BABYLON_RL_HOME=str(state))
        assert done.returncode == 0, done.stderr
        return [line for line in log.read_text().splitlines() if " -c " not in line]

    made, installed, tested = asked()
    assert made.endswith(f"-m venv {state}/art") and installed.endswith("-r requirements-art.lock")
    assert tested.startswith(f"{state}/art/bin/python -m pytest babylon_rl_tests/training/test_remote_contract.py ")
    assert asked() == [tested]
    (clone / "requirements-art.lock").write_text("openpipe-art==0.6\n")
    assert asked() == [made, installed, tested]
