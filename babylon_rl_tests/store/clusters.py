"""Servers of other versions of Postgres than the embedded one's."""

import os
import subprocess
import tempfile
from pathlib import Path

from babylon_rl.store.embedded.cluster import NOBODY, Cluster


def make_cluster(home: Path, programs: Path) -> Cluster:
    """A cluster as ``Cluster.create`` makes it, by other programs and without the options of newer ones."""
    home.mkdir(parents=True, exist_ok=True)
    cluster = Cluster(home, programs)
    new = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=home))
    if os.geteuid() == 0:
        os.chown(new, NOBODY, NOBODY)
    cluster.password_file.write_text("secret\n")
    options = ["-U", "postgres", "-A", "scram-sha-256", f"--pwfile={cluster.password_file}", "--encoding=UTF8", "--locale=C"]
    made = cluster._run("initdb", "--no-sync", "-D", str(new), *options, owner=new)
    assert made.returncode == 0, made.stderr
    new.rename(cluster.directory)
    return cluster


def programs_of(version: str) -> Path:
    """Programs of an older major version in the installed wheel."""
    wheel = Cluster(Path()).programs.parents[1]
    return next(path for path in wheel.glob("pginstall*/bin") if _version(path).startswith(f"{version}."))


def _version(programs: Path) -> str:
    return subprocess.run([programs / "postgres", "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
