"""Life cycle of a batch: frozen, judged, trained, then registered, failed or cancelled.

An error that another try would not cure fails the batch and frees its trajectories. A process that dies, or a lost database, leaves the
batch as it was, and the next run resumes.
"""

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from babylon_rl.errors import (
    BabylonError,
    BatchConflict,
    JudgeUnavailable,
    NothingToTrain,
    NoTrainer,
    TrainingError,
    TrainingPaused,
)
from babylon_rl.judge.groups import ScoringResult, without_agents
from babylon_rl.judge.scoring import score_windows
from babylon_rl.models.checkpoint_store import check_storage, upload_base
from babylon_rl.settings import ServingSettings, Settings
from babylon_rl.store.batches import (
    LIVE_STATES,
    Batch,
    BatchEpisode,
    Transition,
    advance_batch,
    claim_batch,
    end_failed,
    heartbeat,
    lock_registry,
    note_waiting,
    read_batch,
    read_batch_episodes,
    read_batches,
    write_contributions,
    write_judgements,
    write_preflight,
)
from babylon_rl.store.connection import Connection, own_transaction
from babylon_rl.store.freezing import left_to_dropout
from babylon_rl.store.registry import Model, model_of_batch, parent_of_line, read_models, version_taken
from babylon_rl.store.write_ahead import TrainingStep, begun_in_line, finished_steps, pause_step, read_jobs, read_steps
from babylon_rl.training.backends import choose_trainer, settings_for
from babylon_rl.training.backends.protocol import CPU, OnStep, Trainer, TrainPlan
from babylon_rl.training.conversion import NO_SEQUENCE, NO_TOKEN, Conversion, convert, refuse_empty
from babylon_rl.training.eligibility import describe_reasons
from babylon_rl.training.iterations import BatchRun, passes_within, plan_iterations, train_iterations, work_dir
from babylon_rl.training.lifecycle import (
    ABANDON,
    ABANDONED_AFTER,
    CANCEL,
    FAIL,
    GIVE_UP,
    JUDGE,
    PREPARE,
    PUBLISH,
    TRAIN,
    FailureEffect,
    failure_rule,
)
from babylon_rl.training.preflight import keep_budget, preflight_document, refuse_hopeless, refuse_untrainable
from babylon_rl.training.publishing import find_published, finish_registration, parent_checkpoint, publish_and_register
from babylon_rl.types import GroupScores
from babylon_rl.windows import clock_from

KEPT_WORDS = "What is finished is kept: make room, or mend what is in the way, then `babylon-rl train` goes on there."
PAID_WORDS = "What was posted is kept: {} goes on with its next run, `babylon-rl train`, or can be cancelled."
NO_SPREAD_REASON = "no spread of scores"
THIN_REASON = "its hour is no longer ready"
UNSCORED_REASON = "not scored"
QUARANTINED_REASON = "its hour is quarantined"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Judged batch: episodes with scores and advantages; dropped groups with reasons, by window."""

    batch: Batch
    episodes: Sequence[BatchEpisode]
    dropped_groups: Mapping[str, str]

    @property
    def remaining(self) -> list[BatchEpisode]:
        """Episodes that train."""
        return [episode for episode in self.episodes if episode.dropped is None]


@dataclass(frozen=True, slots=True)
class Trained:
    """A completed batch: registered model, iterations in order, checkpoint directory."""

    batch: Batch
    model: Model
    steps: Sequence[TrainingStep]

    @property
    def checkpoint(self) -> Path:
        """Published adapter directory."""
        return Path(self.model.checkpoint or self.model.storage_path)


def batch_settings(batch: Batch, settings: Settings) -> Settings:
    """Overlay ``settings`` with those frozen in the batch: a resumed run ends as it began, on any machine."""
    return settings_for(batch.backend, settings.model_copy(update=dict(batch.settings)))


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
    # Once training has begun, the judgements are fixed.
    batch = required_batch(connection, batch_id)
    if batch.state == "completed" or read_steps(connection, batch_id):
        return _prepared(connection, batch)
    effective = batch_settings(batch, settings)
    clock = clock_from(now)
    # From here on an earlier run of this batch matches no row any more: every write names its attempt, and its next heartbeat stops it.
    attempt = _claim(connection, batch_id, now)
    with _failing(connection, batch_id, attempt, clock):
        with own_transaction(connection):
            advance_batch(connection, batch_id, attempt, PREPARE, clock())
            episodes = read_batch_episodes(connection, batch_id)
        with own_transaction(connection):
            advance_batch(connection, batch_id, attempt, JUDGE, clock())
        windows = sorted({episode.window for episode in episodes})
        # A batch that could train nothing fails before the judge is paid.
        refuse_hopeless(connection, batch, episodes, effective)
        scores = score_windows(connection, windows, effective, now, on_beat=lambda: heartbeat(connection, batch_id, attempt, clock()))
        # Below, an hour without scores leaves the batch as no longer ready. One that only waits for its judge must not be taken for that.
        _refuse_pending(batch_id, scores)
        # Episodes removed by dropout do not count in their group's scores.
        dropped = left_to_dropout(connection, windows)
        groups = {window: without_agents(group, {agent for hour, agent in dropped if hour == window}) for window, group in scores.items()}
        judged = [_judged(episode, groups.get(episode.window), episode.window in scores.quarantined) for episode in episodes]
        # Advanced once more in the transaction of the judgements: a run that was taken over while the judge was asked writes none.
        with own_transaction(connection):
            advance_batch(connection, batch_id, attempt, JUDGE, clock())
            write_judgements(connection, batch_id, judged)
        prepared = _prepared(connection, required_batch(connection, batch_id))
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

    Args:
        trainer: the backend; None makes the one that the batch's frozen settings choose.
        on_step: called after every optimizer step.
        on_preflight: called with the batch once its pre-flight is on record, before anything is trained, posted or paid.

    Raises:
        TrainingError: the batch is not prepared, or the training failed (then so has the batch).
        NoTrainer: the settings choose none, or not the backend that it was frozen for; the batch waits.
        TrainingPaused: another training of its line has begun, or a service does not answer; the batch goes on with its next run.
        BatchConflict: the batch ended, or another run has taken it over.
    """
    batch = required_batch(connection, batch_id)
    # A batch with a registered model is complete: return it unchanged.
    model = model_of_batch(connection, batch_id)
    if model is not None:
        return Trained(batch, model, list(finished_steps(connection, batch_id).values()))
    if batch.live and any(episode.score is None for episode in _prepared(connection, batch).remaining):
        raise TrainingError(f"{batch_id} is {batch.state}: its groups are judged first (asset training_batch).")
    effective = batch_settings(batch, settings)
    attempt = _claim(connection, batch_id, now)
    # Until it was claimed, the run before this one may have given it a parent or another number.
    batch = required_batch(connection, batch_id)
    checkpoints, clock = settings.home / "checkpoints", clock_from(now)
    with _failing(connection, batch_id, attempt, clock, work_dir(checkpoints, batch_id)):
        # A batch trains only with the backend and base that it was frozen for.
        trainer = trainer or choose_trainer(effective)
        if (trainer.name, trainer.base_model) != (batch.backend, batch.base_model):
            raise NoTrainer(
                f"{batch_id} was frozen for the backend {batch.backend} and the line of {batch.base_model}, and the settings choose "
                f"{trainer.name} and {trainer.base_model}. Set them back, or cancel the batch."
            )
        limit_s = math.inf if trainer.service is not None else settings.training_time_limit_hours * 3600
        run = BatchRun(connection, batch, attempt, trainer, checkpoints, clock, limit_s)
        model = _resume_or_train(run, effective, on_step, on_preflight)
    return Trained(required_batch(connection, batch_id), model, list(finished_steps(connection, batch_id).values()))


def _resume_or_train(run: BatchRun, settings: Settings, on_step: OnStep, on_preflight: Callable[[Batch], None]) -> Model:
    batch_id = run.batch.batch_id
    prepared = _prepared(run.connection, run.batch)
    # A run that died after publishing only lacks the registration.
    published = find_published(run, settings)
    # Where another producer took the number meanwhile, the way goes on below: nothing is trained again, and the next number is published.
    if published is not None and not version_taken(run.connection, run.batch.version):
        with own_transaction(run.connection):
            advance_batch(run.connection, batch_id, run.attempt, PUBLISH, run.clock())
        return finish_registration(run, prepared.remaining, published, settings)
    # A start on record may have trained and posted: from the first on, parent, hours and counts stay as they were written.
    begun = bool(read_steps(run.connection, batch_id))
    # The registry lock orders batches of one line: the parent is chosen when a training begins.
    with own_transaction(run.connection):
        if not begun:
            lock_registry(run.connection)
            _wait_for_the_line(run)
        # Under the same lock: this state is what another batch of the line looks for, so that no two of them begin.
        advance_batch(run.connection, batch_id, run.attempt, TRAIN, run.clock())
    if not begun:  # once something is trained, and perhaps paid, a place that is down fails nothing
        check_storage(settings, batch_id)
        if run.batch.backend == CPU and (base := run.trainer.tokenizer_dir()) is not None:
            upload_base(base, settings, run.beat)
    # Parent, sequences and plan; the trainer counts what it can train of them.
    parent = _parent(run, settings)
    line = [m.version for m in read_models(run.connection) if not m.foreign and m.base_model == run.batch.base_model]
    conversion = convert(run.connection, prepared.remaining, settings, line)
    directory = None if parent is None else parent_checkpoint(parent, settings, run.trainer.base_identity())
    train_plan = run.trainer.prepare(run.context(), conversion.sequences)
    # What trains is fixed before the first iteration: what has lost its calls since may have trained, and is used with the rest.
    windows = (
        {episode.window for episode in prepared.remaining}
        if begun
        else {window for window in conversion.by_window if train_plan.trains(window)}
    )
    plan = plan_iterations(sorted(windows), settings, run.batch.seed, run.batch.passes) if windows else []
    episodes = prepared.remaining
    if not begun:
        episodes = _leave_empty(run, prepared, conversion, train_plan, plan, None if parent is None else parent.version)
    # Pre-flight is on record before any refusal, payment or training.
    on_preflight(required_batch(run.connection, batch_id))
    if not begun:
        refuse_empty(conversion, batch_id)
        refuse_untrainable(train_plan, batch_id)
    # On resumed runs too: limit and price are not frozen with the batch.
    keep_budget(batch_id, settings, train_plan, _passed(run.batch, plan), read_jobs(run.connection, batch_id))
    steps = train_iterations(run, conversion, plan, directory, on_step)
    return publish_and_register(run, episodes, steps, None if parent is None else parent.version, settings, conversion.sequences)


def _wait_for_the_line(run: BatchRun) -> None:
    """Allow one training per line at a time: every version continues from the newest one."""
    batch = run.batch
    other = begun_in_line(run.connection, batch.base_model, batch.batch_id)
    if other is not None:
        raise TrainingPaused(
            f"{batch.batch_id} waits for {other}, whose training has begun: both are of the line of {batch.base_model}, and each version "
            f"continues from the one before. Finish it with `babylon-rl train --batch {other}`, or give it up with `babylon-rl batches "
            f"cancel {other} --reason ...`; then `babylon-rl train --batch {batch.batch_id}` goes on."
        )


def _parent(run: BatchRun, settings: ServingSettings) -> Model | None:
    # A training that has begun keeps its parent, though a newer version may have been registered since.
    if not read_steps(run.connection, run.batch.batch_id):
        return parent_of_line(run.connection, run.batch.base_model, promoted=settings.auto_promote)
    return next((m for m in read_models(run.connection) if m.version == run.batch.parent_version and not m.foreign), None)


def _leave_empty(
    run: BatchRun, prepared: Prepared, conversion: Conversion, train_plan: TrainPlan, plan: Sequence[Sequence[str]], parent: str | None
) -> list[BatchEpisode]:
    """Return the episodes that train; those without a sequence or a trainable token leave."""
    counted = [
        replace(episode, sequences=number, dropped=NO_SEQUENCE if not number else None if train_plan.trains(episode.window) else NO_TOKEN)
        for episode in prepared.remaining
        for number in [conversion.per_episode[episode.window, episode.agent_id]]
    ]
    # Groups that left when they were judged; preflight_document adds those of which nothing trains.
    left = Counter(prepared.dropped_groups.values())
    # A backend that counts while it trains names no trajectories: all that became a sequence then count as trained.
    trained = {sequence.trajectory_id for sequence in conversion.sequences} if train_plan.trajectories is None else train_plan.trajectories
    counted = [
        replace(episode, trained_ids=[trajectory_id for trajectory_id in episode.trajectory_ids if trajectory_id in trained])
        for episode in counted
    ]
    # Judgements, contributions and pre-flight are written in one transaction.
    with own_transaction(run.connection):
        advance_batch(run.connection, run.batch.batch_id, run.attempt, TRAIN, run.clock())
        write_judgements(run.connection, run.batch.batch_id, counted)
        write_contributions(run.connection, run.batch.batch_id, trained)
        document = preflight_document(conversion, counted, left, train_plan, _passed(run.batch, plan))
        write_preflight(run.connection, run.batch.batch_id, document, parent)
    return [episode for episode in counted if episode.dropped is None]


def _passed(batch: Batch, plan: Sequence[Sequence[str]]) -> list[list[str]]:
    """Hours of each iteration, repeated for each of its passes."""
    return [list(windows) * passes_within(batch) for windows in plan]


def _refuse_pending(batch_id: str, scores: ScoringResult) -> None:
    if scores.pending:
        window, reason = next(iter(scores.pending.items()))
        raise JudgeUnavailable(
            f"{batch_id} waits: {len(scores.pending)} of its hours are not judged yet, the first {window}: {reason} "
            "What is judged is kept, and the next run goes on from there."
        )


def _judged(episode: BatchEpisode, scores: GroupScores | None, quarantined: bool) -> BatchEpisode:
    if episode.dropped is not None:
        return episode  # its trajectories are free, and perhaps another batch's
    if scores is None:
        absent = QUARANTINED_REASON if quarantined else THIN_REASON
        return replace(episode, score=None, rank=None, advantage=None, dropped=absent)
    own = next((score for score in scores.scores if score.agent_id == episode.agent_id), None)
    if own is None:
        return replace(episode, score=None, rank=None, advantage=None, dropped=UNSCORED_REASON)
    reason = None if scores.has_spread else NO_SPREAD_REASON
    return replace(episode, score=own.score, rank=own.rank, advantage=own.advantage, dropped=reason)


def _prepared(connection: Connection, batch: Batch) -> Prepared:
    episodes = read_batch_episodes(connection, batch.batch_id)
    remaining = {episode.window for episode in episodes if episode.dropped is None}
    dropped = {e.window: e.dropped for e in episodes if e.dropped is not None and e.window not in remaining}
    return Prepared(batch, episodes, dropped)


def cancel_batch(connection: Connection, batch_id: str, reason: str, now: datetime) -> Batch:
    """Fail a live batch with ``Cancelled: <reason>``; its run stops at its next heartbeat.

    Raises:
        BatchConflict: there is no such batch of ours, or it has ended.
    """
    return fail_batch(connection, batch_id, f"Cancelled: {reason}", now, CANCEL)


def fail_batch(connection: Connection, batch_id: str, error: str, now: datetime, transition: Transition = GIVE_UP) -> Batch:
    """Fail a live batch and free its trajectories.

    Raises:
        BatchConflict: there is no such batch of ours, or it has ended.
    """
    with own_transaction(connection):
        ended = end_failed(connection, batch_id, transition, error, now)
    batch = required_batch(connection, batch_id)
    if not ended:
        raise BatchConflict(f"{batch_id} is {batch.state} already.")
    return batch


def fail_stuck(connection: Connection, now: datetime) -> list[Batch]:
    """Fail started batches without a heartbeat for 7 days, and free their trajectories.

    Whether a run is alive is not checked: the batch of a dead run is resumed by the next.
    """
    failed = []
    for batch in read_batches(connection, LIVE_STATES):
        if batch.state in ABANDON.sources and now - batch.heartbeat_at > ABANDONED_AFTER:
            error = f"Stuck: no heartbeat since {batch.heartbeat_at:%Y-%m-%d %H:%M} UTC."
            with own_transaction(connection):
                ended = end_failed(connection, batch.batch_id, ABANDON, error, now, batch.attempt)  # not if a run has just taken it up
            if ended:
                failed.append(required_batch(connection, batch.batch_id))
    return failed


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


@contextmanager
def _failing(
    connection: Connection, batch_id: str, attempt: int, clock: Callable[[], datetime], work: Path | None = None
) -> Iterator[None]:
    """Do to the batch as the table of failures says, and raise the error on.

    An error with which a batch waits only because it is paid, or because a file cannot be written, becomes a TrainingPaused. ``work`` is
    removed once the batch has failed.
    """
    try:
        yield
    # Whatever the trainer's libraries raise: the table of failures names an effect for every class, and the error is raised on.
    except Exception as error:
        rule = failure_rule(error)
        effect = rule.effect
        # What is paid at a service would be lost with its batch, so it waits until what is in its way is mended.
        if effect != rule.when_paid and _is_paid(connection, batch_id):
            effect = rule.when_paid
        if effect is FailureEffect.FAILED:
            _end(connection, batch_id, str(error), clock(), attempt, work)
        elif effect is FailureEffect.WAITS:
            raised = _wait(connection, batch_id, attempt, _reason_to_wait(error, batch_id, paid=effect != rule.effect))
            if effect != rule.effect or not isinstance(error, BabylonError):
                raise raised from error
        raise


def _reason_to_wait(error: Exception, batch_id: str, *, paid: bool) -> str:
    if isinstance(error, OSError) and not isinstance(error, BabylonError):
        file = f" ({error.filename})" if error.filename else ""
        return f"{batch_id} could not be written: {error.strerror or error}{file}. {KEPT_WORDS}"
    return f"{error} {PAID_WORDS.format(batch_id)}" if paid else str(error)


def _wait(connection: Connection, batch_id: str, attempt: int, why: str) -> TrainingPaused:
    connection.rollback()
    with own_transaction(connection):
        note_waiting(connection, batch_id, attempt, why)
        pause_step(connection, batch_id, attempt)
    return TrainingPaused(why)


def _is_paid(connection: Connection, batch_id: str) -> bool:
    connection.rollback()
    states = {job.state for job in read_jobs(connection, batch_id)}
    connection.commit()
    # A lost post may have trained all the same. A job that failed or was given up lets its batch fail: nothing can go on from it.
    return bool(states & {"posting", "running", "trained", "lost"}) and not states & {"failed", "expired"}


def _end(connection: Connection, batch_id: str, error: str, now: datetime, attempt: int, work: Path | None) -> None:
    connection.rollback()
    with own_transaction(connection):
        ended = end_failed(connection, batch_id, FAIL, error, now, attempt)
    if ended and work is not None:
        shutil.rmtree(work, ignore_errors=True)
