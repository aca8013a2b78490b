"""What loading the code location costs: `python benchmarks/import_definitions.py` prints seconds and megabytes as JSON.

Runs fresh interpreters and gives the best and the median of them; the bounds are 1.5 s and 200 MB. ``dagster``
alone is measured beside it, as the part that is not ours.
"""

import json
import statistics
import subprocess
import sys

RUNS = 5
BOUNDS = {"seconds": 1.5, "megabytes": 200}
_PROBE = """
import resource, sys, time
started = time.perf_counter()
import {module}
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def measure(module: str) -> dict[str, float]:
    """Import ``module`` in RUNS fresh interpreters."""
    probe = [sys.executable, "-c", _PROBE.format(module=module)]
    outputs = [subprocess.run(probe, capture_output=True, text=True, check=True).stdout.split() for _ in range(RUNS)]
    seconds = sorted(float(output[0]) for output in outputs)
    return {
        "best_seconds": round(seconds[0], 3),
        "median_seconds": round(statistics.median(seconds), 3),
        "megabytes": round(max(float(output[1]) for output in outputs), 1),
    }


if __name__ == "__main__":
    figures = {module: measure(module) for module in ("babylon_rl.definitions", "dagster")}
    print(json.dumps(figures | {"bounds": BOUNDS}, indent=2))
