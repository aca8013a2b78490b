"""The status document and its parts as msgspec structs, with the names that dashboards read.

Times are UTC, in ISO 8601.
"""

from typing import Any, Literal, Self

import msgspec

from babylon_rl.store.columns import Time, document_of, json_value
from babylon_rl.store.training_status import TrajectoryStats

PARTS = ("database", "storage", "judge", "trainer", "daemon")  # that work in a healthy system


class Shape(msgspec.Struct, kw_only=True, rename="camel"):
    """Base of answers."""

    @classmethod
    def of(cls, row: Any, **others: Any) -> Self:
        """Build the document of a row by its fields' names, times (naive UTC) as text; ``others`` come first."""
        shown = {name: json_value(getattr(row, name)) for name in cls.__struct_fields__ if name not in others}
        return cls(**shown, **others)


class DataCollection(Shape):
    """Trajectories by the hours they belong to; the rate is that of the last day, ``newestAt`` the end of the newest one."""

    last24h: int
    last7d: int
    rate_per_hour: float
    newest_at: Time | None
    newest_age_hours: float | None


class ProgressDocument(Shape):
    """Progress of the current job.

    ``fraction`` is 0 to 1, by optimizer steps, its end as fitted to ``fittedTo`` past runs and to its own pace. ``step`` of ``steps`` are
    those of the iteration that runs, ``iteration`` the finished ones. ``etaError``: mean relative error with which past runs predict each
    other; null below two.
    """

    batch_id: str
    state: str
    activity: str
    fraction: float
    iteration: int
    iterations: int
    step: int
    steps: int
    losses: list[float | None]
    elapsed_seconds: float
    eta_seconds: float | None
    eta_at: Time | None
    eta_error: float | None
    fitted_to: int


class AgreementDocument(Shape):
    """Newest calibration of the judge: rank correlation of its scores with expected P&L, and its interval."""

    judge: str
    mean: float
    low: float
    high: float
    hours: int
    measured_at: Time | None


class JudgeDocument(Shape):
    """Hours of the look-back with and without current scores, agreement, and dollars of the judge.

    ``hours_by_other_rules`` have scores of another judge, or from before a rule or a setting changed, which cost ``other_rules_usd`` then
    (None: not known). ``unpriced`` counts the answers of today whose price is not known.
    """

    model: str
    hours_scored: int
    hours_waiting: int
    hours_quarantined: int
    hours_by_other_rules: int
    other_rules_usd: float | None
    waiting_reason: str | None
    disagreement: float | None
    agreement: AgreementDocument | None
    spent_today_usd: float
    budget_usd: float | None
    unpriced: int


class LineageDocument(Shape):
    """A version with its parent, and the gate's evidence: dollars an hour above the reference, with the 95 % interval."""

    version: str
    parent: str | None
    batch_id: str | None
    status: str
    decision: str | None
    reference: str | None
    improvement: float | None
    improvement_low: float | None
    improvement_high: float | None
    created_at: Time | None
    deployed_at: Time | None


class GuardDocument(Shape):
    """A guard of the version on trial; ``verdict`` is pass, fail or inconclusive."""

    name: str
    verdict: str
    words: str


class RolloutDocument(Shape):
    """The version on trial, else the released one; guards are those of a trial."""

    version: str
    state: str
    strategy: str
    percentage: float
    agents: int
    previous_version: str | None
    step_since: Time | None
    guards: list[GuardDocument]


class AlertDocument(Shape):
    """An alert whose cause lasts; ``sentAt`` is null while no channel has it. A notice asks nothing of a person."""

    cause: str
    says: str
    advice: str
    notice: bool
    first_seen_at: Time | None
    sent_at: Time | None


class Health(Shape):
    """Which parts work (``wandb``: trainings are sent there), and how each was found."""

    database: bool
    storage: bool
    wandb: bool
    judge: bool
    trainer: bool
    daemon: bool
    details: dict[str, str]


class BatchDocument(Shape):
    """A training job. ``batchId`` is the job's id. ``foreign`` is false: it is a batch of this pipeline."""

    batch_id: str
    state: str = msgspec.field(name="status")
    version: str = msgspec.field(name="modelVersion")
    parent_version: str | None = msgspec.field(name="parent")
    base_model: str
    backend: str
    trajectories: int
    windows: list[str]
    loss: float | None = msgspec.field(name="trainingLoss")
    seed: int
    attempt: int
    dropout: dict[str, Any]
    created_at: Time | None
    started_at: Time | None
    completed_at: Time | None
    heartbeat_at: Time | None
    error: str | None
    foreign: bool


class ModelDocument(Shape):
    """A version with its lineage; ``foreign``: another producer wrote it."""

    model_id: str
    version: str
    status: str
    base_model: str
    parent_version: str | None = msgspec.field(name="parent")
    training_batch: str | None
    storage_path: str
    deployed_at: Time | None
    created_at: Time | None
    benchmark_score: float | None
    accuracy: float | None
    avg_reward: float | None
    eval_metrics: dict[str, Any] | None
    windows: list[str]
    backend: str | None
    checkpoint: str | None
    pruned_at: Time | None
    uploaded_url: str | None
    tracking_url: str | None
    wandb_artifact_id: str | None
    foreign: bool


class ReadinessStats(Shape):
    """Counts behind a readiness; ``dataQuality`` is 0 to 1."""

    total_trajectories: int
    unscored_trajectories: int
    scenario_groups: int
    data_quality: float


class ReadinessDocument(Shape):
    """Readiness as `babylon-rl ready --json` shows it. ``countedAt`` is null for counts made for this answer."""

    ready: bool
    reason: str
    stats: ReadinessStats
    not_trainable: dict[str, int]
    quality: dict[str, Any]
    counted_at: Time | None

    @classmethod
    def of(cls, row: Any, **others: Any) -> Self:
        """The document of a ``Readiness``."""
        stats = ReadinessStats.of(row, data_quality=round(row.quality.mean, 6))
        return super().of(row, stats=stats, not_trainable=dict(row.not_trainable), quality=document_of(row.quality), **others)


class TrainingJobs(Shape):
    """The oldest unfinished job, the end of the newest completed one, and when the next is due (null: at once)."""

    current_job: BatchDocument | None
    last_completed: Time | None
    next_scheduled: Time | None


class Versions(Shape):
    """The highest version of this pipeline, and the numbers of deployed versions and of unfinished trainings.

    ``deployedVersion`` is the newest deployed one, ``trainingVersion`` that of the current job.
    """

    latest: str | None
    deployed: int
    deployed_version: str | None
    training: int
    training_version: str | None


class Automation(Shape):
    """State of data collection, trainings and versions."""

    data_collection: DataCollection
    training: TrainingJobs
    models: Versions
    health: Health


class StatusDocument(Shape):
    """State of the system; ``degraded`` when a part of its health but Weights & Biases does not work."""

    status: Literal["healthy", "degraded"]
    automation: Automation
    readiness: ReadinessDocument
    progress: ProgressDocument | None
    judge: JudgeDocument
    lineage: list[LineageDocument]
    rollout: RolloutDocument | None
    alerts: list[AlertDocument]
    recent_jobs: list[BatchDocument]
    models: list[ModelDocument]
    trajectory_stats: TrajectoryStats
    timestamp: Time
