"""Versions that decide whether an hour's scores stand: of its sources, and of the rules that made them.

docs/explanation/versions.md shows them in one picture. The sources' version covers everything that a judgement is made of, settings
included; that of the rules covers rules, settings and judge alone. Where the first differs, the second says why: equal rules mean that the
data changed, and the hour is judged again. Other rules mean that somebody changed them: what is paid is not paid again until a person says
so.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from enum import Enum

from babylon_rl.episodes.decode import EPISODE_RULES
from babylon_rl.episodes.reading import group_version
from babylon_rl.judge.client import server_of
from babylon_rl.judge.prompt.rubric import FORM, HEURISTIC_VERSION, RUBRIC_VERSION, judge_version
from babylon_rl.market.outcomes import MARKET_RULES, stored_outcomes
from babylon_rl.settings import HEURISTIC, HourSettings, JudgeSettings, Settings, TrainingSettings
from babylon_rl.store import judge_inputs, scores
from babylon_rl.store.connection import Connection
from babylon_rl.store.hindsight import recorded_knowledge
from babylon_rl.store.scores import ScoredFrom
from babylon_rl.store.windows import reading_chunks, stored_hours
from babylon_rl.types import GroupScores, HourEpisodes
from babylon_rl.versions import content_version

REQUEST_TOKENS = 32_000  # of a request to a model whose context is not known
HINDSIGHT_RULES = "1"  # of what is called right and what is called a leak


def episode_rules(settings: Settings) -> str:
    """Rules and settings that make episodes of rows: the code version of ``window_groups``."""
    limits = f"{settings.min_actions_per_trajectory} actions, {settings.min_agents_per_window} agents"
    return f"rules {EPISODE_RULES}, {limits}, trains {_trained(settings)}"


def market_rules(settings: HourSettings) -> str:
    """Rules and settings that make outcomes of market records: the code version of ``market_outcomes``."""
    return f"rules {MARKET_RULES}, band {settings.sentiment_band_percent:g} %"


def hindsight_rules(settings: TrainingSettings) -> str:
    """Rules and settings that say what was right and what leaks: the code version of ``hindsight``."""
    return f"rules {HINDSIGHT_RULES}, trains {_trained(settings)}"


def _trained(settings: TrainingSettings) -> str:
    return ", ".join(sorted(settings.purposes_g)) + (" and synthetic texts" if settings.train_synthetic else "")


def judge_rules(settings: JudgeSettings) -> str:
    """The judge, its rubric and what it is shown: the code version of ``scored_groups``."""
    if settings.judge_model == HEURISTIC:
        return f"{HEURISTIC} {HEURISTIC_VERSION}"
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
        further = [sorted(recorded_knowledge(connection, ids)), sorted(judge_inputs.logged_reasoning(connection, ids).items())]
        digest = hashlib.sha256(repr(further).encode("utf-8", "replace")).hexdigest()
        agents_present = {episode.agent_id for episode in hour.episodes}
        names_shown = [[name.agent_id, name.name] for name in names if name.agent_id in agents_present and name.counts_in(window)]
        outcomes = [markets[window].data_version, sorted(map(list, hidden.items()))]
        versions[window] = content_version(
            [*common, window, group_version(hour), sorted(agents_present), names_shown, outcomes, digest, sorted(shown[window])]
        )
    return versions


class Change(Enum):
    """What has changed since an hour was judged."""

    NOTHING = "nothing"
    DATA = "data"
    RULES = "rules"


def sources_of_scores(
    connection: Connection, hours: Mapping[str, HourEpisodes], held: Mapping[str, GroupScores], settings: Settings, secret: bytes
) -> dict[str, str]:
    """Present version of what each hour's scores were made from, for the agents that were judged."""
    # the heuristic's scores were made of their episodes alone, whichever judge is set now
    sources = {window: group_version(hours[window]) for window, group in held.items() if group.judge == HEURISTIC}
    asked = {window: hours[window] for window in held if window not in sources}
    if asked:
        judged = {window: {score.agent_id for score in held[window].scores} for window in asked}
        sources |= input_versions(connection, asked, judged, settings, secret)
    return sources


def change_of(group: GroupScores, made_from: ScoredFrom, sources: str, settings: Settings) -> Change:
    """What has changed since ``group`` was scored; ``sources`` is the present version of its sources."""
    own = (group.judge, group.judge_version) == (settings.judge_model, judge_version(settings))
    if made_from.sources == sources:
        return Change.NOTHING if own and not made_from.rules_changed else Change.RULES
    # rules from before they were recorded are known to have changed only where the judge has
    same_rules = made_from.rules == rules_version(settings) if made_from.rules else own
    return Change.DATA if not made_from.sources or same_rules else Change.RULES


def find_changes(connection: Connection, windows: Sequence[str], settings: Settings) -> dict[str, tuple[Change, str]]:
    """Change of each hour with scores, with the version of its sources now; reads what the graph stored.

    Hours of which a training has consumed an episode keep their scores and are left out.
    """
    secret, changes = judge_inputs.read_secret(connection) or b"", dict[str, tuple[Change, str]]()
    for some in reading_chunks(connection, windows):
        held = scores.read(connection, some)
        held = {window: held[window] for window in sorted(held.keys() - scores.consumed_windows(connection, list(held)))}
        made_from = scores.read_made_from(connection, list(held))
        now = sources_of_scores(connection, stored_hours(connection, list(held), settings.min_agents_per_window), held, settings, secret)
        changes |= {window: (change_of(group, made_from[window], now[window], settings), now[window]) for window, group in held.items()}
    return changes
