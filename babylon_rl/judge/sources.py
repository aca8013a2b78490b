"""Version of all sources of a rendered group; an unchanged hour is recognised without rendering.

Equal versions render the same. Different ones may, which only rendering can tell.
"""

import hashlib
from collections.abc import Collection, Mapping

from babylon_rl.episodes.summary import group_version
from babylon_rl.judge.endpoints import server_of
from babylon_rl.judge.prompt.render import REQUEST_TOKENS
from babylon_rl.judge.prompt.rubric import RUBRIC_VERSION
from babylon_rl.market.outcomes import read_many_outcomes
from babylon_rl.settings import Settings
from babylon_rl.store import judge_inputs as store
from babylon_rl.store.connection import Connection
from babylon_rl.store.hindsight import recorded_knowledge
from babylon_rl.types import WindowReading
from babylon_rl.versions import content_version

# Raise it when the same sources are shown differently: groups in quarantine are asked about anew then. Judged ones keep their scores and
# cost nothing, as the form is not part of their version.
FORM = 2
_LAYOUT = 1  # of the hashed values; with another, every judged hour would be paid for again


def sources_versions(
    connection: Connection, readings: Mapping[str, WindowReading], shown: Mapping[str, Collection[str]], settings: Settings, secret: bytes
) -> dict[str, str]:
    """Version of each hour's sources, where the agents in ``shown`` are shown.

    Sources are content, outcomes, hidden answers, names, settings, server and rubric. The names are those that agents had when the hour
    was first read.
    """
    markets = read_many_outcomes(connection, list(readings), settings)
    agents = sorted({episode.agent_id for reading in readings.values() for episode in reading.episodes})
    names = sorted(store.known_names(connection, agents), key=lambda name: (name.agent_id, name.name))
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
        hidden = store.hidden_answers(connection, [asked.market_id for asked in markets[window].predictions])
        beside = [sorted(recorded_knowledge(connection, ids)), sorted(store.logged_reasoning(connection, ids).items())]
        digest = hashlib.sha256(repr(beside).encode("utf-8", "replace")).hexdigest()
        own = {episode.agent_id for episode in reading.episodes}
        named = [[name.agent_id, name.name] for name in names if name.agent_id in own and name.counts_in(window)]
        outcomes = [markets[window].data_version, sorted(map(list, hidden.items()))]
        versions[window] = content_version(
            [*common, window, group_version(reading), sorted(own), named, outcomes, digest, sorted(shown[window])]
        )
    return versions


def asked_version(sources: str) -> str:
    """Version of a failed request: the form and the sources."""
    return f"{FORM}:{sources}"
