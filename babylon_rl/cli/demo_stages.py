"""Stages of the demo: plan, play, judge, train, compare. Each does only missing work."""

import json
import resource
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from babylon_rl.cli.benchmark_players import models_played
from babylon_rl.cli.output import progress_of, progress_of_parts, say
from babylon_rl.errors import Diverged, NothingToTrain, UsageError
from babylon_rl.evaluation.benchmark import same_prompt
from babylon_rl.evaluation.gate import FAIL, compare
from babylon_rl.evaluation.play import script_rows
from babylon_rl.evaluation.snapshots import benchmark_snapshots
from babylon_rl.evaluation.stakes import scripts_at_stake
from babylon_rl.judge.scoring import stored_scores
from babylon_rl.market.headlines import TRAINING, TRAINING_EDITIONS
from babylon_rl.market.model_endpoints import gateway_agents, served_here
from babylon_rl.market.simulation.agents import AgentFactory
from babylon_rl.market.simulation.games import ONE_TICK_GAME, Game, game_named
from babylon_rl.market.spawn import SpawnRequest, spawn
from babylon_rl.models.server_process import Serving
from babylon_rl.serving.call_writer import write_waiting
from babylon_rl.serving.gateway_process import running_gateway
from babylon_rl.serving.promotion import describe, read_guards
from babylon_rl.serving.releases import deploy, rollback
from babylon_rl.serving.status_shapes import GuardDocument
from babylon_rl.settings import Settings
from babylon_rl.store.batches import read_batches
from babylon_rl.store.benchmarks import undecided_batches
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.live_usage import read_last_calls
from babylon_rl.store.migrate import migrate
from babylon_rl.store.recording import read_sources, simulated_hours, simulated_seeds
from babylon_rl.store.releases import BASE, ReleaseAuthor, Rollout, read_events, read_rollouts, read_routing
from babylon_rl.training.freezing import freeze
from babylon_rl.windows import HOUR, is_complete, next_window, utc_now, window_of, window_range, window_start, window_stretches

WINDOWS, AGENTS, MODEL_AGENTS = 24, 6, 1
# An hour's market follows from the seed and the hour, so a demo that ended now would play others every time. After FIRST_WINDOW's default.
FIRST_HOUR = "2025-03-03T00:00"
# The base learns to read from few texts that come often; what can read learns more from many.
BASE_EDITION = TRAINING_EDITIONS[0]
RELEASE_AGENTS = 12  # that ask the gateway while a version is on trial
STAGES = "demo-stages.jsonl"
# The demo's gateway, whatever the environment says of the real one: agents get what the registry says, and every call is recorded.
GATEWAY_SETTINGS = {
    "use_rl_model": True, "rl_model_version": None, "wandb_model": None, "rl_rollout_percentage": 100.0,
    "record_agent_trajectories": True, "trajectory_sampling_rate": 1.0, "record_private_fields": "",
}  # fmt: skip


@dataclass(frozen=True)
class Demo:
    """State shared by the stages.

    ``seed`` determines the simulated hours; each of the ``generations`` plays ``windows`` hours, of ``game`` unless they were played before
    in another one. ``serving`` answers for the models. Without ``gate`` every version is released.
    """

    settings: Settings
    database: Database
    windows: int
    seed: int
    generations: int = 1
    serving: Serving = served_here
    game: Game = ONE_TICK_GAME
    gate: bool = True


@contextmanager
def stage(settings: Settings, title: str) -> Iterator[None]:
    """Print the start and duration of a stage, and append its times to STAGES.

    STAGES lies in the state directory; it holds wall and processor seconds.
    """
    say(f"\n{title}")
    began_s, processor_s = time.monotonic(), _processor_s()
    try:
        yield
    finally:
        spent = {"stage": title, "seconds": time.monotonic() - began_s, "processorSeconds": _processor_s() - processor_s}
        settings.home.mkdir(parents=True, exist_ok=True)
        with (settings.home / STAGES).open("a") as file:
            file.write(json.dumps(spent) + "\n")
    say(f"   done in {time.monotonic() - began_s:.0f} s")


def _processor_s() -> float:
    """Processor seconds of this process and of its children, ended and running."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = time.process_time() + ended.ru_utime + ended.ru_stime
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            times = child.cpu_times()
            spent += times.user + times.system + times.children_user + times.children_system
    return spent


def prepare(state: Demo) -> None:
    """Migrate the database, and write the calls that an interrupted demo left on disk."""
    report = migrate(state.database)
    say(f"   {state.database.address}: {len(report.applied)} applied, {len(report.adopted)} adopted")
    say(*(f"   {difference}" for difference in report.differences))
    write_waiting(state.settings)


def planned(state: Demo) -> list[list[str]]:
    """The consecutive hours of each generation; the hour after them is for its release.

    They begin with the first hour that was played, or with FIRST_HOUR.

    Raises:
        UsageError: the hours would reach into the future, or those of another seed or prompt are there.
    """
    now, total = utc_now(), (state.windows + 1) * state.generations
    with state.database.connect() as connection:
        there = simulated_hours(connection, state.seed)
        others = simulated_seeds(connection) - {state.seed}
        first = window_start(there[0] if there else FIRST_HOUR)
        hours = [window_of(first + HOUR * index) for index in range(total)]
        played = [source for *_, source in read_sources(connection, hours).values()]
    plan = [hours[index : index + state.windows] for index in range(0, total, state.windows + 1)]
    # Two seeds cannot share a database, as their hours would overlap.
    if others and not {hour for own in plan for hour in own} <= set(there):
        raise UsageError(
            f"{state.settings.home} holds a demo with another seed. Choose that seed, another BABYLON_RL_HOME, or run `make clean` first."
        )
    # A game with the same prompt goes on from the versions of the other one; its hours stay as they were played.
    games = {ONE_TICK_GAME if source is None else game_named(source.game) for source in played}
    unlike = sorted(game.name for game in games if not same_prompt(game, state.game))
    if unlike:
        raise UsageError(
            f"{state.settings.home} holds a demo of the game {unlike[0]}, whose prompt is another. Choose that game, another "
            "BABYLON_RL_HOME, or run `make clean` first."
        )
    if not is_complete(hours[-1], now):
        raise UsageError(
            f"{state.settings.home} holds a demo that begins with {hours[0]}; {total} hours from there reach {hours[-1]}, "
            "which is not over. Choose another BABYLON_RL_HOME, so that all generations find room."
        )
    return plan


def player_after(earlier: Sequence[dict[str, Any]]) -> str:
    """The player of the next generation: the version deployed by then, or the base."""
    return next((done["modelVersion"] for done in reversed(earlier) if done["released"]), BASE)


@contextmanager
def asking_the_gateway(state: Demo) -> Iterator[AgentFactory]:
    """Serve the gateway and its versions; yields a factory of agents that ask it."""
    with state.database.connect() as connection:
        table = read_routing(connection)
    named = [table.deployed, None if table.trial is None else table.trial.version]
    # A version of another producer has no checkpoint here: the gateway answers its agents with the base.
    found = [table.versions[version] for version in named if version is not None]
    adapters = {one.version: Path(one.checkpoint) for one in found if one.checkpoint is not None}
    with ExitStack() as stack:
        upstream = stack.enter_context(state.serving(state.settings, adapters))
        url, key = stack.enter_context(running_gateway(state.settings.model_copy(update=GATEWAY_SETTINGS | {"local_endpoint": upstream})))
        yield stack.enter_context(gateway_agents(url, key, temperature=1.0, game=state.game))


def play(state: Demo, hours: Sequence[str], player: str) -> None:
    """Play and record those of ``hours`` that are missing; ``player`` answers for the model agents."""
    with state.database.connect() as connection:
        there = set(simulated_hours(connection, state.seed))
        connection.commit()
        missing = [hour for hour in hours if hour not in there]
        if not missing:
            say(f"   {len(hours)} hours are there already")
            return
        with asking_the_gateway(state) as ask, progress_of("hours played", len(missing), "   ") as on_hour:
            # Consecutive missing hours are one request.
            for first, last in window_stretches(missing, len(missing)):
                number = len(list(window_range(first, next_window(last))))
                edition = BASE_EDITION if player == BASE else TRAINING
                request = SpawnRequest(AGENTS, MODEL_AGENTS, number, state.seed, start=first, game=state.game, edition=edition)
                spawn(connection, request, utc_now(), ask, on_hour)


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
        own = [batch for batch in read_batches(connection) if batch.seed == state.seed and set(batch.windows) & set(hours)]
        # The newest of these hours; a failed one only if there is no other.
        batch = next((batch for batch in own if batch.state != "failed"), own[0] if own else None)
        if batch is None or batch.state == "failed":
            # A version trained now would have a later one for its parent.
            if state.generations > 1 and simulated_hours(connection, state.seed)[-1] > hours[-1]:
                raise Diverged(batch.error if batch is not None and batch.error else "Nothing was frozen.")
            reach, least = (hours[0], next_window(hours[-1])), state.settings.training_min_trajectories
            frozen = freeze(connection, state.settings, utc_now(), windows=reach, seed=state.seed, minimum=least, settled=True)
            if frozen.batch is None:
                raise NothingToTrain(frozen.reason)
            batch = frozen.batch
            often = f", each trains {batch.passes} times" if batch.passes != 1 else ""
            say(f"   {batch.batch_id} froze {batch.trajectories} trajectories{often}")
        else:
            say(f"   {batch.batch_id} is there already ({batch.state})")
            # Benchmarked again it would be compared with what later generations deployed.
            if state.generations > 1 and batch.state == "completed" and batch.batch_id not in undecided_batches(connection, utc_now()):
                return batch.batch_id
    with progress_of_parts("   ") as on_progress:
        run_batch(state.database, state.settings, batch.batch_id, on_progress=on_progress, serving=state.serving)
    return batch.batch_id


def release(state: Demo, version: str | None, hours: Sequence[str]) -> bool:
    """Release a version on trial to all agents, after they asked the gateway.

    One whose guards fail is rolled back. Returns True if it was released, and was not rolled back since.
    """
    with state.database.connect() as connection:
        table = read_routing(connection)
        trial = table.trial
        if trial is not None and trial.version == version:
            connection.commit()
            end_trial(state, connection, trial, _play_trial(state, connection, trial, next_window(hours[-1])))
        own = [rollout for rollout in read_rollouts(connection) if rollout.version == version]
        if version is not None and not own and not state.gate:
            author = ReleaseAuthor("demo", "every version is released without the gate", utc_now())
            own = [deploy(connection, version, state.settings, author, strategy="immediate")]
        for event in read_events(connection, own[0].rollout_id) if own else ():
            say(f"   {event.version} {event.to_state} at {event.to_percentage:g} %: {event.why}")
    released = any(rollout.percentage == 100 and rollout.state in ("released", "superseded") for rollout in own)
    if not released:
        stays = table.deployed or "the base"
        say(f"   {version or 'No version'} is not released; {stays} stays in front of agents")
    return released


def end_trial(state: Demo, connection: Connection, trial: Rollout, guards: Sequence[GuardDocument]) -> None:
    """Release the version on trial to all agents, or roll it back if a guard fails."""
    failed = [guard for guard in guards if guard.verdict == FAIL]
    if failed:
        rollback(connection, state.settings, ReleaseAuthor("demo", describe(failed), utc_now()), trial_id=trial.rollout_id)
        return
    author = ReleaseAuthor("demo", "the demo does not wait for the hours that the guard of P&L needs", utc_now())
    deploy(connection, trial.version, state.settings, author, strategy="immediate")


def _play_trial(state: Demo, connection: Connection, trial: Rollout, hour: str) -> list[GuardDocument]:
    """Play an hour with agents that ask the gateway, and return the guards. Shows them and who answered the agents."""
    if hour not in simulated_hours(connection, state.seed):
        connection.commit()
        request = SpawnRequest(RELEASE_AGENTS, RELEASE_AGENTS, 1, state.seed, start=hour, game=state.game)
        with asking_the_gateway(state) as ask:
            spawn(connection, request, utc_now(), ask)
    calls = Counter(call.version or BASE for call in read_last_calls(connection, trial.step_since))
    answered = ", ".join(f"{number} by {version}" for version, number in sorted(calls.items(), key=lambda item: item[0] != trial.version))
    say(f"   {trial.version} is rolled out to {trial.percentage:g} % of agents: in {hour} of {calls.total()} agents {answered}")
    guards = read_guards(connection, trial, state.settings)
    say(f"   guards: {', '.join(f'{guard.name} {guard.verdict}' for guard in guards)}")
    connection.commit()
    materialize_hours(state, [hour])
    return guards


def standings(state: Demo, versions: Sequence[str], deployed: str) -> list[dict[str, Any]]:
    """Compare the base, ``versions`` and all scripts in the markets of the gate's first analysis.

    Scripts play at the stake of ``deployed`` too. Returns rows of the report, with P&L and expected dollars of every market (``pnls``,
    ``expecteds``, None where decisions are not at hand). Stored results are not played again. Improvements are over the base.
    """
    snapshots = benchmark_snapshots(state.settings.benchmark_markets, state.game)
    with state.database.connect() as connection, progress_of_parts("   ") as tell:
        names = [BASE, *versions]
        played = models_played(connection, state.settings, names, snapshots, lambda _: None, "version", state.serving, tell)
    staked = scripts_at_stake(snapshots, played[deployed if deployed in versions else versions[-1]][1]) if versions else {}
    compared = compare(played | script_rows(snapshots) | staked, None, BASE, game=state.game)
    return [
        row.document | {"pnls": _rounded(row.pnls_usd), "expecteds": _rounded(row.expecteds_usd), "errors": row.errors}
        for row in compared.rows
    ]


def _rounded(dollars: Iterable[float] | None) -> list[float] | None:
    return None if dollars is None else [round(float(usd), 4) for usd in dollars]
