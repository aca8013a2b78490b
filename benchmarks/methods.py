"""Training methods on the same judged hours: `python -m benchmarks.methods [--trl-python PATH]`; resumable, a line of JSON a run.

Scripted agents play hours of the simulated market, the heuristic judges them, and every method trains the base once on the same sequences,
in a process of its own: the product's loss, ART's loss, supervised imitation of the best-scored agent of each hour, and TRL's GRPOTrainer,
which is given the recorded tokens and advantages, for the processor time that the product's loss took (`trl`) and for a whole pass
(`trl-whole-pass`). Then each version plays the same unseen markets at temperature 0. `--sizes` does the same with fewer and more hours.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from babylon_rl.cli.output import Table, emit, listed
from babylon_rl.evaluation.play import GATE_CONCURRENCY, gate_job, market_rows, script_rows
from babylon_rl.evaluation.snapshots import benchmark_snapshots
from babylon_rl.evaluation.statistics.intervals import Interval, mean_interval, paired_interval
from babylon_rl.models.base_model import base_model_dir
from babylon_rl.settings import Settings, load_settings
from babylon_rl.training.backends.protocol import TrainIteration, TrainSequence
from benchmarks.training_rows import demo_sequences, settings_of

PRODUCT, ART, IMITATION, TRL, TRL_WHOLE = "product", "art-loss", "imitation", "trl", "trl-whole-pass"
TRL_SCRIPT = Path(__file__).with_name("cpu_trainer_trl.py")
HOURS = 24  # of the demo; 72 trajectories each
SIZES = (4, 8, 14, 28, 56)  # hours: about 250, 500, 1,000, 2,000 and 4,000 trajectories
REFERENCES = ("conservative", "news-reader")


def imitated(sequences: Iterable[TrainSequence]) -> list[TrainSequence]:
    """The sequences of the best-scored agent of each hour, each with advantage 1."""
    best: dict[str, float] = defaultdict(lambda: -math.inf)
    rows = list(sequences)
    for row in rows:
        best[row.window] = max(best[row.window], row.score or 0.0)
    return [msgspec.structs.replace(row, advantage=1.0) for row in rows if (row.score or 0.0) >= best[row.window]]


def train(method: str, file: Path, out: Path, seed: int) -> dict[str, float]:
    """Train the base on a file of sequences by one of our losses, in this process; writes the adapter into ``out``."""
    from babylon_rl.models.threads import set_threads, usable_cores
    from babylon_rl.training.backends.cpu.loss import ART_WEIGHTS
    from babylon_rl.training.backends.cpu.policy import PackedPolicy, load_policy, make_items
    from babylon_rl.training.backends.cpu.trainer import IterationRun

    sequences = msgspec.json.decode(file.read_bytes(), type=list[TrainSequence])
    settings = settings_of(HOURS).model_copy(update={"kl_penalty": 0.0})
    set_threads(1)
    tokenizer, model = load_policy(base_model_dir(load_settings()), None)
    items, _ = make_items(tokenizer, imitated(sequences) if method == IMITATION else sequences)
    weights = ART_WEIGHTS if method == ART else None
    iteration = TrainIteration("benchmark", 1, (), seed)
    IterationRun(PackedPolicy(model, usable_cores()), items, iteration, settings, weights).train(lambda step: None)
    model.save_pretrained(str(out), save_embedding_layers=False)
    return {"sequences": len(items)}


def train_with_trl(python: Path, file: Path, out: Path, cpu_seconds: float | None) -> dict[str, float]:
    """Let TRL's GRPOTrainer train on the same tokens, for so many seconds of the processor, or one pass."""
    from babylon_rl.models.threads import usable_cores
    from babylon_rl.training.backends.cpu.policy import load_policy, make_items

    sequences = msgspec.json.decode(file.read_bytes(), type=list[TrainSequence])
    base = base_model_dir(load_settings())
    items, _ = make_items(load_policy(base, None)[0], sequences)
    rows = [{"prompt": item.encoded.prompt_ids, "response": item.encoded.response_ids, "advantage": item.advantage} for item in items]
    given = {"base": str(base), "threads": usable_cores(), "a_step": 36, "a_row": 12, "sequences": rows}
    given |= {"out": str(out), "cpu_seconds": cpu_seconds}
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder, "asked.json")
        asked.write_text(json.dumps(given))
        quiet = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        subprocess.run([python, TRL_SCRIPT, asked], cwd=folder, env=quiet, check=True, stdout=subprocess.DEVNULL)
    return {"sequences": len(items)}


def in_own_process(arguments: Sequence[str]) -> dict[str, Any]:
    """Run one training of this module in a child, and return what it printed."""
    ran = subprocess.run([sys.executable, "-m", "benchmarks.methods", *arguments], check=True, capture_output=True, text=True)
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def pnl_of(settings: Settings, adapters: dict[str, Path], markets: int) -> dict[str, list[float]]:
    """Dollars of each adapter in the gate's markets, alone in each, temperature 0."""
    from contextlib import ExitStack

    from babylon_rl.evaluation.benchmark import model_player
    from babylon_rl.llm.client import ChatClient
    from babylon_rl.market.model_endpoints import served_here

    snapshots = benchmark_snapshots(markets)
    with served_here(settings, adapters) as url, ExitStack() as stack:
        clients = [stack.enter_context(ChatClient(url, None, name, logprobs=False)) for name in adapters]
        jobs = [gate_job(model_player(client, client.model, client.model), snapshot) for client in clients for snapshot in snapshots]
        rows = market_rows(jobs, GATE_CONCURRENCY * len(clients))
    return {name: [row.pnl_usd for row in rows[i * markets : (i + 1) * markets]] for i, name in enumerate(adapters)}


def measure(home: Path, trl_python: Path | None, markets: int, hours: int, methods: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Train and play every method that is not known yet; returns the lines of all."""
    home.mkdir(parents=True, exist_ok=True)
    known = home / "runs.jsonl"
    lines = [json.loads(line) for line in known.read_text().splitlines()] if known.is_file() else []
    for method in methods:
        if any(line["method"] == method and line["hours"] == hours and line["seed"] == seed for line in lines):
            continue
        file = home / f"{hours}-hours.json"
        if not file.is_file():
            file.write_bytes(msgspec.json.encode(list(demo_sequences(hours))))
        out = home / f"{method}-{hours}-{seed}"
        budget = next((line["cpu_seconds"] for line in lines if line["method"] == PRODUCT and line["hours"] == hours), None)
        arguments = ["--one", method, str(file), str(out), "--seed", str(seed)]
        if method in (TRL, TRL_WHOLE):
            arguments += ["--trl-python", str(trl_python)] + (["--budget", str(budget)] if method == TRL else [])
        told = in_own_process(arguments)
        pnl = pnl_of(load_settings(), {"version": out}, markets)["version"]
        lines.append({"method": method, "hours": hours, "seed": seed, "markets": markets, "pnls": pnl} | told)
        with known.open("a") as file_of_lines:
            file_of_lines.write(json.dumps(lines[-1]) + "\n")
    return [line for line in lines if line["hours"] == hours and line["method"] in methods and line["seed"] == seed]


def table(lines: Sequence[dict[str, Any]]) -> Table:
    """Table of the runs: dollars an hour, beside the product's loss and a script, seconds and memory."""
    ours = {(line["hours"], line["seed"]): line["pnls"] for line in lines if line["method"] == PRODUCT}
    rows = []
    for line in lines:
        own = ours.get((line["hours"], line["seed"]))
        over = "" if own is None or line["method"] == PRODUCT else _interval(paired_interval(line["pnls"], own))
        spent = [f"{line['seconds']:.0f}", f"{line['cpu_seconds']:.0f}", f"{line['peak_gb']:.1f}"]
        rows.append([line["method"], line["hours"], line["sequences"], _interval(mean_interval(line["pnls"])), over, *spent])
    return listed(["method", "hours", "sequences", "P&L", "over product", "seconds", "processor s", "GB"], rows)


def _interval(found: Interval) -> str:
    return f"{found.mean:+.0f} ({found.low:+.0f} to {found.high:+.0f})"


def one(given: argparse.Namespace) -> dict[str, float]:
    """Train by one method in this process; what it spent."""
    began = time.perf_counter()
    method, file, out = given.one[0], Path(given.one[1]), Path(given.one[2])
    out.mkdir(parents=True, exist_ok=True)
    trl = method in (TRL, TRL_WHOLE)
    told = train_with_trl(given.trl_python, file, out, given.budget) if trl else train(method, file, out, given.seed)
    used = resource.getrusage(resource.RUSAGE_CHILDREN if trl else resource.RUSAGE_SELF)
    spent = {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_gb": used.ru_maxrss / 1e6, "seconds": time.perf_counter() - began}
    return told | spent


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl-python", type=Path, metavar="PATH", help="a Python that imports trl")
    parser.add_argument("--markets", type=int, default=24)
    parser.add_argument("--hours", type=int, default=HOURS)
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    parser.add_argument("--sizes", action="store_true", help="the product's loss with 250 to 4,000 trajectories instead")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given)))
        return
    home = load_settings().home / "methods"
    methods = [PRODUCT, ART, IMITATION] + ([TRL, TRL_WHOLE] if given.trl_python else [])
    if given.sizes:
        lines = [line for hours in SIZES for line in measure(home, None, given.markets, hours, [PRODUCT], given.seed)]
    else:
        lines = measure(home, given.trl_python, given.markets, given.hours, methods, given.seed)
    scripts = script_rows(benchmark_snapshots(given.markets), REFERENCES)
    for name, (_, rows) in scripts.items():
        lines.append(
            {"method": name, "hours": 0, "seed": given.seed, "sequences": 0, "seconds": 0, "cpu_seconds": 0, "peak_gb": 0}
            | {"pnls": [row.pnl_usd for row in rows]}
        )
    emit({"runs": lines}, [table(lines)], given.json)


if __name__ == "__main__":
    main()
