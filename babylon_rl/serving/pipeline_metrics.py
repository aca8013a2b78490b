"""Metrics of the pipeline for Prometheus: the figures of the status document as gauges."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from babylon_rl.serving.admin_shapes import StatusDocument
from babylon_rl.serving.metrics import Gauge, Labels

PARTS = ("database", "storage", "judge", "trainer", "daemon")


def pipeline_metrics(found: StatusDocument) -> str:
    """Return the samples in Prometheus' text format.

    What is not known has no sample.
    """
    data, judge, ready, progress = found.automation.data_collection, found.judge, found.readiness, found.progress
    ended_at = _seconds(found.automation.training.last_completed)
    age_s = None if data.newest_age_hours is None else 3600 * data.newest_age_hours
    rollout = {} if found.rollout is None else {(found.rollout.version, found.rollout.state): found.rollout.percentage}
    models: dict[Labels, float] = {}
    for model in found.models:
        models[(model.status,)] = models.get((model.status,), 0.0) + 1
    jobs = {(job.batch_id, job.status): 1.0 for job in found.recent_jobs[:1]}
    health = {(part,): float(getattr(found.automation.health, part)) for part in PARTS}
    alerts = {(alert.cause.partition("/")[0],): 0.0 for alert in found.alerts}
    for alert in found.alerts:
        alerts[(alert.cause.partition("/")[0],)] += 1
    reasons = {(reason,): float(number) for reason, number in ready.not_trainable.items()}
    gauges = [
        _gauge("healthy", "1 for each part that works.", health, "part"),
        _gauge("trajectories", "All recorded trajectories; an estimate where there are many.", found.trajectory_stats.count),
        _gauge("trajectories_last_day", "Trajectories of the last 24 hours.", data.last24h),
        _gauge("newest_trajectory_age_seconds", "Age of the newest trajectory.", age_s),
        _gauge("ready", "1 when a training can start.", float(ready.ready)),
        _gauge("freezable_trajectories", "Trajectories that a batch could take.", ready.stats.total_trajectories),
        _gauge("unscored_trajectories", "Those of them without a score.", ready.stats.unscored_trajectories),
        _gauge("groups", "Hours with enough of them.", ready.stats.scenario_groups),
        _gauge("not_trainable_trajectories", "Other new trajectories by reason.", reasons, "reason"),
        _gauge("data_quality", "Quality of the newest trajectories, 0 to 1.", ready.stats.data_quality),
        _gauge("judge_hours_waiting", "Hours that wait for their judge.", judge.hours_waiting),
        _gauge("judge_hours_quarantined", "Hours that the judge could not score.", judge.hours_quarantined),
        _gauge("judge_disagreement", "Mean disagreement between orders, 0 to 1.", judge.disagreement),
        _gauge("judge_spent_today_usd", "Dollars of the judge since midnight (UTC).", judge.spent_today_usd),
        _gauge("judge_budget_usd", "JUDGE_BUDGET_USD.", judge.budget_usd),
        _gauge("training_fraction", "Progress of the current training, 0 to 1.", None if progress is None else progress.fraction),
        _gauge("training_remaining_seconds", "Its expected rest.", None if progress is None else progress.eta_seconds),
        _gauge("training_loss", "Loss of its newest iteration.", _last_loss(found)),
        _gauge("last_training_timestamp_seconds", "End of the last completed training.", ended_at),
        _gauge("newest_job", "1 for the newest job.", jobs, "batch", "status"),
        _gauge("models", "Versions by status.", models, "status"),
        _gauge("rollout_percent", "Share of agents of the version on trial, else of the released one.", rollout, "version", "state"),
        _gauge("alerts", "Causes of alerts that last.", alerts, "kind"),
    ]
    return "".join(gauge.text() for gauge in gauges)


def _gauge(name: str, explanation: str, value: float | Mapping[Any, float] | None, *labels: str) -> Gauge:
    samples = {} if value is None else value
    return Gauge(f"babylon_{name}", explanation, lambda: samples, labels)


def _last_loss(found: StatusDocument) -> float | None:
    losses = [] if found.progress is None else [loss for loss in found.progress.losses if loss is not None]
    return losses[-1] if losses else None


def _seconds(time: str | None) -> float | None:
    return None if time is None else datetime.fromisoformat(time).timestamp()
