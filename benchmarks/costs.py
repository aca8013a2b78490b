"""Costs of 1,000 trajectories: `python -m benchmarks.costs [--database URL]` prints the tables of docs/explanation/costs.md.

Judging: the requests that `babylon-rl score --dry-run` plans for every ready hour of the recorded game (or a database), with the
prices that litellm has installed; no judge is asked. Training: time, tokens and dollars of the iterations of every version that the
database knows, as they were recorded; the recorded game has none.
"""

import argparse
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from pydantic import SecretStr

from babylon_rl.episodes.reading import sync_windows
from babylon_rl.judge.cost import estimate_hours, total_of
from babylon_rl.settings import Settings
from babylon_rl.store.connection import Connection, connect
from babylon_rl.store.registry import read_models
from babylon_rl.store.trajectories import windows_with_rows
from babylon_rl.store.windows import stored_episodes, stored_summaries
from babylon_rl.store.write_ahead import finished_steps, read_jobs
from babylon_rl.windows import utc_now
from benchmarks.judge_tokens import sample

JUDGES = ("openai/gpt-4o-mini", "openai/gpt-4.1-mini", "openai/gpt-4.1", "anthropic/claude-haiku-4-5", "anthropic/claude-sonnet-4-5")
FIRST, END = "2025-01-01T00:00", "2026-01-01T00:00"


def judging(connection: Connection, judges: Sequence[str] = JUDGES) -> Iterator[dict[str, Any]]:
    """A row for each judge: tokens and dollars a 1,000 trajectories of usable episodes."""
    plain = Settings(_env_file=None)
    windows = windows_with_rows(connection, FIRST, END)
    sync_windows(connection, windows, plain, utc_now())
    ready = [hour.window for hour in stored_summaries(connection, windows) if hour.ready]
    held = [episode for episodes in stored_episodes(connection, ready).values() for episode in episodes if episode.usable]
    thousands = sum(len(episode.trajectory_ids) for episode in held) / 1000
    for judge in judges:
        settings = plain.model_copy(
            update={"judge_model": judge, "openai_api_key": SecretStr("none"), "anthropic_api_key": SecretStr("none")}
        )
        total = total_of(estimate_hours(connection, ready, settings, force=True))
        yield {
            "judge": judge, "hours": len(ready), "episodes": len(held), "trajectories": round(1000 * thousands),
            "requests": total.requests / thousands, "prompt_tokens": total.prompt_tokens / thousands,
            "completion_tokens": total.completion_tokens / thousands,
            "usd": None if total.usd is None else total.usd / thousands,
            "usd_most": None if total.usd_most is None else total.usd_most / thousands,
        }  # fmt: skip


def training(connection: Connection) -> Iterator[dict[str, Any]]:
    """A row for each version that was trained here: seconds, tokens and dollars a 1,000 trajectories of its batch."""
    for model in read_models(connection):
        if model.foreign or model.training_batch is None:
            continue
        steps = finished_steps(connection, model.training_batch).values()
        thousands = model.metrics.get("trajectories", 0) / 1000
        if not steps or not thousands:
            continue  # imported
        paid = [job.estimated_usd for job in read_jobs(connection, model.training_batch)]
        yield {
            "version": model.version, "backend": model.backend, "trajectories": round(1000 * thousands),
            "sequences": model.metrics["sequences"] / thousands,
            "tokens": sum(step.trainable_tokens or 0 for step in steps) / thousands,
            "seconds": sum((step.finished_at - step.started_at).total_seconds() for step in steps if step.finished_at) / thousands,
            "usd": None if None in paid else sum(usd for usd in paid if usd is not None) / thousands,
        }  # fmt: skip


def _table(rows: list[dict[str, Any]]) -> Iterator[str]:
    def dollars(value: float | None) -> str:
        return "unknown" if value is None else f"{value:.2f}"

    yield "| judge | requests | tokens in | tokens out | dollars, first orders | dollars, most |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        numbers = " | ".join(f"{row[name]:,.0f}" for name in ("requests", "prompt_tokens", "completion_tokens"))
        yield f"| {row['judge']} | {numbers} | {dollars(row['usd'])} | {dollars(row['usd_most'])} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", help="a migrated database with a recorded game instead of the sample")
    arguments = parser.parse_args()
    with sample(arguments.database) as url, connect(url) as connection:
        rows, trained = list(judging(connection)), list(training(connection))
    first = rows[0]
    counts = f"{first['hours']} hours, {first['episodes']} episodes, {first['trajectories']} trajectories"
    print(f"{counts}; prices of litellm {version('litellm')}, looked at on {datetime.now(UTC):%Y-%m-%d}. A 1,000 trajectories:\n")
    print("\n".join(_table(rows)))
    for row in trained:
        print(row)


if __name__ == "__main__":
    main()
