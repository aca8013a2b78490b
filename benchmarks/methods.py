"""Training methods on the same judged hours: `python -m benchmarks.methods [--trl-python PATH]`; resumable, a line of JSON a run.

Scripted agents and the base play the hours of a demo's first generation, the heuristic judges them, and every method trains the base on the
same frozen batch, in a process of its own: one pass of the product's loss and of ART's; supervised imitation of the best-scored agent of
each hour, one pass (`imitation-once`) and as many as the product's processor time allows (`imitation`); TRL's GRPOTrainer, given the
recorded tokens and advantages, for the product's processor time (`trl`) and for a whole pass (`trl-whole-pass`). Each version plays the
same unseen markets at temperature 0. `--sizes` trains the product's loss on fewer and more hours.
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

from babylon_rl.cli.demo_stages import AGENTS, BASE_EDITION, MODEL_AGENTS
from babylon_rl.cli.output import Table, emit, listed
from babylon_rl.evaluation.play import GATE_CONCURRENCY, gate_job, market_rows, script_rows
from babylon_rl.evaluation.snapshots import benchmark_snapshots
from babylon_rl.evaluation.statistics.intervals import Interval, mean_interval, paired_interval
from babylon_rl.market.model_endpoints import model_agents, served_here
from babylon_rl.market.simulation.prompt_reader import BY_PROMPT
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.models.base_model import BASE_MODEL_NAME, base_model_dir
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.benchmarks import MarketResult
from babylon_rl.training.backends.protocol import TrainIteration, TrainSequence
from babylon_rl.training.conversion import convert
from benchmarks.training_rows import NOW, own_database, prepared_batch, settings_of

PRODUCT, ART, IMITATION, IMITATION_ONCE, TRL, TRL_WHOLE = "product", "art-loss", "imitation", "imitation-once", "trl", "trl-whole-pass"
VERSION = "version"  # the adapter's name at its server
TRL_SCRIPT = Path(__file__).with_name("cpu_trainer_trl.py")
HOURS = 14  # of 72 trajectories: the 1,000 that automation waits for
SIZES = (4, 8, 14, 28, 56)  # hours: about 250, 500, 1,000, 2,000 and 4,000 trajectories
REFERENCES = ("conservative", "news-reader", BY_PROMPT.name)


def recorded(request: SpawnRequest, adapter: Path | None = None) -> list[TrainSequence]:
    """The sequences of judged hours; an adapter answers for the model agents, None: the base."""
    settings = settings_of(request.windows)
    with own_database("methods") as database, database.connect(autocommit=True) as connection:
        with (
            served_here(settings, {} if adapter is None else {VERSION: adapter}) as url,
            model_agents(settings, f"{BASE_MODEL_NAME if adapter is None else VERSION}@{url}", temperature=1.0) as ask,
        ):
            played = [hour.window for hour in spawn(connection, request, NOW, ask)]
        batch = prepared_batch(connection, played, settings)
        return list(convert(connection, batch.remaining, settings).sequences)


def imitated(sequences: Iterable[TrainSequence]) -> list[TrainSequence]:
    """The sequences of the best-scored agent of each hour, each with advantage 1."""
    best: dict[str, float] = defaultdict(lambda: -math.inf)
    rows = list(sequences)
    for row in rows:
        best[row.window] = max(best[row.window], row.score or 0.0)
    return [msgspec.structs.replace(row, advantage=1.0) for row in rows if (row.score or 0.0) >= best[row.window]]


def train(method: str, file: Path, out: Path, seed: int, passes: int = 1, parent: Path | None = None) -> dict[str, float]:
    """Train the base or an adapter on a file of sequences with the product's trainer, in this process; writes the adapter into ``out``."""
    import torch

    from babylon_rl.models.threads import set_threads, usable_cores
    from babylon_rl.training.backends.cpu.loss import ART_WEIGHTS
    from babylon_rl.training.backends.cpu.policy import PackedPolicy, load_policy, make_items
    from babylon_rl.training.backends.cpu.trainer import IterationRun

    sequences = msgspec.json.decode(file.read_bytes(), type=list[TrainSequence])
    torch.manual_seed(seed)
    settings = settings_of(HOURS).model_copy(update={"kl_penalty": 0.0})
    set_threads(1)
    tokenizer, model = load_policy(base_model_dir(load_settings()), parent)
    items, _ = make_items(tokenizer, imitated(sequences) if method in (IMITATION, IMITATION_ONCE) else sequences)
    weights = ART_WEIGHTS if method == ART else None
    iteration = TrainIteration("benchmark", 1, (), seed, passes=passes, generation=1 if parent is None else 2)
    began = time.process_time()
    IterationRun(PackedPolicy(model, usable_cores()), items, iteration, settings, weights).train(lambda step: None)
    a_pass = (time.process_time() - began) / passes
    model.save_pretrained(str(out), save_embedding_layers=False)
    return {"sequences": len(items), "passes": passes, "cpu_seconds_a_pass": a_pass}


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
    ran = subprocess.run([sys.executable, "-m", "benchmarks.methods", *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def played(settings: Settings, adapter: Path, markets: int) -> dict[str, list[float]]:
    """Dollars of an adapter in the gate's markets, alone in each, at temperature 0: earned, and expected by the prompt."""
    from babylon_rl.evaluation.benchmark import model_player
    from babylon_rl.llm.client import ChatClient

    with served_here(settings, {VERSION: adapter}) as url, ChatClient(url, None, VERSION, logprobs=False) as client:
        player = model_player(client, VERSION, VERSION)
        return dollars(market_rows([gate_job(player, snapshot) for snapshot in benchmark_snapshots(markets)], GATE_CONCURRENCY))


def dollars(rows: Sequence[MarketResult]) -> dict[str, list[float]]:
    """Dollars of some markets, earned and expected; the latter without those of a player that knows more than the prompt."""
    return {"pnls": [row.pnl_usd for row in rows], "expected": [row.expected_usd for row in rows if row.expected_usd is not None]}


def measure(home: Path, trl_python: Path | None, markets: int, hours: int, methods: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Train and play every method that is not known yet; returns the lines of all."""
    home.mkdir(parents=True, exist_ok=True)
    known = home / "runs.jsonl"
    lines = [json.loads(line) for line in known.read_text().splitlines()] if known.is_file() else []
    of = {line["method"]: line for line in lines if (line["hours"], line["seed"], line["markets"]) == (hours, seed, markets)}
    for method in methods:
        if method in of:
            continue
        file = home / f"{hours}-hours.json"
        if not file.is_file():
            request = SpawnRequest(AGENTS, MODEL_AGENTS, hours, seed=0, edition=BASE_EDITION)  # as the demo's before its first training
            file.write_bytes(msgspec.json.encode(recorded(request)))
        out = home / f"{method}-{hours}-{seed}"
        arguments = ["--one", method, str(file), str(out), "--seed", str(seed)]
        if method in (TRL, TRL_WHOLE):
            arguments += ["--trl-python", str(trl_python)]
        if method == TRL:
            arguments += ["--budget", str(of[PRODUCT]["cpu_seconds"])]
        if method == IMITATION:
            left = of[PRODUCT]["cpu_seconds"] - of[IMITATION_ONCE]["cpu_seconds"]
            arguments += ["--passes", str(max(1, 1 + round(left / of[IMITATION_ONCE]["cpu_seconds_a_pass"])))]
        told = in_own_process(arguments)
        found = played(load_settings(), out, markets)
        of[method] = {"method": method, "hours": hours, "seed": seed, "markets": markets} | found | told
        with known.open("a") as file_of_lines:
            file_of_lines.write(json.dumps(of[method]) + "\n")
    return [of[method] for method in methods]


def table(lines: Sequence[dict[str, Any]]) -> Table:
    """Table of the runs: dollars an hour with 95 % intervals, expected ones less the product's in the same markets, seconds, memory."""
    ours = {line["hours"]: line["expected"] for line in lines if line["method"] == PRODUCT}
    rows = []
    for line in lines:
        own = ours.get(line["hours"])
        over = "" if own is None or line["method"] == PRODUCT else interval(paired_interval(line["expected"], own))
        spent = [f"{line['seconds']:.0f}", f"{line['cpu_seconds']:.0f}", f"{line['peak_gb']:.1f}"]
        own_usd = [interval(mean_interval(line[of])) if line[of] else "" for of in ("pnls", "expected")]
        rows.append([line["method"], line["hours"], line["sequences"], *own_usd, over, *spent])
    return listed(["method", "hours", "sequences", "P&L", "expected", "over product", "seconds", "processor s", "GB"], rows)


def interval(found: Interval) -> str:
    """Mean and 95 % interval in whole dollars."""
    return f"{found.mean:+.0f} ({found.low:+.0f} to {found.high:+.0f})"


def one(given: argparse.Namespace) -> dict[str, float]:
    """Train by one method in this process; what it spent."""
    began = time.perf_counter()
    method, file, out = given.one[0], Path(given.one[1]), Path(given.one[2])
    out.mkdir(parents=True, exist_ok=True)
    trl = method in (TRL, TRL_WHOLE)
    told = (
        train_with_trl(given.trl_python, file, out, given.budget)
        if trl
        else train(method, file, out, given.seed, given.passes, given.parent)
    )
    used = resource.getrusage(resource.RUSAGE_CHILDREN if trl else resource.RUSAGE_SELF)
    spent = {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_gb": used.ru_maxrss / 1e6, "seconds": time.perf_counter() - began}
    return told | spent


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trl-python", type=lambda path: Path(path).absolute(), metavar="PATH", help="a Python that imports trl")
    parser.add_argument("--markets", type=int, default=24)
    parser.add_argument("--hours", type=int, default=HOURS)
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    parser.add_argument("--sizes", action="store_true", help="the product's loss with 250 to 4,000 trajectories instead")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="of these alone, product first")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--budget", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--parent", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--passes", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given)))
        return
    home = load_settings().home / "methods"
    methods = given.methods or [PRODUCT, ART, IMITATION_ONCE, IMITATION] + ([TRL, TRL_WHOLE] if given.trl_python else [])
    if given.sizes:
        lines = [line for hours in SIZES for line in measure(home, None, given.markets, hours, [PRODUCT], given.seed)]
    else:
        lines = measure(home, given.trl_python, given.markets, given.hours, methods, given.seed)
    scripts = script_rows(benchmark_snapshots(given.markets), REFERENCES)
    for name, (_, rows) in scripts.items():
        lines.append(
            {"method": name, "hours": 0, "seed": given.seed, "sequences": 0, "seconds": 0, "cpu_seconds": 0, "peak_gb": 0} | dollars(rows)
        )
    emit({"runs": lines}, [table(lines)], given.json)


if __name__ == "__main__":
    main()
