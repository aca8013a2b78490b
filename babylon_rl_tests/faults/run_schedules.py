"""Schedules of the simulation (simulation.py) from the command line: ``make faults``.

Finished seeds are kept in the state directory, under a digest of the code that they ran with, so that a run that was stopped goes on.
"""

import argparse
import hashlib
import itertools
import json
import logging
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
from pydantic import SecretStr

from babylon_rl.settings import Settings
from babylon_rl.store.database import Database
from babylon_rl.store.embedded import use_server
from babylon_rl.store.migrate import migrate
from babylon_rl_tests.evaluation.endpoint import endpoint
from babylon_rl_tests.faults.simulation import Broken, CountedJudge, Schedule, Site, trainer_of
from babylon_rl_tests.judge.scripted_server import Judge, judging
from babylon_rl_tests.memory import quick_directory
from babylon_rl_tests.training import remote_play
from babylon_rl_tests.training.serverless_stand_in import Service, standing_in
from babylon_rl_tests.training.serverless_stand_in.base import base_tokenizer, write_base
from babylon_rl_tests.training.serverless_stand_in.chat import Chat

REPOSITORY = Path(__file__).parents[2]


@contextmanager
def own_server() -> Iterator[str]:
    """An embedded server that need not last, with a migrated database to copy."""
    with tempfile.TemporaryDirectory() as other, quick_directory(Path(other)) as home, use_server(home) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
            connection.execute("CREATE DATABASE migrated")
        migrated = database_of(url, "migrated")
        migrate(Database(migrated, migrated))
        yield url


def database_of(server: str, name: str) -> str:
    return server.rpartition("/")[0] + f"/{name}"


@contextmanager
def copied(server: str, name: str) -> Iterator[str]:
    """A copy of the migrated database for a block."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE migrated STRATEGY file_copy")
        try:
            yield database_of(server, name)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def quiet() -> Iterator[None]:
    """No logs of what fails on purpose, and no traceback of a thread that died with its process."""
    told = threading.excepthook
    threading.excepthook = lambda _: None
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        threading.excepthook = told


def make_settings(
    judge_url: str, tiny_base: Path | None = None, service_url: str | None = None, service_base: Path | None = None
) -> dict[str, Settings]:
    """Settings by trainer; defaults else, whatever the environment says."""
    defaults = Settings(_env_file=None, **{name: field.default for name, field in Settings.model_fields.items()})
    common = {
        "judge_model": "openai/scripted", "judge_base_url": judge_url, "judge_timeout_seconds": 10.0, "judge_disagreement": 1.0,
        "judge_concurrency": 1, "min_agents_per_window": 2, "min_actions_per_trajectory": 1, "iterations": 2, "epochs": 1,
        "windows_per_iteration": 1, "checkpoints_kept": 2, "lookback_hours": 24 * 60, "use_rl_model": True,
    }  # fmt: skip
    trainers: dict[str, dict[str, Any]] = {
        "dry": {"train_rl_local": True, "local_base_model": "dry"},
        "cpu": {"train_rl_local": True, "local_base_model": str(tiny_base), "warmup_steps": 0, "benchmark_markets": 12},
        "paid": {
            "train_rl_local": False, "local_base_model": None, "wandb_api_key": SecretStr("x"), "serverless_base_url": service_url,
            "base_model": str(service_base),
        },
    }  # fmt: skip
    return {name: defaults.model_copy(update=common | changes) for name, changes in trainers.items()}


def judge_site(judge: Judge) -> Site:
    """What schedules with the dry trainer need."""
    return Site(CountedJudge(judge), make_settings(judge.url))


@contextmanager
def site(server: str, trainers: set[str]) -> Iterator[Site]:
    """Judge and trainers for schedules; torch is imported where one needs it."""
    with ExitStack() as stack:
        at = judge_site(judge := stack.enter_context(judging()))
        if trainers != {"dry"}:
            from babylon_rl.reporting.plots import new_figure
            from babylon_rl_tests.tiny_model import make_base

            new_figure(1.0, 1.0, 80)  # matplotlib makes its cache, once, outside of any life
            tokenizer = base_tokenizer()
            bases = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            at.models = stack.enter_context(endpoint())
            at.stand_in = stack.enter_context(standing_in(Service(len(tokenizer), clock=_clock_of_requests()), Chat(tokenizer)))
            at.settings = make_settings(judge.url, make_base(bases / "tiny"), at.stand_in.url, write_base(bases / "service"))
            with copied(server, "played") as url:
                remote_play.TEMPLATES["played"][1](url)
                at.calls = _served_calls(url)
        yield at


def _clock_of_requests() -> Callable[[], float]:
    """A clock that a look moves on by 1/64 s: how far a job is then hangs on its requests alone, which a seed repeats."""
    looks = itertools.count()
    return lambda: next(looks) / 64


def _served_calls(url: str) -> tuple[dict[str, Any], ...]:
    """Answers of the stand-in's model, with their log-probabilities, as the recorder takes them."""
    with psycopg.connect(url) as connection:
        found = connection.execute(
            """SELECT model, "messagesJson", response, temperature, "maxTokens", metadata FROM llm_call_logs ORDER BY "callId" """
        ).fetchall()
    calls = []
    for model, messages, response, temperature, max_tokens, text in found:
        metadata = json.loads(text)
        if metadata.get("logprobs"):
            calls.append(
                {
                    "model": model, "messages": json.loads(messages), "response": response, "temperature": temperature,
                    "max_tokens": max_tokens, "response_format": metadata.get("responseFormat"), "logprobs": metadata["logprobs"],
                }
            )  # fmt: skip
    return tuple(calls)


def run_schedule(seed: int, at: Site, url: str) -> Schedule:
    """One schedule in an empty, migrated database."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as home:
        schedule = Schedule(seed, at, url, Path(home), trainer_of(seed))
        schedule.run()
        return schedule


def code_digest() -> str:
    """Digest of the code that a schedule runs."""
    digest = hashlib.sha256()
    for path in sorted([*(REPOSITORY / "babylon_rl").rglob("*.py"), *(REPOSITORY / "babylon_rl_tests" / "faults").glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def main() -> int:
    """Run the schedules that are left, or one seed with its story."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--seed", type=int, help="this one alone, with its story")
    parser.add_argument("--first", type=int, default=0)
    chosen = parser.parse_args()
    record = Settings().home / "faults" / f"{code_digest()}.jsonl"
    record.parent.mkdir(parents=True, exist_ok=True)
    done = {row["seed"]: row for row in map(json.loads, record.read_text().splitlines())} if record.exists() else {}
    seeds = [chosen.seed] if chosen.seed is not None else [seed for seed in range(chosen.first, chosen.schedules) if seed not in done]
    failed = 0
    with own_server() as server, site(server, set(map(trainer_of, seeds))) as at, quiet(), record.open("a") as file:
        for seed in seeds:
            began = time.monotonic()
            try:
                with copied(server, f"schedule_{seed}") as url:
                    schedule = run_schedule(seed, at, url)
            except Broken as broken:
                failed += 1
                print(f"seed {seed}: {broken}\nagain: make faults SEED={seed}", flush=True)
                continue
            if chosen.seed is not None:
                print("\n".join(schedule.story))
            done[seed] = {
                "seed": seed,
                "trainer": schedule.trainer,
                "seconds": round(time.monotonic() - began, 2),
                "counts": schedule.counts,
            }
            file.write(json.dumps(done[seed]) + "\n")
            file.flush()
            if len(done) % 20 == 0:
                mean_s = sum(row["seconds"] for row in done.values()) / len(done)
                print(f"{len(done)} of {chosen.schedules} schedules, {mean_s:.1f} s each", flush=True)
    shown = seeds if chosen.seed is not None else done
    total = sum((Counter(done[seed]["counts"]) for seed in shown if seed in done), Counter())
    print(
        f"{sum(seed in done for seed in shown)} schedules, {failed} failed: "
        + ", ".join(f"{number} {kind}" for kind, number in sorted(total.items()))
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
