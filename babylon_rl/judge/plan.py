"""Plan of a scoring: hours that need a language model, and their rendered groups.

All reading and all decisions happen in one short transaction, before anything is paid. An unchanged hour is recognised by the version of
all sources of its request, without rendering: equal versions render the same, different ones may. A late official answer changes no
episode, so it is this version that makes scores stale and ends a quarantine.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from babylon_rl.episodes.reading import read_windows
from babylon_rl.episodes.summary import group_version
from babylon_rl.judge.client import server_of
from babylon_rl.judge.prompt.render import FORM, REQUEST_TOKENS, render_groups
from babylon_rl.judge.prompt.request import RenderedGroup
from babylon_rl.judge.prompt.rubric import RUBRIC_VERSION
from babylon_rl.market.outcome_rows import read_many_outcomes
from babylon_rl.settings import HEURISTIC, JudgeSettings, Settings
from babylon_rl.store import judge_inputs, judge_requests, scores
from babylon_rl.store.columns import in_parts
from babylon_rl.store.connection import Connection
from babylon_rl.store.freezing import left_to_dropout
from babylon_rl.store.hindsight import recorded_knowledge
from babylon_rl.store.windows import chunks, lock_windows, reading_chunks
from babylon_rl.types import GroupScores, WindowReading
from babylon_rl.versions import content_version

_LAYOUT = 1  # of the hashed values; with another, every judged hour would be paid for again
HOURS_PLANNED_AT_ONCE = 4  # their texts are in memory together, and answers that come meanwhile wait to be written


def input_versions(
    connection: Connection, readings: Mapping[str, WindowReading], shown: Mapping[str, Collection[str]], settings: Settings, secret: bytes
) -> dict[str, str]:
    """Version of each hour's sources, where the agents in ``shown`` are shown.

    Sources are content, outcomes, hidden answers, names, settings, server and rubric. The names are those that agents had when the hour
    was first read.
    """
    markets = read_many_outcomes(connection, list(readings), settings)
    agents = sorted({episode.agent_id for reading in readings.values() for episode in reading.episodes})
    names = sorted(judge_inputs.known_names(connection, agents), key=lambda name: (name.agent_id, name.name))
    # settings and versions that hold for every hour
    common = [
        _LAYOUT, RUBRIC_VERSION, settings.judge_model, settings.judge_request_tokens or REQUEST_TOKENS, settings.judge_group_size,
        settings.judge_private_fields, settings.show_hidden_answers_to_judge, hashlib.sha256(secret).hexdigest(),
        *filter(None, [server_of(settings, settings.judge_model)]),
    ]  # fmt: skip
    versions = {}
    for window, reading in readings.items():
        # content that the group's own version does not cover: hidden answers, game knowledge, logged reasoning
        ids = [trajectory_id for episode in reading.usable_episodes for trajectory_id in episode.trajectory_ids]
        hidden = judge_inputs.hidden_answers(connection, [question.market_id for question in markets[window].predictions])
        further = [sorted(recorded_knowledge(connection, ids)), sorted(judge_inputs.logged_reasoning(connection, ids).items())]
        digest = hashlib.sha256(repr(further).encode("utf-8", "replace")).hexdigest()
        agents_present = {episode.agent_id for episode in reading.episodes}
        names_shown = [[name.agent_id, name.name] for name in names if name.agent_id in agents_present and name.counts_in(window)]
        outcomes = [markets[window].data_version, sorted(map(list, hidden.items()))]
        versions[window] = content_version(
            [*common, window, group_version(reading), sorted(agents_present), names_shown, outcomes, digest, sorted(shown[window])]
        )
    return versions


def request_version(sources: str) -> str:
    """Version of a failed request: the form and the sources."""
    return f"{FORM}:{sources}"


def judge_version(settings: JudgeSettings) -> str:
    """Version that comparable scores of a judge share: the rubric and the number of orders."""
    return f"{RUBRIC_VERSION}, {settings.judge_orders} to {max(settings.judge_orders, settings.judge_max_orders)} orders"


@dataclass(frozen=True)
class PlannedHour:
    """An hour to judge: its group, versions of content and sources, trajectories by agent."""

    group: RenderedGroup
    version: str
    sources: str
    trajectories: Mapping[str, Sequence[str]]


@dataclass
class ScoringPlan:
    """Decisions on some hours: ``unchanged`` scores, ``hours`` to judge, ``quarantined`` with reason.

    ``released`` are hours whose quarantine has lost its cause: hours to judge, and hours whose scores from before the quarantine stand.
    """

    unchanged: dict[str, GroupScores] = field(default_factory=dict)
    hours: dict[str, PlannedHour] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    released: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _State:
    """Stored state of some hours before they are judged."""

    readings: Mapping[str, WindowReading]
    stored: Mapping[str, GroupScores]
    consumed: Collection[str]
    quarantined: Mapping[str, scores.Quarantined]
    dropped: Mapping[str, Collection[str]]

    def agents(self, window: str) -> list[str]:
        """Agents of an hour to show: those with usable episodes, less dropout that a batch decided."""
        return [e.agent_id for e in self.readings[window].usable_episodes if e.agent_id not in self.dropped.get(window, ())]


def plan_hours(
    connection: Connection, windows: Sequence[str], settings: Settings, secret: bytes, *, force: bool = False, write: bool = True
) -> ScoringPlan:
    """Decide on a few complete hours, in one transaction under their locks.

    ``write=False`` changes nothing. An hour keeps its scores if a training has consumed one of its episodes, or if it has not changed
    since it was judged. One in quarantine of this judge stays there while its request would be the same, unless forced.
    """
    plan = ScoringPlan()
    with connection.transaction():
        if write:
            lock_windows(connection, windows)
        state = _read(connection, windows, settings)
        # first the hours whose scores or quarantine stand
        held_back = {} if force else _held_back(connection, state, settings, secret)
        chosen = [window for window in windows if _is_wanted(window, state, held_back, force, plan)]
        if not force:
            _keep_unchanged(connection, chosen, state, settings, secret, plan, write)
        # then render the others, which is the expensive part
        rest = {window: state.readings[window] for window in chosen if window not in plan.unchanged}
        agents = {window: state.agents(window) for window in rest}
        shown = render_groups(connection, rest, settings, agents=agents, secret=secret)
        plan.released = [window for window in state.quarantined if window not in held_back and (window in plan.unchanged or window in rest)]
        if write:
            # scores of hours that are not ready any more
            gone = [window for window in state.stored if window not in plan.unchanged and not state.readings[window].ready]
            scores.delete(connection, gone)
            judge_requests.retire_unusable(connection, plan.released)
            scores.release(connection, [window for window in plan.released if window in plan.unchanged])
            scores.end_pending(connection, [window for window in windows if window not in rest])
        # versions of the sources, by which the next scoring recognises an unchanged hour
        sources = input_versions(connection, rest, agents, settings, secret)
    plan.hours = {
        window: PlannedHour(
            shown[window], group_version(reading), sources[window], {e.agent_id: e.trajectory_ids for e in reading.usable_episodes}
        )
        for window, reading in rest.items()
    }
    return plan


def _read(connection: Connection, windows: Sequence[str], settings: Settings) -> _State:
    """Read the state of some hours, without texts."""
    stored = scores.read(connection, windows)
    dropped: dict[str, set[str]] = {}
    for window, agent in left_to_dropout(connection, windows):
        dropped.setdefault(window, set()).add(agent)
    return _State(
        readings=read_windows(connection, windows, settings, texts=False),
        stored=stored,
        consumed=scores.consumed_windows(connection, list(stored)),
        quarantined=scores.read_quarantined(connection, windows),
        dropped=dropped,
    )


def _held_back(connection: Connection, state: _State, settings: Settings, secret: bytes) -> dict[str, str]:
    """Hours whose quarantine by this judge stands, with the reason.

    It stands while the request would be the same that failed.
    """
    held_back = {
        window: entry
        for window, entry in state.quarantined.items()
        if (entry.judge, entry.judge_version) == (settings.judge_model, judge_version(settings))
    }
    if not held_back:
        return {}
    readings = {window: state.readings[window] for window in held_back}
    now = input_versions(connection, readings, {window: state.agents(window) for window in held_back}, settings, secret)
    # an entry without a version cannot be compared, and stays
    return {window: entry.reason for window, entry in held_back.items() if entry.sources_version in ("", request_version(now[window]))}


def _is_wanted(window: str, state: _State, held_back: Mapping[str, str], force: bool, plan: ScoringPlan) -> bool:
    """True for an hour that may need a judgement; others are entered in ``plan``."""
    if force:
        return state.readings[window].ready
    if window in state.stored and window in state.consumed:
        plan.unchanged[window] = state.stored[window]
        return False
    if window in held_back:
        plan.quarantined[window] = held_back[window]
        return False
    return state.readings[window].ready


def _keep_unchanged(
    connection: Connection, windows: Sequence[str], state: _State, settings: Settings, secret: bytes, plan: ScoringPlan, write: bool
) -> None:
    """Keep the scores of hours that would be shown unchanged.

    Dropout decided after the judgement does not count as a change.
    """
    comparable = {window: state.readings[window] for window in windows if _could_stand(window, state, settings)}
    judged = {window: {score.agent_id for score in state.stored[window].scores} for window in comparable}
    sources = input_versions(connection, comparable, judged, settings, secret) if comparable else {}
    before = scores.read_sources(connection, list(comparable))
    # equal sources show the same: no rendering needed
    plan.unchanged |= {window: state.stored[window] for window in comparable if before.get(window) == sources[window]}
    comparable = {window: reading for window, reading in comparable.items() if window not in plan.unchanged}
    if not comparable:
        return
    # different sources may still show the same: render with the judged agents and compare
    for window, group in render_groups(connection, comparable, settings, agents=judged, secret=secret).items():
        stored = state.stored[window]
        if stored.judgement is not None and stored.judgement.shown_version == group.input_version:
            plan.unchanged[window] = stored
            if write:
                scores.keep_sources(connection, {window: sources[window]})
    if write:
        # hours that differ are judged again
        scores.forget_sources(
            connection, {window: before[window] for window in comparable if window not in plan.unchanged and window in before}
        )


def _could_stand(window: str, state: _State, settings: JudgeSettings) -> bool:
    """True if the stored scores have this judge, the same episodes and the same server."""
    before = state.stored.get(window)
    if before is None or before.input_version != group_version(state.readings[window]):
        return False
    if before.judgement is None or before.judgement.server not in (None, server_of(settings, settings.judge_model)):
        return False
    return (before.judge, before.judge_version) == (settings.judge_model, judge_version(settings))


def release_quarantined(connection: Connection, windows: Sequence[str] | None = None) -> list[str]:
    """Release groups from quarantine (None: all) for a new judgement, and return their windows."""
    with connection.transaction():
        quarantined = list(scores.read_quarantined(connection, windows))
        lock_windows(connection, quarantined)
        judge_requests.retire_unusable(connection, quarantined)
        scores.release(connection, quarantined)
    return quarantined


def outdated_inputs(connection: Connection, windows: Sequence[str], settings: Settings) -> dict[str, str]:
    """Hours of ``windows`` whose sources have changed since JUDGE_MODEL scored them, with the old version.

    Only rendering the prompt can tell whether it changed too; that is left to scoring. Hours of which a training has consumed an
    episode are left out.
    """
    if settings.judge_model == HEURISTIC or (secret := judge_inputs.read_secret(connection)) is None:
        return {}
    outdated: dict[str, str] = {}
    for chunk in reading_chunks(connection, windows):
        before = scores.read_sources(connection, chunk)
        # scores that a training has consumed never become stale
        groups = scores.read(connection, sorted(before.keys() - scores.consumed_windows(connection, chunk)))
        judged = {
            window: {score.agent_id for score in group.scores} for window, group in groups.items() if group.judge == settings.judge_model
        }
        if judged:
            readings = read_windows(connection, list(judged), settings)
            # compare for the agents that were judged, not for those there now
            now = input_versions(connection, readings, judged, settings, secret)
            outdated |= {window: before[window] for window in judged if before[window] != now[window]}
    return outdated


def note_changes(connection: Connection, windows: Sequence[str], settings: Settings) -> None:
    """Mark outdated scores stale, and release quarantined hours whose request has changed."""
    if settings.judge_model == HEURISTIC or (secret := judge_inputs.read_secret(connection)) is None:
        return
    outdated = outdated_inputs(connection, windows, settings)
    for some in chunks(outdated):
        # Under the locks of the hours, as all who write scores: two that update rows of several hours could wait for each other.
        with connection.transaction():
            lock_windows(connection, some)
            scores.forget_sources(connection, {window: outdated[window] for window in some})
    # a quarantine by another judge is not this judge's to end
    held_back = [window for window, entry in scores.read_quarantined(connection, windows).items() if entry.judge == settings.judge_model]
    for chunk in in_parts(held_back, HOURS_PLANNED_AT_ONCE):
        release_quarantined(connection, plan_hours(connection, chunk, settings, secret, write=False).released)
