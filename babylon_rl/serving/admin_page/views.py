"""Values of the admin page, gathered in one transaction; the templates draw them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from markupsafe import Markup

from babylon_rl.episodes.decode import Fault, Step, decode, recorded_value
from babylon_rl.episodes.reading import trajectories_with_texts
from babylon_rl.evaluation.compare_results import Bounds
from babylon_rl.judge.prompt.request import plain
from babylon_rl.serving import ab_tests
from babylon_rl.serving.status import PAST_RUNS, progress_document, status_document
from babylon_rl.serving.status_shapes import ProgressDocument
from babylon_rl.settings import Settings
from babylon_rl.store import scores
from babylon_rl.store.batches import Batch, read_batches
from babylon_rl.store.connection import Connection
from babylon_rl.store.registry import Model, read_models
from babylon_rl.store.releases import newest_events, read_rollouts, read_routing, read_tests
from babylon_rl.store.trajectories import TrajectoryRow, trajectories_by_id
from babylon_rl.store.windows import hours_of_agent, newest_states, stored_episodes
from babylon_rl.store.write_ahead import read_steps
from babylon_rl.training.lifecycle import iterations_of
from babylon_rl.types import Episode, EpisodeScore, ServedSequence
from babylon_rl.windows import HOUR, window_of, window_start

MOST_VERSIONS, MOST_AGENTS, MOST_EVENTS = 60, 20, 8
HOURS_OF_AGENT, STEPS_OF_HOUR = 3, 60
TEXT_CHARACTERS = 6_000  # of one prompt or response
MOST_HOURS = 10_000
ONE_ROW_HOURS = 7 * 24
_EPOCH = datetime(1970, 1, 1)
# In the order of an hour's life; a gap between hours has no state.
MEANINGS = {
    "pending": "not over yet", "thin": "too few agents for a group", "ready": "ready to be judged",
    "waiting": "waits for its judge", "scored": "judged", "trained": "a version learned from it", "quarantined": "set aside: look at it",
}  # fmt: skip


@dataclass(frozen=True)
class HourStrip:
    """Hours as SVG paths by state; ``codes``: places in MEANINGS by hour, ``-`` for a gap."""

    first: str
    last: str
    rows: int
    columns: int
    paths: Mapping[str, Markup]
    counts: Mapping[str, int]
    codes: str


@dataclass(frozen=True)
class Training:
    """The unfinished training, else the newest one; losses by optimizer step, else by iteration."""

    batch: Batch
    progress: ProgressDocument | None
    losses: Sequence[float]
    finished: int
    iterations: int


@dataclass
class Version:
    """A version in the tree, with its benchmark in dollars an hour (without bounds: of one market) and the versions trained from it."""

    model: Model
    rollout: str | None
    measured: Mapping[str, Any]  # the benchmark as stored, empty without one
    pnl: Bounds | None
    improvement: Bounds | None
    children: list["Version"] = field(default_factory=list)


@dataclass(frozen=True)
class AgentHourView:
    """An agent's hour with its score and, on its own page, its steps in order."""

    episode: Episode
    judge: str | None
    score: EpisodeScore | None
    steps: Sequence[Mapping[str, Any]] = ()
    left_out: int = 0


def page_view(connection: Connection, settings: Settings, now: datetime) -> dict[str, Any]:
    """All values of the page; ``events`` of releases come newest first, ``choices`` are the versions that could be deployed."""
    status = status_document(connection, settings, now)
    states = newest_states(connection, MOST_HOURS)
    models = [model for model in read_models(connection) if not model.foreign or model.status == "deployed"]
    # They come newest first: reversed, the newest rollout of a version is the one that stays.
    rollouts = {rollout.version: rollout.state for rollout in reversed(read_rollouts(connection))}
    tree = lineage(models[:MOST_VERSIONS], rollouts)
    test, routing = next(iter(read_tests(connection)), None), read_routing(connection)
    choices = [model.version for model in models if not model.foreign and model.can_be_asked and model.version != routing.deployed]
    stats = status.readiness.stats
    # Needs of a training: what there is, what must be, and the form of both.
    bars = [
        ("New trajectories", stats.total_trajectories, settings.training_min_trajectories, "{:,}"),
        ("Hours with a group", stats.scenario_groups, settings.training_min_groups, "{:,}"),
        ("Data quality", stats.data_quality, settings.data_quality_threshold, "{:.0%}"),
    ]
    return {
        "status": status,
        "bars": bars,
        "strip": hour_strip(states),
        "meanings": MEANINGS,
        "training": training_view(connection, settings, now),
        "tree": tree,
        "bounds": _bounds(tree),
        "versions_left_out": max(0, len(models) - MOST_VERSIONS),
        "routing": routing,
        "events": newest_events(connection, MOST_EVENTS),
        "choices": choices,
        "test": None if test is None else ab_tests.report(connection, test.name, settings),
        "agents": newest_agents(connection, list(states)),
    }


def training_view(connection: Connection, settings: Settings, now: datetime) -> Training | None:
    """The training that runs, else the newest one."""
    batches = read_batches(connection, limit=PAST_RUNS)
    # The oldest live one trains, the others wait behind it.
    batch = next((one for one in reversed(batches) if one.live), batches[0] if batches else None)
    if batch is None:
        return None
    # Of an iteration that was begun several times the newest start counts.
    steps = {step.iteration: step for step in read_steps(connection, batch.batch_id)}.values()
    losses = [loss for step in steps for loss in (step.losses or ([] if step.loss is None else [step.loss])) if math.isfinite(loss)]
    progress = progress_document(connection, settings, batch, batches, now) if batch.live else None
    return Training(batch, progress, losses, sum(step.finished_at is not None for step in steps), iterations_of(batch))


def lineage(models: Sequence[Model], rollouts: Mapping[str, str]) -> list[Version]:
    """The versions as trees, newest first, with the states of their rollouts; without a listed parent they are roots."""
    nodes: dict[str, Version] = {}
    for model in models:
        measured = (model.eval_metrics or {}).get("benchmark") or {}
        pnl = _interval(measured, "pnl", "low", "high")
        improvement = _interval(measured, "improvement", "improvementLow", "improvementHigh")
        nodes[model.version] = Version(model, rollouts.get(model.version), measured, pnl, improvement)
    roots: list[Version] = []
    for node in nodes.values():
        parent = nodes.get(node.model.parent_version or "")
        (roots if parent is None else parent.children).append(node)
    return roots


def _interval(measured: Mapping[str, Any], mean: str, low: str, high: str) -> Bounds | None:
    values = [measured.get(name) for name in (mean, low, high)]
    found, lower, upper = (value if isinstance(value, int | float) and math.isfinite(value) else None for value in values)
    return None if found is None else Bounds(found, lower, upper)


def _bounds(tree: Sequence[Version]) -> tuple[float, float]:
    """The scale that all intervals share; it holds 0."""
    ends, waiting = [0.0], list(tree)
    while waiting:
        node = waiting.pop()
        waiting += node.children
        if node.pnl is not None:
            ends += [end for end in (node.pnl.mean, node.pnl.low, node.pnl.high) if end is not None]
    low, high = min(ends), max(ends)
    return (low, high) if high > low else (low, low + 1.0)


def newest_agents(connection: Connection, windows: Sequence[str]) -> list[AgentHourView]:
    """The agents of the newest hour with episodes, best first."""
    newest = list(windows[-MOST_AGENTS:])
    episodes = stored_episodes(connection, newest)
    # The newest hours may hold rows and no episode.
    window = next((window for window in reversed(newest) if episodes[window]), None)
    if window is None:
        return []
    return _judged(connection, episodes[window])[:MOST_AGENTS]


def agent_view(connection: Connection, agent_id: str, settings: Settings) -> list[AgentHourView]:
    """The newest hours of an agent, newest first, each with its steps in order."""
    windows = hours_of_agent(connection, agent_id, HOURS_OF_AGENT)
    held = stored_episodes(connection, windows)
    own = [episode for window in windows for episode in held[window] if episode.agent_id == agent_id]
    hours = []
    for hour in _judged(connection, own):
        ids = hour.episode.trajectory_ids
        texts = trajectories_with_texts(connection, ids, settings)
        rows = {row.trajectory_id: row for row in trajectories_by_id(connection, ids)}
        steps = [step for name in ids if name in texts for step in _steps(rows[name], texts[name].sequences)]
        kept = steps[-STEPS_OF_HOUR:]
        hours.append(AgentHourView(hour.episode, hour.judge, hour.score, kept, len(steps) - len(kept)))
    return hours


def _steps(row: TrajectoryRow, sequences: Sequence[ServedSequence]) -> list[dict[str, Any]]:
    """The completed steps of a row, each with its outcome and those of its calls that train."""
    decoded = decode(row)
    if isinstance(decoded, Fault):
        return []
    calls: dict[int, list[ServedSequence]] = {}
    for call in sequences:
        calls.setdefault(call.step, []).append(call)
    views = []
    for step in decoded.completed:
        parameters, result, error = (recorded_value(value) for value in (step.action.parameters, step.action.result, step.action.error))
        view = {"at": _began(step, row), "step": step, "parameters": plain(parameters or ""), "result": plain(error or result or "")}
        # A step number that is recorded twice has its calls at its first step.
        views.append(view | {"calls": calls.pop(step.number, [])})
    return views


def _began(step: Step, row: TrajectoryRow) -> datetime:
    """The recorded start of a step, else that of its row."""
    try:
        return row.start_time if step.began_ms is None else _EPOCH + timedelta(milliseconds=step.began_ms)
    except (OverflowError, ValueError):  # a number beyond any calendar
        return row.start_time


def _judged(connection: Connection, episodes: Sequence[Episode]) -> list[AgentHourView]:
    judged = scores.read(connection, list({episode.window for episode in episodes}))
    hours = []
    for episode in episodes:
        group = judged.get(episode.window)
        score = next((score for score in group.scores if score.agent_id == episode.agent_id), None) if group is not None else None
        hours.append(AgentHourView(episode, None if group is None else group.judge, score))
    return hours


def hour_strip(states: Mapping[str, str]) -> HourStrip | None:
    """Draw the states of hours (window -> state), the last MOST_HOURS; None without hours."""
    if not states:
        return None
    last = window_start(max(states))
    first = max(window_start(min(states)), last - (MOST_HOURS - 1) * HOUR)
    rows = 1 if last - first < ONE_ROW_HOURS * HOUR else 24
    if rows > 1:
        # A column is a day, so the first one begins at midnight.
        first -= timedelta(hours=first.hour)
    length = (last - first) // HOUR + 1
    days = [str(first.date() + timedelta(days=day)) for day in range(-(-(length + first.hour) // 24))]
    windows = [f"{day}T{hour:02}:00" for day in days for hour in range(24)][first.hour : first.hour + length]
    by_place = [states.get(window) for window in windows]
    paths: dict[str, list[str]] = {state: [] for state in MEANINGS}
    # Equal neighbours within a column are one stroke.
    for (column, state), run in groupby(range(length), lambda place: (place // rows, by_place[place])):
        cells = list(run)
        if state is not None:
            paths[state].append(f"M{column}.5 {cells[0] % rows}v{len(cells)}")
    places = {state: str(number) for number, state in enumerate(MEANINGS)}
    counts = Counter(state for state in by_place if state is not None)
    return HourStrip(
        first=window_of(first),
        last=window_of(last),
        rows=rows,
        columns=-(-length // rows),
        paths={state: Markup("".join(strokes)) for state, strokes in paths.items() if strokes},  # of digits alone
        counts={state: counts[state] for state in MEANINGS if counts[state]},
        codes="".join("-" if state is None else places[state] for state in by_place),
    )
