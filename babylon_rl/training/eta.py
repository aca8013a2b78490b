"""Duration of a training, fitted to the completed trainings of the same backend.

A run takes ``base_s`` and so much a trajectory. Iterations that have finished replace the fit by the run's own pace, by their share.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import fmean

from babylon_rl.store.batches import Batch
from babylon_rl.store.write_ahead import TrainingStep
from babylon_rl.training.iterations import iterations_of

# As the game's monitors show a batch; within ``training`` by finished iterations.
FRACTIONS = {"pending": 0.0, "preparing": 0.1, "scoring": 0.3, "training": 0.6, "uploading": 0.9, "completed": 1.0}


@dataclass(frozen=True, slots=True)
class DurationFit:
    """A line through past runs.

    ``error``: mean relative error when each run is predicted from the others, None below two runs.
    """

    base_s: float
    per_trajectory_s: float
    runs: int
    error: float | None = None

    def seconds(self, trajectories: int) -> float:
        """Predicted seconds of a run from its start to its end."""
        return self.base_s + self.per_trajectory_s * trajectories


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """Progress of a batch; ``remaining_s`` is None where nothing is known yet."""

    fraction: float
    finished: int
    iterations: int
    elapsed_s: float
    remaining_s: float | None
    losses: Sequence[float | None]


def fit_durations(batches: Sequence[Batch], backend: str) -> DurationFit | None:
    """Fit the completed batches of a backend; None without any."""
    runs = [
        (float(batch.trajectories), (batch.completed_at - batch.started_at).total_seconds())
        for batch in batches
        if batch.backend == backend and batch.state == "completed" and batch.started_at is not None and batch.completed_at is not None
    ]
    runs = [(trajectories, seconds) for trajectories, seconds in runs if seconds > 0]
    if not runs:
        return None
    base_s, per_trajectory_s = _line(runs)
    errors = []
    for left_out, (trajectories, seconds) in enumerate(runs):
        others = runs[:left_out] + runs[left_out + 1 :]
        if others:
            base, slope = _line(others)
            errors.append(abs(base + slope * trajectories - seconds) / seconds)
    return DurationFit(base_s, per_trajectory_s, len(runs), fmean(errors) if errors else None)


def progress_of(batch: Batch, steps: Sequence[TrainingStep], fit: DurationFit | None, now: datetime) -> BatchProgress:
    """Progress of an unfinished batch from its rows; ``steps`` are all starts of its iterations."""
    iterations = max(1, iterations_of(batch))
    done = {step.iteration: step for step in steps if step.finished_at is not None}
    losses = [done[number].loss for number in sorted(done)]
    share = min(1.0, len(done) / iterations)
    fraction = FRACTIONS.get(batch.state, 0.0)
    if batch.state == "training":
        fraction += (FRACTIONS["uploading"] - fraction) * share
    elapsed_s = 0.0 if batch.started_at is None else max(0.0, (now - batch.started_at).total_seconds())
    total_s = None if fit is None else fit.seconds(batch.trajectories)
    ended = max((step.finished_at for step in done.values() if step.finished_at is not None), default=None)
    if ended is not None and batch.started_at is not None:
        own_s = (ended - batch.started_at).total_seconds() / share
        total_s = own_s if total_s is None else share * own_s + (1 - share) * total_s
    remaining_s = None if total_s is None else max(0.0, total_s - elapsed_s)
    return BatchProgress(fraction, len(done), iterations, elapsed_s, remaining_s, losses)


def _line(runs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least squares with neither a negative base nor a negative slope."""
    mean_x, mean_y = fmean(x for x, _ in runs), fmean(y for _, y in runs)
    spread = sum((x - mean_x) ** 2 for x, _ in runs)
    if spread == 0:
        return (0.0, mean_y / mean_x) if mean_x else (mean_y, 0.0)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in runs) / spread
    if slope < 0:
        return mean_y, 0.0
    base = mean_y - slope * mean_x
    return (base, slope) if base >= 0 else (0.0, sum(x * y for x, y in runs) / sum(x * x for x, _ in runs))
