"""What a week's snapshot costs to write, read, check and turn back: `python benchmarks/snapshots.py` prints JSON.

A week is 10,080 ticks with 10 prediction markets, 5 perpetuals and 8 agents. The bounds are 5 s and 500 MB for generation, from the
config to the JSON, measured in a process of its own that does nothing else; the best of ROUNDS. `optimum` is part of it, shown beside.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

ROUNDS = 3
BOUND_SECONDS, BOUND_MB = 5.0, 500.0
GENERATE = "generate"


def generate() -> dict[str, float]:
    """Generate a week in this process, imports not counted; seconds of each part and the most memory held."""
    from babylon_rl.evaluation.snapshot_file import benchmark_scenario, encode, from_scenario
    from babylon_rl.market.simulation.config import preset
    from babylon_rl.market.simulation.strategies import oracle_play

    config, seconds = preset("week", edition="held-out"), {}

    def timed(name: str, make: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        made = make()
        seconds[name] = time.perf_counter() - began
        return made

    scenario = timed("scenario", lambda: benchmark_scenario(config))
    snapshot = timed("snapshot", lambda: from_scenario(scenario))
    raw = timed("encode", lambda: encode(snapshot))
    seconds["generate"] = sum(seconds.values())
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    timed("optimum", lambda: oracle_play(scenario))
    return {
        **{name: round(value, 3) for name, value in seconds.items()},
        "megabytes": round(megabytes, 1),
        "json_megabytes": len(raw) / 1e6,
    }


def read() -> dict[str, float]:
    """Decode, check and turn back a week, each the best of ROUNDS."""
    from babylon_rl.evaluation.snapshot_file import benchmark_scenario, decode, encode, from_scenario, to_scenario, validate
    from babylon_rl.market.simulation.config import preset

    snapshot = from_scenario(benchmark_scenario(preset("week", edition="held-out")))
    raw = encode(snapshot)
    steps: dict[str, Callable[[], Any]] = {
        "decode": lambda: decode(raw),
        "validate": lambda: validate(snapshot),
        "to_scenario": lambda: to_scenario(snapshot),
    }
    seconds = {}
    for name, step in steps.items():
        spent = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            step()
            spent.append(time.perf_counter() - began)
        seconds[name] = round(min(spent), 3)
    return seconds


def main() -> None:
    """Measure and print."""
    command = [sys.executable, __file__, GENERATE]
    rounds = [json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(ROUNDS)]
    best = min(rounds, key=lambda found: found["generate"])
    megabytes = max(found["megabytes"] for found in rounds)
    print(json.dumps({"generate": best, "read": read(), "bounds": {"seconds": BOUND_SECONDS, "megabytes": BOUND_MB}}, indent=2))
    if best["generate"] > BOUND_SECONDS or megabytes > BOUND_MB:
        raise SystemExit(
            f"{best['generate']:.2f} s and {megabytes:.0f} MB are above the bounds of {BOUND_SECONDS:g} s and {BOUND_MB:g} MB."
        )


if __name__ == "__main__":
    if sys.argv[1:] == [GENERATE]:
        print(json.dumps(generate()))
    else:
        main()
