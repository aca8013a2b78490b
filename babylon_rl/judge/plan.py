"""Plan of a scoring: hours to judge, their content for a language model, and the versions of scores.

One plan serves every judge. All reading and all decisions happen in one short transaction, before anything is paid, on what the graph has
stored: episodes and outcomes. docs/explanation/versions.md shows the versions in one picture. Where that of the sources differs, that of
the rules says why: equal rules mean that the data changed, and the hour is judged again. Other rules mean that somebody changed them: what
is paid is not paid again until a person says so.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from babylon_rl.episodes.decode import EPISODE_RULES
from babylon_rl.episodes.reading import group_version
from babylon_rl.judge.client import server_of
from babylon_rl.judge.prompt.request import RenderedGroup
from babylon_rl.judge.prompt.templates import FORM, RUBRIC_VERSION, judge_version
from babylon_rl.market.outcomes import MARKET_RULES, stored_outcomes
from babylon_rl.settings import HEURISTIC, HourSettings, JudgeSettings, Settings, TrainingSettings
from babylon_rl.store import judge_inputs, judge_requests, scores
from babylon_rl.store.batches import left_to_dropout
from babylon_rl.store.columns import in_parts
from babylon_rl.store.connection import Connection
from babylon_rl.store.scores import ScoredFrom
from babylon_rl.store.windows import chunks, lock_windows, reading_chunks, stored_hours
from babylon_rl.types import GroupScores, HourEpisodes
from babylon_rl.versions import content_version

REQUEST_TOKENS = 32_000  # of a request to a model whose context is not known
HINDSIGHT_RULES = "1"  # of correctness and leaks


def episode_rules(settings: Settings) -> str:
    """Rules and settings that make episodes of rows: the code version of ``window_groups``."""
    limits = f"{settings.min_actions_per_trajectory} actions, {settings.min_agents_per_window} agents"
    return f"rules {EPISODE_RULES}, {limits}, trains {_trained(settings)}"


def market_rules(settings: HourSettings) -> str:
    """Rules and settings that make outcomes of market records: the code version of ``market_outcomes``."""
    return f"rules {MARKET_RULES}, band {settings.sentiment_band_percent:g} %"


def hindsight_rules(settings: TrainingSettings) -> str:
    """Rules and settings of correctness and leaks: the code version of ``hindsight``."""
    return f"rules {HINDSIGHT_RULES}, trains {_trained(settings)}"


def _trained(settings: TrainingSettings) -> str:
    return ", ".join(sorted(settings.purposes_g)) + (" and synthetic texts" if settings.train_synthetic else "")


def judge_rules(settings: JudgeSettings) -> str:
    """The judge, its rubric and the content shown to it: the code version of ``scored_groups``."""
    if settings.judge_model == HEURISTIC:
        return f"{HEURISTIC} {judge_version(settings)}"
    shown = content_version([*_shown(settings), server_of(settings, settings.judge_model)])[:8]
    return f"{settings.judge_model}, rubric {judge_version(settings)}, form {FORM}, shown by settings #{shown}"


def _shown(settings: JudgeSettings) -> list[object]:
    return [
        settings.judge_request_tokens or REQUEST_TOKENS, settings.judge_group_size, settings.judge_private_fields,
        True,  # once whether the hidden answers are shown, which judge_private_fields says: scores in use keep their version
    ]  # fmt: skip


def rules_version(settings: Settings) -> str:
    """Version of all rules, settings and judge by which scores are made of rows."""
    return content_version([episode_rules(settings), market_rules(settings), judge_rules(settings)])


def request_version(sources: str) -> str:
    """Version of a failed request: the form and the sources."""
    return f"{FORM}:{sources}"


def input_versions(
    connection: Connection, hours: Mapping[str, HourEpisodes], shown: Mapping[str, Collection[str]], settings: Settings, secret: bytes
) -> dict[str, str]:
    """Version of each hour's sources for a language model, where the agents in ``shown`` are shown.

    Sources are content, outcomes, hidden answers, names, settings, server and rubric. The names are those that agents had when the hour
    was first read.
    """
    markets = stored_outcomes(connection, list(hours), settings)
    agents = sorted({episode.agent_id for hour in hours.values() for episode in hour.episodes})
    names = sorted(judge_inputs.known_names(connection, agents), key=lambda name: (name.agent_id, name.name))
    # settings and versions that hold for every hour; the first number and the order stay, or every judged hour would differ
    common = [
        1, RUBRIC_VERSION, settings.judge_model, *_shown(settings), hashlib.sha256(secret).hexdigest(),
        *filter(None, [server_of(settings, settings.judge_model)]),
    ]  # fmt: skip
    versions = {}
    for window, hour in hours.items():
        # content that the group's own version does not cover: hidden answers, game knowledge, logged reasoning
        ids = [trajectory_id for episode in hour.usable_episodes for trajectory_id in episode.trajectory_ids]
        hidden = judge_inputs.hidden_answers(connection, [question.market_id for question in markets[window].predictions])
        further = [sorted(judge_inputs.recorded_knowledge(connection, ids)), sorted(judge_inputs.logged_reasoning(connection, ids).items())]
        digest = hashlib.sha256(repr(further).encode("utf-8", "replace")).hexdigest()
        agents_present = {episode.agent_id for episode in hour.episodes}
        names_shown = [[name.agent_id, name.name] for name in names if name.agent_id in agents_present and name.counts_in(window)]
        outcomes = [markets[window].data_version, sorted(map(list, hidden.items()))]
        versions[window] = content_version(
            [*common, window, group_version(hour), sorted(agents_present), names_shown, outcomes, digest, sorted(shown[window])]
        )
    return versions


class Change(Enum):
    """Changes of an hour since it was judged."""

    NOTHING = "nothing"
    DATA = "data"
    RULES = "rules"


def _changes(
    connection: Connection, hours: Mapping[str, HourEpisodes], held: Mapping[str, GroupScores], settings: Settings, secret: bytes
) -> dict[str, tuple[Change, str]]:
    """Change of each hour with scores, with the version of its sources now, for the judged agents."""
    made_from = scores.read_made_from(connection, list(held))
    # the heuristic's scores were made of their episodes alone, whichever judge is set now
    now = {window: group_version(hours[window]) for window, group in held.items() if group.judge == HEURISTIC}
    asked = {window: hours[window] for window in held if window not in now}
    if asked:
        judged = {window: {score.agent_id for score in held[window].scores} for window in asked}
        now |= input_versions(connection, asked, judged, settings, secret)
    return {window: (_change_of(group, made_from[window], now[window], settings), now[window]) for window, group in held.items()}


def _change_of(group: GroupScores, made_from: ScoredFrom, sources: str, settings: Settings) -> Change:
    """Changes since ``group`` was scored; ``sources`` is the present version of its sources."""
    own = (group.judge, group.judge_version) == (settings.judge_model, judge_version(settings))
    if made_from.sources == sources:
        # A setting may have returned to the value that the scores were made with.
        followed = not made_from.rules_changed or made_from.scored_by == rules_version(settings)
        return Change.NOTHING if own and followed else Change.RULES
    # rules from before they were recorded are known to have changed only where the judge has
    same_rules = made_from.rules == rules_version(settings) if made_from.rules else own
    return Change.DATA if not made_from.sources or same_rules else Change.RULES


def find_changes(connection: Connection, windows: Sequence[str], settings: Settings) -> dict[str, tuple[Change, str]]:
    """Change of each hour with scores and the version of its sources now, but of hours of which a training has consumed an episode."""
    secret, changes = judge_inputs.read_secret(connection) or b"", dict[str, tuple[Change, str]]()
    for some in reading_chunks(connection, windows):
        held = scores.read(connection, some)
        held = {window: held[window] for window in sorted(held.keys() - scores.consumed_windows(connection, list(held)))}
        changes |= _changes(connection, stored_hours(connection, list(held), settings.min_agents_per_window), held, settings, secret)
    return changes


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


class _State:
    """Stored state of some hours before they are judged, without texts, and what it is compared with."""

    def __init__(self, connection: Connection, windows: Sequence[str], settings: Settings, secret: bytes) -> None:
        self.connection, self.settings, self.secret = connection, settings, secret
        self.judge = settings.judge_model, judge_version(settings)
        self.stored = scores.read(connection, windows)
        self.dropped = left_to_dropout(connection, windows)
        self.hours = stored_hours(connection, windows, settings.min_agents_per_window)
        self.consumed = scores.consumed_windows(connection, list(self.stored))
        self.quarantined = scores.read_quarantined(connection, windows)

    def agents(self, windows: Iterable[str]) -> dict[str, list[str]]:
        """Agents to show, by hour: those with usable episodes, less dropout that a batch decided."""
        return {
            window: [e.agent_id for e in self.hours[window].usable_episodes if (window, e.agent_id) not in self.dropped]
            for window in windows
        }

    def held_back(self) -> dict[str, str]:
        """Hours whose quarantine by this judge stands, with the reason. It stands while the request would be the same that failed."""
        own = {window: entry for window, entry in self.quarantined.items() if (entry.judge, entry.judge_version) == self.judge}
        if not own:
            return {}
        hours = {window: self.hours[window] for window in own}
        now = input_versions(self.connection, hours, self.agents(own), self.settings, self.secret)
        # an entry without a version cannot be compared, and stays
        return {window: entry.reason for window, entry in own.items() if entry.sources_version in ("", request_version(now[window]))}

    def changes(self, windows: Iterable[str]) -> dict[str, tuple[Change, str]]:
        """Change of each hour with scores, with the version of its sources now. Later dropout is no change."""
        held = {window: self.stored[window] for window in windows if window in self.stored}
        changes = _changes(self.connection, self.hours, held, self.settings, self.secret)
        # different sources may still show the same: render with the judged agents and compare
        comparable = [window for window, (change, _) in changes.items() if change is not Change.NOTHING and self._could_stand(window)]
        if comparable:
            judged = {window: [score.agent_id for score in held[window].scores] for window in comparable}
            for window, group in self._rendered(comparable, judged).items():
                if held[window].shown_version == group.input_version:
                    changes[window] = Change.NOTHING, changes[window][1]
        return changes

    def _could_stand(self, window: str) -> bool:
        """True if the stored scores have this judge, the same episodes and the same server."""
        before = self.stored[window]
        if before.judgement is None or before.judgement.server not in (None, server_of(self.settings, self.settings.judge_model)):
            return False
        return (before.judge, before.judge_version) == self.judge and before.input_version == group_version(self.hours[window])

    def planned(self, windows: Sequence[str]) -> dict[str, PlannedHour]:
        """Hours to judge, rendered for a language model."""
        hours = {window: self.hours[window] for window in windows}
        if self.settings.judge_model == HEURISTIC:
            return {window: PlannedHour(hour, version := group_version(hour), version) for window, hour in hours.items()}
        agents = self.agents(windows)
        shown = self._rendered(windows, agents)
        sources = input_versions(self.connection, hours, agents, self.settings, self.secret)
        return {window: PlannedHour(hour, group_version(hour), sources[window], shown[window]) for window, hour in hours.items()}

    def _rendered(self, windows: Sequence[str], agents: Mapping[str, Collection[str]]) -> dict[str, RenderedGroup]:
        from babylon_rl.judge.prompt.render import render_groups

        hours = {window: self.hours[window] for window in windows}
        return render_groups(self.connection, hours, self.settings, agents=agents, secret=self.secret)


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
        state = _State(connection, windows, settings, secret)
        held_back, wanted = {} if force else state.held_back(), list[str]()
        for window in windows:
            if not force and window in state.stored and window in state.consumed:
                plan.unchanged[window] = state.stored[window]
            elif window in held_back:
                plan.quarantined[window] = held_back[window]
            elif state.hours[window].ready:
                wanted.append(window)
        changes = {} if force else state.changes(wanted)
        for window, (change, _) in changes.items():
            group = state.stored[window]
            follows_rules = stale or settings.judge_model == HEURISTIC == group.judge
            if change is Change.NOTHING or (change is Change.RULES and not follows_rules):
                plan.unchanged[window] = group
                plan.by_other_rules += [window] if change is Change.RULES else []
        rest = [window for window in wanted if window not in plan.unchanged]
        plan.hours = state.planned(rest)
        plan.released = [window for window in state.quarantined if window not in held_back and (window in plan.unchanged or window in rest)]
        if write:
            note(connection, changes, settings)
            gone = [window for window in state.stored if window not in plan.unchanged and not state.hours[window].ready]
            scores.delete(connection, gone)
            judge_requests.retire_unusable(connection, plan.released)
            scores.release(connection, [window for window in plan.released if window in plan.unchanged])
            scores.end_pending(connection, [window for window in windows if window not in rest])
    return plan


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

    Runs in the caller's transaction, under the hours' locks. From here on a change of the data differs from one of the rules: both are
    compared with what is recorded now.
    """
    rules = rules_version(settings)
    for change, follows in ((Change.NOTHING, True), (Change.RULES, False)):
        sources = {window: now for window, (found, now) in changes.items() if found is change}
        scores.keep_made_from(connection, sources, rules, rules_changed=not follows)
    scores.forget_sources(connection, [window for window, (found, _) in changes.items() if found is Change.DATA])


def note_changes(connection: Connection, windows: Sequence[str], settings: Settings) -> None:
    """Mark outdated scores, and release quarantined hours whose request has changed."""
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
