"""Pre-flight: a summary of a training, shown and stored before anything is posted or paid.

It lists kept and dropped groups with reasons, sequences, trainable tokens, the share with log-probabilities, staleness in versions and the
spread of scores. A training without a trainable token is refused here, with the cause and the cure.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from statistics import fmean, pstdev
from typing import Any

from babylon_rl.errors import NothingToTrain, TrainingError, TrainingPaused
from babylon_rl.settings import Settings, TrainingSettings
from babylon_rl.store.batches import BASELINE, Batch, BatchEpisode, failures_in_a_row, write_preflight
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.store.write_ahead import RemoteJob
from babylon_rl.training.backends import choose_trainer, trainer_choice
from babylon_rl.training.backends.protocol import TrainPlan, TrainSequence
from babylon_rl.training.conversion import NO_SEQUENCE, NO_TOKEN, Conversion, convert

LONGEST_PAUSE_HOURS = 24.0


def preflight_document(
    conversion: Conversion,
    episodes: Sequence[BatchEpisode],
    dropped_groups: Mapping[str, int],
    plan: TrainPlan,
    iterations: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """Build the document stored with the batch.

    Shares are 0..1, spread is a population standard deviation within a group.

    ``episodes`` are those of the groups that had not left before; hours of which nothing trains join ``dropped_groups``.

    ``trainableTokens`` is None where the backend counts while it trains, else of one pass; ``untrained`` counts sequences by reason;
    ``estimatedUsd`` is for all ``iterations``, which are given by their hours, as often as they go through them; ``timesTrained`` is how
    often a trajectory trains, and ``baselineOnly`` counts those of which nothing does.
    """
    spreads = group_spreads(episodes)
    # Hours without a trainable token join the dropped groups.
    windows = {episode.window for episode in episodes}
    trained = {window for window in windows if window in conversion.by_window and plan.trains(window)}
    lost = Counter(NO_TOKEN if window in conversion.by_window else NO_SEQUENCE for window in windows - trained)
    often = Counter(window for windows in iterations for window in windows)
    baseline = [episode for episode in episodes if episode.contributes == BASELINE]
    number = len(conversion.sequences)
    shown = [(sequence.scripted, _has_token_logprobs(sequence)) for sequence in conversion.sequences]
    return {
        "groups": len(trained),
        "groupsDropped": dict(Counter(dropped_groups) + lost),
        "episodes": sum(1 for count in conversion.per_episode.values() if count),
        "sequences": number,
        "scriptedShare": sum(scripted for scripted, _ in shown) / number if number else 0.0,
        "logprobShare": sum(logprobs for _, logprobs in shown) / number if number else 0.0,
        "leftOut": dict(conversion.left_out),
        "stalenessVersions": dict(conversion.staleness),
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
    """True when every recorded token has an id and a finite log-probability.

    Whether the ids belong to the base is checked with its tokenizer.
    """
    return bool(sequence.logprobs) and all(
        type(token.get("tokenId")) is int and type(token.get("logprob")) in (int, float) and math.isfinite(token["logprob"])
        for token in sequence.logprobs or ()
    )


def group_spreads(episodes: Sequence[BatchEpisode]) -> list[float]:
    """Population standard deviation of scores by hour, of the episodes still in the batch."""
    scores: dict[str, list[float]] = {}
    for episode in episodes:
        if episode.dropped is None and episode.score is not None:
            scores.setdefault(episode.window, []).append(episode.score)
    return [pstdev(own) for own in scores.values()]


def refuse_untrainable(plan: TrainPlan, batch_id: str) -> None:
    """Refuse a batch of which the backend would train no token, before anything is paid.

    Raises:
        NothingToTrain: the message names the cause and the cure.
    """
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
    # Before the first post the batch fails; afterwards it waits.
    if not posted:
        raise TrainingError(f"{problem} Nothing was posted.")
    raise TrainingPaused(f"{problem} {batch_id} waits with {len(done)} of {len(iterations)} iterations posted, for about ${paid:.2f}.")


def refuse_hopeless(connection: Connection, batch: Batch, episodes: Sequence[BatchEpisode], settings: Settings) -> None:
    """Refuse a batch without trainable texts before the judge is paid.

    Raises:
        NothingToTrain: the message names the cause and the cure; what was found is stored with the batch.
    """
    choice = trainer_choice(settings)
    if choice.service is None or batch.backend != choice.backend:
        return
    # Without scores the plan is an upper bound: if it is empty, the training is too.
    conversion = convert(connection, episodes, settings)
    plan = choose_trainer(settings).could_train(conversion.sequences)
    if plan.trainable_tokens == 0 and conversion.sequences:
        with own_transaction(connection):
            write_preflight(connection, batch.batch_id, preflight_document(conversion, episodes, {}, plan), batch.parent_version)
    if conversion.sequences:
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
    interval = settings.training_interval_hours
    again = failures[0].at + timedelta(hours=min(interval * 2.0 ** (len(failures) - 1), max(interval, LONGEST_PAUSE_HOURS)))
    if now >= again:
        return None
    in_a_row = f", as did the {len(failures) - 1} before it" if len(failures) > 1 else ""
    why = failures[0].error.rstrip(". ")
    return (
        f"{failures[0].batch_id} failed{in_a_row}: {why}. Automation tries again at {again:%Y-%m-%d %H:%M} UTC; "
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
        times = _times(often["max"]) if often["min"] == often["max"] else f"{often['min']} to {often['max']} times"
        lines.append(f"  {_counted(document['iterations'], 'iteration')}; each trajectory trains {times} (EPOCHS)")
    # Optional facts follow; documents of older batches lack some.
    baseline = document.get("baselineOnly") or {"trajectories": 0}
    if baseline["trajectories"]:
        lines.append(
            f"  Baseline only: {baseline['trajectories']} trajectories of {_counted(baseline['episodes'], 'episode')}; nothing of them "
            "trains, and they are not marked as used"
        )
    spread = document.get("spread")
    if spread is not None:
        lines.append(f"  Spread of scores in a group: {spread['min']:.3f} to {spread['max']:.3f}, mean {spread['mean']:.3f}")
    if document["stalenessVersions"]:
        ages = (f"{number} x {age}" for age, number in sorted(document["stalenessVersions"].items()))
        lines.append(f"  Staleness in versions: {', '.join(ages)}")
    if document.get("estimatedUsd") is not None:
        lines.append(f"  Estimated cost: ${document['estimatedUsd']:.2f}")
    if document.get("ignoredSettings"):
        lines.append(f"  Not taken by this backend: {', '.join(document['ignoredSettings'])}")
    lines += [f"  Left out: {_counted(number, 'sequence')} ({reason})" for reason, number in document["leftOut"].items()]
    lines += [f"  Left out: {_counted(number, 'group')} ({reason})" for reason, number in document["groupsDropped"].items()]
    return lines + [f"  Not trained: {number} sequences {reason}" for reason, number in (document.get("untrained") or {}).items()]


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}{'' if number == 1 else 's'}"
