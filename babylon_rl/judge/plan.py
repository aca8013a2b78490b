"""Plan of a scoring: which hours are judged, and what a language model is shown of them.

One plan serves every judge. All reading and all decisions happen in one short transaction, before anything is paid, on what the graph has
stored: episodes and outcomes. Texts are read once, to render the hours that are judged. An hour keeps its scores while nothing has changed,
once a training has used them, and where only a rule has changed that is paid to follow (versions.py).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from babylon_rl.episodes.reading import group_version
from babylon_rl.judge.client import server_of
from babylon_rl.judge.prompt.request import RenderedGroup
from babylon_rl.judge.prompt.rubric import judge_version
from babylon_rl.judge.versions import Change, change_of, find_changes, input_versions, request_version, rules_version, sources_of_scores
from babylon_rl.settings import HEURISTIC, JudgeSettings, Settings
from babylon_rl.store import judge_inputs, judge_requests, scores
from babylon_rl.store.batches import left_to_dropout
from babylon_rl.store.columns import in_parts
from babylon_rl.store.connection import Connection
from babylon_rl.store.windows import chunks, lock_windows, stored_hours
from babylon_rl.types import GroupScores, HourEpisodes

HOURS_PLANNED_AT_ONCE = 4  # their texts are in memory together, and answers that come meanwhile wait to be written


@dataclass(frozen=True)
class PlannedHour:
    """An hour to judge: its episodes, versions of group and sources; what a language model is shown."""

    hour: HourEpisodes
    version: str
    sources: str
    shown: RenderedGroup | None = None

    @property
    def group(self) -> RenderedGroup:
        """The rendered group, of an hour that a language model judges."""
        assert self.shown is not None
        return self.shown

    @property
    def trajectories(self) -> dict[str, Sequence[str]]:
        """Ids of the judged trajectories, by agent."""
        return {episode.agent_id: episode.trajectory_ids for episode in self.hour.usable_episodes}


@dataclass
class ScoringPlan:
    """Decisions on some hours: ``unchanged`` scores, ``hours`` to judge, ``quarantined`` with reason.

    ``by_other_rules`` are those of ``unchanged`` whose scores stand although a rule has changed. ``released`` are hours whose quarantine
    has lost its cause: hours to judge, and hours whose scores from before the quarantine stand.
    """

    unchanged: dict[str, GroupScores] = field(default_factory=dict)
    hours: dict[str, PlannedHour] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    by_other_rules: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _State:
    """Stored state of some hours before they are judged."""

    hours: Mapping[str, HourEpisodes]
    stored: Mapping[str, GroupScores]
    consumed: Collection[str]
    quarantined: Mapping[str, scores.Quarantined]
    dropped: Mapping[str, Collection[str]]

    def agents(self, window: str) -> list[str]:
        """Agents of an hour to show: those with usable episodes, less dropout that a batch decided."""
        return [e.agent_id for e in self.hours[window].usable_episodes if e.agent_id not in self.dropped.get(window, ())]


def plan_hours(
    connection: Connection, windows: Sequence[str], settings: Settings, secret: bytes = b"", *,
    force: bool = False, stale: bool = False, write: bool = True,
) -> ScoringPlan:  # fmt: skip
    """Decide on a few complete hours, in one transaction under their locks.

    ``write=False`` changes nothing. An hour keeps its scores if a training has consumed one of its episodes, or if it has not changed
    since it was judged. So does one whose rules alone have changed, unless ``stale``, or both judges are free. One in quarantine of this
    judge stays there while its request would be the same. ``force`` judges all.
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
            _keep_scores(connection, chosen, state, settings, secret, plan, stale=stale, write=write)
        # then render the others, which is the expensive part
        rest = {window: state.hours[window] for window in chosen if window not in plan.unchanged}
        plan.hours = _planned(connection, rest, state, settings, secret)
        plan.released = [window for window in state.quarantined if window not in held_back and (window in plan.unchanged or window in rest)]
        if write:
            # scores of hours that are not ready any more
            gone = [window for window in state.stored if window not in plan.unchanged and not state.hours[window].ready]
            scores.delete(connection, gone)
            judge_requests.retire_unusable(connection, plan.released)
            scores.release(connection, [window for window in plan.released if window in plan.unchanged])
            scores.end_pending(connection, [window for window in windows if window not in rest])
    return plan


def _planned(
    connection: Connection, hours: Mapping[str, HourEpisodes], state: _State, settings: Settings, secret: bytes
) -> dict[str, PlannedHour]:
    if settings.judge_model == HEURISTIC:
        return {window: PlannedHour(hour, group_version(hour), group_version(hour)) for window, hour in hours.items()}
    from babylon_rl.judge.prompt.render import render_groups

    agents = {window: state.agents(window) for window in hours}
    shown = render_groups(connection, hours, settings, agents=agents, secret=secret)
    # versions of the sources, by which the next scoring recognises an unchanged hour
    sources = input_versions(connection, hours, agents, settings, secret)
    return {window: PlannedHour(hour, group_version(hour), sources[window], shown[window]) for window, hour in hours.items()}


def _read(connection: Connection, windows: Sequence[str], settings: Settings) -> _State:
    """Read the state of some hours, without texts."""
    stored = scores.read(connection, windows)
    dropped: dict[str, set[str]] = {}
    for window, agent in left_to_dropout(connection, windows):
        dropped.setdefault(window, set()).add(agent)
    return _State(
        hours=stored_hours(connection, windows, settings.min_agents_per_window),
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
    hours = {window: state.hours[window] for window in held_back}
    now = input_versions(connection, hours, {window: state.agents(window) for window in held_back}, settings, secret)
    # an entry without a version cannot be compared, and stays
    return {window: entry.reason for window, entry in held_back.items() if entry.sources_version in ("", request_version(now[window]))}


def _is_wanted(window: str, state: _State, held_back: Mapping[str, str], force: bool, plan: ScoringPlan) -> bool:
    """True for an hour that may need a judgement; others are entered in ``plan``."""
    if force:
        return state.hours[window].ready
    if window in state.stored and window in state.consumed:
        plan.unchanged[window] = state.stored[window]
        return False
    if window in held_back:
        plan.quarantined[window] = held_back[window]
        return False
    return state.hours[window].ready


def _keep_scores(
    connection: Connection, windows: Sequence[str], state: _State, settings: Settings, secret: bytes, plan: ScoringPlan, *,
    stale: bool, write: bool,
) -> None:  # fmt: skip
    """Keep the scores of hours that are not to be judged, and record why the others are.

    Dropout decided after the judgement does not count as a change.
    """
    held = {window: state.stored[window] for window in windows if window in state.stored}
    made_from = scores.read_made_from(connection, list(held))
    now = sources_of_scores(connection, state.hours, held, settings, secret)
    changes = {window: change_of(group, made_from[window], now[window], settings) for window, group in held.items()}
    # different sources may still show the same: render with the judged agents and compare
    same = _shown_as_judged(connection, [window for window in held if changes[window] is not Change.NOTHING], state, settings, secret)
    follows_rules = {window for window, group in held.items() if stale or settings.judge_model == HEURISTIC == group.judge}
    for window, group in held.items():
        if window in same:
            changes[window] = Change.NOTHING
        if changes[window] is Change.NOTHING or (changes[window] is Change.RULES and window not in follows_rules):
            plan.unchanged[window] = group
            plan.by_other_rules += [window] if changes[window] is Change.RULES else []
    if write:
        note(connection, {window: (change, now[window]) for window, change in changes.items()}, settings)


def _shown_as_judged(connection: Connection, windows: Sequence[str], state: _State, settings: Settings, secret: bytes) -> set[str]:
    """Those of ``windows`` whose scores this judge gave to what it would be shown now."""
    from babylon_rl.judge.prompt.render import render_groups

    comparable = {window: state.hours[window] for window in windows if _could_stand(state.stored[window], state.hours[window], settings)}
    judged = {window: {score.agent_id for score in state.stored[window].scores} for window in comparable}
    shown = render_groups(connection, comparable, settings, agents=judged, secret=secret) if comparable else {}
    return {window for window, group in shown.items() if state.stored[window].shown_version == group.input_version}


def _could_stand(before: GroupScores, hour: HourEpisodes, settings: JudgeSettings) -> bool:
    """True if the stored scores have this judge, the same episodes and the same server."""
    if before.judgement is None or before.input_version != group_version(hour):
        return False
    if before.judgement.server not in (None, server_of(settings, settings.judge_model)):
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


def note(connection: Connection, changes: Mapping[str, tuple[Change, str]], settings: Settings) -> None:
    """Record what has changed since some hours were judged: (change, version of the sources now) by window.

    Runs in the caller's transaction, under the hours' locks. From here on a change of the data is told from one of the rules: both are
    compared with what is recorded now.
    """
    rules = rules_version(settings)
    for change, follows in ((Change.NOTHING, True), (Change.RULES, False)):
        sources = {window: now for window, (found, now) in changes.items() if found is change}
        scores.keep_made_from(connection, sources, rules, rules_changed=not follows)
    scores.forget_sources(connection, [window for window, (found, _) in changes.items() if found is Change.DATA])


def note_changes(connection: Connection, windows: Sequence[str], settings: Settings) -> None:
    """Mark scores that data or rules have left behind, and release quarantined hours whose request has changed."""
    changes = find_changes(connection, windows, settings)
    for some in chunks(changes):
        # Under the locks of the hours, as all who write scores: two that update rows of several hours could wait for each other.
        with connection.transaction():
            lock_windows(connection, some)
            note(connection, {window: changes[window] for window in some}, settings)
    if settings.judge_model == HEURISTIC or (secret := judge_inputs.read_secret(connection)) is None:
        return
    # a quarantine by another judge is not this judge's to end
    held_back = [window for window, entry in scores.read_quarantined(connection, windows).items() if entry.judge == settings.judge_model]
    for chunk in in_parts(held_back, HOURS_PLANNED_AT_ONCE):
        release_quarantined(connection, plan_hours(connection, chunk, settings, secret, write=False).released)
