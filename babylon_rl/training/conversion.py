"""From frozen episodes to training sequences: each LLM call as it was served, with its episode's advantage.

Only the trajectories that the batch froze are taken, whatever has arrived since. What cannot train is counted by reason, and
pre-flight says before the first step what a training would get. Every text is looked through for leaks here too, so that an hour
that hindsight has not seen yet is as safe as one that it has.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from babylon_rl.episodes.reading import stream_trajectories
from babylon_rl.episodes.types import Sequence as ServedSequence
from babylon_rl.errors import NothingToTrain
from babylon_rl.judge.hindsight import HourSecrets, hour_secrets
from babylon_rl.judge.leaks import find_leaks
from babylon_rl.market.outcomes import read_many_outcomes
from babylon_rl.settings import Settings
from babylon_rl.store.batches import BatchEpisode
from babylon_rl.store.window_groups import reading_chunks
from babylon_rl.training.freezing import describe_reasons
from babylon_rl.training.trainer import TrainSequence

NO_SEQUENCE = "no training sequence"
NO_TOKEN = "no trainable token"  # with sequences, of which the backend can train none
STALE = "served by too old a version"
EMPTY = "an empty response"
LEAK = "leak"


@dataclass(frozen=True, slots=True)
class Conversion:
    """The sequences of a batch by window, the number that each episode (window, agent id) gives, and what was left out."""

    by_window: Mapping[str, Sequence[TrainSequence]]
    per_episode: Mapping[tuple[str, str], int]
    left_out: Mapping[str, int]
    staleness: Mapping[str, int]

    @property
    def sequences(self) -> list[TrainSequence]:
        """All of them, newest window first."""
        return [sequence for window in sorted(self.by_window, reverse=True) for sequence in self.by_window[window]]

    def preflight(self, dropped_groups: Mapping[str, int]) -> dict[str, Any]:
        """What a training would get; shares are 0..1. ``trainableTokens`` is known once the trainer has encoded the texts."""
        sequences = self.sequences
        number = len(sequences)
        return {
            "groups": len(self.by_window),
            "groupsDropped": dict(dropped_groups),
            "episodes": sum(1 for count in self.per_episode.values() if count),
            "sequences": number,
            "scriptedShare": sum(sequence.scripted for sequence in sequences) / number if number else 0.0,
            "logprobShare": sum(map(_has_token_logprobs, sequences)) / number if number else 0.0,
            "leftOut": dict(self.left_out),
            "stalenessVersions": dict(self.staleness),
            "trainableTokens": None,
        }


def convert(
    connection: psycopg.Connection[Any], episodes: Sequence[BatchEpisode], settings: Settings, versions: Sequence[str] = ()
) -> Conversion:
    """Build the sequences of judged episodes, reading some hours at a time: of their rows only those that are frozen are decoded.

    Args:
        episodes: those still in the batch, each with its advantage.
        versions: the line's versions, newest first; a call's staleness is its version's place in it.
    """
    in_window: dict[str, list[BatchEpisode]] = {}
    for episode in episodes:
        in_window.setdefault(episode.window, []).append(episode)
    by_window: dict[str, list[TrainSequence]] = {}
    per_episode: dict[tuple[str, str], int] = {}
    left_out: Counter[str] = Counter()
    staleness: Counter[str] = Counter()
    for windows in reading_chunks(connection, in_window):
        outcomes = read_many_outcomes(connection, windows, settings)
        frozen = {window: [i for episode in in_window[window] for i in episode.trajectory_ids] for window in windows}
        served = _served(connection, frozen, settings)
        for window in windows:
            secrets = hour_secrets(connection, outcomes[window], frozen[window])
            for episode in in_window[window]:
                calls = [call for i in episode.trajectory_ids for call in served.get((window, i), ())]
                kept = [call for call in calls if _trains(call, secrets, settings, versions, left_out, staleness)]
                per_episode[window, episode.agent_id] = len(kept)
                by_window.setdefault(window, []).extend(_sequence(call, episode, len(kept)) for call in kept)
    newest_first = sorted(by_window.items(), reverse=True)
    return Conversion({w: s for w, s in newest_first if s}, per_episode, dict(left_out), dict(staleness))


def _served(
    connection: psycopg.Connection[Any], frozen: Mapping[str, Sequence[str]], settings: Settings
) -> dict[tuple[str, str], Sequence[ServedSequence]]:
    """The calls of the frozen trajectories by (window, trajectory id), in their order."""
    only = frozenset(trajectory_id for ids in frozen.values() for trajectory_id in ids)
    found = stream_trajectories(connection, frozen, settings, only)
    return {(trajectory.window, trajectory.trajectory_id): trajectory.sequences for trajectory in found}


def refuse_empty(conversion: Conversion, batch_id: str) -> None:
    """Stop before anything is paid when there is nothing to train.

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
    settings: Settings,
    versions: Sequence[str],
    left_out: Counter[str],
    staleness: Counter[str],
) -> bool:
    if not call.response.strip():
        left_out[EMPTY] += 1
        return False
    if find_leaks(call.messages, call.response, secrets.of(call.trajectory_id)):
        left_out[LEAK] += 1
        return False
    age = versions.index(call.model_version) if call.model_version in versions else None
    staleness["unknown" if age is None else str(age)] += 1
    if settings.max_staleness_versions is not None and age is not None and age > settings.max_staleness_versions:
        left_out[STALE] += 1
        return False
    return True


def _has_token_logprobs(sequence: TrainSequence) -> bool:
    """True when every recorded token has an id and a finite log-probability; whether they are the base's own, its tokenizer knows."""
    return bool(sequence.logprobs) and all(
        type(token.get("tokenId")) is int and type(token.get("logprob")) in (int, float) and math.isfinite(token["logprob"])
        for token in sequence.logprobs or ()
    )


def _sequence(call: ServedSequence, episode: BatchEpisode, calls: int) -> TrainSequence:
    return TrainSequence(
        messages=call.messages,
        response=call.response,
        response_format=call.response_format,
        logprobs=call.logprobs,
        advantage=episode.advantage or 0.0,
        weight=1.0 / calls,
        window=episode.window,
        agent_id=episode.agent_id,
        trajectory_id=call.trajectory_id,
        call_id=call.call_id,
        model_version=call.model_version,
        scripted=call.scripted,
        score=episode.score,
    )
