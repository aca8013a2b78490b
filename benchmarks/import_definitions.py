"""What loading the code location costs: `python benchmarks/import_definitions.py` prints seconds of processor and megabytes as JSON.

Runs fresh interpreters in turns, with bytecode, and gives the best of them; ``dagster`` alone is measured beside it, as the part that is
not ours. The bounds are 1.6 times its seconds, and 100 MB; the command fails beyond them.
"""

import json
import os
import subprocess
import sys

RUNS = 7
BOUNDS = {"ratio": 1.6, "megabytes": 100}
_PROBE = """
import resource, sys, time
started = time.process_time()
import {module}
print(time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def measure(module: str) -> tuple[float, float]:
    """Import ``module`` in a fresh interpreter; seconds of processor, which other programs hardly change, and megabytes."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    probe = [sys.executable, "-c", _PROBE.format(module=module)]
    seconds, megabytes = subprocess.run(probe, capture_output=True, text=True, check=True, env=environment).stdout.split()
    return float(seconds), float(megabytes)


def main() -> int:
    """Measure, print, and say by the exit code whether the bounds hold."""
    modules = ("babylon_rl.definitions", "dagster")
    rounds = [{module: measure(module) for module in modules} for _ in range(RUNS)]
    best = {module: min(found[module][0] for found in rounds) for module in modules}
    figures = {
        "seconds": {module: round(seconds, 3) for module, seconds in best.items()},
        "ratio": round(best[modules[0]] / best[modules[1]], 2),
        "megabytes": round(max(found[modules[0]][1] for found in rounds), 1),
    }
    print(json.dumps({**figures, "bounds": BOUNDS}, indent=2))
    return int(figures["ratio"] > BOUNDS["ratio"] or figures["megabytes"] > BOUNDS["megabytes"])


if __name__ == "__main__":
    sys.exit(main())
