"""Metrics of a gateway and of the pipeline, in the text format of Prometheus.

The pipeline's are those of the status document. Gateway processes that share a port keep their values in files of
PROMETHEUS_MULTIPROC_DIR, and each of them shows those of all.
"""

import collections
import os
import struct
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from babylon_rl.serving.status_shapes import PARTS, StatusDocument

PROCESSES_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus_client when it is imported
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TRIES, _NEXT_TRY_S = 5, 0.01  # to read the files of other processes
disable_created_metrics()


class GatewayMetrics:
    """Metrics of one gateway process; ``spool`` gives the report of the spool that all processes share."""

    def __init__(self, spool: Callable[[], Mapping[str, Any]]) -> None:
        self.registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=self.registry), partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, buckets=_BUCKETS_S, registry=self.registry)
        self.requests = counter("babylon_gateway_requests", "Routed calls; 499: the client left.", ["version", "arm", "status"])
        self.refusals = counter("babylon_gateway_refusals", "Requests that were not routed.", ["status"])
        self.failures = counter("babylon_gateway_upstream_failures", "Failed requests to upstreams.", ["version", "cause"])
        self.fallbacks = counter("babylon_gateway_fallbacks", "Calls that the base answered instead.", ["cause"])
        self.tokens = counter("babylon_gateway_tokens", "Tokens of prompts and answers.", ["version", "kind"])
        self.latency = histogram("babylon_gateway_latency_seconds", "Time to the end of the answer.", ["version"])
        self.first_token = histogram("babylon_gateway_first_token_seconds", "Time to the answer or its first token.", ["version"])
        self.unrecorded = counter("babylon_gateway_unrecorded", "Calls that were not recorded; the log says why.")
        self.open_requests = gauge("babylon_gateway_open_requests", "Requests under way.", multiprocess_mode="livesum")
        self.database_answers = gauge(
            "babylon_gateway_database_answers", "1 while the routing table is fresh.", multiprocess_mode="livemin"
        )
        self._spool = spool

    def text(self) -> bytes:
        """Return the samples of all processes together."""
        own = _text_of_all_processes() if PROCESSES_DIRECTORY in os.environ else generate_latest(self.registry)
        # Refused calls are those of this process alone.
        shared = {(name,): value for name, value in self._spool().items() if isinstance(value, int) and name != "refused"}
        spool = gauge_family("gateway_spool", "Recording: bytes on disk, and calls by their end.", shared, "state")
        return own + generate_latest(_Families([spool]))


def _text_of_all_processes() -> bytes:
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    for _ in range(_TRIES):
        # prometheus_client cannot read a file that another process has just opened and not sized yet.
        with suppress(struct.error):
            return generate_latest(registry)
        time.sleep(_NEXT_TRY_S)
    return generate_latest(registry)


class _Families(list[Metric], Collector):
    """Families of samples that were read for this once."""

    def collect(self) -> Iterable[Metric]:
        return self


def gauge_family(name: str, explanation: str, value: float | Mapping[Any, float] | None, *labels: str) -> GaugeMetricFamily:
    """Gauge babylon_NAME with one value, or those of label sets; None has no sample."""
    family = GaugeMetricFamily(f"babylon_{name}", explanation, labels=labels)
    samples = {} if value is None else value if isinstance(value, Mapping) else {(): value}
    for values, number in samples.items():
        family.add_metric(values, number)
    return family


def pipeline_metrics(found: StatusDocument) -> bytes:
    """Return the samples in Prometheus' text format; unknown values have none."""
    data, judge, ready, progress = found.automation.data_collection, found.judge, found.readiness, found.progress
    ended = found.automation.training.last_completed
    ended_s = None if ended is None else datetime.fromisoformat(ended).timestamp()
    losses = [] if progress is None else [loss for loss in progress.losses if loss is not None]
    age_s = None if data.newest_age_hours is None else 3600 * data.newest_age_hours
    rollout = {} if found.rollout is None else {(found.rollout.version, found.rollout.state): found.rollout.percentage}
    models = collections.Counter((model.status,) for model in found.models)
    jobs = {(job.batch_id, job.state): 1.0 for job in found.recent_jobs[:1]}
    health = {(part,): float(getattr(found.automation.health, part)) for part in PARTS}
    # A cause is ``kind/subject``; alerts are counted by kind, which has few values.
    alerts = collections.Counter((alert.cause.partition("/")[0],) for alert in found.alerts)
    reasons = {(reason,): float(number) for reason, number in ready.not_trainable.items()}
    families = [
        gauge_family("healthy", "1 for each part that works.", health, "part"),
        gauge_family("trajectories", "All recorded trajectories; an estimate where there are many.", found.trajectory_stats.count),
        gauge_family("trajectories_last_day", "Trajectories of the last 24 hours.", data.last24h),
        gauge_family("newest_trajectory_age_seconds", "Age of the newest trajectory.", age_s),
        gauge_family("ready", "1 when a training can start.", float(ready.ready)),
        gauge_family("freezable_trajectories", "Trajectories that a batch could take.", ready.stats.total_trajectories),
        gauge_family("unscored_trajectories", "Those of them without a score.", ready.stats.unscored_trajectories),
        gauge_family("groups", "Hours with enough of them.", ready.stats.scenario_groups),
        gauge_family("not_trainable_trajectories", "Other new trajectories by reason.", reasons, "reason"),
        gauge_family("data_quality", "Quality of the newest trajectories, 0 to 1.", ready.stats.data_quality),
        gauge_family("judge_hours_waiting", "Hours that wait for their judge.", judge.hours_waiting),
        gauge_family("judge_hours_quarantined", "Hours that the judge could not score.", judge.hours_quarantined),
        gauge_family("judge_disagreement", "Mean disagreement between orders, 0 to 1.", judge.disagreement),
        gauge_family("judge_spent_today_usd", "Dollars of the judge since midnight (UTC).", judge.spent_today_usd),
        gauge_family("judge_budget_usd", "JUDGE_BUDGET_USD.", judge.budget_usd),
        gauge_family("training_fraction", "Progress of the current training, 0 to 1.", None if progress is None else progress.fraction),
        gauge_family("training_remaining_seconds", "Its expected rest.", None if progress is None else progress.eta_seconds),
        gauge_family("training_loss", "Loss of its newest iteration.", losses[-1] if losses else None),
        gauge_family("last_training_timestamp_seconds", "End of the last completed training.", ended_s),
        gauge_family("newest_job", "1 for the newest job.", jobs, "batch", "status"),
        gauge_family("models", "Versions by status.", models, "status"),
        gauge_family("rollout_percent", "Share of agents of the version on trial, else of the released one.", rollout, "version", "state"),
        gauge_family("alerts", "Causes of alerts that last.", alerts, "kind"),
    ]
    return generate_latest(_Families(families))
