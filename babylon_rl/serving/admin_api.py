"""Admin API and page: state of the system, trainings, versions and cron endpoints.

Names are those that the game's dashboards read. OPERATIONS is the table of its paths; /openapi.json is generated from it. Access is the
gateway's: bearer keys, and only this machine until a key exists. The cron endpoints have CRON_SECRET in a key's place.
"""

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from shutil import copyfileobj
from typing import Any

import anyio
import msgspec
import psycopg
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as RoutedPath
from starlette.types import ASGIApp

from babylon_rl import __version__
from babylon_rl.api_errors import NOT_JSON, ApiError
from babylon_rl.errors import (
    BabylonError,
    BatchConflict,
    CheckpointError,
    DatabaseError,
    NothingToTrain,
    SettingsError,
    TrainingPaused,
    UsageError,
    first_line,
)
from babylon_rl.http_server import (
    BODY_TIMEOUT_S,
    ClientGone,
    Door,
    bind,
    error_handlers,
    json_response,
    read_json,
    refuse_nesting,
    url_of,
    uvicorn_server,
)
from babylon_rl.judge.scoring import HOURS_PER_RUN, unscored_hours
from babylon_rl.logs import start_logs
from babylon_rl.serving import admin_shapes as shapes
from babylon_rl.serving import releases
from babylon_rl.serving.access import Access, Client, MinuteBudget, key_hash
from babylon_rl.serving.admin_page.app import PATH, AdminPage, Logins
from babylon_rl.serving.admin_shapes import Operation, openapi_document
from babylon_rl.serving.dagster_client import SCORE_JOB, TRAIN_JOB, DagsterClient, trained_assets, training_tags
from babylon_rl.serving.live_state import LiveState
from babylon_rl.serving.metrics import pipeline_metrics
from babylon_rl.serving.status import automation_document, status_document
from babylon_rl.serving.status_shapes import ModelDocument, ReadinessDocument, Shape, StatusDocument
from babylon_rl.settings import Settings
from babylon_rl.store.batches import Batch
from babylon_rl.store.client_keys import ClientKey
from babylon_rl.store.columns import document_of
from babylon_rl.store.connection import Connection
from babylon_rl.store.database import Database, open_database
from babylon_rl.store.registry import read_models
from babylon_rl.store.releases import ReleaseAuthor, Rollout
from babylon_rl.store.training_status import TRIGGER_LOCK, hours_read, recent_trajectories
from babylon_rl.training.batches import cancel_batch, fail_stuck, pending_batches
from babylon_rl.training.freezing import freeze, freeze_bounds
from babylon_rl.training.importing import ImportedWeights, import_version
from babylon_rl.training.readiness import Readiness, freeze_when_ready, readiness, sampled_quality
from babylon_rl.windows import moment, utc_now, window_stretches

BODY_LIMIT = 256 * 1024
TRAJECTORIES_SHOWN = 10
MOST_RUNS = 5  # of one scoring check; the next continues
STARTS_A_MINUTE = 12  # of trainings and scorings, for all clients together
_ADMIN, _CRON = "/api/admin/training", "/api/cron"
_STATUS = {UsageError: 400, SettingsError: 400, CheckpointError: 400, DatabaseError: 503, TrainingPaused: 503}


@dataclass(frozen=True, slots=True)
class AdminRequest:
    """Admitted request: client, decoded body and, of an upload, the file."""

    client: str
    now: datetime
    body: Any = None
    upload: UploadFile | None = None
    version: str = ""


class AdminApi:
    """The parts of one process; ``clock`` in seconds is that of the limits."""

    def __init__(
        self, settings: Settings, database: Database, *, starts_a_minute: int = STARTS_A_MINUTE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings, self.database = settings, database
        self.dagster = DagsterClient(settings.dagster_url)
        self.access = Access()
        self.logins = Logins()
        self.state = LiveState(settings, self.access)
        self.starts = MinuteBudget(starts_a_minute, clock)
        self.page = AdminPage(settings, database, self.access, self.logins, partial(_client, self))
        self.cron_access = Access()
        secret = settings.cron_secret
        key = [] if secret is None else [ClientKey("cron", key_hash(secret.get_secret_value()), None, None, utc_now(), admin=True)]
        # Without CRON_SECRET there is no key, so that only this machine is served.
        self.cron_access.update(key)

    def status(self, request: AdminRequest) -> Shape:
        with self.database.connect() as connection:
            return status_document(connection, self.settings, request.now)

    def metrics(self) -> bytes:
        with self.database.connect() as connection:
            return pipeline_metrics(status_document(connection, self.settings, utc_now()))

    def readiness(self, request: AdminRequest) -> Shape:
        with self.database.connect() as connection:
            return ReadinessDocument.of(readiness(connection, self.settings, request.now))

    def trigger(self, request: AdminRequest) -> Shape:
        return self._start(request.now, request.body)

    def cancel(self, request: AdminRequest) -> Shape:
        body: shapes.CancelRequest = request.body
        with self.database.connect(autocommit=True) as connection:
            batch = cancel_batch(connection, body.job_id, f"{body.reason} ({request.client})", request.now)
        message = f"{batch.batch_id} is cancelled; its run stops at its next heartbeat."
        return shapes.CancelDocument(job_id=batch.batch_id, status=batch.state, message=message)

    def training_data(self, request: AdminRequest) -> Shape:
        settings, now = self.settings, request.now
        with self.database.connect() as connection:
            bounds = freeze_bounds(connection, settings, now)
            totals = hours_read(connection, bounds.first, bounds.end)
            recent = recent_trajectories(connection, now, TRAJECTORIES_SHOWN)
            quality = document_of(sampled_quality(connection, settings, now))
        hours, least = [hour for hour, _ in totals], settings.min_agents_per_window
        ready = [hour for hour, usable in totals if usable >= least]
        summary = shapes.DataSummary(
            total_trajectories=sum(hour.trajectories for hour in hours),
            total_windows=len(hours),
            ready_windows=len(ready),
            min_agents_required=least,
        )
        data = shapes.TrainingData(summary=summary, windows=hours, ready_windows=ready, recent_trajectories=recent, quality_metrics=quality)
        return shapes.TrainingDataDocument(data=data)

    def models(self, request: AdminRequest) -> Shape:
        with self.database.connect() as connection:
            return shapes.ModelsDocument(models=[ModelDocument.of(model) for model in read_models(connection)])

    def deploy(self, request: AdminRequest) -> Shape:
        body: shapes.DeployRequest = request.body
        with self.database.connect() as connection:
            rollout = releases.deploy(
                connection, body.model_version, self.settings, _author(request), strategy=body.strategy,
                percentage=body.rollout_percentage if body.strategy == "gradual" else None, agent_ids=body.agent_ids,
            )  # fmt: skip
            return self._deployment(connection, rollout, request.now)

    def rollback(self, request: AdminRequest) -> Shape:
        with self.database.connect() as connection:
            rollout = releases.rollback(connection, self.settings, _author(request), request.body.target_version)
            return self._deployment(connection, rollout, request.now)

    def upload_model(self, request: AdminRequest) -> Shape:
        assert request.upload is not None  # the upload's operation alone has this handler
        metadata: shapes.UploadMetadata = request.body
        checkpoints = self.settings.home / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        # Beside the checkpoints, where there is room for weights; the system's directory for temporary files may be in memory.
        with tempfile.TemporaryDirectory(dir=checkpoints, prefix=".received-") as directory:
            file = Path(directory) / "weights"
            with file.open("wb") as target:
                copyfileobj(request.upload.file, target)
            weights = ImportedWeights(
                file, metadata.sha256, request.version, metadata.parent, {"by": request.client, "notes": metadata.notes}
            )
            with self.database.connect() as connection:
                model = import_version(connection, self.settings, weights, request.now)
        return shapes.UploadDocument(model=ModelDocument.of(model))

    def training_check(self, request: AdminRequest) -> Shape:
        started = time.monotonic()
        with self.database.connect() as connection:
            ready = readiness(connection, self.settings, request.now)
            scoring = self._score_settled(connection, ready)
            status = automation_document(connection, self.settings, request.now)
        return shapes.TrainingCheckDocument(
            duration=round((time.monotonic() - started) * 1000), timestamp=moment(request.now) or "", scoring=scoring,
            readiness=ReadinessDocument.of(ready), status=status,
        )  # fmt: skip

    def cron_training(self, request: AdminRequest) -> Shape:
        try:
            started = self._start(request.now, shapes.TriggerRequest())
            message, job_id = started.message, started.job_id
        except BabylonError as refused:
            # A refusal is an ordinary answer here: a scheduler calls this every day.
            if _status(refused) != 409:
                raise
            message, job_id = str(refused), None
        with self.database.connect() as connection:
            return shapes.CronTrainingDocument(
                timestamp=moment(request.now) or "", message=message, job_id=job_id,
                readiness=ReadinessDocument.of(readiness(connection, self.settings, request.now)),
                status=automation_document(connection, self.settings, request.now),
            )  # fmt: skip

    def _start(self, now: datetime, asked: shapes.TriggerRequest) -> shapes.TriggerDocument:
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
            guard.take_lock(TRIGGER_LOCK)
            with self.database.connect(autocommit=True) as connection:
                batch = self._freeze(connection, now, asked)
        try:
            tags = training_tags(self.settings, batch.backend)
            run_id = self.dagster.launch_training(batch.batch_id, trained_assets(self.settings), tags)
            message = f"Froze {batch.trajectories} trajectories; their run is launched."
        except ApiError as late:
            run_id, message = None, f"Froze {batch.trajectories} trajectories; the sensor start_training launches their run. {late.message}"
        return shapes.TriggerDocument(job_id=batch.batch_id, run_id=run_id, message=message)

    def _freeze(self, connection: Connection, now: datetime, asked: shapes.TriggerRequest) -> Batch:
        fail_stuck(connection, now)
        pending = pending_batches(connection)
        if pending and not asked.force:
            raise BatchConflict(f"{pending[0].batch_id} is {pending[0].state}; with force another job is queued behind it.")
        most = asked.batch_size or self.settings.training_max_trajectories
        if asked.force:
            forced = freeze(connection, self.settings, now, max_trajectories=most, seed=int(now.timestamp()))
            batch, reason = forced.batch, forced.reason
        else:
            start = freeze_when_ready(connection, self.settings, now, most=most)
            batch, reason = start.batch, start.reason
        if batch is None:
            raise NothingToTrain(reason)
        return batch

    def _score_settled(self, connection: Connection, ready: Readiness) -> shapes.Scoring:
        """Launch runs that score settled hours without scores, unless under way."""
        hours = unscored_hours(connection, list(ready.groups))
        if not hours:
            return shapes.Scoring(hours=0, run_ids=[], message="Every settled hour has scores.")
        live = self.dagster.live_runs(job=SCORE_JOB)
        if live:
            return shapes.Scoring(hours=len(hours), run_ids=live, message="A run scores hours now.")
        runs = [self.dagster.launch_scoring(first, last) for first, last in islice(window_stretches(hours, HOURS_PER_RUN), MOST_RUNS)]
        return shapes.Scoring(hours=len(hours), run_ids=runs, message=f"Launched {len(runs)} runs that score hours.")

    def _deployment(self, connection: Connection, rollout: Rollout, now: datetime) -> shapes.DeploymentDocument:
        updated = releases.agents_updated(connection, self.settings, now)
        return shapes.DeploymentDocument.of(rollout, agents_updated=updated, deployment_id=str(rollout.rollout_id), success=True)


OPERATIONS = [
    Operation("GET", f"{_ADMIN}/status", "State of the whole system", StatusDocument, AdminApi.status),
    Operation("GET", f"{_ADMIN}/trigger", "Whether a training can start", ReadinessDocument, AdminApi.readiness),
    Operation(
        "POST", f"{_ADMIN}/trigger", "Freeze a batch and train it", shapes.TriggerDocument, AdminApi.trigger,
        body=shapes.TriggerRequest, errors=(409,), starts=True,
    ),
    Operation(
        "POST", f"{_ADMIN}/cancel", "End an unfinished job", shapes.CancelDocument, AdminApi.cancel,
        body=shapes.CancelRequest, errors=(409,),
    ),
    Operation("GET", "/api/admin/training-data", "Hours and trajectories", shapes.TrainingDataDocument, AdminApi.training_data),
    Operation("GET", f"{_ADMIN}/models", "All versions", shapes.ModelsDocument, AdminApi.models),
    Operation(
        "POST", f"{_ADMIN}/deploy", "Put a version in front of agents", shapes.DeploymentDocument, AdminApi.deploy,
        body=shapes.DeployRequest, errors=(409,),
    ),
    Operation(
        "POST", f"{_ADMIN}/rollback", "Return to an earlier version", shapes.DeploymentDocument, AdminApi.rollback,
        body=shapes.RollbackRequest, errors=(409,),
    ),
    Operation(
        "POST", f"{_ADMIN}/upload-model", "Register weights trained elsewhere", shapes.UploadDocument, AdminApi.upload_model,
        upload=True, errors=(409,), starts=True,
    ),
    Operation(
        "GET", f"{_CRON}/training-check", "Score what settled", shapes.TrainingCheckDocument, AdminApi.training_check,
        cron=True, errors=(400, 409), starts=True,
    ),
    Operation(
        "GET", f"{_CRON}/training", "Start a training if it is ready", shapes.CronTrainingDocument, AdminApi.cron_training,
        cron=True, errors=(400, 409), starts=True,
    ),
]  # fmt: skip


def create_app(api: AdminApi) -> ASGIApp:

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await asyncio.to_thread(api.state.start)
        yield
        await asyncio.to_thread(api.state.close)

    paths = sorted({operation.path for operation in OPERATIONS})
    index = {"name": "babylon_rl admin API", "page": PATH, "version": __version__, "openapi": "/openapi.json", "paths": paths}

    async def samples(request: Request) -> Response:
        # Admitted as the status, of which the metrics are made.
        _client(api, request)
        try:
            text = await anyio.to_thread.run_sync(api.metrics)
        except (BabylonError, psycopg.Error) as broken:
            raise ApiError(503, f"The status cannot be read: {first_line(broken)}", "database_unavailable") from None
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    routes = [
        RoutedPath("/", json_response(index), methods=["GET"]),
        RoutedPath("/openapi.json", json_response(openapi_document(OPERATIONS, __version__)), methods=["GET"]),
        RoutedPath("/metrics", samples),
        *api.page.routes(),
    ]
    for path in paths:
        methods = {operation.method: operation for operation in OPERATIONS if operation.path == path}
        routes.append(RoutedPath(path, _endpoint(api, methods), methods=list(methods)))
    handlers = error_handlers(_refusal, "/openapi.json lists what is", "The admin API failed; its log has the reason.")
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    return Door(app, _refusal, lambda: api.access.keyed, pages=(PATH, f"{PATH}/agent"))


def _endpoint(api: AdminApi, methods: dict[str, Operation]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        operation = methods["GET" if request.method == "HEAD" else request.method]
        client = _client(api, request, cron=operation.cron).name or "this machine"
        if operation.starts and (wait_s := api.starts.wait_s()) > 0:
            message = f"At most {api.starts.limit} trainings, scorings and uploads are started a minute."
            raise ApiError(429, message, "rate_limit_exceeded", headers={"retry-after": str(int(wait_s) + 1)})
        # Nothing is awaited between the check above and this, so that two requests cannot take the same start.
        if operation.starts:
            api.starts.take(1)
        try:
            async with AsyncExitStack() as files:
                admitted = await _read(api, operation, request, client, files)
                return json_response(await anyio.to_thread.run_sync(operation.run, api, admitted))
        except BabylonError as refused:
            raise ApiError(_status(refused), str(refused), "refused") from None
        except psycopg.Error as broken:
            raise ApiError(503, f"The database does not answer: {first_line(broken)}.", "database_unavailable") from None

    return answer


def _client(api: AdminApi, request: Request, *, cron: bool = False) -> Client:
    """Admit a request. Raises ApiError: it has no valid key for this server."""
    headers = request.headers if cron else api.logins.with_key(request.headers)
    try:
        client = (api.cron_access if cron else api.access).admit(request.scope, headers)
    except ApiError as refused:
        if cron and refused.code == "no_keys":
            message = refused.message.partition(":")[0].replace("keys", "CRON_SECRET", 1)
            raise ApiError(403, f"{message}: set it, and send it as a key.", "no_keys") from None
        raise
    if client.name is not None and not client.admin:
        message = f"The key {client.name} opens the gateway only: `babylon-rl keys create NAME --admin` makes one for this server."
        raise ApiError(403, message, "not_admin")
    return client


async def _read(api: AdminApi, operation: Operation, request: Request, client: str, files: AsyncExitStack) -> AdminRequest:
    """Read and decode a request's body; an upload's file is closed with ``files``. Raises ApiError, ClientGone."""
    kind, now = operation.body, utc_now()
    if operation.upload:
        return await _read_upload(api, request, client, files)
    if kind is None:
        return AdminRequest(client, now)
    content = await read_json(request.receive, request.headers.get("content-type"), BODY_LIMIT, BODY_TIMEOUT_S)
    try:
        return AdminRequest(client, now, msgspec.json.decode(content or b"{}", type=kind))
    except NOT_JSON as invalid:
        raise ApiError(400, f"The body is not as described in /openapi.json: {invalid}.", "invalid_body") from None


async def _read_upload(api: AdminApi, request: Request, client: str, files: AsyncExitStack) -> AdminRequest:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise ApiError(415, "Send a form: content-type multipart/form-data with model, version and metadata.", "content_type")
    limit = api.settings.upload_limit_mb * 1024**2
    size = 0
    refused: ApiError | ClientGone | None = None  # why reading ended early

    async def receive() -> Any:
        nonlocal size, refused
        try:
            message = await asyncio.wait_for(request.receive(), BODY_TIMEOUT_S)
        except TimeoutError:
            refused = ApiError(408, f"No part of the body arrived within {BODY_TIMEOUT_S:g} s.", "body_timeout")
        else:
            size += len(message.get("body", b""))
            if message["type"] == "http.disconnect":
                refused = ClientGone()
            # The form's own lines and its other fields come on top of the file.
            elif size > limit + BODY_LIMIT:
                refused = ApiError(413, f"The body has more than {limit + BODY_LIMIT:,} bytes.", "body_too_large")
        # Only this error lets the parser close what it has opened.
        if refused is not None:
            raise MultiPartException(str(refused))
        return message

    try:
        form = await Request(request.scope, receive).form(max_files=1, max_fields=2, max_part_size=BODY_LIMIT)
    except HTTPException as unreadable:
        raise refused or ApiError(400, f"The form cannot be read: {unreadable.detail}.", "invalid_body") from None
    files.push_async_callback(form.close)
    model, version, metadata = (form.get(name) for name in ("model", "version", "metadata"))
    if not isinstance(model, UploadFile) or not isinstance(version, str) or not isinstance(metadata, str):
        raise ApiError(400, "A form has the file model and the fields version and metadata.", "invalid_body")
    if (model.size or 0) > limit:
        raise ApiError(413, f"The file has more than {limit:,} bytes.", "body_too_large")
    refuse_nesting(metadata.encode())
    try:
        facts = msgspec.json.decode(metadata, type=shapes.UploadMetadata)
    except NOT_JSON as invalid:
        raise ApiError(400, f"The field metadata is not as described in /openapi.json: {invalid}.", "invalid_body") from None
    return AdminRequest(client, utc_now(), facts, model, version)


def _author(request: AdminRequest) -> ReleaseAuthor:
    return ReleaseAuthor(f"api: {request.client}", "by the admin API", request.now)


def _status(refused: BabylonError) -> int:
    return next((status for kind, status in _STATUS.items() if isinstance(refused, kind)), 409)


def _refusal(error: ApiError) -> Response:
    return json_response(shapes.ErrorReply(error=error.message, code=error.code or "refused"), error.status, error.headers)


def serve(settings: Settings, host: str, port: int, announce: Callable[[str], None]) -> None:
    """Serve until interrupted; ``announce`` gets a line for people once the address is bound."""
    start_logs(settings)
    with bind(host, port) as bound, open_database(settings, prepare=False) as database:
        bound.listen(512)  # what is announced takes connections, and answers once the server below runs
        url = url_of(bound)
        announce(
            f"Admin page on {url}{PATH}, API as {url}/openapi.json has it; it launches runs at {settings.dagster_url}. Ctrl-C ends it."
        )
        uvicorn_server(create_app(AdminApi(settings, database)), timeout_graceful_shutdown=10).run(sockets=[bound])
