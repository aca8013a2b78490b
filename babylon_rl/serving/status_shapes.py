"""Parts of the status document as msgspec structs, with the names that dashboards read.

Times are UTC, in ISO 8601.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class Shape(msgspec.Struct, kw_only=True, rename="camel"):
    """Base of answers."""


class DataCollection(Shape):
    """Trajectories of the last 24 hours and 7 days, by the hours they belong to.

    The rate is that of the last day.

    ``newestAt`` is the end of the newest trajectory.
    """

    last24h: int
    last7d: int
    rate_per_hour: float
    newest_at: Time | None
    newest_age_hours: float | None


class ProgressDocument(Shape):
    """Progress of the current job.

    ``fraction`` is 0 to 1, its end as fitted to ``fittedTo`` past runs and to its own pace.

    ``etaError``: mean relative error with which past runs predict each other; null below two.
    """

    batch_id: str
    state: str
    fraction: float
    iteration: int
    iterations: int
    losses: list[float | None]
    elapsed_seconds: float
    eta_seconds: float | None
    eta_at: Time | None
    eta_error: float | None
    fitted_to: int


class AgreementDocument(Shape):
    """Newest calibration of the judge.

    Rank correlation of its scores with expected P&L, and its interval.
    """

    judge: str
    mean: float
    low: float
    high: float
    hours: int
    measured_at: Time | None


class JudgeDocument(Shape):
    """The judge.

    Hours of the look-back with current scores, hours without and the newest reason, agreement, and dollars.

    ``unpriced`` counts the answers of today whose price is not known.
    """

    model: str
    hours_scored: int
    hours_waiting: int
    hours_quarantined: int
    waiting_reason: str | None
    disagreement: float | None
    agreement: AgreementDocument | None
    spent_today_usd: float
    budget_usd: float | None
    unpriced: int


class LineageDocument(Shape):
    """A version with its parent and the gate's evidence.

    Dollars an hour above the reference, with the 95 % interval.
    """

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
    """An alert whose cause lasts; ``sentAt`` is null while no channel has it."""

    cause: str
    says: str
    advice: str
    first_seen_at: Time | None
    sent_at: Time | None


class Health(Shape):
    """Health of each part.

    ``wandb``: trainings are sent there. ``details`` says of each how it was found.
    """

    database: bool
    storage: bool
    wandb: bool
    judge: bool
    trainer: bool
    daemon: bool
    details: dict[str, str]


class TrajectoryMeans(Shape):
    """Means over all trajectories, null without any."""

    total_reward: float | None
    episode_length: float | None
    duration_ms: float | None


class TrajectoryStats(Shape):
    """All recorded trajectories.

    ``counted`` is exact or, of a large table, estimated (the means then are a sample's).
    """

    count: int = msgspec.field(name="_count")
    means: TrajectoryMeans = msgspec.field(name="_avg")
    counted: Literal["exact", "estimated"]
