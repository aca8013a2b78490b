"""Conversion of frozen episodes to training sequences: LLM calls as served, with advantages.

Only the trajectories that the batch froze are read, whatever has arrived since. Calls that cannot train are counted by reason, and
pre-flight reports them before the first step. Every text is checked for leaks here too, so that an hour without a hindsight check is as
safe as one with it. The sequences lie on disk (Spill), so that memory does not grow with the batch.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from msgspec import structs

from babylon_rl.chats import is_cut
from babylon_rl.episodes.reading import by_rows, trajectories_with_texts
from babylon_rl.errors import NothingToTrain
from babylon_rl.files.spill import Place, Spill, Spilled
from babylon_rl.judge.hindsight import HourSecrets, hour_secrets
from babylon_rl.judge.leakage import find_leaks
from babylon_rl.market.outcome_rows import read_many_outcomes
from babylon_rl.settings import Settings, TrainingSettings
from babylon_rl.store.batches import BatchEpisode
from babylon_rl.store.connection import Connection
from babylon_rl.store.windows import reading_chunks
from babylon_rl.training.backends.protocol import TrainSequence
from babylon_rl.training.eligibility import describe_reasons
from babylon_rl.types import ServedSequence

NO_SEQUENCE = "no training sequence"
NO_TOKEN = "no trainable token"  # with sequences, of which the backend can train none
STALE = "served by too old a version"
EMPTY = "an empty response"
LEAK = "leak"
CUT = "an answer that was cut off"


@dataclass(frozen=True, slots=True)
class Conversion:
    """Sequences of a batch, newest window first, with counts of episodes and calls left out.

    ``per_episode`` is the number of sequences of each (window, agent id).
    """

    sequences: Sequence[TrainSequence]
    by_window: Mapping[str, Sequence[TrainSequence]]
    per_episode: Mapping[tuple[str, str], int]
    left_out: Mapping[str, int]
    staleness: Mapping[str, int]


def convert(connection: Connection, episodes: Sequence[BatchEpisode], settings: Settings, versions: Sequence[str] = ()) -> Conversion:
    """Build the sequences of judged episodes, TEXTS_AT_ONCE trajectories at a time.

    Args:
        episodes: those still in the batch, each with its advantage.
        versions: the line's versions, newest first; a call's staleness is its version's place in it.
    """
    in_window: dict[str, list[BatchEpisode]] = {}
    for episode in episodes:
        in_window.setdefault(episode.window, []).append(episode)
    spill: Spill[TrainSequence] = Spill(settings.home)
    places: dict[str, list[Place]] = {}
    per_episode: dict[tuple[str, str], int] = {}
    left_out: Counter[str] = Counter()
    staleness: Counter[str] = Counter()
    # Outcomes are read once per chunk of windows, texts in smaller portions.
    for windows in reading_chunks(connection, in_window):
        outcomes = read_many_outcomes(connection, windows, settings)
        for some in by_rows([episode for window in windows for episode in in_window[window]]):
            served = trajectories_with_texts(connection, [i for episode in some for i in episode.trajectory_ids], settings)
            for window, own in groupby(some, key=lambda episode: episode.window):
                # Secrets of the hour are needed to find leaks in its texts.
                group = list(own)
                secrets = hour_secrets(connection, outcomes[window], [i for episode in group for i in episode.trajectory_ids])
                for episode in group:
                    # Popped, so that texts are let go one after the other. A row that moved to another hour since the freeze is not read.
                    trajectories = [served.pop(i) for i in episode.trajectory_ids if i in served and served[i].window == window]
                    calls = [call for trajectory in trajectories for call in trajectory.sequences]
                    trainable = [call for call in calls if _trains(call, secrets, settings, versions, left_out, staleness)]
                    # Also where it is 0: an episode without a sequence leaves the batch by this count.
                    per_episode[window, episode.agent_id] = len(trainable)
                    places.setdefault(window, []).extend(spill.write(_sequence(call, episode, len(trainable)) for call in trainable))
    # Newest window first; windows without a sequence are left out.
    newest_first = {window: own for window, own in sorted(places.items(), reverse=True) if own}
    by_window = {window: Spilled(spill, own) for window, own in newest_first.items()}
    everything = Spilled(spill, [place for own in newest_first.values() for place in own])
    return Conversion(everything, by_window, per_episode, dict(left_out), dict(staleness))


def refuse_empty(conversion: Conversion, batch_id: str) -> None:
    """Refuse a batch without a sequence, before anything is paid.

    Raises:
        NothingToTrain: no sequence is left; the message names the cause and the cure.
    """
    if conversion.by_window:
        return
    reasons = f" ({describe_reasons(conversion.left_out)})" if conversion.left_out else ""
    raise NothingToTrain(
        f"{batch_id} has no training sequence{reasons}: none of its frozen trajectories holds an LLM call of a purpose that trains. "
        "Record the prompts (RECORD_AGENT_TRAJECTORIES=true, llm_call_logs), or widen TRAIN_PURPOSES."
    )


def _trains(
    call: ServedSequence,
    secrets: HourSecrets,
    settings: TrainingSettings,
    versions: Sequence[str],
    left_out: Counter[str],
    staleness: Counter[str],
) -> bool:
    if not call.response.strip():
        left_out[EMPTY] += 1
        return False
    if is_cut(call.finish_reason):
        left_out[CUT] += 1
        return False
    if find_leaks(call.messages, call.response, secrets.of(call.trajectory_id)):
        left_out[LEAK] += 1
        return False
    # Staleness is counted even where no limit is set.
    age = versions.index(call.model_version) if call.model_version in versions else None
    staleness["unknown" if age is None else str(age)] += 1
    if settings.max_staleness_versions is not None and age is not None and age > settings.max_staleness_versions:
        left_out[STALE] += 1
        return False
    return True


def _sequence(call: ServedSequence, episode: BatchEpisode, calls: int) -> TrainSequence:
    return TrainSequence(
        **structs.asdict(call),
        window=episode.window,
        agent_id=episode.agent_id,
        advantage=episode.advantage or 0.0,
        weight=1.0 / calls,
        score=episode.score,
    )
