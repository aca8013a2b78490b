"""Two models in markets of the gate, with this code and another checkout's: `python -m benchmarks.gate_models --other DIRECTORY`.

The base and an adapter of it are asked at one server as the gate asks them, side by side. The checkouts take turns, so that other work on
the machine hits both; the other one needs `market_rows`. Prints seconds by the clock, of the
server's and of the players' processor time, the load, and what both models earned.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]


def played(markets: int, adapter: Path) -> dict[str, float | list[float]]:
    """Play in this process, with the package that it imports."""
    from babylon_rl.evaluation import play
    from babylon_rl.evaluation.benchmark import model_player
    from babylon_rl.evaluation.snapshots import benchmark_snapshots
    from babylon_rl.llm.client import ChatClient
    from babylon_rl.market.model_endpoints import served_here
    from babylon_rl.settings import load_settings

    snapshots = benchmark_snapshots(markets)
    with served_here(load_settings(), {"v1.0.0": adapter}) as url:
        server = psutil.Process().children()[0]
        with ChatClient(url, None, "base", logprobs=False) as base, ChatClient(url, None, "v1.0.0", logprobs=False) as version:
            players = [model_player(client, client.model, client.model) for client in (base, version)]
            began, before, own = time.monotonic(), sum(server.cpu_times()[:2]), time.process_time()
            jobs = [play.gate_job(player, snapshot) for snapshot in snapshots for player in players]
            rows = play.market_rows(jobs, 2 * play.GATE_CONCURRENCY)
            seconds = time.monotonic() - began
            spent = {"server_processor": sum(server.cpu_times()[:2]) - before, "players_processor": time.process_time() - own}
    return {
        "seconds": round(seconds, 1), **{name: round(value, 1) for name, value in spent.items()},
        "load": os.getloadavg()[0], "pnl_usd": [round(sum(row.pnl_usd for row in those), 2) for those in (rows[::2], rows[1::2])],
    }  # fmt: skip


def main() -> None:
    """Measure the sides in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--other", type=Path, help="a checkout with the other code, such as a git worktree of an earlier commit")
    parser.add_argument("--markets", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--play", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play is not None:
        print(json.dumps(played(options.markets, options.play)))
        return
    from babylon_rl.models.base_model import base_model_dir
    from babylon_rl.settings import load_settings
    from babylon_rl_tests.tiny_model import make_adapter

    sides = {"other": options.other, "this": ROOT}
    with tempfile.TemporaryDirectory() as folder:
        adapter = make_adapter(base_model_dir(load_settings()), Path(folder, "adapter"))
        command = [sys.executable, str(Path(__file__).resolve()), "--markets", str(options.markets), "--play", str(adapter)]
        for _ in range(options.rounds):
            for name, code in sides.items():
                if code is not None:
                    environment = os.environ | {"PYTHONPATH": str(code)}
                    line = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
                    print(json.dumps({"side": name} | json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
