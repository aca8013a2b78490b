"""Start of a training by automation: the one rule of sensor, schedule, trigger and MODE=continuous.

A batch is frozen when the last ones did not just fail (training/preflight.py) and the data is ready (training/readiness.py). After
TRAINING_INTERVAL_HOURS without a completed training fewer trajectories suffice.
"""

from datetime import datetime, timedelta
from typing import NamedTuple

from babylon_rl.errors import TrainingError, UsageError
from babylon_rl.settings import Settings
from babylon_rl.store.batches import Batch
from babylon_rl.store.connection import Connection
from babylon_rl.training.freezing import freeze
from babylon_rl.training.preflight import refused_lately
from babylon_rl.training.readiness import not_ready


class Start(NamedTuple):
    """The frozen batch, or None with the reason; ``remembered`` is for the next call."""

    batch: Batch | None
    reason: str
    remembered: str | None


def freeze_when_ready(
    connection: Connection, settings: Settings, now: datetime, remembered: str | None = None, most: int | None = None
) -> Start:
    """Freeze a batch of at most ``most`` trajectories (TRAINING_MAX_TRAJECTORIES), or return the reason against it."""
    try:
        paused = refused_lately(connection, settings, now)
        if paused is not None:
            return Start(None, paused, remembered)
        why_not, remembered = not_ready(connection, settings, now, remembered)
        if why_not is not None:
            return Start(None, why_not, remembered)
        # Any seed will do that differs between batches and is stored with them.
        frozen = freeze(
            connection,
            settings,
            now,
            max_trajectories=most or settings.training_max_trajectories,
            seed=int(now.timestamp()),
            minimum=settings.training_min_trajectories,
            settled=True,
        )
    except (TrainingError, UsageError) as refused:
        return Start(None, str(refused), None)
    return Start(frozen.batch, frozen.reason, None)


def smaller_batch_due(last: datetime | None, settings: Settings, now: datetime) -> datetime:
    """Time from which a smaller batch suffices.

    TRAINING_INTERVAL_HOURS after ``last``, the end of the last completed training; ``now`` without one.
    """
    return now if last is None else last + timedelta(hours=settings.training_interval_hours)


def with_smaller_minimum(settings: Settings) -> Settings:
    """The settings of a smaller batch: TRAINING_DAILY_MIN_TRAJECTORIES in place of TRAINING_MIN_TRAJECTORIES."""
    least = min(settings.training_daily_min_trajectories, settings.training_min_trajectories)
    return settings.model_copy(update={"training_min_trajectories": least})
