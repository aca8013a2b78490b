"""Life cycle of a batch: frozen, judged, trained, then registered, failed or cancelled.

An error that another try would not cure fails the batch and frees its trajectories. A process that dies, or a lost database, leaves the
batch as it was, and the next run resumes.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from babylon_rl.errors import BatchConflict, JudgeUnavailable, NothingToTrain, NoTrainer, TrainingError, TrainingPaused
from babylon_rl.judge.answer_groups import sync_answer_groups, without_answers
from babylon_rl.judge.consensus import without_agents
from babylon_rl.judge.scoring import score_windows
from babylon_rl.models.checkpoint_store import check_storage, upload_base
from babylon_rl.settings import Settings
from babylon_rl.store.batches import (
    LIVE_STATES,
    REGISTRY_LOCK,
    Batch,
    BatchEpisode,
    Transition,
    advance_batch,
    claim_batch,
    end_failed,
    heartbeat,
    left_to_dropout,
    read_batch,
    read_batch_episodes,
    read_batches,
    write_contributions,
    write_judgements,
    write_preflight,
)
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.store.registry import Model, model_of_batch, parent_of_line, read_models, version_taken
from babylon_rl.store.write_ahead import TrainingStep, begun_in_line, finished_steps, read_jobs, read_steps
from babylon_rl.training.backends.protocol import ANSWER_BACKENDS, CPU, OnStep, Trainer, TrainPlan, choose_trainer, settings_for
from babylon_rl.training.conversion import (
    NO_SEQUENCE,
    NO_TOKEN,
    AnswersByCall,
    Conversion,
    answers_that_train,
    convert,
    keep_budget,
    preflight_document,
    refuse_empty,
    refuse_hopeless,
    refuse_untrainable,
)
from babylon_rl.training.freezing import describe_reasons
from babylon_rl.training.lifecycle import (
    ABANDON,
    ABANDONED_AFTER,
    CANCEL,
    GIVE_UP,
    JUDGE,
    PREPARE,
    PUBLISH,
    TRAIN,
    WORK,
    BatchRun,
    failing,
    plan_iterations,
    train_iterations,
)
from babylon_rl.training.publishing import find_published, finish_registration, parent_checkpoint, publish_and_register
from babylon_rl.types import NO_SPREAD, GroupScores
from babylon_rl.windows import clock_from

NO_SPREAD_REASON = "no spread of scores"
THIN_REASON = "its hour is no longer ready"
UNSCORED_REASON = "not scored"
QUARANTINED_REASON = "its hour is quarantined"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Judged batch: episodes still in it, with advantages; dropped groups with reasons, and answers that train, by window."""

    batch: Batch
    remaining: Sequence[BatchEpisode]
    dropped_groups: Mapping[str, str]
    answers: Mapping[str, AnswersByCall]


@dataclass(frozen=True, slots=True)
class Trained:
    """A completed batch: registered model, iterations in order, checkpoint directory."""

    batch: Batch
    model: Model
    steps: Sequence[TrainingStep]

    @property
    def checkpoint(self) -> Path:
        return Path(self.model.checkpoint or self.model.storage_path)


def batch_settings(batch: Batch, settings: Settings) -> Settings:
    """Overlay ``settings`` with those frozen in the batch: a resumed run ends as it began, on any machine."""
    # A batch from before CREDIT was frozen was judged, and perhaps trained in part, by the hour.
    return settings_for(batch.backend, settings.model_copy(update={"credit": "hour"} | dict(batch.settings)))


def required_batch(connection: Connection, batch_id: str) -> Batch:
    """Read a batch. Raises BatchConflict where there is none of ours."""
    batch = read_batch(connection, batch_id)
    if batch is None:
        raise BatchConflict(f"There is no batch {batch_id} of this pipeline; `babylon-rl batches` lists them.")
    return batch


def prepare_batch(connection: Connection, batch_id: str, settings: Settings, now: datetime) -> Prepared:
    """Judge the batch's windows without current scores, fix advantages, drop groups without spread.

    Safe to repeat: once the training has begun, what was fixed stays. ``connection`` is committed on the way.

    Raises:
        NothingToTrain: no group is left; the batch has failed with this message and its trajectories are free.
        BatchConflict: the batch ended, or another run has taken it over.
        JudgeError: hours wait for the judge, and the batch stays and says so until its next run; or it refuses everybody (a wrong
            key), and the batch has failed. What was judged is kept.
    """
    batch = required_batch(connection, batch_id)
    effective = batch_settings(batch, settings)
    if batch.state == "completed" or read_steps(connection, batch_id):
        return _prepared(connection, batch, effective)
    clock = clock_from(now)
    # From here on an earlier run of this batch matches no row any more: every write names its attempt, and its next heartbeat stops it.
    attempt = _claim(connection, batch_id, now)
    with failing(connection, batch_id, attempt, clock):
        with own_transaction(connection):
            advance_batch(connection, batch_id, attempt, PREPARE, clock())
            episodes = read_batch_episodes(connection, batch_id)
        with own_transaction(connection):
            advance_batch(connection, batch_id, attempt, JUDGE, clock())
        windows = sorted({episode.window for episode in episodes})
        # A batch that could train nothing fails before the judge is paid.
        refuse_hopeless(connection, batch, episodes, effective)
        scores = score_windows(connection, windows, effective, now, on_beat=lambda: heartbeat(connection, batch_id, attempt, clock()))
        if without_answers(effective) is None and batch.backend in ANSWER_BACKENDS:
            sync_answer_groups(connection, windows, effective, now, batch_id)
        # Below, an hour without scores leaves the batch as no longer ready. One that only waits for its judge must not be taken for that.
        for window, reason in scores.pending.items():
            raise JudgeUnavailable(
                f"{batch_id} waits: {len(scores.pending)} of its hours are not judged yet, the first {window}: {reason} "
                "What is judged is kept, and the next run goes on from there."
            )
        # Episodes removed by dropout do not count in their group's scores.
        dropped = left_to_dropout(connection, windows)
        groups = {window: without_agents(group, {agent for hour, agent in dropped if hour == window}) for window, group in scores.items()}
        answers, _ = answers_that_train(connection, [e for e in episodes if e.dropped is None], effective, batch.backend)
        flat = {window for window, group in groups.items() if _is_flat(group, answers.get(window), effective)}
        judged = [_judged(e, groups.get(e.window), e.window in flat, e.window in scores.quarantined) for e in episodes]
        # Advanced once more in the transaction of the judgements: a run that was taken over while the judge was asked writes none.
        with own_transaction(connection):
            advance_batch(connection, batch_id, attempt, JUDGE, clock())
            write_judgements(connection, batch_id, judged)
        prepared = _prepared(connection, required_batch(connection, batch_id), effective)
        # The judgements are committed by now, so a batch that fails here still shows why each of its episodes was left out.
        if not prepared.remaining:
            reasons = Counter(episode.dropped for episode in judged if episode.dropped is not None)
            raise NothingToTrain(
                f"Nothing of {batch_id} can be trained: {describe_reasons({f'episodes with {r}': n for r, n in reasons.items()})}. "
                "Its trajectories are free again; a group teaches only when its scores differ."
            )
    return prepared


def train_batch(
    connection: Connection,
    batch_id: str,
    settings: Settings,
    now: datetime,
    trainer: Trainer | None = None,
    on_step: OnStep = lambda metrics: None,
    on_preflight: Callable[[Batch], None] = lambda batch: None,
) -> Trained:
    """Train a prepared batch, publish its checkpoint and register it; resume an interrupted run.

    ``trainer`` None makes the one that the batch's frozen settings choose. ``on_preflight`` is called with the batch once its pre-flight is
    on record, before anything is trained, posted or paid.

    Raises:
        TrainingError: the batch is not prepared, or the training failed (then so has the batch).
        NoTrainer: the settings choose none, or not the backend that it was frozen for; the batch waits.
        TrainingPaused: another training of its line has begun, or a service does not answer; the batch goes on with its next run.
        BatchConflict: the batch ended, or another run has taken it over.
    """
    batch = required_batch(connection, batch_id)
    model = model_of_batch(connection, batch_id)
    if model is not None:
        return Trained(batch, model, list(finished_steps(connection, batch_id).values()))
    episodes = read_batch_episodes(connection, batch_id)
    if batch.live and any(episode.score is None and episode.dropped is None for episode in episodes):
        raise TrainingError(f"{batch_id} is {batch.state}: its groups are judged first (asset training_batch).")
    effective = batch_settings(batch, settings)
    attempt = _claim(connection, batch_id, now)
    # Until it was claimed, the run before this one may have given it a parent or another number.
    batch = required_batch(connection, batch_id)
    checkpoints, clock = settings.home / "checkpoints", clock_from(now)
    with failing(connection, batch_id, attempt, clock, checkpoints / WORK / batch_id):
        trainer = trainer or choose_trainer(effective)
        if (trainer.name, trainer.base_model) != (batch.backend, batch.base_model):
            raise NoTrainer(
                f"{batch_id} was frozen for the backend {batch.backend} and the line of {batch.base_model}, and the settings choose "
                f"{trainer.name} and {trainer.base_model}. Set them back, or cancel the batch."
            )
        limit_s = math.inf if trainer.service is not None else settings.training_time_limit_hours * 3600
        run = BatchRun(connection, batch, attempt, trainer, checkpoints, clock, limit_s)
        prepared = _prepared(connection, batch, effective)
        model = _train(run, prepared, effective, on_step, on_preflight, bool(read_steps(connection, batch_id)))
    return Trained(required_batch(connection, batch_id), model, list(finished_steps(connection, batch_id).values()))


def _train(
    run: BatchRun, prepared: Prepared, settings: Settings, on_step: OnStep, on_preflight: Callable[[Batch], None], begun: bool
) -> Model:
    """Train and register a claimed batch, in phases; after each, the database holds:

    1. published before: the registered version of a checkpoint that an earlier run published, and the completed batch;
    2. ``_enter_the_line``: the batch as `training`, the only one of its line;
    3. ``check_storage``, then parent, sequences and the hours of each iteration: what it held;
    4. ``_record_preflight``: parent, pre-flight, contributions, and episodes without a token as dropped;
    5. refusals: what it held; there is something to train, and the money for it;
    6. ``train_iterations``: each iteration as a finished step, committed one by one;
    7. ``publish_and_register``: the registered version, the completed batch, its trajectories as used.

    ``begun``: a start on record may have trained and posted, so that parent, hours and counts stay as they were written.
    """
    batch_id = run.batch.batch_id
    published = find_published(run, settings)
    # Where another producer took the number meanwhile, nothing is trained again below, and the next number is published.
    if published is not None and not version_taken(run.connection, run.batch.version):
        with own_transaction(run.connection):
            advance_batch(run.connection, batch_id, run.attempt, PUBLISH, run.clock())
        return finish_registration(run, prepared.remaining, published, settings)
    _enter_the_line(run, begun)
    if not begun:  # once something is trained, and perhaps paid, a place that is down fails nothing
        check_storage(settings, batch_id)
        if run.batch.backend == CPU and (base := run.trainer.tokenizer_dir()) is not None:
            upload_base(base, settings, run.beat)
    models = read_models(run.connection)
    if begun:  # it keeps its parent, though a newer version may have been registered since
        parent = next((m for m in models if m.version == run.batch.parent_version and not m.foreign), None)
    else:
        parent = parent_of_line(run.connection, run.batch.base_model, promoted=settings.auto_promote)
    line = [m.version for m in models if not m.foreign and m.base_model == run.batch.base_model]
    conversion = convert(run.connection, prepared.remaining, settings, line, run.batch.backend)
    directory = None if parent is None else parent_checkpoint(parent, settings, run.trainer.base_identity())
    plan = run.trainer.prepare(run.context(), conversion.sequences)
    # What trains is fixed before the first iteration: what has lost its calls since may have trained, and is used with the rest.
    trained = [episode.window for episode in prepared.remaining] if begun else filter(plan.trains, conversion.by_window)
    iterations = plan_iterations(sorted(set(trained)), settings, run.batch.seed, run.batch.passes or 1)
    parent_version, generation = None if parent is None else parent.version, generation_from(parent, models)
    episodes = prepared.remaining if begun else _record_preflight(run, prepared, conversion, plan, iterations, parent_version)
    on_preflight(required_batch(run.connection, batch_id))
    if not begun:
        refuse_empty(conversion, batch_id)
        refuse_untrainable(plan, batch_id)
    # On resumed runs too: limit and price are not frozen with the batch.
    keep_budget(batch_id, settings, plan, iterations, read_jobs(run.connection, batch_id))
    steps = train_iterations(run, conversion, iterations, directory, generation, on_step)
    return publish_and_register(run, episodes, steps, parent_version, settings, conversion, generation)


def _enter_the_line(run: BatchRun, begun: bool) -> None:
    """Make the batch `training`, the only one of its line; the others wait for it."""
    batch = run.batch
    with own_transaction(run.connection):
        if not begun:
            # Held until the state is written that other batches of the line look for, so that no two of them begin.
            run.connection.take_lock(REGISTRY_LOCK)
            if (other := begun_in_line(run.connection, batch.base_model, batch.batch_id)) is not None:
                raise TrainingPaused(
                    f"{batch.batch_id} waits for {other}, whose training has begun: both are of the line of {batch.base_model}, and each "
                    f"version continues from the one before. Finish it with `babylon-rl train --batch {other}`, or give it up with "
                    f"`babylon-rl batches cancel {other} --reason ...`; then `babylon-rl train --batch {batch.batch_id}` goes on."
                )
        advance_batch(run.connection, batch.batch_id, run.attempt, TRAIN, run.clock())


def generation_from(parent: Model | None, models: Sequence[Model]) -> int:
    """Generation of a version that continues from ``parent``: 1 from the base, else one more than the parent's."""
    parents = {model.version: model.parent_version for model in models if not model.foreign}
    generation, version = 1, None if parent is None else parent.version
    while version is not None:
        generation, version = generation + 1, parents.get(version)
    return generation


def _record_preflight(
    run: BatchRun, prepared: Prepared, conversion: Conversion, plan: TrainPlan, iterations: Sequence[Sequence[str]], parent: str | None
) -> list[BatchEpisode]:
    """Write parent, pre-flight, contributions, and episodes without a token as dropped; return those that train."""
    batch_id = run.batch.batch_id
    # A backend that counts while it trains names no trajectories: all that became a sequence then count as trained.
    trained = {s.trajectory_id for s in conversion.sequences} if plan.trajectories is None else plan.trajectories
    counted = []
    for episode in prepared.remaining:
        number = conversion.per_episode[episode.window, episode.agent_id]
        trains = episode.window in conversion.by_window and plan.trains(episode.window)
        # Without an answer in an hour of answer groups an episode stays, as baseline.
        stays = trains and (number or episode.window in conversion.replayed)
        dropped = None if stays else NO_TOKEN if number else NO_SEQUENCE
        trained_ids = [trajectory_id for trajectory_id in episode.trajectory_ids if trajectory_id in trained]
        counted.append(replace(episode, sequences=number, dropped=dropped, trained_ids=trained_ids))
    # Groups that left when they were judged; preflight_document adds those of which nothing trains.
    left = Counter(prepared.dropped_groups.values())
    with own_transaction(run.connection):
        advance_batch(run.connection, batch_id, run.attempt, TRAIN, run.clock())
        write_judgements(run.connection, batch_id, counted)
        write_contributions(run.connection, batch_id, trained)
        write_preflight(run.connection, batch_id, preflight_document(conversion, counted, left, plan, iterations), parent)
    return [episode for episode in counted if episode.dropped is None]


def _is_flat(group: GroupScores, answers: AnswersByCall | None, settings: Settings) -> bool:
    """Whether what trains of an hour has no advantage, as store/freezing.py counts."""
    if answers is not None:
        return not any(max(scores) - min(scores) > NO_SPREAD for own in answers.values() for scores in [[score for *_, score in own]])
    return not group.has_spread if settings.by_part else group.spread < NO_SPREAD


def _judged(episode: BatchEpisode, scores: GroupScores | None, flat: bool, quarantined: bool) -> BatchEpisode:
    if episode.dropped is not None:
        return episode  # its trajectories are free, and perhaps another batch's
    own = None if scores is None else next((score for score in scores.scores if score.agent_id == episode.agent_id), None)
    if scores is None or own is None:
        absent = UNSCORED_REASON if scores is not None else QUARANTINED_REASON if quarantined else THIN_REASON
        return replace(episode, score=None, rank=None, advantage=None, dropped=absent)
    reason = NO_SPREAD_REASON if flat else None
    parts = [part for part in scores.parts if part.agent_id == episode.agent_id]
    return replace(episode, score=own.score, rank=own.rank, advantage=own.advantage, dropped=reason, parts=parts)


def _prepared(connection: Connection, batch: Batch, settings: Settings) -> Prepared:
    episodes = read_batch_episodes(connection, batch.batch_id)
    remaining = [episode for episode in episodes if episode.dropped is None]
    windows = {episode.window for episode in remaining}
    dropped = {e.window: e.dropped for e in episodes if e.dropped is not None and e.window not in windows}
    return Prepared(batch, remaining, dropped, answers_that_train(connection, remaining, settings, batch.backend)[0])


def cancel_batch(connection: Connection, batch_id: str, reason: str, now: datetime) -> Batch:
    """Fail a live batch with ``Cancelled: <reason>``; its run stops at its next heartbeat. Raises BatchConflict as ``fail_batch``."""
    return fail_batch(connection, batch_id, f"Cancelled: {reason}", now, CANCEL)


def fail_batch(connection: Connection, batch_id: str, error: str, now: datetime, transition: Transition = GIVE_UP) -> Batch:
    """Fail a live batch and free its trajectories. Raises BatchConflict: there is no such batch of ours, or it has ended."""
    with own_transaction(connection):
        ended = end_failed(connection, batch_id, transition, error, now)
    batch = required_batch(connection, batch_id)
    if not ended:
        raise BatchConflict(f"{batch_id} is {batch.state} already.")
    return batch


def fail_stuck(connection: Connection, now: datetime) -> None:
    """Fail started batches without a heartbeat for 7 days, and free their trajectories.

    Whether a run is alive is not checked: the batch of a dead run is resumed by the next.
    """
    for batch in read_batches(connection, LIVE_STATES):
        if batch.state in ABANDON.sources and now - batch.heartbeat_at > ABANDONED_AFTER:
            error = f"Stuck: no heartbeat since {batch.heartbeat_at:%Y-%m-%d %H:%M} UTC."
            with own_transaction(connection):
                end_failed(connection, batch.batch_id, ABANDON, error, now, batch.attempt)  # not if a run has just taken it up


def pending_batches(connection: Connection) -> list[Batch]:
    """List live batches, oldest first; each is run until it has ended."""
    return read_batches(connection, LIVE_STATES)[::-1]


def _claim(connection: Connection, batch_id: str, now: datetime) -> int:
    with own_transaction(connection):
        attempt = claim_batch(connection, batch_id, now)
    if attempt is None:
        batch = required_batch(connection, batch_id)
        why = f" ({batch.error})" if batch.error else ""
        raise BatchConflict(f"{batch_id} is {batch.state}{why}; freeze a new batch with `babylon-rl train`.")
    return attempt
