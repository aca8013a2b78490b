"""Pre-flight: what a training would get, said and stored before anything is posted or paid.

Groups kept and dropped with reasons, sequences, trainable tokens, the share with log-probabilities, staleness in versions and the
spread of scores. A training without a trainable token is refused here, with the cause and the cure.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from statistics import fmean, pstdev
from typing import Any

import psycopg

from babylon_rl.errors import NothingToTrain, TrainingError, TrainingPaused
from babylon_rl.settings import Settings
from babylon_rl.store.batches import Batch, BatchEpisode, own_transaction, read_batches, write_preflight
from babylon_rl.store.remote_jobs import RemoteJob
from babylon_rl.training.conversion import Conversion, convert
from babylon_rl.training.trainer import SERVERLESS, TrainPlan, training_line


def preflight_document(
    conversion: Conversion,
    episodes: Sequence[BatchEpisode],
    dropped_groups: Mapping[str, int],
    plan: TrainPlan,
    iterations: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """What is stored with the batch; shares are 0..1, spread is the population deviation of scores within a group.

    ``trainableTokens`` is None where the backend counts while it trains, else of one pass; ``untrained`` counts sequences by reason;
    ``estimatedUsd`` is for all ``iterations``, which are given by their hours.
    """
    spreads = group_spreads(episodes)
    return conversion.preflight(dropped_groups) | {
        "trainableTokens": plan.trainable_tokens,
        "trainableSequences": plan.sequences,
        "untrained": dict(plan.untrained),
        "estimatedUsd": plan.cost(iterations) if plan.trainable_tokens else None,
        "ignoredSettings": list(plan.ignored),
        "spread": {"min": min(spreads), "mean": fmean(spreads), "max": max(spreads)} if spreads else None,
    }


def group_spreads(episodes: Sequence[BatchEpisode]) -> list[float]:
    """The population standard deviation of scores in each hour, of the episodes that are still in the batch."""
    scores: dict[str, list[float]] = {}
    for episode in episodes:
        if episode.dropped is None and episode.score is not None:
            scores.setdefault(episode.window, []).append(episode.score)
    return [pstdev(own) for own in scores.values()]


def refuse_untrainable(plan: TrainPlan, batch_id: str) -> None:
    """Stop before anything is paid when the backend would train no token.

    Raises:
        NothingToTrain: the message names the cause and the cure.
    """
    if plan.trainable_tokens == 0:
        raise NothingToTrain(f"{batch_id} has no trainable token, and nothing was posted. {plan.cure} Its trajectories are free again.")


def keep_budget(batch_id: str, settings: Settings, plan: TrainPlan, iterations: Sequence[Sequence[str]], jobs: Sequence[RemoteJob]) -> None:
    """Hold what a paid training has cost (``jobs``) and what is left of its ``iterations`` against TRAINING_BUDGET_USD.

    Raises:
        TrainingError: nothing was posted yet, and it would cost more, or no price is known.
        TrainingPaused: as above, once something was posted: what is paid is kept, and goes on under a higher limit.
    """
    budget = settings.training_budget_usd
    if budget is None or not plan.paid:
        return
    posted = [job for job in jobs if job.state not in ("refused", "lost")]
    done = {job.iteration for job in posted}
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


def refuse_hopeless(connection: psycopg.Connection[Any], batch: Batch, episodes: Sequence[BatchEpisode], settings: Settings) -> None:
    """Stop a batch for a paid backend before the judge is paid, when no recorded text of it could be trained there.

    Raises:
        NothingToTrain: the message names the cause and the cure; what was found is stored with the batch.
    """
    if batch.backend != SERVERLESS or training_line(settings).backend != SERVERLESS:
        return
    from babylon_rl.training.remote.serverless import ServerlessTrainer

    conversion = convert(connection, episodes, settings)
    plan = ServerlessTrainer(settings).could_train(conversion.sequences)
    if plan.trainable_tokens == 0 and conversion.sequences:
        with own_transaction(connection):
            write_preflight(connection, batch.batch_id, preflight_document(conversion, episodes, {}, plan), batch.parent_version)
    if conversion.sequences:
        refuse_untrainable(plan, batch.batch_id)


def refused_lately(connection: psycopg.Connection[Any], settings: Settings, now: datetime) -> str | None:
    """Why automation freezes no batch now: pre-flight refused the newest one of this backend within TRAINING_INTERVAL_HOURS.

    Without this, what cannot be trained would be frozen and refused again every minute. By hand one may try at any time.
    """
    newest = read_batches(connection, limit=1)
    if not newest or newest[0].state != "failed" or newest[0].backend != training_line(settings).backend:
        return None
    batch, again = newest[0], newest[0].created_at + timedelta(hours=settings.training_interval_hours)
    if (batch.preflight or {}).get("trainableTokens") != 0 or now >= again:
        return None
    return f"{batch.error} Automation tries again at {again:%Y-%m-%d %H:%M} UTC; `babylon-rl train` does at once."


def preflight_lines(found: Mapping[str, Any], parent: str) -> list[str]:
    """A stored document in words: what trains, from where, and what was left out and why."""
    tokens = found.get("trainableTokens")
    counted = "tokens counted while training" if tokens is None else f"{tokens:,} trainable tokens"
    lines = [
        f"Training on {found['sequences']} sequences of {found['episodes']} episodes in {found['groups']} groups "
        f"({found['scriptedShare']:.0%} scripted, {found['logprobShare']:.0%} with logprobs), {counted}, from {parent}"
    ]
    spread = found.get("spread")
    if spread is not None:
        lines.append(f"  Spread of scores in a group: {spread['min']:.3f} to {spread['max']:.3f}, mean {spread['mean']:.3f}")
    if found["stalenessVersions"]:
        ages = (f"{number} x {age}" for age, number in sorted(found["stalenessVersions"].items()))
        lines.append(f"  Staleness in versions: {', '.join(ages)}")
    if found.get("estimatedUsd") is not None:
        lines.append(f"  Estimated cost: ${found['estimatedUsd']:.2f}")
    if found.get("ignoredSettings"):
        lines.append(f"  Not taken by this backend: {', '.join(found['ignoredSettings'])}")
    left = {**found["leftOut"], **found["groupsDropped"]}
    lines += [f"  Left out: {number} x {reason}" for reason, number in left.items()]
    return lines + [f"  Not trained: {number} sequences {reason}" for reason, number in (found.get("untrained") or {}).items()]
