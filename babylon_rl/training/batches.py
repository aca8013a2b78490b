"""Life cycle of a batch: frozen, judged, trained, then registered, failed or cancelled.

An error that another try would not cure fails the batch and frees its trajectories. A process that dies, or a lost database, leaves the
batch as it was, and the next run resumes.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from babylon_rl.errors import BatchConflict, JudgeUnavailable, NothingToTrain, NoTrainer, TrainingError, TrainingPaused
from babylon_rl.judge.answer_groups import sync_answer_groups, without_answers
from babylon_rl.judge.consensus import ScoringResult, without_agents
from babylon_rl.judge.scoring import score_windows
from babylon_rl.models.checkpoint_store import check_storage, upload_base
from babylon_rl.settings import Settings
from babylon_rl.store.batches import (
    LIVE_STATES,
    Batch,
    BatchEpisode,
    Transition,
    advance_batch,
    claim_batch,
    end_failed,
    heartbeat,
    left_to_dropout,
    lock_registry,
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
    BatchRun,
    failing,
    passes_within,
    plan_iterations,
    train_iterations,
    work_dir,
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
    """Judged batch: episodes with scores and advantages; dropped groups with reasons, and answers that train, by window."""

    batch: Batch
    episodes: Sequence[BatchEpisode]
    dropped_groups: Mapping[str, str]
    answers: Mapping[str, AnswersByCall]

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
    # Once training has begun, the judgements are fixed.
    batch = required_batch(connection, batch_id)
    if batch.state == "completed" or read_steps(connection, batch_id):
        return _prepared(connection, batch, batch_settings(batch, settings))
    effective = batch_settings(batch, settings)
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
        _refuse_pending(batch_id, scores)
        # Episodes removed by dropout do not count in their group's scores.
        dropped = left_to_dropout(connection, windows)
        groups = {window: without_agents(group, {agent for hour, agent in dropped if hour == window}) for window, group in scores.items()}
        answers = _answers(connection, batch, episodes, effective)
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
    episodes = read_batch_episodes(connection, batch_id)
    if batch.live and any(episode.score is None and episode.dropped is None for episode in episodes):
        raise TrainingError(f"{batch_id} is {batch.state}: its groups are judged first (asset training_batch).")
    effective = batch_settings(batch, settings)
    attempt = _claim(connection, batch_id, now)
    # Until it was claimed, the run before this one may have given it a parent or another number.
    batch = required_batch(connection, batch_id)
    checkpoints, clock = settings.home / "checkpoints", clock_from(now)
    with failing(connection, batch_id, attempt, clock, work_dir(checkpoints, batch_id)):
        # A batch trains only with the backend and base that it was frozen for.
        trainer = trainer or choose_trainer(effective)
        if (trainer.name, trainer.base_model) != (batch.backend, batch.base_model):
            raise NoTrainer(
                f"{batch_id} was frozen for the backend {batch.backend} and the line of {batch.base_model}, and the settings choose "
                f"{trainer.name} and {trainer.base_model}. Set them back, or cancel the batch."
            )
        limit_s = math.inf if trainer.service is not None else settings.training_time_limit_hours * 3600
        run = BatchRun(connection, batch, attempt, trainer, checkpoints, clock, limit_s)
        prepared = _prepared(connection, batch, effective)
        training = _Training(run, effective, on_step, on_preflight, prepared, bool(read_steps(connection, batch_id)))
        model = training.run_phases()
    return Trained(required_batch(connection, batch_id), model, list(finished_steps(connection, batch_id).values()))


@dataclass
class _Training:
    """One run of a training: the state that its phases hand on, which the database does not hold.

    ``begun``: a start on record may have trained and posted, so that parent, hours and counts stay as they were written.
    """

    run: BatchRun
    settings: Settings
    on_step: OnStep
    on_preflight: Callable[[Batch], None]
    prepared: Prepared
    begun: bool
    parent: Model | None = None
    generation: int = 1
    directory: Path | None = None
    conversion: Conversion = field(init=False)
    train_plan: TrainPlan = field(init=False)
    plan: Sequence[Sequence[str]] = ()
    episodes: Sequence[BatchEpisode] = ()
    steps: Sequence[TrainingStep] = ()

    def run_phases(self) -> Model:
        """Run the phases in order until one has registered the version."""
        for phase in _PHASES:
            model = phase(self)
            if model is not None:
                return model
        raise TrainingError(f"{self.run.batch.batch_id} was trained and has registered no version.")

    @property
    def parent_version(self) -> str | None:
        return None if self.parent is None else self.parent.version


def _register_published(this: _Training) -> Model | None:
    """Then: the checkpoint that an earlier run published is registered; without one nothing has changed."""
    published, run = find_published(this.run, this.settings), this.run
    # Where another producer took the number meanwhile, nothing is trained again below, and the next number is published.
    if published is None or version_taken(run.connection, run.batch.version):
        return None
    with own_transaction(run.connection):
        advance_batch(run.connection, run.batch.batch_id, run.attempt, PUBLISH, run.clock())
    return finish_registration(run, this.prepared.remaining, published, this.settings)


def _enter_the_line(this: _Training) -> None:
    """Then: the batch is `training`, the only one of its line; the others wait for it."""
    run, batch = this.run, this.run.batch
    with own_transaction(run.connection):
        if not this.begun:
            # Held until the state is written that other batches of the line look for, so that no two of them begin.
            lock_registry(run.connection)
            if (other := begun_in_line(run.connection, batch.base_model, batch.batch_id)) is not None:
                raise TrainingPaused(
                    f"{batch.batch_id} waits for {other}, whose training has begun: both are of the line of {batch.base_model}, and each "
                    f"version continues from the one before. Finish it with `babylon-rl train --batch {other}`, or give it up with "
                    f"`babylon-rl batches cancel {other} --reason ...`; then `babylon-rl train --batch {batch.batch_id}` goes on."
                )
        advance_batch(run.connection, batch.batch_id, run.attempt, TRAIN, run.clock())


def _check_places(this: _Training) -> None:
    """Then: nothing has changed; MODEL_STORAGE_URL takes files, and has the base of a CPU line."""
    if this.begun:  # once something is trained, and perhaps paid, a place that is down fails nothing
        return
    check_storage(this.settings, this.run.batch.batch_id)
    if this.run.batch.backend == CPU and (base := this.run.trainer.tokenizer_dir()) is not None:
        upload_base(base, this.settings, this.run.beat)


def _plan(this: _Training) -> None:
    """Then: nothing has changed; parent, sequences and the hours of each iteration are known."""
    run, settings = this.run, this.settings
    models = read_models(run.connection)
    if this.begun:  # it keeps its parent, though a newer version may have been registered since
        this.parent = next((m for m in models if m.version == run.batch.parent_version and not m.foreign), None)
    else:
        this.parent = parent_of_line(run.connection, run.batch.base_model, promoted=settings.auto_promote)
    this.generation = generation_from(this.parent, models)
    line = [m.version for m in models if not m.foreign and m.base_model == run.batch.base_model]
    this.conversion = convert(run.connection, this.prepared.remaining, settings, line, run.batch.backend)
    this.directory = None if this.parent is None else parent_checkpoint(this.parent, settings, run.trainer.base_identity())
    this.train_plan = run.trainer.prepare(run.context(), this.conversion.sequences)
    # What trains is fixed before the first iteration: what has lost its calls since may have trained, and is used with the rest.
    windows = (
        {episode.window for episode in this.prepared.remaining}
        if this.begun
        else {window for window in this.conversion.by_window if this.train_plan.trains(window)}
    )
    this.plan = plan_iterations(sorted(windows), settings, run.batch.seed, run.batch.passes) if windows else []
    this.episodes = this.prepared.remaining


def generation_from(parent: Model | None, models: Sequence[Model]) -> int:
    """Generation of a version that continues from ``parent``: 1 from the base, else one more than the parent's."""
    parents = {model.version: model.parent_version for model in models if not model.foreign}
    generation, version = 1, None if parent is None else parent.version
    while version is not None:
        generation, version = generation + 1, parents.get(version)
    return generation


def _record_preflight(this: _Training) -> None:
    """Then: parent, pre-flight, contributions, and episodes without a token dropped, in one transaction."""
    run, conversion, train_plan = this.run, this.conversion, this.train_plan
    if not this.begun:
        # A backend that counts while it trains names no trajectories: all that became a sequence then count as trained.
        trained = {s.trajectory_id for s in conversion.sequences} if train_plan.trajectories is None else train_plan.trajectories
        counted = [
            replace(
                episode,
                sequences=number,
                dropped=_untrained(this, episode, number),
                trained_ids=[trajectory_id for trajectory_id in episode.trajectory_ids if trajectory_id in trained],
            )
            for episode in this.prepared.remaining
            for number in [conversion.per_episode[episode.window, episode.agent_id]]
        ]
        # Groups that left when they were judged; preflight_document adds those of which nothing trains.
        left = Counter(this.prepared.dropped_groups.values())
        with own_transaction(run.connection):
            advance_batch(run.connection, run.batch.batch_id, run.attempt, TRAIN, run.clock())
            write_judgements(run.connection, run.batch.batch_id, counted)
            write_contributions(run.connection, run.batch.batch_id, trained)
            document = preflight_document(conversion, counted, left, train_plan, _passed(run.batch, this.plan))
            write_preflight(run.connection, run.batch.batch_id, document, this.parent_version)
        this.episodes = [episode for episode in counted if episode.dropped is None]
    this.on_preflight(required_batch(run.connection, run.batch.batch_id))


def _untrained(this: _Training, episode: BatchEpisode, sequences: int) -> str | None:
    """Reason why an episode leaves the batch. Without an answer in an hour of answer groups it stays, as baseline."""
    trains = episode.window in this.conversion.by_window and this.train_plan.trains(episode.window)
    if not sequences:
        return None if trains and episode.window in this.conversion.replayed else NO_SEQUENCE
    return None if trains else NO_TOKEN


def _refuse(this: _Training) -> None:
    """Then: nothing has changed; there is something to train, and the money for it."""
    run, batch_id = this.run, this.run.batch.batch_id
    if not this.begun:
        refuse_empty(this.conversion, batch_id)
        refuse_untrainable(this.train_plan, batch_id)
    # On resumed runs too: limit and price are not frozen with the batch.
    keep_budget(batch_id, this.settings, this.train_plan, _passed(run.batch, this.plan), read_jobs(run.connection, batch_id))


def _train(this: _Training) -> None:
    """Then: every iteration is a finished step, committed one by one."""
    this.steps = train_iterations(this.run, this.conversion, this.plan, this.directory, this.generation, this.on_step)


def _publish(this: _Training) -> Model:
    """Then: the version is registered, the batch completed, its trajectories used."""
    trained_on = this.conversion, this.generation
    return publish_and_register(this.run, this.episodes, this.steps, this.parent_version, this.settings, *trained_on)


_PHASES: tuple[Callable[[_Training], Model | None], ...] = (
    _register_published, _enter_the_line, _check_places, _plan, _record_preflight, _refuse, _train, _publish,
)  # fmt: skip


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


def _is_flat(group: GroupScores, answers: AnswersByCall | None, settings: Settings) -> bool:
    """Whether what trains of an hour has no advantage, as store/freezing.py counts."""
    if answers is not None:
        return not any(max(scores) - min(scores) > NO_SPREAD for own in answers.values() for scores in [[score for *_, score in own]])
    return not group.has_spread if settings.by_part else group.spread < NO_SPREAD


def _judged(episode: BatchEpisode, scores: GroupScores | None, flat: bool, quarantined: bool) -> BatchEpisode:
    if episode.dropped is not None:
        return episode  # its trajectories are free, and perhaps another batch's
    if scores is None:
        absent = QUARANTINED_REASON if quarantined else THIN_REASON
        return replace(episode, score=None, rank=None, advantage=None, dropped=absent)
    own = next((score for score in scores.scores if score.agent_id == episode.agent_id), None)
    if own is None:
        return replace(episode, score=None, rank=None, advantage=None, dropped=UNSCORED_REASON)
    reason = NO_SPREAD_REASON if flat else None
    parts = [part for part in scores.parts if part.agent_id == episode.agent_id]
    return replace(episode, score=own.score, rank=own.rank, advantage=own.advantage, dropped=reason, parts=parts)


def _answers(connection: Connection, batch: Batch, episodes: Sequence[BatchEpisode], settings: Settings) -> Mapping[str, AnswersByCall]:
    in_window: dict[str, list[BatchEpisode]] = {}
    for episode in episodes:
        if episode.dropped is None:
            in_window.setdefault(episode.window, []).append(episode)
    return answers_that_train(connection, in_window, settings, batch.backend)[0]


def _prepared(connection: Connection, batch: Batch, settings: Settings) -> Prepared:
    episodes = read_batch_episodes(connection, batch.batch_id)
    remaining = {episode.window for episode in episodes if episode.dropped is None}
    dropped = {e.window: e.dropped for e in episodes if e.dropped is not None and e.window not in remaining}
    return Prepared(batch, episodes, dropped, _answers(connection, batch, episodes, settings))


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
