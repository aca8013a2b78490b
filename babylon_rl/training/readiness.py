"""Readiness: enough good data to start a training, and the start by automation.

One definition for `ready`, sensor, schedule, status, trigger and MODE=continuous. A batch is frozen when the last ones did not just fail
(training/conversion.py) and the data is ready. After TRAINING_INTERVAL_HOURS without a completed training fewer trajectories suffice.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from babylon_rl.episodes.quality import SampleQuality, sample_quality
from babylon_rl.errors import TrainingError, UsageError
from babylon_rl.settings import AutomationSettings, Settings
from babylon_rl.store.connection import Connection
from babylon_rl.store.freezing import READ_TABLES, FreezableEpisode, FreezeBounds, look_at_newest
from babylon_rl.store.observation import watermark
from babylon_rl.store.scores import unscored_windows
from babylon_rl.store.training_status import KeptCounts, read_kept_counts, write_kept_counts
from babylon_rl.store.trajectories import FIRST_POSSIBLE, CallLogRow, TrajectoryRow, call_log_rows, newest_eligible
from babylon_rl.training.conversion import refused_lately
from babylon_rl.training.freezing import (
    RULES,
    Freezable,
    Frozen,
    count_eligible,
    count_in_read_hours,
    freeze,
    freeze_bounds,
    last_hours,
    trained_by,
)
from babylon_rl.windows import next_window

QUALITY_SAMPLE = 50
KEPT_FOR, LONG_COUNT_S = timedelta(minutes=15), 0.1
READY = "Ready to train!"
RECORD_PROMPTS = "record the prompts with babylon_rl.recorder or into llm_call_logs, or set TRAIN_SYNTHETIC=true"


@dataclass(frozen=True, slots=True)
class Readiness:
    """Verdict with its figures; ``groups`` counts freezable trajectories by window; ``counted_at`` is None: they were counted now."""

    ready: bool
    reason: str
    total_trajectories: int
    unscored_trajectories: int
    scenario_groups: int
    quality: SampleQuality
    not_trainable: Mapping[str, int]
    groups: Mapping[str, int]
    counted_at: datetime | None = None


def readiness(connection: Connection, settings: Settings, now: datetime, *, may_be_kept: bool = False) -> Readiness:
    """Count the sensor's next batch within the look-back, and sample the newest rows.

    With ``may_be_kept`` the counts that automation keeps are taken, if nothing was written since; or if they took longer than LONG_COUNT_S
    and are not older than KEPT_FOR.
    """
    # One transaction, so that counts and sample describe the same state.
    with connection.transaction():
        bounds = freeze_bounds(connection, settings, now, settled=True)
        kept = read_kept_counts(connection) if may_be_kept else None
        if kept is not None:
            recent = kept.seconds > LONG_COUNT_S and timedelta(0) <= now - kept.counted_at <= KEPT_FOR
            kept = kept if recent or kept.mark == _watermark(connection, settings, now) else None
        freezable = count_eligible(connection, bounds, kept)
        quality = _newest_quality(connection, bounds)
        unscored = unscored_windows(connection, list(freezable.windows))
        reason = _reason(settings, freezable, quality.mean)
        more = "" if reason == READY else _synthetic(freezable) + _older(connection, settings, bounds)
    return Readiness(
        ready=reason == READY,
        reason=reason + more,
        total_trajectories=freezable.trajectories,
        unscored_trajectories=sum(number for window, number in freezable.windows.items() if window in unscored),
        scenario_groups=_groups(settings, freezable),
        quality=quality,
        not_trainable=freezable.not_trainable,
        groups=freezable.windows,
        counted_at=None if kept is None else kept.counted_at,
    )


def keep_counts(connection: Connection, settings: Settings, now: datetime) -> str:
    """Keep the counts for looks at the status, if anything was written; say so."""
    with connection.transaction():
        # Taken before the count: what is written while it counts makes the next look count again.
        mark = _watermark(connection, settings, now)
        kept = read_kept_counts(connection)
        if mark is None or (kept is not None and kept.mark == mark):
            return "Nothing was written." if mark is not None else "The server does not count writes: each look at the status counts."
        started = time.perf_counter()
        found = count_in_read_hours(connection, freeze_bounds(connection, settings, now, settled=True))
        seconds = time.perf_counter() - started
        write_kept_counts(connection, KeptCounts(mark, found.episodes, dict(found.windows), dict(found.not_trainable), seconds, now))
    return f"{found.trajectories} trajectories could train; counted in {seconds:.2f} s."


def not_ready(connection: Connection, settings: Settings, now: datetime, remembered: str | None = None) -> tuple[str | None, str | None]:
    """Return the reason why a training cannot start, or None, and the next call's state.

    Quality is sampled only when the counts suffice. Nothing is counted again if nothing was written since the call that returned
    ``remembered``. New rows count only once their hour has been read, which is a write, so that a running game does not cause a count at
    every call.
    """
    with connection.transaction():
        counted, sampled = _watermark(connection, settings, now), _watermark(connection, settings, now, "public.llm_call_logs")
        before, _, reason = (remembered or "").partition(" ")
        if before and before in (counted, sampled):
            return reason, remembered
        bounds = freeze_bounds(connection, settings, now, settled=True)
        freezable = count_eligible(connection, bounds)
        reason, mark = _reason(settings, freezable, quality=1.0), counted
        if reason == READY:  # the watermark of quality also covers the call logs
            reason, mark = _reason(settings, freezable, _newest_quality(connection, bounds).mean), sampled
        if reason == READY:
            return None, None
        message = reason + _synthetic(freezable) + _older(connection, settings, bounds)
        return message, None if mark is None else f"{mark} {message}"


def _watermark(connection: Connection, settings: Settings, now: datetime, *more: str) -> str | None:
    """Watermark of the inputs of the counts; with ``more`` tables, of row quality too."""
    least = (settings.training_min_trajectories, settings.training_min_groups, settings.training_min_group_size)
    hours = (*last_hours(settings, now, settled=True), settings.lookback_hours, settings.min_agents_per_window, trained_by(settings))
    tables, arriving = (*READ_TABLES, *more), ("public.trajectories",)
    return watermark(connection, tables, hours, least, settings.data_quality_threshold, without_inserts=arriving)


def _groups(settings: AutomationSettings, freezable: Freezable) -> int:
    return sum(number >= settings.training_min_group_size for number in freezable.windows.values())


def _reason(settings: AutomationSettings, freezable: Freezable, quality: float) -> str:
    missing, groups = settings.training_min_trajectories - freezable.trajectories, _groups(settings, freezable)
    if missing > 0:
        return f"Need {missing} more trajectories"
    if groups < settings.training_min_groups:
        return f"Need more scenario groups ({groups}/{settings.training_min_groups} minimum)"
    if quality < settings.data_quality_threshold:
        return f"Data quality too low ({quality * 100:.1f}% < {settings.data_quality_threshold * 100:g}%)"
    return READY


def _synthetic(freezable: Freezable) -> str:
    synthetic = freezable.not_trainable.get("synthetic", 0)
    total = freezable.trajectories + sum(freezable.not_trainable.values())
    if synthetic * 2 <= total:
        return ""
    return f"; {synthetic} of {total} new trajectories are synthetic (no LLM call was recorded): {RECORD_PROMPTS}"


def _older(connection: Connection, settings: Settings, bounds: FreezeBounds) -> str:
    """Sentence on trajectories before the look-back that could train, at most those of a batch; empty without any."""
    found: list[FreezableEpisode] = []
    # Newest hours first. In a game that goes on the first portion has trained, and nothing further is read.
    for episodes, _ in look_at_newest(connection, replace(bounds, first=FIRST_POSSIBLE, end=bounds.first), RULES):
        found += episodes
        if not episodes or sum(episode.trajectories for episode in found) >= settings.training_min_trajectories:
            break
    if not found:
        return ""
    number, windows = sum(episode.trajectories for episode in found), [episode.window for episode in found]
    return (
        f"; {number} older trajectories are beyond LOOKBACK_HOURS ({settings.lookback_hours}): train them with --from {min(windows)} "
        f"--to {next_window(max(windows))}"
    )


def sampled_quality(connection: Connection, settings: Settings, now: datetime) -> SampleQuality:
    """Quality of the newest eligible rows within the look-back, trained or not, as readiness measures it."""
    with connection.transaction():
        return _newest_quality(connection, freeze_bounds(connection, settings, now, settled=True))


def _newest_quality(connection: Connection, bounds: FreezeBounds) -> SampleQuality:
    return measure_quality(connection, newest_eligible(connection, bounds.first, bounds.end, bounds.complete, QUALITY_SAMPLE))


def measure_quality(connection: Connection, rows: Sequence[TrajectoryRow]) -> SampleQuality:
    """Share of ``rows`` that passes each check; without rows every share is 0."""
    logs: dict[str, list[CallLogRow]] = defaultdict(list)
    for log in call_log_rows(connection, [row.trajectory_id for row in rows]):
        logs[log.trajectory_id].append(log)
    return sample_quality([(row, logs[row.trajectory_id]) for row in rows])


def freeze_when_ready(
    connection: Connection, settings: Settings, now: datetime, remembered: str | None = None, most: int | None = None
) -> Frozen:
    """Freeze a batch of at most ``most`` trajectories (TRAINING_MAX_TRAJECTORIES), or say why not; ``remembered`` is of the call before."""
    try:
        if (paused := refused_lately(connection, settings, now)) is not None:
            return Frozen(None, paused, remembered=remembered)
        why_not, remembered = not_ready(connection, settings, now, remembered)
        if why_not is not None:
            return Frozen(None, why_not, remembered=remembered)
        # Any seed will do that differs between batches and is stored with them.
        return freeze(
            connection,
            settings,
            now,
            max_trajectories=most or settings.training_max_trajectories,
            seed=int(now.timestamp()),
            minimum=settings.training_min_trajectories,
            settled=True,
        )
    except (TrainingError, UsageError) as refused:
        return Frozen(None, str(refused))


def smaller_batch_due(last: datetime | None, settings: Settings, now: datetime) -> datetime:
    """Time from which a smaller batch suffices: TRAINING_INTERVAL_HOURS after ``last``, the end of the last training, if any."""
    return now if last is None else last + timedelta(hours=settings.training_interval_hours)


def with_smaller_minimum(settings: Settings) -> Settings:
    """The settings of a smaller batch, with a least of 100 trajectories or TRAINING_MIN_TRAJECTORIES if that is less."""
    least = min(settings.training_daily_min_trajectories, settings.training_min_trajectories)
    return settings.model_copy(update={"training_min_trajectories": least})
