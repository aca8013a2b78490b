"""Our ruler beside art.rewards.ruler_score_group on one scripted judge: `python benchmarks/judge.py` prints a table, in two minutes or so.

Groups of known skill; a judge with noise 0.1, position bias 0.3 and 30 % of its answers out of order; every fault at 5 % on top; and
one that takes 300 ms. Tokens per request on recorded hours are benchmarks/judge_tokens.py's.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
from judge_groups import Group, Recovered, groups, misplaced, recovered
from judge_sides import CONCURRENCY, Run, own_overhead, with_art, with_ours

from babylon_rl_tests.scripted_judge.judge import FAULTS, every_fault

POOR = {"noise": 0.1, "position_bias": 0.3}
DISORDERED = {"out_of_order": 0.3}
LATENCY_S = 0.3
FAULT = 0.05
OVERHEAD_MS = 5  # of the processor, a group
TIMEOUT_S = 3.0  # of both, so that a request that is never answered does not decide the time
ROOT = Path(__file__).resolve().parents[1]
Ask = Callable[[Sequence[Group], str, float], Run]
Row = tuple[str, ...]

SIDES: dict[str, tuple[int, Ask]] = {
    "ART": (1, with_art),
    "ours in 1 order": (1, lambda asked, url, timeout_s: with_ours(asked, url, timeout_s, 1)),
    "ours in 2 orders": (2, lambda asked, url, timeout_s: with_ours(asked, url, timeout_s, 2)),
    "ours in 2 to 4": (2, lambda asked, url, timeout_s: with_ours(asked, url, timeout_s, 2, 4)),
}


class Server:
    """The scripted judge in a process of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._root = url.removesuffix("/v1")

    def reset(self, changes: dict[str, Any]) -> None:
        """Forget what was asked, and be as at the start but for the changes."""
        httpx2.post(f"{self._root}/reset", json=changes).raise_for_status()

    def stats(self) -> dict[str, Any]:
        """What was asked since the last reset."""
        found: dict[str, Any] = httpx2.get(f"{self._root}/stats").json()
        return found


@contextmanager
def serving(seed: int) -> Iterator[Server]:
    """The scripted judge in a process, until the block is left."""
    command = [sys.executable, "-m", "babylon_rl_tests.scripted_judge", "--port", "0", json.dumps({"seed": seed})]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            found = re.search(r"http://\S+/v1", said)
            if found is None:
                raise SystemExit(f"The scripted judge did not start: {said}{process.stderr.read()}")
            yield Server(found[0])
        finally:
            process.send_signal(signal.SIGINT)


def correlation(found: Recovered) -> str:
    """Mean and interval in words."""
    return f"{found.rank_correlation:.3f} [{found.low:.3f}, {found.high:.3f}]"


def measured(server: Server, asked: Sequence[Group], fault: float) -> dict[str, list[str]]:
    """Cells of the table by row, a column for each side; ours alone have an own overhead."""
    rows: dict[str, list[str]] = {}

    def put(name: str, cell: str) -> None:
        rows.setdefault(name, []).append(cell)

    def run(side: str, changes: dict[str, Any]) -> Run:
        server.reset(changes)
        return SIDES[side][1](asked, server.url, TIMEOUT_S)

    for side, (orders, _) in SIDES.items():
        run(side, {})  # imports and connections are nobody's measurement
        put("noiseless judge: Spearman", correlation(recovered(asked, run(side, {}).scores)))
        put("poor judge in order: Spearman", correlation(recovered(asked, run(side, POOR).scores)))
        put("poor judge, 30 % out of order: Spearman", correlation(recovered(asked, run(side, POOR | DISORDERED).scores)))
        put("scores at the wrong agent", f"{misplaced(asked, run(side, DISORDERED).scores):.1%}")
        faults = every_fault(fault)
        found = run(side, POOR | DISORDERED | {"faults": faults, "retry_after_s": 0.2, "slow_s": 0.5})
        stats = server.stats()
        put(f"every fault at {fault:.0%}: groups lost", f"{sum(given is None for given in found.scores) - found.waiting}")
        put(f"every fault at {fault:.0%}: groups left waiting", f"{found.waiting}")
        put(f"every fault at {fault:.0%}: groups with an impossible score", f"{sum(map(impossible, found.scores))}")
        put(f"every fault at {fault:.0%}: tries a group", f"{stats['requests'] / len(asked):.2f}")
        ideal = len(asked) * orders * LATENCY_S / CONCURRENCY
        found = run(side, {"latency_s": LATENCY_S})
        put(f"a judge of 300 ms, {CONCURRENCY} at once: seconds", f"{found.seconds:.2f}")
        put("  times the ideal of groups x orders x latency / concurrency", f"{found.seconds / ideal:.3f}")
        put("  process time a group, ms", f"{found.cpu_seconds / len(asked) * 1000:.1f}")
        put("  tokens a request", f"{server.stats()['promptTokens'] / server.stats()['requests']:.0f}")
        server.reset({})
        own = Run([], 0.0, 0.0) if side == "ART" else own_overhead(asked, server.url, orders)
        for what, seconds in (("clock", own.seconds), (f"processor (at most {OVERHEAD_MS})", own.cpu_seconds)):
            put(f"own overhead a group without a connection, ms, {what}", f"{seconds / len(asked) * 1000:.1f}" if seconds else "")
    return rows


def each_fault(server: Server, asked: Sequence[Group], fault: float) -> dict[str, list[str]]:
    """One fault at a time: groups lost or left waiting, and groups given an impossible score or another agent's, for each side."""
    rows: dict[str, list[str]] = {}
    for name in FAULTS:
        for _, ask in SIDES.values():
            server.reset({"faults": {name: fault}, "retry_after_s": 0.2, "slow_s": 0.5})
            scores = ask(asked, server.url, TIMEOUT_S).scores
            lost = sum(given is None for given in scores)
            wrong = sum(misplaced([group], [given]) > 0 for group, given in zip(asked, scores, strict=True))
            rows.setdefault(name, []).append(f"{lost} lost, {wrong} wrong")
    return rows


def impossible(scores: Sequence[float] | None) -> bool:
    """Whether a group was given a score that is none."""
    return scores is not None and not all(0 <= score <= 1 for score in scores)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=200)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fault", type=float, default=FAULT, help="the probability of each fault")
    parser.add_argument("--sides", default=",".join(SIDES), help="separated by commas")
    parser.add_argument("--each", action="store_true", help="every fault alone, and nothing else")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    for side in set(SIDES) - set(given.sides.split(",")):
        del SIDES[side]
    with serving(given.seed) as server:
        rows = (each_fault if given.each else measured)(server, groups(given.groups, given.size, given.seed), given.fault)
    if given.json:
        print(json.dumps({name: dict(zip(SIDES, cells, strict=True)) for name, cells in rows.items()}, indent=2))
        return
    width = max(map(len, rows))
    columns = [max(len(side), *(len(cells[place]) for cells in rows.values())) for place, side in enumerate(SIDES)]
    for name, cells in {f"{given.groups} groups of {given.size}": list(SIDES), **rows}.items():
        print(name.ljust(width), *(cell.rjust(column) for cell, column in zip(cells, columns, strict=True)), sep="  ")


if __name__ == "__main__":
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    main()
