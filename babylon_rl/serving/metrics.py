"""Metrics of a gateway and of the pipeline, in the text format of Prometheus.

The pipeline's are those of the status document.

Gateway processes that share a port publish their values in files, and each of them shows the sum of all. The values of a process that
has ended stay, so that counters never fall.
"""

import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import psutil

from babylon_rl.serving.status_shapes import PARTS, StatusDocument

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
PUBLISH_S = 1.0
Labels = tuple[str, ...]
Values = Mapping[Labels, Sequence[float]]


class MetricFamily:
    """One metric with the values of its label sets.

    ``lasting`` if the values of a process count after its end.
    """

    lasting = True

    def __init__(self, name: str, kind: str, explanation: str, labels: Labels = ()) -> None:
        self.name, self._labels = name, labels
        self._head = f"# HELP {name} {explanation}\n# TYPE {name} {kind}\n"

    def values(self) -> Values:
        """Values of this process by label set."""
        raise NotImplementedError

    def merged(self, those: Iterable[Values]) -> Values:
        """Values of several processes together: their sums."""
        merged: dict[Labels, Sequence[float]] = {}
        for values in those:
            for labels, numbers in values.items():
                known = merged.get(labels)
                merged[labels] = numbers if known is None else [one + other for one, other in zip(known, numbers, strict=True)]
        return merged

    def text(self, values: Values | None = None) -> str:
        """Return the samples of these values, by default this process's own."""
        return self._head + "".join(
            self._lines(labels, numbers) for labels, numbers in sorted((self.values() if values is None else values).items())
        )

    def _lines(self, labels: Labels, numbers: Sequence[float]) -> str:
        return self._line("", labels, numbers[0])

    def _line(self, suffix: str, values: Labels, value: float, **extra: str) -> str:
        pairs = [*zip(self._labels, values, strict=True), *extra.items()]
        inner = ",".join(f'{name}="{_escaped(text)}"' for name, text in pairs)
        return f"{self.name}{suffix}{f'{{{inner}}}' if inner else ''} {value:.15g}\n"  # all digits of a time and of a count


class Counter(MetricFamily):
    """A count that only grows."""

    def __init__(self, name: str, explanation: str, labels: Labels = ()) -> None:
        super().__init__(name, "counter", explanation, labels)
        self._values: dict[Labels, list[float]] = {} if labels else {(): [0.0]}

    def add(self, *labels: str, by: float = 1.0) -> None:
        """Count."""
        self._values.setdefault(labels, [0.0])[0] += by

    def values(self) -> Values:
        """[count] by label set."""
        return self._values


class Histogram(MetricFamily):
    """Durations in seconds."""

    def __init__(self, name: str, explanation: str, labels: Labels = ()) -> None:
        super().__init__(name, "histogram", explanation, labels)
        self._values: dict[Labels, list[float]] = {}

    def observe(self, seconds: float, *labels: str) -> None:
        """Add a duration."""
        # A count for each bound, one for what is above them all, and the sum of seconds.
        numbers = self._values.setdefault(labels, [0.0] * (len(_BUCKETS_S) + 2))
        numbers[bisect_left(_BUCKETS_S, seconds)] += 1
        numbers[-1] += seconds

    def values(self) -> Values:
        """[count of each bucket, those above all, sum of seconds] by label set."""
        return self._values

    def _lines(self, labels: Labels, numbers: Sequence[float]) -> str:
        total, lines = 0.0, list[str]()
        for bound, count in zip([*(f"{bound:g}" for bound in _BUCKETS_S), "+Inf"], numbers[:-1], strict=True):
            # Prometheus' buckets are cumulative.
            total += count
            lines.append(self._line("_bucket", labels, total, le=bound))
        return "".join([*lines, self._line("_sum", labels, numbers[-1]), self._line("_count", labels, total)])


class Gauge(MetricFamily):
    """A value that is read when the metrics are.

    Of several processes their sum, or with ``least`` the smallest.
    """

    # A value of now: a process that has ended has none.
    lasting = False

    def __init__(
        self, name: str, explanation: str, read: Callable[[], float | Mapping[Labels, float]], labels: Labels = (), *, least: bool = False
    ) -> None:
        super().__init__(name, "gauge", explanation, labels)
        self._read, self._least = read, least

    def values(self) -> Values:
        """[value] by label set."""
        value = self._read()
        return {labels: [sample] for labels, sample in value.items()} if isinstance(value, Mapping) else {(): [value]}

    def merged(self, those: Iterable[Values]) -> Values:
        """Their sums, or the smallest."""
        if not self._least:
            return super().merged(those)
        every = list(those)
        return {labels: [min(values[labels][0] for values in every if labels in values)] for labels in every[0]}


class ProcessMetrics:
    """Metrics of this process and of those that share its port.

    ``directory`` holds a file of each.
    """

    def __init__(self, families: Sequence[MetricFamily], directory: Path | None = None) -> None:
        self._families, self._directory = families, directory

    def publish(self) -> None:
        """Write the values of this process for the others.

        A full disk leaves the last ones there.
        """
        if self._directory is None:
            return
        partial = self._directory / f".{os.getpid()}"
        try:
            partial.write_bytes(msgspec.json.encode({family.name: list(family.values().items()) for family in self._families}))
            # In one step: another process reads the values before or these, never half of them.
            partial.rename(self._directory / str(os.getpid()))
        except OSError:
            partial.unlink(missing_ok=True)

    def text(self) -> str:
        """Return the samples of all processes together."""
        others = self._others()
        return "".join(
            family.text(family.merged([family.values(), *(values[family.name] for alive, values in others if alive or family.lasting)]))
            for family in self._families
        )

    def _others(self) -> list[tuple[bool, dict[str, Values]]]:
        # Files that are being written begin with a dot.
        files = [] if self._directory is None else [file for file in self._directory.glob("[0-9]*") if file.name != str(os.getpid())]
        return [(psutil.pid_exists(int(file.name)), _read(file)) for file in files]


def _read(file: Path) -> dict[str, Values]:
    published = msgspec.json.decode(file.read_bytes(), type=dict[str, list[tuple[Labels, list[float]]]])
    return {name: dict(values) for name, values in published.items()}


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


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
    # A cause is ``kind/subject``; alerts are counted by kind, which has few values.
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
