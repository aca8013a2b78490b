"""Counters and histograms of one gateway process, in the text format of Prometheus."""

from bisect import bisect_left
from collections.abc import Callable, Mapping

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
Labels = tuple[str, ...]


class MetricFamily:
    """One metric with the values of its label sets."""

    def __init__(self, name: str, kind: str, explanation: str, labels: Labels = ()) -> None:
        self._name, self._labels = name, labels
        self._head = f"# HELP {name} {explanation}\n# TYPE {name} {kind}\n"

    def _line(self, suffix: str, values: Labels, value: float, **extra: str) -> str:
        pairs = [*zip(self._labels, values, strict=True), *extra.items()]
        inner = ",".join(f'{name}="{_escaped(text)}"' for name, text in pairs)
        return f"{self._name}{suffix}{{{inner}}} {value:g}\n" if inner else f"{self._name}{suffix} {value:g}\n"


class Counter(MetricFamily):
    """A count that only grows."""

    def __init__(self, name: str, explanation: str, labels: Labels = ()) -> None:
        super().__init__(name, "counter", explanation, labels)
        self._values: dict[Labels, float] = {} if labels else {(): 0.0}

    def add(self, *labels: str, by: float = 1.0) -> None:
        """Count."""
        self._values[labels] = self._values.get(labels, 0.0) + by

    def text(self) -> str:
        """Return the samples."""
        return self._head + "".join(self._line("", labels, value) for labels, value in sorted(self._values.items()))


class Histogram(MetricFamily):
    """Durations in seconds."""

    def __init__(self, name: str, explanation: str, labels: Labels = ()) -> None:
        super().__init__(name, "histogram", explanation, labels)
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}

    def observe(self, seconds: float, *labels: str) -> None:
        """Add a duration."""
        counts = self._counts.setdefault(labels, [0] * (len(_BUCKETS_S) + 1))
        counts[bisect_left(_BUCKETS_S, seconds)] += 1
        self._sums[labels] = self._sums.get(labels, 0.0) + seconds

    def text(self) -> str:
        """Return the samples."""
        lines = [self._head]
        for labels, counts in sorted(self._counts.items()):
            total = 0
            for bound, count in zip([*(f"{bound:g}" for bound in _BUCKETS_S), "+Inf"], counts, strict=True):
                total += count
                lines.append(self._line("_bucket", labels, total, le=bound))
            lines += [self._line("_sum", labels, self._sums[labels]), self._line("_count", labels, total)]
        return "".join(lines)


class Gauge(MetricFamily):
    """A value that is read when the metrics are."""

    def __init__(self, name: str, explanation: str, read: Callable[[], float | Mapping[Labels, float]], labels: Labels = ()) -> None:
        super().__init__(name, "gauge", explanation, labels)
        self._read = read

    def text(self) -> str:
        """Return the samples."""
        value = self._read()
        samples = value if isinstance(value, Mapping) else {(): value}
        return self._head + "".join(self._line("", labels, sample) for labels, sample in sorted(samples.items()))


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
