"""Advisories and licences of the locked packages (`audit`), and a wheel with its bill of materials (`wheel`).

The tools are in an environment of their own, build/tools, made from requirements-tools.lock. Where the source of advisories
is out of reach, the locks are compared with requirements-advisories.json, which `keep` makes from a clone of pypa/advisory-database.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import setup
import yaml
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = setup.ROOT
LOCKS = [*ROOT.glob("requirements*.lock"), ROOT / "babylon_rl_tests/serving/python_packages/requirements.lock"]
KEPT = ROOT / "requirements-advisories.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    audit_parser = commands.add_parser("audit")
    audit_parser.add_argument("--print-advisories", action="store_true", help="known advisories are printed and fail nothing")
    commands.add_parser("wheel").add_argument("--out", type=Path, default=ROOT / "build" / "wheel")
    commands.add_parser("keep").add_argument("clone", type=Path)
    arguments = parser.parse_args()
    match arguments.command:
        case "audit":
            return audit(tools(), arguments.print_advisories)
        case "wheel":
            build_wheel(tools(), arguments.out)
        case "keep":
            keep(arguments.clone)
    return 0


def tools() -> Path:
    """The programs of the environment of tools, which is made anew when its lock has changed."""
    lock, environment, uv = ROOT / "requirements-tools.lock", ROOT / "build" / "tools", setup.VENV / "bin" / "uv"
    made_of = environment / "made-of.txt"
    if not made_of.is_file() or made_of.read_bytes() != lock.read_bytes():
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, environment], check=True)
        install = [uv, "pip", "install", "--quiet", "--python", environment / "bin" / "python", *setup.exactly(lock)]
        subprocess.run(install, env=os.environ | setup.registry(), check=True)
        shutil.copy(lock, made_of)
    return environment / "bin"


def locked(lock: Path) -> set[tuple[str, str]]:
    """Names and versions of a lock."""
    return set(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", lock.read_text(), re.M))


def without_hash(lock: Path) -> list[str]:
    """Entries of a lock that name no hash of their files."""
    entries = re.split(r"^(?=[A-Za-z0-9])", lock.read_text(), flags=re.M)[1:]
    return [entry.split()[0] for entry in entries if "--hash=sha256:" not in entry]


def installed(environment: Path) -> set[str]:
    """Names of the packages of a virtual environment."""
    places = [str(place) for place in environment.glob("lib/python*/site-packages")]
    return {canonicalize_name(package.name) for package in distributions(path=places)}


def audit(programs: Path, print_advisories: bool = False) -> int:
    """1 for a licence that is not allowed, a package without a hash, or, unless ``print_advisories``, a known advisory not accepted.

    The network's failures count for nothing.
    """
    kept = json.loads(KEPT.read_text())
    found = asked(programs)
    if found is None:
        found = affected(kept["advisories"], {package for lock in LOCKS for package in locked(lock)})
        print(f"audit: the source of advisories is out of reach: compared with those known on {kept['date']}, none later")
    refused = sorted(entry for entry in found if entry[2] not in kept["accepted"])
    for package, version, one in refused:
        print(f"audit: {package} {version} is affected by {one}: upgrade it, or accept it with a reason in {KEPT.name}", file=sys.stderr)
    loose = [f"audit: {entry} has no hash in {os.path.relpath(lock, ROOT)}" for lock in LOCKS for entry in without_hash(lock)]
    # The allowed licences are in pyproject.toml.
    complaints, environments = [], (setup.VENV, programs.parent)
    for environment in environments:
        command = [programs / "pip-licenses", "--python", environment / "bin" / "python"]
        licences = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        complaints += [f"audit: {licences.stderr.strip()}"] if licences.returncode else []
    for line in (*loose, *complaints):
        print(line, file=sys.stderr)
    here = set().union(*map(installed, environments))
    absent = {lock: len({name for name, _ in locked(lock)} - here) for lock in LOCKS}
    listed = ", ".join(f"{count} of {os.path.relpath(lock, ROOT)}" for lock, count in sorted(absent.items()) if count)
    print(f"audit: licences not looked at, as the packages are not installed here: {listed or 'none'}")
    allowed = "not all allowed" if complaints else "allowed"
    print(f"audit: {len(LOCKS)} locks, {len(found)} advisories, {len(refused)} not accepted; licences {allowed}; {len(loose)} without hash")
    return int(bool(complaints or loose or (refused and not print_advisories)))


def asked(programs: Path) -> set[tuple[str, str, str]] | None:
    """Package, version and advisory of all that pip-audit finds; None where its source does not answer."""
    found = set()
    for lock in sorted(LOCKS, key=lambda lock: lock.stat().st_size):  # the short ones tell soon whether the source answers
        command = [programs / "pip-audit", "--requirement", lock, "--no-deps", "--disable-pip", "--format", "json", "--timeout", "10"]
        answer = subprocess.run([*command, "--progress-spinner", "off"], capture_output=True, text=True, check=False)
        packages = json.loads(answer.stdout or "{}").get("dependencies")
        if packages is None or any("skip_reason" in package for package in packages):  # a mirror without advisories knows no package
            return None
        for package in packages:
            found |= {(package["name"], package["version"], one["id"]) for one in package["vulns"]}
    return found


def affected(advisories: list[dict[str, Any]], packages: Iterable[tuple[str, str]]) -> set[tuple[str, str, str]]:
    """Package, version and advisory of each version that lies in an advisory's ranges."""
    return {
        (name, version, one["id"])
        for name, version in packages
        for one in advisories
        if one["package"] == name and (version in one["versions"] or any(within(Version(version), events) for events in one["ranges"]))
    }


def within(version: Version, events: list[dict[str, str]]) -> bool:
    """Whether a version lies between events of the OSV format: introduced, and before fixed or up to last_affected."""
    inside = False
    for event in events:
        ((kind, at),) = event.items()
        if kind == "introduced" and version >= Version(at):
            inside = True
        if (kind == "fixed" and version >= Version(at)) or (kind == "last_affected" and version > Version(at)):
            inside = False
    return inside


def keep(clone: Path) -> None:
    """Write the advisories of the locked packages, as a clone of pypa/advisory-database has them, with its day."""
    git = ["git", "-C", str(clone)]
    commit, day = subprocess.run([*git, "log", "-1", "--format=%H %cs"], capture_output=True, text=True, check=True).stdout.split()
    advisories = []
    for name in sorted({name for lock in LOCKS for name, _ in locked(lock)}):
        files = subprocess.run(
            [*git, "ls-tree", "--name-only", "HEAD", f"vulns/{name}/"], capture_output=True, text=True, check=True
        ).stdout
        for file in files.split():
            record = yaml.safe_load(subprocess.run([*git, "show", f"HEAD:{file}"], capture_output=True, text=True, check=True).stdout)
            if "withdrawn" in record:
                continue
            for package in record["affected"]:
                ranges = [one["events"] for one in package.get("ranges", []) if one["type"] == "ECOSYSTEM"]
                versions = [] if ranges else package.get("versions", [])
                entry = {"id": record["id"], "aliases": record.get("aliases", []), "package": name}
                advisories.append(entry | {"ranges": ranges, "versions": versions})
    accepted = json.loads(KEPT.read_text())["accepted"] if KEPT.is_file() else {}
    heads = json.dumps({"source": "pypa/advisory-database", "commit": commit, "date": day, "accepted": accepted}, indent=1)
    lines = ",\n".join("  " + json.dumps(one) for one in advisories)
    KEPT.write_text(f'{heads.removesuffix("}").rstrip()},\n "advisories": [\n{lines}\n ]\n}}\n')
    print(f"keep: {len(advisories)} advisories of {day}")


def build_wheel(programs: Path, out: Path) -> None:
    """Write the wheel, its bill of materials (CycloneDX, of what `make setup` installs from locks) and the digests of both."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", out], cwd=ROOT, capture_output=True, check=True)
    (wheel,) = out.glob("*.whl")
    bill = wheel.with_suffix(".cdx.json")
    of_torch = {name for name, _ in locked(setup.TORCH)} - {name for name, _ in locked(setup.LOCK)}
    entries = setup.LOCK.read_text() + "".join(setup.locked(name, setup.TORCH) for name in sorted(of_torch))
    command = [programs / "cyclonedx-py", "requirements", "-", "--pyproject", "pyproject.toml", "--output-reproducible"]
    command += ["--output-format", "JSON", "--output-file", bill]
    subprocess.run(command, cwd=ROOT, input=entries.encode(), capture_output=True, check=True)
    digests = "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in (wheel, bill))
    (out / "SHA256SUMS").write_text(digests)
    print(digests, end="")


if __name__ == "__main__":
    sys.exit(main())
