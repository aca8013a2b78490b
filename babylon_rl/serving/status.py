"""The status document of the command `status`, the admin API and the admin page.

``status_document(connection, settings, now)`` is the whole interface; its shape is StatusDocument (status_shapes.py), to which fields are
added and from which none is taken. Nothing is asked over the network and nothing is changed: `verify-system` tries the judge.
"""

import os
import shutil
from collections.abc import Sequence
from datetime import datetime, timedelta

from babylon_rl.errors import NoTrainer
from babylon_rl.judge.prompt.templates import judge_version
from babylon_rl.models.base_model import is_converting
from babylon_rl.serving import status_shapes as shapes
from babylon_rl.settings import HEURISTIC, Settings
from babylon_rl.store.alerts import read_alerts
from babylon_rl.store.batches import Batch, last_completed_at, read_batches
from babylon_rl.store.benchmarks import read_reports
from babylon_rl.store.connection import Connection
from babylon_rl.store.freezing import FreezeBounds
from babylon_rl.store.judge_report import judge_agreements
from babylon_rl.store.judge_requests import spent_on
from babylon_rl.store.registry import Model, deployed_model, read_models
from babylon_rl.store.releases import ON_TRIAL, read_rollouts
from babylon_rl.store.scores import by_other_rules
from babylon_rl.store.training_status import JudgedState, arrivals, daemon_seen_at, judged_state, trajectory_stats
from babylon_rl.store.write_ahead import read_steps
from babylon_rl.training.backends.protocol import TRAINING_GB, trainer_choice
from babylon_rl.training.batches import pending_batches
from babylon_rl.training.conversion import refused_lately
from babylon_rl.training.freezing import freeze_bounds
from babylon_rl.training.lifecycle import fit_durations, iterations_of
from babylon_rl.training.readiness import readiness
from babylon_rl.training.tracking import refusal
from babylon_rl.types import BenchmarkReport
from babylon_rl.windows import HOUR, moment

JOBS_SHOWN, PAST_RUNS = 10, 30
DAEMON_SEEN_WITHIN = timedelta(minutes=5)
SILENT_TRAINER = timedelta(minutes=15)  # a run writes a heartbeat every 10 s


def status_document(connection: Connection, settings: Settings, now: datetime) -> shapes.StatusDocument:
    """Build the status of the whole system at ``now`` (naive UTC). Raises SchemaMismatch: the database is not migrated."""
    with connection.transaction():
        models, batches = read_models(connection), read_batches(connection, limit=PAST_RUNS)
        pending = pending_batches(connection)
        current = next(iter(pending), None)
        bounds = freeze_bounds(connection, settings, now)
        judged = judged_state(connection, bounds.first, bounds.end)
        automation = _automation(connection, settings, now, models, pending, judged)
        return shapes.StatusDocument(
            status="healthy" if all(getattr(automation.health, part) for part in shapes.PARTS) else "degraded",
            automation=automation,
            # A status request must not count a large table anew: the counts of automation are enough.
            readiness=shapes.ReadinessDocument.of(readiness(connection, settings, now, may_be_kept=True)),
            progress=None if current is None else progress_document(connection, settings, current, batches, now),
            judge=_judge(connection, settings, now, judged, bounds),
            lineage=_lineage(models, read_reports(connection)),
            rollout=_rollout(connection, settings),
            alerts=[shapes.AlertDocument.of(alert) for alert in read_alerts(connection) if alert.open and alert.due_at <= now],
            recent_jobs=[shapes.BatchDocument.of(batch, foreign=False) for batch in batches[:JOBS_SHOWN]],
            models=[shapes.ModelDocument.of(model) for model in models],
            trajectory_stats=trajectory_stats(connection),
            timestamp=moment(now) or "",
        )  # fmt: skip


def automation_document(connection: Connection, settings: Settings, now: datetime) -> shapes.Automation:
    """Data collection, trainings, versions and health, for those who must not fail by any other part of the status."""
    bounds = freeze_bounds(connection, settings, now)
    judged = judged_state(connection, bounds.first, bounds.end)
    return _automation(connection, settings, now, read_models(connection), pending_batches(connection), judged)


def _automation(
    connection: Connection, settings: Settings, now: datetime, models: Sequence[Model], pending: Sequence[Batch], judged: JudgedState
) -> shapes.Automation:
    current = next(iter(pending), None)
    last, came = last_completed_at(connection), arrivals(connection, now)
    deployed, own = deployed_model(models), [model for model in models if not model.foreign]
    return shapes.Automation(
        data_collection=shapes.DataCollection.of(
            came, rate_per_hour=round(came.last24h / 24, 3),
            newest_age_hours=None if came.newest_at is None else round((now - came.newest_at) / HOUR, 3),
        ),
        training=shapes.TrainingJobs(
            current_job=None if current is None else shapes.BatchDocument.of(current, foreign=False),
            last_completed=moment(last),
            next_scheduled=None if last is None else moment(last + timedelta(hours=settings.training_interval_hours)),
        ),
        models=shapes.Versions(
            latest=own[0].version if own else None,
            deployed=sum(model.status == "deployed" for model in models),
            deployed_version=None if deployed is None else deployed.version,
            training=len(pending),
            training_version=None if current is None else current.version,
        ),
        health=_health(connection, settings, now, current, judged, own[0] if own else None),
    )  # fmt: skip


def progress_document(
    connection: Connection, settings: Settings, current: Batch, batches: Sequence[Batch], now: datetime
) -> shapes.ProgressDocument:
    """Progress of an unfinished batch; ``batches`` are the past ones whose durations tell its end."""
    steps, iterations = read_steps(connection, current.batch_id), max(1, iterations_of(current))
    done = {step.iteration: step for step in steps if step.finished_at is not None}
    # Of an iteration that was begun several times the newest start counts.
    running = next((step for step in reversed(steps) if step.iteration not in done), None)
    step, of_steps = (0, 0) if running is None else (len(running.losses), running.planned_steps or 0)
    share = min(1.0, (len(done) + (step / of_steps if of_steps else 0.0)) / iterations)
    elapsed_s = 0.0 if current.started_at is None else max(0.0, (now - current.started_at).total_seconds())
    fit = fit_durations(batches, current.backend)
    total_s = None if fit is None else fit.base_s + fit.per_trajectory_s * current.trajectories
    if share and current.started_at is not None:
        # Losses are stored with a heartbeat.
        ended = [step.finished_at for step in done.values() if step.finished_at is not None] + [current.heartbeat_at] * bool(step)
        began = min(step.started_at for step in steps)
        # The run's own pace weighs as much as is done, so that one early iteration does not throw the estimate about.
        own_s = (began - current.started_at).total_seconds() + (max(ended) - began).total_seconds() / share
        total_s = own_s if total_s is None else share * own_s + (1 - share) * total_s
    remaining_s = None if total_s is None else max(0.0, total_s - elapsed_s)
    return shapes.ProgressDocument(
        batch_id=current.batch_id, state=current.state, activity=_activity(settings, current, len(done), iterations, step, of_steps),
        fraction=1.0 if current.state == "uploading" else round(share, 4), iteration=len(done), iterations=iterations, step=step,
        steps=of_steps, losses=[done[number].loss for number in sorted(done)], elapsed_seconds=round(elapsed_s, 1),
        eta_seconds=None if remaining_s is None else round(remaining_s, 1),
        eta_at=None if remaining_s is None else moment(now + timedelta(seconds=round(remaining_s))),
        eta_error=None if fit is None or fit.error is None else round(fit.error, 4), fitted_to=0 if fit is None else fit.runs,
    )  # fmt: skip


def _activity(settings: Settings, current: Batch, finished: int, iterations: int, step: int, steps: int) -> str:
    if current.state == "training" and steps:
        return f"iteration {finished + 1} of {iterations}, optimizer step {step} of {steps}"
    if current.state in ("preparing", "scoring", "training") and is_converting(settings):
        return "converts the weights of its base model, once"
    words = {"pending": "waits for a run", "preparing": "reads its episodes", "scoring": "judges its hours"}
    words |= {"training": f"prepares iteration {finished + 1} of {iterations}", "uploading": "publishes its checkpoint"}
    return words.get(current.state, current.state)


def _judge(connection: Connection, settings: Settings, now: datetime, judged: JudgedState, bounds: FreezeBounds) -> shapes.JudgeDocument:
    spent, unpriced = spent_on(connection, now)
    own = [found for found in judge_agreements(connection) if found.judge == settings.judge_model]
    newest = max(own, key=lambda found: found.measured_at, default=None)
    others, others_usd = by_other_rules(connection, bounds.first, bounds.end, settings.judge_model, judge_version(settings))
    agreement = None
    if newest is not None:
        mean, low, high = newest.expected
        agreement = shapes.AgreementDocument.of(newest, mean=mean, low=low, high=high)
    return shapes.JudgeDocument.of(
        judged, model=settings.judge_model, hours_by_other_rules=others, other_rules_usd=others_usd, spent_today_usd=spent,
        budget_usd=settings.judge_budget_usd, unpriced=unpriced, agreement=agreement,
    )  # fmt: skip


def _lineage(models: Sequence[Model], reports: dict[str, BenchmarkReport]) -> list[shapes.LineageDocument]:
    documents = []
    for model in models:
        report = reports.get(model.training_batch or "") if not model.foreign else None
        row = next((row for row in ([] if report is None else report.rows) if row.get("model") == model.version), {})
        documents.append(
            shapes.LineageDocument.of(
                model, parent=model.parent_version, batch_id=model.training_batch, status=model.shown_status,
                decision=None if report is None else report.decision, reference=None if report is None else report.reference,
                improvement=row.get("improvement"), improvement_low=row.get("improvementLow"), improvement_high=row.get("improvementHigh"),
            )
        )  # fmt: skip
    return documents


def _rollout(connection: Connection, settings: Settings) -> shapes.RolloutDocument | None:
    trial = next(iter(read_rollouts(connection, ON_TRIAL)), None)
    shown = trial or next(iter(read_rollouts(connection, ("released",))), None)
    if shown is None:
        return None
    guards: list[shapes.GuardDocument] = []
    if trial is not None:
        from babylon_rl.serving.promotion import read_guards  # loads scipy

        guards = read_guards(connection, trial, settings)
    return shapes.RolloutDocument.of(shown, agents=len(shown.agent_ids), guards=guards)


def _health(
    connection: Connection, settings: Settings, now: datetime, current: Batch | None, judged: JudgedState, newest: Model | None
) -> shapes.Health:
    found = {
        "storage": _storage(settings, current),
        "judge": _judge_health(settings, judged),
        "trainer": _trainer(connection, settings, current, now),
        "daemon": _daemon(connection, now),
        "wandb": _wandb(settings, newest),
    }
    version = connection.info.server_version
    details = {"database": f"Postgres {version // 10000} answers", **{name: words for name, (_, words) in found.items()}}
    return shapes.Health(database=True, details=details, **{name: works for name, (works, _) in found.items()})


def _storage(settings: Settings, current: Batch | None) -> tuple[bool, str]:
    if current is not None and current.state == "uploading" and current.error is not None:
        return False, f"{current.batch_id} waits for its upload: {current.error}"
    directory = settings.home / "checkpoints"
    # The first training makes the directory; until then the nearest one above it decides.
    existing = next(folder for folder in (directory, *directory.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        return False, f"{existing} cannot be written"
    try:
        needed_gb = TRAINING_GB[trainer_choice(settings).backend]
    except NoTrainer:
        needed_gb = 0.0
    free_gb = shutil.disk_usage(existing).free / 1e9
    words = f"{free_gb:.1f} GB free at {directory}"
    return (True, words) if free_gb >= needed_gb else (False, f"{words}, and a training needs about {needed_gb:g} GB")


def _judge_health(settings: Settings, judged: JudgedState) -> tuple[bool, str]:
    if judged.waiting_reason is not None:
        return False, f"{judged.hours_waiting} hours wait: {judged.waiting_reason}"
    return True, "a rule on this machine" if settings.judge_model == HEURISTIC else f"no hour waits for {settings.judge_model}"


def _trainer(connection: Connection, settings: Settings, current: Batch | None, now: datetime) -> tuple[bool, str]:
    try:
        choice = trainer_choice(settings)
    except NoTrainer as missing:
        return False, str(missing)
    # A pending batch has no run yet that could renew its heartbeat.
    if current is not None and current.state != "pending" and now - current.heartbeat_at > SILENT_TRAINER:
        return False, f"{current.batch_id} is {current.state} and silent since {current.heartbeat_at:%Y-%m-%d %H:%M} UTC"
    words = f"{choice.backend}, from {choice.base_model}"
    if current is not None:
        waits = current.error if current.state == "training" else None
        return waits is None, words if waits is None else f"{words}; {current.batch_id} waits: {waits}"
    paused = refused_lately(connection, settings, now)
    return paused is None, words if paused is None else f"{words}; {paused}"


def _wandb(settings: Settings, newest: Model | None) -> tuple[bool, str]:
    reason = refusal(settings) or (newest.tracking_refusal if newest is not None else None)
    place = "files for `wandb sync`" if settings.wandb_mode == "offline" else f"project {settings.wandb_project}"
    return reason is None, place if reason is None else reason


def _daemon(connection: Connection, now: datetime) -> tuple[bool, str]:
    seen = daemon_seen_at(connection)
    if seen is None:
        return False, "Dagster's daemon has never run on this database; `babylon-rl dev` starts it"
    return now - seen <= DAEMON_SEEN_WITHIN, f"Dagster's daemon was seen at {seen:%Y-%m-%d %H:%M:%S} UTC"
