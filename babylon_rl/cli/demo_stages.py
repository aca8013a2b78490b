"""Stages of the demo: plan, play, judge, train, compare. Each does only missing work."""

import json
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from babylon_rl.cli.output import progress_of_parts, say
from babylon_rl.errors import Diverged, NothingToTrain, UsageError
from babylon_rl.evaluation.comparison import BASE, compare
from babylon_rl.evaluation.gate import ANALYSES
from babylon_rl.evaluation.model_sources import base_source, play_sources, trained_windows, version_source
from babylon_rl.evaluation.play import play_strategies
from babylon_rl.evaluation.snapshots import benchmark_snapshots, require_unseen
from babylon_rl.judge.scoring import stored_scores
from babylon_rl.market.model_endpoints import model_agents, served_here
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.serving.releases import ReleaseAuthor, deploy
from babylon_rl.serving.routing import route
from babylon_rl.settings import Settings
from babylon_rl.store.batches import Batch, read_batches
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.recording import simulated_hours, simulated_seeds
from babylon_rl.store.registry import read_models
from babylon_rl.store.releases import read_events, read_rollouts, read_routing
from babylon_rl.training.freezing import freeze
from babylon_rl.windows import HOUR, is_complete, utc_now, window_end, window_of, window_range, window_start

WINDOWS, AGENTS, MODEL_AGENTS = 24, 6, 1
# An hour's market follows from the seed and the hour, so a demo that ended now would play others every time. After FIRST_WINDOW's default.
FIRST_HOUR = "2025-03-03T00:00"
RELEASE_AGENTS = 200  # agents by whose number a rollout's share is shown
STAGES = "demo-stages.jsonl"


@dataclass(frozen=True)
class Demo:
    """State shared by the stages.

    ``seed`` determines the simulated hours; each of the ``generations`` plays ``windows`` hours.
    """

    settings: Settings
    database: Database
    windows: int
    seed: int
    generations: int = 1


@contextmanager
def stage(state: Demo, title: str) -> Iterator[None]:
    """Print the start and duration of a stage, and append its times to STAGES.

    STAGES lies in the state directory; it holds wall and processor seconds.
    """
    say(f"\n{title}")
    began_s, processor_s = time.monotonic(), _processor_s()
    try:
        yield
    finally:
        spent = {"stage": title, "seconds": time.monotonic() - began_s, "processorSeconds": _processor_s() - processor_s}
        state.settings.home.mkdir(parents=True, exist_ok=True)
        with (state.settings.home / STAGES).open("a") as file:
            file.write(json.dumps(spent) + "\n")
    say(f"   done in {time.monotonic() - began_s:.0f} s")


def _processor_s() -> float:
    """Processor seconds of this process and of its ended children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def prepare(state: Demo) -> None:
    """Migrate the database."""
    from babylon_rl.store.migrate import migrate

    report = migrate(state.database)
    say(f"   {state.database.address}: {len(report.applied)} applied, {len(report.adopted)} adopted")
    for difference in report.differences:
        say(f"   {difference}")


def planned(state: Demo) -> list[list[str]]:
    """The consecutive hours of each generation.

    They begin with the first hour that was played, or with FIRST_HOUR.

    Raises:
        UsageError: the hours would reach into the future, or another seed's are there.
    """
    now, total = utc_now(), state.windows * state.generations
    with state.database.connect() as connection:
        there = simulated_hours(connection, state.seed)
        others = simulated_seeds(connection) - {state.seed}
    # Two seeds cannot share a database, as their hours would overlap.
    if others and len(there) < total:
        raise UsageError(
            f"{state.settings.home} holds a demo with another seed. Choose that seed, another BABYLON_RL_HOME, or run `make clean` first."
        )
    first = window_start(there[0] if there else FIRST_HOUR)
    hours = [window_of(first + HOUR * index) for index in range(total)]
    if not is_complete(hours[-1], now):
        raise UsageError(
            f"{state.settings.home} holds a demo that begins with {hours[0]}; {total} hours from there reach {hours[-1]}, "
            "which is not over. Choose another BABYLON_RL_HOME, so that all generations find room."
        )
    return [hours[index : index + state.windows] for index in range(0, total, state.windows)]


def player_after(earlier: Sequence[dict[str, Any]]) -> str:
    """The player of the next generation: the version deployed by then, or the base."""
    return next((done["modelVersion"] for done in reversed(earlier) if done["released"]), "base")


def play(state: Demo, hours: Sequence[str], player: str) -> None:
    """Play and record those of ``hours`` that are missing."""
    from babylon_rl.windows import window_stretches

    with state.database.connect() as connection:
        there = set(simulated_hours(connection, state.seed))
        connection.commit()
        missing = [hour for hour in hours if hour not in there]
        if not missing:
            say(f"   {len(hours)} hours are there already")
            return
        with model_agents(state.settings, player, temperature=1.0) as ask, progress_of_parts("   ") as on_progress:
            on_progress("hours played", 0, len(missing))
            played = count(1)
            # Consecutive missing hours are one request.
            for first, last in window_stretches(missing, len(missing)):
                number = len(list(window_range(first, _after(last))))
                request = SpawnRequest(AGENTS, MODEL_AGENTS, number, state.seed, start=first)
                spawn(connection, request, utc_now(), ask, lambda _: on_progress("hours played", next(played), len(missing)))


def materialize_hours(state: Demo, hours: Sequence[str]) -> None:
    """Group, check and judge those of ``hours`` that have no scores."""
    from babylon_rl.automation.launch import observe_hours, run_hours

    observe_hours(state.database, state.settings)
    with state.database.connect() as connection:
        done = stored_scores(connection, list(hours))
    missing = [hour for hour in hours if hour not in done]
    if not missing:
        say(f"   {len(hours)} hours are scored already")
        return
    run_hours(state.database, state.settings, missing, on_range=lambda first, last: say(f"   {first} to {last}"))


def train(state: Demo, hours: Sequence[str]) -> str:
    """Train and benchmark the batch of ``hours``, new or resumed; return its id.

    Raises:
        Diverged: the policy left its bounds, now or in an earlier run after which later hours were played.
        NothingToTrain: too few trajectories are freezable.
    """
    from babylon_rl.automation.launch import run_batch

    # A failed batch is frozen again, unless later generations have played since.
    with state.database.connect(autocommit=True) as connection:
        batch = _batch_of(connection, state, hours)
        if batch is None or batch.state == "failed":
            if _is_past(connection, state, hours):  # a version trained now would have a later one for its parent
                raise Diverged(batch.error if batch is not None and batch.error else "Nothing was frozen.")
            batch = _freeze(connection, state, hours)
            say(f"   {batch.batch_id} froze {batch.trajectories} trajectories")
        else:
            say(f"   {batch.batch_id} is there already ({batch.state})")
    with progress_of_parts("   ") as on_progress:
        run_batch(state.database, state.settings, batch.batch_id, on_progress=on_progress)
    return batch.batch_id


def _batch_of(connection: Connection, state: Demo, hours: Sequence[str]) -> Batch | None:
    """The newest batch of some of ``hours``; failed ones only if there is no other."""
    own = [batch for batch in read_batches(connection) if batch.seed == state.seed and set(batch.windows) & set(hours)]
    return next((batch for batch in own if batch.state != "failed"), own[0] if own else None)


def _is_past(connection: Connection, state: Demo, hours: Sequence[str]) -> bool:
    return state.generations > 1 and simulated_hours(connection, state.seed)[-1] > hours[-1]


def _freeze(connection: Connection, state: Demo, hours: Sequence[str]) -> Batch:
    least = state.settings.training_min_trajectories
    reach = (hours[0], _after(hours[-1]))
    frozen = freeze(connection, state.settings, utc_now(), windows=reach, seed=state.seed, minimum=least, settled=True)
    if frozen.batch is None:
        raise NothingToTrain(frozen.reason)
    return frozen.batch


def release(state: Demo, version: str | None) -> bool:
    """Show how many agents a version on trial answers, then release it to all; return whether it was released."""
    with state.database.connect() as connection:
        table = read_routing(connection)
        if table.trial is not None and table.trial.version == version:
            answered = sum(route(table, state.settings, None, f"demo-agent-{n}").version == version for n in range(RELEASE_AGENTS))
            share = f"{table.trial.percentage:g} % of agents"
            say(f"   {version} is rolled out to {share}: it would answer {answered} of {RELEASE_AGENTS}")
            author = ReleaseAuthor("demo", "the demo has no live agents whose results a rollout could wait for", utc_now())
            deploy(connection, table.trial.version, state.settings, author, strategy="immediate")
        own = [rollout for rollout in read_rollouts(connection) if rollout.version == version]
        for event in read_events(connection, own[0].rollout_id) if own else ():
            say(f"   {event.version} {event.to_state} at {event.to_percentage:g} %: {event.why}")
    released = any(rollout.percentage == 100 for rollout in own)
    if not released:
        stays = table.deployed or "the base"
        say(f"   {version or 'No version'} is not released; {stays} stays in front of agents")
    return released


def _after(window: str) -> str:
    return window_of(window_end(window))


def standings(state: Demo, versions: Sequence[str]) -> list[dict[str, Any]]:
    """Base, ``versions`` and all scripts in the markets of the gate's first analysis.

    Returns rows of the report, with every market's P&L. Stored results are not played again. Improvements are over the base, with
    intervals as wide as the gate's analyses require.
    """
    snapshots = benchmark_snapshots(state.settings.benchmark_markets)
    base = base_source(state.settings)
    with state.database.connect() as connection, progress_of_parts("   ") as on_progress:
        # The markets must be unseen by all registered versions, not only by those played.
        models = {model.version: model for model in read_models(connection)}
        require_unseen(snapshots, trained_windows(models.values()))
        sources = [base, *(version_source(models[version], "version", base) for version in versions)]
        results = play_sources(
            connection,
            state.settings,
            sources,
            snapshots,
            lambda sentence: None,
            clock=utc_now,
            serving=served_here,
            on_progress=on_progress,
        )
    played = {source.name: (source.role, results[source.name]) for source in sources}
    compared = compare(played | play_strategies(snapshots), None, BASE, analyses=len(ANALYSES))
    return [row.document | {"pnls": [round(usd, 4) for usd in row.pnls_usd]} for row in compared.rows]
