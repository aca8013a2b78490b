"""Operations of the admin API, their bodies as msgspec structs, and the OpenAPI document that is generated from them.

The names are those that dashboards and scripts of the game read. Times are UTC, in ISO 8601.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from babylon_rl.serving.status_shapes import Automation, ModelDocument, ReadinessDocument, Shape
from babylon_rl.store.columns import Time
from babylon_rl.store.training_status import HourDocument, TrajectoryDocument

_SCHEMAS = "#/components/schemas/"
Version = Annotated[str, Meta(min_length=1, max_length=100, description="A registered version, such as v1.0.0.")]


class RequestShape(msgspec.Struct, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Base of bodies of requests; fields that are not known are refused."""


class TriggerRequest(RequestShape):
    """Start of a training. ``force``: also while it is not ready, and behind a job that runs."""

    force: bool = False
    batch_size: Annotated[int, Meta(ge=1, le=1_000_000, description="The most trajectories to freeze.")] | None = None


class DeployRequest(RequestShape):
    """Deployment of a version; ``rolloutPercentage`` counts for the strategy gradual, ``agentIds`` for test."""

    model_version: Version
    strategy: Literal["immediate", "gradual", "test"] = "gradual"
    rollout_percentage: Annotated[float, Meta(gt=0, le=100)] = 10
    agent_ids: Annotated[list[Annotated[str, Meta(min_length=1, max_length=200)]], Meta(max_length=10_000)] = []


class RollbackRequest(RequestShape):
    """Return to an earlier version (or to base); without one, to the version before."""

    target_version: Version | None = None


class CancelRequest(RequestShape):
    """End of an unfinished job; the reason is kept with it."""

    job_id: Annotated[str, Meta(min_length=1, max_length=200)]
    reason: Annotated[str, Meta(min_length=1, max_length=300)]


class UploadMetadata(RequestShape):
    """The registered version that an upload continues, and the SHA-256 of its file. ``notes`` are kept with the version."""

    parent: Version
    sha256: Annotated[str, Meta(pattern="^[0-9a-fA-F]{64}$")]
    notes: dict[str, str | int | float | bool | None] = {}


class ErrorReply(Shape):
    """Answer with an error status."""

    error: str
    code: str
    success: Literal[False] = False


class TriggerDocument(Shape):
    """A training that was started. ``runId`` is null if Dagster did not take the run at once: its sensor starts it within a minute."""

    job_id: str
    run_id: str | None
    message: str
    success: Literal[True] = True


class CancelDocument(Shape):
    """A job that was ended; its trajectories are free again."""

    job_id: str
    status: str
    message: str
    success: Literal[True] = True


class DataSummary(Shape):
    """Totals over the hours shown; ready hours have ``minAgentsRequired`` usable episodes."""

    total_trajectories: int
    total_windows: int
    ready_windows: int
    min_agents_required: int


class TrainingData(Shape):
    """Hours within LOOKBACK_HOURS that were read, newest first, and the trajectories that came last."""

    summary: DataSummary
    windows: list[HourDocument]
    ready_windows: list[HourDocument]
    recent_trajectories: list[TrajectoryDocument]
    quality_metrics: dict[str, Any]


class TrainingDataDocument(Shape):
    """Answer of training-data."""

    data: TrainingData
    success: Literal[True] = True


class ModelsDocument(Shape):
    """All versions, highest first."""

    models: list[ModelDocument]
    success: Literal[True] = True


class DeploymentDocument(Shape):
    """A release that moved. ``agentsUpdated``: agents of the last day that get another version than they had at their last call."""

    agents_updated: int
    deployment_id: str
    version: str
    state: str
    strategy: str
    percentage: float
    previous_version: str | None
    success: Literal[True] = True


class UploadDocument(Shape):
    """A version that was uploaded."""

    model: ModelDocument
    success: Literal[True] = True


class Scoring(Shape):
    """Hours that have settled without scores, and the runs that score them."""

    hours: int
    run_ids: list[str]
    message: str


class TrainingCheckDocument(Shape):
    """Answer of the hourly check; ``duration`` is in milliseconds."""

    duration: int
    timestamp: Time
    scoring: Scoring
    readiness: ReadinessDocument
    status: Automation
    success: Literal[True] = True


class CronTrainingDocument(Shape):
    """Answer of the daily start. ``jobId`` is null if none was started, and ``message`` says why."""

    timestamp: Time
    readiness: ReadinessDocument
    status: Automation
    message: str
    job_id: str | None
    success: Literal[True] = True


@dataclass(frozen=True)
class Operation:
    """One method of a path; ``errors`` are statuses besides those of access, ``starts``: limited in rate, as it starts work."""

    method: str
    path: str
    summary: str
    answer: type[Shape]
    run: Callable[[Any, Any], Shape]
    body: type[RequestShape] | None = None
    cron: bool = False
    upload: bool = False
    errors: tuple[int, ...] = ()
    starts: bool = False


_MEANINGS = {
    400: "The request is not as described.", 401: "No valid key.", 403: "Not from here: without keys only this machine is served.",
    408: "The body came too slowly.", 409: "The state forbids it; the error says why.", 413: "The body is too large.",
    415: "The body is of another content type.", 429: "Too many requests; the header retry-after says when.",
    503: "The database, Dagster or MODEL_STORAGE_URL does not answer.",
}  # fmt: skip


def openapi_document(operations: Sequence[Operation], version: str) -> dict[str, Any]:
    """Generate the OpenAPI 3.1 document of some operations."""
    used = [kind for operation in operations for kind in (operation.answer, operation.body) if kind is not None]
    # Without repetitions, in the order of the operations: the same document at every start.
    types = dict.fromkeys([*used, ErrorReply, UploadMetadata])
    _, components = msgspec.json.schema_components(types, ref_template=_SCHEMAS + "{name}")
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "babylon_rl admin API", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A key of `babylon-rl keys create`."},
                "cron": {"type": "http", "scheme": "bearer", "description": "CRON_SECRET."},
            },
        },
    }  # fmt: skip


def _operation(operation: Operation) -> dict[str, Any]:
    statuses = {401, 403, 429, 503, *operation.errors}
    # Statuses of reading a body.
    if operation.body is not None or operation.upload:
        statuses |= {400, 408, 413, 415}
    document: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.method.lower() + re.sub(r"\W+", "_", operation.path).rstrip("_"),
        "security": [{"cron" if operation.cron else "key": []}],
        "responses": {"200": _response("The answer.", operation.answer)}
        | {str(status): _response(_MEANINGS[status], ErrorReply) for status in sorted(statuses)},
    }
    if operation.body is not None:
        body = {"application/json": {"schema": _reference(operation.body)}}
        document["requestBody"] = {"required": any(field.required for field in msgspec.structs.fields(operation.body)), "content": body}
    if operation.upload:
        file = {"type": "string", "format": "binary", "description": "The adapter's weights: adapter_model.safetensors."}
        schema: dict[str, Any] = {
            "type": "object", "required": ["model", "version", "metadata"],
            "properties": {"model": file, "version": {"type": "string"}, "metadata": _reference(UploadMetadata)},
        }  # fmt: skip
        content = {"multipart/form-data": {"schema": schema, "encoding": {"metadata": {"contentType": "application/json"}}}}
        document["requestBody"] = {"required": True, "content": content}
    return document


def _reference(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": _SCHEMAS + kind.__name__}


def _response(description: str, kind: type[Shape]) -> Mapping[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _reference(kind)}}}
