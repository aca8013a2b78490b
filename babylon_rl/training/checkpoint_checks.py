"""Validation of a finished training: verdicts on a batch's checkpoint, in words and numbers.

Everything is read again from database and disk, so that a verdict describes the present state.
"""

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from babylon_rl.errors import BabylonError, CheckpointError, UsageError, require
from babylon_rl.llm.client import ChatClient
from babylon_rl.models.base_model import base_model_dir
from babylon_rl.models.checkpoint_store import checkpoint_of
from babylon_rl.models.checkpoints import read_remote, verify
from babylon_rl.settings import Settings
from babylon_rl.store.batches import Batch, BatchEpisode, read_batch, read_batch_episodes
from babylon_rl.store.connection import Connection
from babylon_rl.store.registry import Model, model_of_batch, read_models
from babylon_rl.store.write_ahead import TrainingStep, finished_steps
from babylon_rl.training.backends.cpu import COLLAPSED_SHARE, KL_BOUND, PARENT_BOUND, TURNED_SHARE
from babylon_rl.training.backends.protocol import CPU, DRY_BASE_MODEL, ModelAddress, TrainSequence, address_of
from babylon_rl.training.batches import batch_settings
from babylon_rl.training.conversion import LEAK, convert, group_spreads
from babylon_rl.training.lifecycle import iterations_of
from babylon_rl.types import NO_SPREAD

DRY_WORDS = "a dry run trains nothing, and its checkpoint holds no model."
QUESTION = "Buy, sell or hold?"
ANSWER_WITHIN_S = 30.0


@dataclass(frozen=True)
class CheckpointVerdict:
    """Result of one check: passed or not, why, and its numbers.

    Where something was not measured, ``tried`` is False and it has not passed. Dagster plots ``numbers`` over batches.
    """

    passed: bool
    words: str
    numbers: dict[str, Any] = field(default_factory=dict)
    tried: bool = True


def not_measured(why: str) -> CheckpointVerdict:
    return CheckpointVerdict(False, f"Nothing measured: {why}", tried=False)


def by_a_trainer(look: Callable[["Finished"], CheckpointVerdict]) -> Callable[["Finished"], CheckpointVerdict]:
    """Skip a check for dry runs, whose loss and tokens are no measurements."""

    @functools.wraps(look)
    def verdict(finished: Finished) -> CheckpointVerdict:
        return not_measured(DRY_WORDS) if finished.batch.backend == DRY_BASE_MODEL else look(finished)

    return verdict


@dataclass(frozen=True)
class Finished:
    """A finished batch: version (None: not registered), iterations in order, and trained episodes."""

    batch: Batch
    model: Model | None
    steps: Sequence[TrainingStep]
    episodes: Sequence[BatchEpisode]


def read_finished(connection: Connection, batch_id: str) -> Finished | None:
    """Read a batch with everything the verdicts need, or None."""
    batch = read_batch(connection, batch_id)
    if batch is None:
        return None
    steps = sorted(finished_steps(connection, batch_id).values(), key=lambda step: step.iteration)
    episodes = [episode for episode in read_batch_episodes(connection, batch_id) if episode.dropped is None]
    return Finished(batch, model_of_batch(connection, batch_id), steps, episodes)


def whole(finished: Finished, settings: Settings) -> CheckpointVerdict:
    """Check the checkpoint's files against their checksums."""
    model = finished.model
    if model is None or model.checkpoint is None:
        return CheckpointVerdict(False, f"{finished.batch.batch_id} has registered no checkpoint.")
    if model.pruned_at is not None:
        return not_measured(f"{model.version} was pruned on {model.pruned_at:%Y-%m-%d}, as newer checkpoints took its place.")
    try:
        verify(checkpoint_of(model, settings))
    except CheckpointError as damaged:
        return CheckpointVerdict(False, str(damaged))
    return CheckpointVerdict(True, f"{model.version} is whole.")


def complete(finished: Finished) -> CheckpointVerdict:
    """Check that every planned iteration is on record."""
    planned = iterations_of(finished.batch)
    done = [step.iteration for step in finished.steps]
    missing = [number for number in range(1, planned + 1) if number not in done]
    return CheckpointVerdict(not missing, f"{len(done)} of {planned} iterations are complete.", {"missing": missing})


@by_a_trainer
def finite(finished: Finished) -> CheckpointVerdict:
    """Check that the loss of every iteration is finite."""
    losses = {step.iteration: step.loss for step in finished.steps}
    unknown = [iteration for iteration, loss in losses.items() if loss is None]
    bad = [iteration for iteration, loss in losses.items() if loss is not None and not math.isfinite(loss)]
    if unknown and not bad:
        return not_measured(f"the service told no loss of the iterations {unknown}, as the answer to their post was lost.")
    sentence = f"{len(losses) - len(bad)} of {len(losses)} iterations have a finite loss."
    return CheckpointVerdict(bool(losses) and not bad, sentence, {"without_finite_loss": bad})


@by_a_trainer
def falling(finished: Finished) -> CheckpointVerdict:
    """Check that the loss falls: later half of the iterations below the earlier."""
    losses = [step.loss for step in finished.steps if step.loss is not None]
    if len(losses) < 2:
        return not_measured("with the loss of one iteration there is no trend.")
    # Of an odd number the middle one counts in neither half.
    half = len(losses) // 2
    before, after = fmean(losses[:half]), fmean(losses[-half:])
    sentence = f"The loss went from {before:.4f} in the first half of the iterations to {after:.4f} in the second."
    advice = "" if after < before else " A loss that does not fall teaches little: see the reward spread and LEARNING_RATE."
    return CheckpointVerdict(after < before, sentence + advice, {"first_half": before, "second_half": after})


def spread(finished: Finished) -> CheckpointVerdict:
    """Check that the scores in every trained group differ."""
    spreads = group_spreads(finished.episodes)
    flat = sum(deviation < NO_SPREAD for deviation in spreads)
    if not spreads:
        return CheckpointVerdict(False, "No group is in the batch.")
    sentence = f"{len(spreads) - flat} of {len(spreads)} groups have a spread of scores, {fmean(spreads):.3f} on average."
    return CheckpointVerdict(not flat, sentence, {"without_spread": flat})


@by_a_trainer
def trainable(finished: Finished) -> CheckpointVerdict:
    """Check that every iteration had trainable tokens."""
    without = [step.iteration for step in finished.steps if not step.trainable_tokens]
    tokens = sum(step.trainable_tokens or 0 for step in finished.steps)
    sentence = f"{tokens:,} trainable tokens in {len(finished.steps)} iterations" + (f", none in {without}." if without else ".")
    return CheckpointVerdict(bool(finished.steps) and not without, sentence, {"trainable_tokens": tokens})


@by_a_trainer
def in_bounds(finished: Finished) -> CheckpointVerdict:
    """Check KL from base and parent, and the shares of actions, where the backend measures them."""
    metrics = dict(finished.steps[-1].metrics or {}) if finished.steps else {}
    bounds = {
        "kl": (KL_BOUND, "{:.3f} nats a choice away from the base (bound {:g}, where the base would give such answers one time in 50)"),
        "topActionShare": (COLLAPSED_SHARE, "the commonest action has {:.0%} (bound {:.0%})"),
        "klParent": (PARENT_BOUND, "{:.3f} nats a choice away from its parent (bound {:g})"),
        "turnedShare": (TURNED_SHARE, "one action has {:.0%} where the parent chose another one (bound {:.0%})"),
    }
    always = ("kl", "topActionShare")  # the others need a parent
    measured = {name: float(metrics[name]) for name in bounds if name in metrics}
    if not measured:
        return not_measured(f"the backend {finished.batch.backend} tells neither KL nor the shares of actions.")
    # Not `value > bound`: a value that is no number is beyond every bound.
    beyond = [name for name, value in measured.items() if not value <= bounds[name][0]]
    missing = [name for name in always if name not in measured]
    sentence = "; ".join(bounds[name][1].format(value, bounds[name][0]) for name, value in measured.items())
    unmeasured = f"; not measured: {', '.join(missing)}" if missing else ""
    # Within one bound with the other not measured is neither a pass nor an error.
    return CheckpointVerdict(not beyond and not missing, f"{sentence}{unmeasured}.", measured, tried=bool(beyond) or not missing)


def no_leakage(connection: Connection, finished: Finished, settings: Settings) -> CheckpointVerdict:
    """Convert the trained episodes again and check for leaks known by now.

    Each episode must give the same number of sequences as in the training, answer groups counted as one.
    """
    effective = batch_settings(finished.batch, settings)
    # Versions of the line when the batch was trained, newest first: they define staleness.
    made = None if finished.model is None else finished.model.created_at
    models = [model for model in read_models(connection) if not model.foreign and model.base_model == finished.batch.base_model]
    line = [model.version for model in models if made is None or model.created_at < made]
    again = convert(connection, finished.episodes, effective, line, finished.batch.backend)
    fewer = [(e, (e.sequences or 0) - again.per_episode[e.window, e.agent_id]) for e in finished.episodes]
    short = [episode for episode, number in fewer if number > 0]
    read, missing = sum(again.per_episode.values()), sum(number for _, number in fewer if number > 0)
    leaked = min(missing, convert(connection, short, effective, line, finished.batch.backend).left_out.get(LEAK, 0)) if short else 0
    numbers = {"sequences": read, "missing": missing, "leaked": leaked}
    if leaked:
        sentence = (
            f"{leaked} sequences that trained hold what is known by now to be a leak, the first of {short[0].agent_id} in "
            f"{short[0].window}: see the check of hindsight on their hours."
        )
        return CheckpointVerdict(False, sentence, numbers)
    gone = f"; {missing} that trained are gone or have changed since" if missing else ""
    sentence = f"{read} sequences hold nothing of what became known after their hours{gone}."
    return CheckpointVerdict(read > 0, sentence if read else "No sequence of it can be read any more.", numbers)


def answers(connection: Connection, finished: Finished, settings: Settings) -> CheckpointVerdict:
    """Check that the checkpoint answers its first training prompt, loaded here or at its service."""
    model = finished.model
    if model is None or model.checkpoint is None:
        return CheckpointVerdict(False, f"{finished.batch.batch_id} has registered no checkpoint.")
    if model.base_model == DRY_BASE_MODEL:
        return not_measured(DRY_WORDS)
    if model.pruned_at is not None:
        return not_measured(f"{model.version} was pruned, and is not here to be loaded.")
    try:
        directory = checkpoint_of(model, settings)
        remote = read_remote(directory)
        if remote is not None:
            # Here it only holds the pointer and the tokenizer; the weights answer for themselves, at their service.
            verify(directory)
            address = address_of(settings, model.version, directory)
            if address.refusal:
                return not_measured(f"{model.version} lies at {remote.service}, and {address.refusal}")
            return _asked(connection, finished, model.version, address, settings)
        if finished.batch.backend != CPU:
            return not_measured(f"{model.base_model} is not loaded for a check; serve it and ask it by hand.")
        return _answer(connection, finished, model.version, directory, settings)
    except BabylonError as unusable:
        return CheckpointVerdict(False, f"{model.version} does not load and answer: {unusable}")


def _first_sequence(connection: Connection, finished: Finished, settings: Settings) -> TrainSequence | None:
    # One trajectory is enough for a question; the others would be read and converted for nothing.
    first = replace(finished.episodes[0], trajectory_ids=finished.episodes[0].trajectory_ids[:1])
    return next(iter(convert(connection, [first], batch_settings(finished.batch, settings)).sequences), None)


def _asked(connection: Connection, finished: Finished, version: str, address: ModelAddress, settings: Settings) -> CheckpointVerdict:
    sequence = _first_sequence(connection, finished, settings)
    connection.commit()  # no connection stays open while the service answers
    messages = [{"role": "user", "content": QUESTION}] if sequence is None else list(sequence.messages)
    answer_format = None if sequence is None else sequence.response_format
    with ChatClient(address.url, address.key, address.model, timeout_s=ANSWER_WITHIN_S, attempts=2, logprobs=False) as client:
        answer = client.complete_now(messages, response_format=answer_format, temperature=0.0, max_tokens=48)
    return CheckpointVerdict(bool(answer.text.strip()), f"{version} answered {answer.text[:120]!r} at {address.url}.")


def _answer(connection: Connection, finished: Finished, version: str, directory: Path, settings: Settings) -> CheckpointVerdict:
    require("torch", "transformers", "peft")
    from babylon_rl.models.policy import CompletionRequest, Policy

    base_dir = base_model_dir(settings)
    verify(directory, base_dir)
    sequence = _first_sequence(connection, finished, settings)
    policy = Policy.load(base_dir, directory, adapter_name=version)
    request = CompletionRequest([{"role": "user", "content": QUESTION}], temperature=0.0, max_tokens=16, adapter=version)
    if sequence is not None:
        recorded = replace(request, messages=list(sequence.messages), response_format=sequence.response_format, max_tokens=48)
        with suppress(UsageError):  # a prompt beyond this model's context, or a schema that is not finite: then the question does
            policy.row(recorded)
            request = recorded
    (completion,) = policy.complete([request])
    sound = bool(completion.token_ids) and all(math.isfinite(number) for number in completion.logprobs)
    return CheckpointVerdict(sound, f"{version} was loaded and answered {completion.text[:120]!r}.")
