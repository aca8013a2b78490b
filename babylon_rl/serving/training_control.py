"""Trainings and scorings started by requests, and the data that they would take."""

from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from babylon_rl.api_errors import ApiError
from babylon_rl.errors import BatchConflict, NothingToTrain
from babylon_rl.judge.scoring import HOURS_PER_RUN, unscored_hours
from babylon_rl.serving import admin_shapes as shapes
from babylon_rl.serving.dagster_client import SCORE_JOB, TRAIN_JOB, DagsterClient, trained_assets, training_tags
from babylon_rl.settings import Settings
from babylon_rl.store.batches import Batch
from babylon_rl.store.columns import document_of
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database
from babylon_rl.store.training_status import hour_totals, lock_trigger, recent_trajectories
from babylon_rl.training.batches import fail_stuck, pending_batches
from babylon_rl.training.freezing import Frozen, freeze, freeze_bounds
from babylon_rl.training.readiness import Readiness, Start, freeze_when_ready, sampled_quality
from babylon_rl.windows import window_stretches

TRAJECTORIES_SHOWN = 10
MOST_RUNS = 5  # of one scoring check; the next continues


@dataclass(frozen=True)
class TrainingControl:
    """Database, settings and Dagster of the admin API."""

    database: Database
    settings: Settings
    dagster: DagsterClient

    def trigger(self, now: datetime, *, force: bool = False, batch_size: int | None = None) -> shapes.TriggerDocument:
        """Freeze a batch and launch its run.

        Raises:
            BatchConflict: a job is unfinished, without ``force``.
            NothingToTrain: nothing can be frozen or, without ``force``, it is not ready.
            ApiError: Dagster does not answer; nothing was frozen.
        """
        # Asked first: a batch that nobody runs would hold its trajectories.
        self.dagster.live_runs(job=TRAIN_JOB)
        # A connection of its own holds the lock, as freezing commits transactions of its own meanwhile.
        with self.database.connect() as guard, guard.transaction():
            lock_trigger(guard)
            with self.database.connect(autocommit=True) as connection:
                batch = self._freeze(connection, now, force, batch_size)
        try:
            tags = training_tags(self.settings, batch.backend)
            run_id = self.dagster.launch_training(batch.batch_id, trained_assets(self.settings), tags)
            message = f"Froze {batch.trajectories} trajectories; their run is launched."
        except ApiError as late:
            run_id, message = None, f"Froze {batch.trajectories} trajectories; the sensor start_training launches their run. {late.message}"
        return shapes.TriggerDocument(job_id=batch.batch_id, run_id=run_id, message=message)

    def _freeze(self, connection: Connection, now: datetime, force: bool, batch_size: int | None) -> Batch:
        fail_stuck(connection, now)
        pending = pending_batches(connection)
        if pending and not force:
            raise BatchConflict(f"{pending[0].batch_id} is {pending[0].state}; with force another job is queued behind it.")
        most = batch_size or self.settings.training_max_trajectories
        frozen: Frozen | Start
        if force:
            frozen = freeze(connection, self.settings, now, max_trajectories=most, seed=int(now.timestamp()))
        else:
            frozen = freeze_when_ready(connection, self.settings, now, most=most)
        if frozen.batch is None:
            raise NothingToTrain(frozen.reason)
        return frozen.batch

    def score_settled(self, connection: Connection, ready: Readiness) -> shapes.Scoring:
        """Launch runs that score settled hours without scores, unless under way."""
        hours = unscored_hours(connection, list(ready.groups))
        if not hours:
            return shapes.Scoring(hours=0, run_ids=[], message="Every settled hour has scores.")
        live = self.dagster.live_runs(job=SCORE_JOB)
        if live:
            return shapes.Scoring(hours=len(hours), run_ids=live, message="A run scores hours now.")
        runs = [self.dagster.launch_scoring(first, last) for first, last in islice(window_stretches(hours, HOURS_PER_RUN), MOST_RUNS)]
        return shapes.Scoring(hours=len(hours), run_ids=runs, message=f"Launched {len(runs)} runs that score hours.")

    def training_data(self, connection: Connection, now: datetime) -> shapes.TrainingDataDocument:
        """The hours of the look-back that were read, and the newest trajectories."""
        bounds = freeze_bounds(connection, self.settings, now)
        totals = hour_totals(connection, bounds.first, bounds.end)
        hours = [
            shapes.HourDocument(window_id=hour.window, trajectory_count=hour.trajectories, avg_steps=hour.mean_steps, avg_pnl=hour.mean_pnl)
            for hour in totals
        ]
        least = self.settings.min_agents_per_window
        ready = [document for document, hour in zip(hours, totals, strict=True) if hour.usable_episodes >= least]
        recent = [shapes.TrajectoryDocument.of(row) for row in recent_trajectories(connection, now, TRAJECTORIES_SHOWN)]
        summary = shapes.DataSummary(
            total_trajectories=sum(hour.trajectory_count for hour in hours),
            total_windows=len(hours),
            ready_windows=len(ready),
            min_agents_required=least,
        )
        quality = document_of(sampled_quality(connection, self.settings, now))
        data = shapes.TrainingData(summary=summary, windows=hours, ready_windows=ready, recent_trajectories=recent, quality_metrics=quality)
        return shapes.TrainingDataDocument(data=data)
