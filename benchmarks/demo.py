"""The two budgets of the demo on a fresh clone: set-up under 4 minutes, all of it under 15 minutes and 4 GB.

Copies the tracked files to a temporary directory, runs `make setup`, `make demo` and `make demo` again there, and prints seconds and
the peak memory of each with all its processes: python benchmarks/demo.py. ``--write`` keeps the demo's result in demo.json, from which
tests read the output that README.md shows.
"""

import argparse
import json
import os
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
KEPT = Path(__file__).with_suffix(".json")
BUDGET = {"setup": (240, 4.0), "demo": (900, 4.0), "demo again": (60, 4.0)}


def clone(into: Path) -> None:
    """A fresh clone of what is committed."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(into)], check=True)


def result(clone: Path) -> str:
    """The result of the demo that a clone has run, as JSON with paths from the clone's root."""
    command = [".venv/bin/babylon-rl", "demo", "--json"]
    printed = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=True).stdout
    return printed.replace(f"{clone}/", "")


def measured(command: list[str], cwd: Path) -> dict[str, float]:
    """Seconds and peak memory (GB, proportional share of all processes) of a command that must succeed."""
    environment = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "BABYLON_RL_HOME")}
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=cwd, env=environment)
    peak = [0.0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    status = process.wait()
    watcher.join()
    if status != 0:
        raise SystemExit(f"{' '.join(command)} ended with status {status}")
    return {"seconds": round(time.monotonic() - began, 1), "peakGb": round(peak[0] / 1e9, 2)}


def _watch(process: subprocess.Popen[bytes], peak: list[float]) -> None:
    while process.poll() is None:
        total = 0
        for one in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            try:
                total += one.memory_full_info().pss
            except psutil.Error:
                continue
        peak[0] = max(peak[0], total)
        time.sleep(0.5)


def main() -> None:
    """Measure, print, and keep the result where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"keep the demo's result in benchmarks/{KEPT.name}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="babylon-rl-demo-") as folder:
        fresh = Path(folder) / "clone"
        clone(fresh)
        found = {}
        for name, target in (("setup", "setup"), ("demo", "demo"), ("demo again", "demo")):
            seconds, gigabytes = BUDGET[name]
            one = measured(["make", target], fresh)
            found[name] = one | {"ofTime": round(one["seconds"] / seconds, 2), "ofMemory": round(one["peakGb"] / gigabytes, 2)}
        if arguments.write:
            KEPT.write_text(result(fresh))
        subprocess.run(["make", "clean"], cwd=fresh, check=True)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
