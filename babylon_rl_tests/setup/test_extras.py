"""Packages of extras are absent: what does not need them works, and the rest is one sentence that says what to install."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from babylon_rl.errors import EXTRAS, missing_package, require
from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl_tests.store.servers import ROOT

WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({sorted(EXTRAS)}))"


def without_extras(home: Path, code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python with ``code``, in which no package of an extra can be imported."""
    inherited = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    environment = inherited | {"BABYLON_RL_HOME": str(home), "PYTHONPATH": str(ROOT)} | variables
    command = [sys.executable, "-c", f"{WITHOUT}; {code}", *arguments]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)


# Packages whose distribution has another name.
DISTRIBUTIONS = {
    "art": "openpipe-art", "huggingface_hub": "huggingface-hub", "celery": "dagster-celery", "dagster_celery": "dagster-celery",
    "dagster_aws": "dagster-aws", "dagster_k8s": "dagster-k8s", "opentelemetry": "opentelemetry-sdk",
}  # fmt: skip


def test_every_package_is_in_the_extra_that_is_named() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, extra in EXTRAS.items():
        names = {re.match(r"[\w.-]+", line)[0] for line in extras[extra]}  # type: ignore[index]
        assert DISTRIBUTIONS.get(package, package) in names


@pytest.mark.long
def test_hours_are_read_and_the_graph_loads_without_any_extra(database: Database, tmp_path: Path) -> None:
    code = "from babylon_rl.cli import main; import babylon_rl.definitions; main()"
    done = without_extras(tmp_path, code, "windows", "--json", DATABASE_URL=database.url)
    assert done.returncode == 0, done.stderr
    assert '"verdict"' in done.stdout


@pytest.mark.slow
def test_a_command_that_needs_one_says_which(tmp_path: Path) -> None:
    done = without_extras(tmp_path, "from babylon_rl.cli import main; main()", "serve", "model", "base", "--port", "0")
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
    assert "babylon-rl[train]" in done.stderr and "`make setup`" in done.stderr


@pytest.mark.parametrize(
    ("code", "extra"),
    [
        ("from babylon_rl.llm.tokens import litellm_quietly; litellm_quietly()", "judge"),
        ("from babylon_rl.training.tracking import open_run; open_run({})", "wandb"),
        ("from babylon_rl.models.threads import set_threads; set_threads()", "train"),
    ],
)
def test_code_that_needs_one_raises_the_same_sentence(tmp_path: Path, code: str, extra: str) -> None:
    last = without_extras(tmp_path, code).stderr.splitlines()[-1]
    assert last.startswith("babylon_rl.errors.MissingPackage: ") and f"babylon-rl[{extra}]" in last


def test_only_packages_of_extras_are_advised() -> None:
    assert missing_package("torch.nn") is not None
    assert missing_package("babylon_rl.no_such_module") is None
    require(*EXTRAS)
