"""Answer groups: the answers to a recorded prompt, each replayed for its tick, judged as a group.

The judge is the one of the hours. A language model would have to be shown hours that nobody played; it judges recorded hours alone, so
with one as judge no hour has answer groups, and a training takes what was recorded.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from statistics import fmean

from babylon_rl.episodes.reading import trajectories_with_texts
from babylon_rl.errors import MarketError
from babylon_rl.judge.scoring import heuristic_part_score
from babylon_rl.market.replay import MOST_ANSWERS, RecordedTurn, replay
from babylon_rl.market.simulation.games import game_named
from babylon_rl.market.spawn import market_of
from babylon_rl.settings import HEURISTIC, Settings
from babylon_rl.store import answer_groups as store
from babylon_rl.store.answer_groups import AnswerGroup, ReplayedHour
from babylon_rl.store.columns import in_parts
from babylon_rl.store.connection import Connection
from babylon_rl.store.recording import HourSource, read_sources
from babylon_rl.store.windows import lock_windows, stored_episodes
from babylon_rl.types import Episode, Trajectory
from babylon_rl.versions import content_version
from babylon_rl.windows import is_complete

ANSWER_RULES = "4"
HOURS_AT_ONCE = 6  # seconds of replay, for which their locks are held
NOT_SIMULATED = "nobody played it by spawn-agents: only hours whose market can be made again are replayed"
NO_SOURCE = "it was played by an earlier version, which did not keep the edition and the start of its market"
OTHERS = "others than those whom spawn-agents seated played in it, and their calls would be left out"
NO_CALLS = f"no call of a model under a schema of at most {MOST_ANSWERS} answers"


def answer_rules(settings: Settings) -> str:
    """Rules and settings of answer groups: the code version of ``answer_groups``. Settings that make none are alike."""
    return f"rules {ANSWER_RULES}" if without_answers(settings) is None else "none"


def without_answers(settings: Settings) -> str | None:
    """Reason in words why no answer group is made under these settings; None where they are."""
    if settings.credit != "answers":
        return f"CREDIT is {settings.credit}"
    if settings.judge_model != HEURISTIC:
        return f"{settings.judge_model} judges recorded hours alone, and nobody played these answers"
    return None


def sync_answer_groups(
    connection: Connection, windows: Iterable[str], settings: Settings, now: datetime, batch_id: str | None = None
) -> dict[str, ReplayedHour]:
    """Update the stored answer groups of some hours; an hour is replayed only if its rows or the rules have changed.

    Hours that are not complete at ``now``, or that window_groups has not read, are absent. HOURS_AT_ONCE hours are one transaction, under
    each hour's lock.

    Trajectories that a live batch holds keep their groups, or their lack of any, so that a batch that is resumed trains what it began
    with; such an hour is replayed by the next call. ``batch_id`` is a batch that has not begun, and its groups do not stay.
    """
    synced: dict[str, ReplayedHour] = {}
    for chunk in in_parts(sorted({window for window in windows if is_complete(window, now)}), HOURS_AT_ONCE):
        with connection.transaction():
            lock_windows(connection, chunk)
            versions = store.rows_versions(connection, chunk)
            sources = read_sources(connection, list(versions))
            stored = store.read_replayed(connection, list(versions))
            held = store.held_trajectories(connection, list(versions), batch_id)
            episodes = stored_episodes(connection, list(versions))
            for window, rows in versions.items():
                version = content_version([rows, ANSWER_RULES])
                if window in stored and stored[window].sources_version == version:
                    synced[window] = stored[window]
                    continue
                groups, reason = _groups(connection, window, sources.get(window), episodes[window], settings)
                if window in stored:  # a live batch has begun with the groups that its trajectories have, or without any
                    others = (group for group in groups if group.trajectory_id not in held)
                    kept = (*others, *(group for group in stored[window].groups if group.trajectory_id in held))
                else:
                    kept = groups
                current = _by_call(kept) == _by_call(groups)
                synced[window] = ReplayedHour(
                    window=window, groups=kept, reason=reason, sources_version=version if current else "", changed=True
                )
            store.replace(connection, [synced[window] for window in versions if synced[window].changed], now)
    return synced


def _by_call(groups: Iterable[AnswerGroup]) -> dict[tuple[str, str], AnswerGroup]:
    return {(group.trajectory_id, group.call_id): group for group in groups}


def _groups(
    connection: Connection, window: str, source: tuple[int, bool, HourSource | None] | None, episodes: Sequence[Episode], settings: Settings
) -> tuple[tuple[AnswerGroup, ...], str]:
    """Return an hour's groups, or none with the reason."""
    if source is None:
        return (), NOT_SIMULATED
    seed, own_market, facts = source
    if facts is None:
        return (), NO_SOURCE
    if {episode.agent_id for episode in episodes} - dict(facts.seats).keys():
        return (), OTHERS
    turns = _turns(connection, dict(facts.seats), episodes, settings)
    if not any(turn.asks for own in turns.values() for turn in own):
        return (), NO_CALLS
    try:
        scenario = market_of(connection, facts, seed, window, own_market=own_market)
        replayed = replay(scenario, seed, dict(facts.seats), turns, game_named(facts.game))
    except MarketError as different:
        return (), f"cannot be replayed: {different}"
    groups = tuple(
        AnswerGroup(call.trajectory_id, call.call_id, call.model_version, tuple(_scored(text, usd) for text, usd in call.answers))
        for call in replayed
    )
    return groups, "" if groups else NO_CALLS


def _scored(text: str, usd: Sequence[float]) -> tuple[str, float, float]:
    return text, fmean(usd), fmean(map(tick_score, usd))


def tick_score(usd: float) -> float:
    """Score one decision by the heuristic on what it brought in its tick, as in a part of an hour."""
    return heuristic_part_score(usd, int(usd > 0), int(usd < 0))


def _turns(
    connection: Connection, seats: Mapping[str, float], episodes: Sequence[Episode], settings: Settings
) -> dict[str, list[RecordedTurn]]:
    """Read the recorded decisions of those who sat at the table, in time order."""
    turns: dict[str, list[RecordedTurn]] = {agent: [] for agent in seats}
    for episode in episodes:
        if episode.agent_id in seats:
            read = trajectories_with_texts(connection, episode.trajectory_ids, settings)
            turns[episode.agent_id] = [_turn(read[trajectory_id]) for trajectory_id in episode.trajectory_ids if trajectory_id in read]
    return turns


def _turn(trajectory: Trajectory) -> RecordedTurn:
    place = trajectory.trajectory_id, trajectory.start_pnl, trajectory.end_pnl
    if not trajectory.sequences:
        return RecordedTurn(*place)
    call = trajectory.sequences[0]
    asks = not call.scripted and call.response_format is not None
    return RecordedTurn(*place, call.call_id, call.messages, call.response, call.response_format, call.model, call.model_version, asks)
