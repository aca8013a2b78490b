"""A week with eight scripted agents: `python benchmarks/week_of_agents.py` prints seconds, peak memory and ratios to the bounds as JSON.

10,080 ticks, 10 prediction markets, 5 perpetuals. The agents trade beside each other in one market, and alone in it one after another as
`benchmark run` plays them, results and decisions written. Each turn is a process of its own on one core, imports and the market not
counted; the best of ROUNDS. The bounds are 10 s and 500 MB; on a machine that does other work too, seconds of the processor say what one
core needs.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from babylon_rl.evaluation.play import benchmark_results, scripted
from babylon_rl.evaluation.snapshots import Snapshot, snapshots_named
from babylon_rl.market.simulation.agents import Mandate
from babylon_rl.market.simulation.run import play
from babylon_rl.market.simulation.strategies import factory

ROUNDS = 3
BOUND_S, BOUND_MB = 10.0, 500.0
AGENTS = ("conservative", "balanced", "aggressive", "momentum", "contrarian", "nothing", "random", "news-reader")
MANDATES: tuple[Mandate, ...] = get_args(Mandate)


def together(market: Snapshot, mandate: Mandate) -> None:
    """All in one market, what they do kept in memory."""
    run = play(market.scenario, {name: factory(name, market.scenario, mandate) for name in AGENTS})
    assert run.complete and all(record.decisions == market.scenario.ticks for record in run.records.values())


def one_by_one(market: Snapshot, mandate: Mandate) -> None:
    """Each alone, results and decisions in files."""
    with tempfile.TemporaryDirectory() as directory:
        runs = benchmark_results([scripted(name, mandate) for name in AGENTS], [market], Path(directory))
    assert runs.played == len(AGENTS)


WAYS: dict[str, Callable[[Snapshot, Mandate], None]] = {"together": together, "one_by_one": one_by_one}


def week(way: str, mandate: Mandate) -> dict[str, float]:
    """Play a week in this process; seconds by the clock and of the processor, and the most memory held."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    [market] = snapshots_named(["preset:week"])
    began, used = time.perf_counter(), time.process_time()
    WAYS[way](market, mandate)
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "processor_seconds": round(time.process_time() - used, 2),
        "megabytes": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def measured(way: str, mandate: Mandate) -> dict[str, float]:
    """The best of ROUNDS processes, with the most memory of any, and the ratios to the bounds."""
    command = [sys.executable, __file__, way, mandate]
    rounds: list[dict[str, float]] = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(ROUNDS)
    ]
    best = {name: min(found[name] for found in rounds) for name in ("seconds", "processor_seconds")}
    best["megabytes"] = max(found["megabytes"] for found in rounds)
    ratios = {"of_the_bound_s": best["processor_seconds"] / BOUND_S, "of_the_bound_mb": best["megabytes"] / BOUND_MB}
    return best | {name: round(ratio, 2) for name, ratio in ratios.items()}


def main() -> int:
    """Print the figures; 1 when a bound is missed."""
    if sys.argv[1:]:
        way, asked = sys.argv[1:]
        print(json.dumps(week(way, next(mandate for mandate in MANDATES if mandate == asked))))
        return 0
    found = {f"{way}, {mandate}": measured(way, mandate) for way in WAYS for mandate in MANDATES}
    document: dict[str, Any] = {"agents": len(AGENTS), "bound_s": BOUND_S, "bound_mb": BOUND_MB} | found
    print(json.dumps(document, indent=2))
    return int(any(one["of_the_bound_s"] > 1 or one["of_the_bound_mb"] > 1 for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
