"""Conversion of frozen episodes to training sequences, and the pre-flight report on them.

A sequence is an LLM call as served, with the advantage of its part of the hour, or of the whole hour. Only the trajectories that the batch
froze are read, whatever has arrived since. Calls that cannot train are counted by reason. Every text is checked for leaks here too, so
that an hour without a hindsight check is as safe as one with it. The sequences lie on disk (Spill), so that memory does not grow with the
batch. A training without a trainable token is refused here, with the cause and the cure.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby
from statistics import fmean, pstdev
from typing import Any

from msgspec import structs

from babylon_rl.chats import is_cut, log_probability
from babylon_rl.episodes.reading import by_rows, trajectories_with_texts
from babylon_rl.errors import NothingToTrain, TrainingError, TrainingPaused
from babylon_rl.files.spill import Place, Spill, Spilled
from babylon_rl.judge.answer_groups import without_answers
from babylon_rl.judge.hindsight import hour_secrets
from babylon_rl.judge.leakage import LeakContext, find_leaks
from babylon_rl.market.outcomes import read_many_outcomes
from babylon_rl.settings import JudgeSettings, Settings, TrainingSettings
from babylon_rl.store.answer_groups import Answers, read_replayed
from babylon_rl.store.batches import BASELINE, Batch, BatchEpisode, failures_in_a_row, write_preflight
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.store.windows import reading_chunks
from babylon_rl.store.write_ahead import RemoteJob
from babylon_rl.training.backends.protocol import ANSWER_BACKENDS, TrainPlan, TrainSequence, choose_trainer, recorded_calls, trainer_choice
from babylon_rl.training.freezing import describe_reasons
from babylon_rl.types import SCRIPTED, ServedSequence

NO_SEQUENCE = "no training sequence"
NO_TOKEN = "no trainable token"  # with sequences, of which the backend can train none
STALE = "served by too old a version"
EMPTY = "an empty response"
LEAK = "leak"
RECORDED = "recorded in an hour whose answer groups train"
NO_VERSION = "no version of ours was asked in it"
AnswersByCall = Mapping[tuple[str, str], Answers]  # trajectory and call
CUT = "an answer that was cut off"


@dataclass(slots=True)
class Conversion:
    """Sequences of a batch, newest window first, with counts of episodes and calls left out.

    ``per_episode`` is the number of recorded calls of each (window, agent id) that train, each answer group counted as one. Of ``replayed``
    hours these answer groups train, and nothing else; ``not_replayed`` counts the other hours by reason, where CREDIT asks for answers.
    ``own_trades`` and ``own_pnl_usd`` are trades and P&L of the agents whose calls no script wrote. ``by_hour`` counts the sequences that
    have their episode's advantage although CREDIT asks for their part's: their hours were judged as a whole.
    """

    sequences: Sequence[TrainSequence] = ()
    by_window: Mapping[str, Sequence[TrainSequence]] = field(default_factory=dict)
    per_episode: dict[tuple[str, str], int] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    staleness: Counter[str] = field(default_factory=Counter)
    replayed: dict[str, AnswersByCall] = field(default_factory=dict)
    not_replayed: Counter[str] = field(default_factory=Counter)
    own_trades: int = 0
    own_pnl_usd: float = 0.0
    by_hour: int = 0

    @property
    def answers(self) -> int:
        """Number of the sequences that nobody played."""
        return sum(len(self.by_window.get(window, ())) for window in self.replayed)


def convert(
    connection: Connection, episodes: Sequence[BatchEpisode], settings: Settings, versions: Sequence[str] = (), backend: str = ""
) -> Conversion:
    """Build the sequences of judged episodes, TEXTS_AT_ONCE trajectories at a time.

    With CREDIT=answers, of an hour in which a version of ours has answer groups these alone become sequences.

    Args:
        episodes: those still in the batch, each with its advantage.
        versions: the line's versions, newest first; a call's staleness is its version's place in it.
        backend: of the batch; answer groups are for ``ANSWER_BACKENDS``.
    """
    in_window: dict[str, list[BatchEpisode]] = {}
    for episode in episodes:
        in_window.setdefault(episode.window, []).append(episode)
    spill: Spill[TrainSequence] = Spill(settings.home)
    places: dict[str, list[Place]] = {}
    made = Conversion()
    for windows in reading_chunks(connection, in_window):
        outcomes = read_many_outcomes(connection, windows, settings)
        read = [episode for window in windows for episode in in_window[window]]
        groups, reasons = answers_that_train(connection, read, settings, backend)
        made.replayed |= groups
        made.not_replayed.update(reasons)
        for some in by_rows(read):
            served = trajectories_with_texts(connection, [i for episode in some for i in episode.trajectory_ids], settings)
            for window, own in groupby(some, key=lambda episode: episode.window):
                group = list(own)
                secrets = hour_secrets(connection, outcomes[window], [i for episode in group for i in episode.trajectory_ids])
                for episode in group:
                    # Popped, so that texts are let go one after the other. A row that moved to another hour since the freeze is not read.
                    trajectories = [served.pop(i) for i in episode.trajectory_ids if i in served and served[i].window == window]
                    asked = [row for row in trajectories if any(not call.scripted for call in row.sequences)]
                    made.own_trades += sum(row.trades for row in asked)
                    made.own_pnl_usd += sum(row.delta for row in asked)
                    calls = [call for trajectory in trajectories for call in trajectory.sequences]
                    trainable = [call for call in calls if _trains(call, secrets, settings, versions, made.left_out, made.staleness)]
                    if window in groups:
                        sequences = [one for call in trainable for one in _answers(call, episode, groups[window])]
                        number = sum((call.trajectory_id, call.call_id) in groups[window] for call in trainable)
                        made.left_out[RECORDED] += len(trainable) - number
                    else:
                        sequences = [_sequence(call, episode, settings) for call in trainable]
                        made.by_hour += sum(one.part is None for one in sequences) if settings.by_part else 0
                        number = len(sequences)
                    # Also where it is 0: an episode without a sequence leaves the batch by this count, or is its hour's baseline.
                    made.per_episode[window, episode.agent_id] = number
                    places.setdefault(window, []).extend(spill.write(sequences))
    newest_first = {window: own for window, own in sorted(places.items(), reverse=True) if own}
    made.by_window = {window: Spilled(spill, own) for window, own in newest_first.items()}
    made.sequences = Spilled(spill, [place for own in newest_first.values() for place in own])
    made.left_out = +made.left_out
    return made


def refuse_empty(conversion: Conversion, batch_id: str) -> None:
    """Raise NothingToTrain, with cause and cure, for a batch without a sequence, before anything is paid."""
    if conversion.by_window:
        return
    reasons = f" ({describe_reasons(conversion.left_out)})" if conversion.left_out else ""
    raise NothingToTrain(
        f"{batch_id} has no training sequence{reasons}: none of its frozen trajectories holds an LLM call of a purpose that trains. "
        "Record the prompts (RECORD_AGENT_TRAJECTORIES=true, llm_call_logs), or widen TRAIN_PURPOSES."
    )


def _trains(
    call: ServedSequence,
    secrets: Mapping[str, LeakContext],
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
    if find_leaks(call.messages, call.response, secrets[call.trajectory_id]):
        left_out[LEAK] += 1
        return False
    age = versions.index(call.model_version) if call.model_version in versions else None
    staleness["unknown" if age is None else str(age)] += 1
    if settings.max_staleness_versions is not None and age is not None and age > settings.max_staleness_versions:
        left_out[STALE] += 1
        return False
    return True


def answers_that_train(
    connection: Connection, episodes: Iterable[BatchEpisode], settings: Settings, backend: str
) -> tuple[dict[str, AnswersByCall], Counter[str]]:
    """Return the answers of the hours that train by them, by call, and the number of the other hours by reason.

    Those are the hours in which the batch holds a call of a version of ours: answers of the base alone teach less than scripts. Both are
    empty unless CREDIT is ``answers``.
    """
    if settings.credit != "answers":
        return {}, Counter()
    frozen: dict[str, set[str]] = {}
    for episode in episodes:
        frozen.setdefault(episode.window, set()).update(episode.trajectory_ids)
    refused = without_answers(settings) or (None if backend in ANSWER_BACKENDS else f"the backend {backend} trains recorded answers alone")
    if refused is not None:
        return {}, Counter({refused: len(frozen)})
    groups: dict[str, AnswersByCall] = {}
    others: Counter[str] = Counter()
    stored = read_replayed(connection, list(frozen))
    for window, own in frozen.items():
        held = [group for group in stored[window].groups if group.trajectory_id in own] if window in stored else []
        if any(group.model_version for group in held):
            groups[window] = {(group.trajectory_id, group.call_id): group.answers for group in held}
        else:
            others[(window in stored and stored[window].reason) or NO_VERSION] += 1
    return groups, others


def _answers(call: ServedSequence, episode: BatchEpisode, groups: AnswersByCall) -> Iterator[TrainSequence]:
    for text, _, score in groups.get((call.trajectory_id, call.call_id), ()):
        yield TrainSequence(
            **structs.asdict(structs.replace(call, response=text, logprobs=None, finish_reason=None)), window=episode.window,
            agent_id=episode.agent_id, advantage=0.0, score=score, group=f"{call.trajectory_id}/{call.call_id}",
        )  # fmt: skip


def _sequence(call: ServedSequence, episode: BatchEpisode, settings: JudgeSettings) -> TrainSequence:
    own = next((part for part in episode.parts if part.start_minute <= call.minute < part.end_minute), None) if settings.by_part else None
    return TrainSequence(
        **structs.asdict(call),
        window=episode.window,
        agent_id=episode.agent_id,
        advantage=(episode.advantage or 0.0) if own is None else own.advantage,
        score=episode.score if own is None else own.score,
        part=None if own is None else own.start_minute,
    )


LONGEST_PAUSE_HOURS = 24.0


def preflight_document(
    conversion: Conversion,
    episodes: Sequence[BatchEpisode],
    dropped_groups: Mapping[str, int],
    plan: TrainPlan,
    iterations: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """Build the document stored with the batch.

    Shares are 0..1, spread is a population standard deviation within a group. ``sequences`` and its shares are of recorded calls;
    ``answers``, which nobody played, are counted beside them.

    ``episodes`` are those of the groups that had not left before; hours of which nothing trains join ``dropped_groups``.

    ``trainableTokens`` is None where the backend counts while it trains, else of one pass; ``untrained`` counts sequences by reason;
    ``estimatedUsd`` is for all ``iterations``, which are given by their hours, as often as they go through them; ``timesTrained`` is how
    often a trajectory trains, and ``baselineOnly`` counts those of which nothing does.
    """
    spreads = group_spreads(episodes)
    windows = {episode.window for episode in episodes}
    trained = {window for window in windows if window in conversion.by_window and plan.trains(window)}
    lost = Counter(NO_TOKEN if window in conversion.by_window else NO_SEQUENCE for window in windows - trained)
    often = Counter(window for windows in iterations for window in windows)
    baseline = [episode for episode in episodes if episode.contributes == BASELINE]
    # The answers of a group need no recorded log-probabilities.
    shown = [(s.scripted, bool(s.group) or _has_token_logprobs(s), bool(s.group)) for s in recorded_calls(conversion.sequences)]
    number = len(shown)
    return {
        "groups": len(trained),
        "groupsDropped": dict(Counter(dropped_groups) + lost),
        "episodes": sum(1 for count in conversion.per_episode.values() if count),
        "sequences": number,
        "scripts": sorted({sequence.model.removeprefix(SCRIPTED) for sequence in conversion.sequences if sequence.scripted}),
        "scriptedShare": sum(scripted for scripted, *_ in shown) / number if number else 0.0,
        "logprobShare": sum(logprobs for _, logprobs, _ in shown) / number if number else 0.0,
        "answerGroups": sum(grouped for *_, grouped in shown),
        "answers": conversion.answers,
        "notReplayed": dict(conversion.not_replayed),
        "ownTrades": conversion.own_trades,
        "ownTradePnl": conversion.own_pnl_usd / conversion.own_trades if conversion.own_trades else None,
        "leftOut": dict(conversion.left_out),
        "stalenessVersions": dict(conversion.staleness),
        "creditByHour": conversion.by_hour,
        "trainableTokens": plan.trainable_tokens,
        "trainableSequences": plan.sequences,
        "untrained": dict(plan.untrained),
        "estimatedUsd": plan.cost(iterations) if plan.trainable_tokens else None,
        "ignoredSettings": list(plan.ignored),
        "iterations": len(iterations),
        "timesTrained": {"min": min(often.values()), "max": max(often.values())} if often else None,
        "baselineOnly": {"episodes": len(baseline), "trajectories": sum(len(episode.trajectory_ids) for episode in baseline)},
        "spread": {"min": min(spreads), "mean": fmean(spreads), "max": max(spreads)} if spreads else None,
    }


def _has_token_logprobs(sequence: TrainSequence) -> bool:
    """True when every recorded token has an id and a log-probability. Whether the ids belong to the base is checked with its tokenizer."""
    return bool(sequence.logprobs) and all(
        type(token.get("tokenId")) is int and log_probability(token.get("logprob")) is not None for token in sequence.logprobs or ()
    )


def group_spreads(episodes: Sequence[BatchEpisode]) -> list[float]:
    """Population standard deviation of scores by hour, of the episodes still in the batch."""
    scores: dict[str, list[float]] = {}
    for episode in episodes:
        if episode.dropped is None and episode.score is not None:
            scores.setdefault(episode.window, []).append(episode.score)
    return [pstdev(own) for own in scores.values()]


def refuse_untrainable(plan: TrainPlan, batch_id: str) -> None:
    """Raise NothingToTrain, with cause and cure, for a batch of which the backend would train no token, before anything is paid."""
    if plan.trainable_tokens == 0:
        raise NothingToTrain(f"{batch_id} has no trainable token, and nothing was posted. {plan.cure} Its trajectories are free again.")


def keep_budget(
    batch_id: str, settings: TrainingSettings, plan: TrainPlan, iterations: Sequence[Sequence[str]], jobs: Sequence[RemoteJob]
) -> None:
    """Check the cost of a paid training, past (``jobs``) and remaining ``iterations``, against TRAINING_BUDGET_USD.

    Raises:
        TrainingError: nothing was posted yet, and it would cost more, or no price is known.
        TrainingPaused: as above, once something was posted: what is paid is kept, and goes on under a higher limit.
    """
    budget = settings.training_budget_usd
    if budget is None or not plan.paid:
        return
    # Refused and lost posts were not charged; posted iterations are not charged again.
    posted = [job for job in jobs if job.state not in ("refused", "lost")]
    done = {job.iteration for job in posted}
    if len(done) == len(iterations):
        return
    paid = sum(job.estimated_usd or 0.0 for job in posted)
    left = plan.cost(windows for number, windows in enumerate(iterations, start=1) if number not in done)
    if left is None:
        problem = (
            "TRAINING_BUDGET_USD is set and no price is: the limit cannot be kept. Set SERVERLESS_USD_PER_MILLION_TOKENS to the "
            "service's price, or unset TRAINING_BUDGET_USD."
        )
    elif paid + left > budget:
        problem = (
            f"{batch_id} would cost about ${paid + left:.2f}, and TRAINING_BUDGET_USD is ${budget:.2f}. Lower ITERATIONS, EPOCHS or "
            "--max-trajectories, or raise the limit."
        )
    else:
        return
    if not posted:
        raise TrainingError(f"{problem} Nothing was posted.")
    raise TrainingPaused(f"{problem} {batch_id} waits with {len(done)} of {len(iterations)} iterations posted, for about ${paid:.2f}.")


def refuse_hopeless(connection: Connection, batch: Batch, episodes: Sequence[BatchEpisode], settings: Settings) -> None:
    """Raise NothingToTrain for a batch without trainable texts, before the judge is paid; what was found is stored with it."""
    choice = trainer_choice(settings)
    if choice.service is None or batch.backend != choice.backend:
        return
    # Without scores the plan is an upper bound: if it is empty, the training is too.
    conversion = convert(connection, episodes, settings, backend=batch.backend)
    plan = choose_trainer(settings).could_train(conversion.sequences)
    if plan.trainable_tokens == 0 and conversion.sequences:
        with own_transaction(connection):
            write_preflight(connection, batch.batch_id, preflight_document(conversion, episodes, {}, plan), batch.parent_version)
        refuse_untrainable(plan, batch.batch_id)


def refused_lately(connection: Connection, settings: Settings, now: datetime) -> str | None:
    """Reason why automation freezes no batch now, with the end of the pause.

    The newest batches of this backend failed or were cancelled. The pause after a failure is TRAINING_INTERVAL_HOURS, doubled for each
    further failure in a row, at most LONGEST_PAUSE_HOURS (or the interval, if longer). Without it untrainable data would be frozen, and
    paid, again every minute. Manual trainings are always allowed.
    """
    failures = failures_in_a_row(connection, trainer_choice(settings).backend)
    if not failures:
        return None
    interval, (batch_id, error, ended_at) = settings.training_interval_hours, failures[0]
    again = ended_at + timedelta(hours=min(interval * 2.0 ** (len(failures) - 1), max(interval, LONGEST_PAUSE_HOURS)))
    if now >= again:
        return None
    in_a_row = f", as did the {len(failures) - 1} before it" if len(failures) > 1 else ""
    return (
        f"{batch_id} failed{in_a_row}: {error.rstrip('. ')}. Automation tries again at {again:%Y-%m-%d %H:%M} UTC; "
        "`babylon-rl train` does at once."
    )


def preflight_lines(document: Mapping[str, Any], parent: str) -> list[str]:
    """Format a stored document as lines: sequences, parent, and the rows left out."""
    tokens = document.get("trainableTokens")
    counted = "tokens counted while training" if tokens is None else f"{tokens:,} trainable tokens"
    lines = [
        f"Training on {document['sequences']} sequences of {document['episodes']} episodes in {document['groups']} groups "
        f"({document['scriptedShare']:.0%} scripted, {document['logprobShare']:.0%} with logprobs), {counted}, from {parent}"
    ]
    often = document.get("timesTrained")
    if often is not None:
        least, most = often["min"], often["max"]
        times = f"{least} to {most} times" if least != most else "once" if most == 1 else f"{most} times"
        lines.append(f"  {_counted(document['iterations'], 'iteration')}; each trajectory trains {times} (EPOCHS)")
    # Optional facts follow; documents of older batches lack some.
    baseline = document.get("baselineOnly") or {"trajectories": 0}
    if baseline["trajectories"]:
        lines.append(
            f"  Baseline only: {baseline['trajectories']} trajectories of {_counted(baseline['episodes'], 'episode')}; nothing of them "
            "trains, and they are not marked as used"
        )
    if document.get("answerGroups"):
        lines.append(f"  Answer groups: {document['answerGroups']} with {document['answers']} answers; nothing else of their hours trains")
    lines += [f"  By the hour: {_counted(number, 'hour')} ({reason})" for reason, number in (document.get("notReplayed") or {}).items()]
    spread = document.get("spread")
    if spread is not None:
        lines.append(f"  Spread of scores in a group: {spread['min']:.3f} to {spread['max']:.3f}, mean {spread['mean']:.3f}")
    if document["stalenessVersions"]:
        ages = (f"{number} x {age}" for age, number in sorted(document["stalenessVersions"].items()))
        lines.append(f"  Staleness in versions: {', '.join(ages)}")
    if document.get("creditByHour"):
        lines.append(f"  Advantage of the whole hour: {_counted(document['creditByHour'], 'sequence')} of hours not judged by part")
    if document.get("estimatedUsd") is not None:
        lines.append(f"  Estimated cost: ${document['estimatedUsd']:.2f}")
    if document.get("ignoredSettings"):
        lines.append(f"  Not taken by this backend: {', '.join(document['ignoredSettings'])}")
    lines += [f"  Left out: {_counted(number, 'sequence')} ({reason})" for reason, number in document["leftOut"].items()]
    lines += [f"  Left out: {_counted(number, 'group')} ({reason})" for reason, number in document["groupsDropped"].items()]
    return lines + [f"  Not trained: {number} sequences {reason}" for reason, number in (document.get("untrained") or {}).items()]


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"
