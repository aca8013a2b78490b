"""Gateway's application: its paths besides the chat; as a process, several on one port, or a command's thread."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import mark_process_dead
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as RoutedPath
from starlette.types import ASGIApp

from babylon_rl.api_errors import ApiError
from babylon_rl.errors import BabylonError, ModelUnavailable
from babylon_rl.files.location import shown_url
from babylon_rl.http_server import (
    BODY_TIMEOUT_S,
    Door,
    bind,
    error_handlers,
    in_thread,
    json_response,
    read_json,
    refusal,
    url_of,
    uvicorn_server,
)
from babylon_rl.logs import secrets_of, start_logs
from babylon_rl.serving.access import new_key
from babylon_rl.serving.call_writer import call_writer, wait_until_written
from babylon_rl.serving.chat_request import BODY_LIMIT
from babylon_rl.serving.gateway import Gateway
from babylon_rl.serving.live_state import ANSWER_S
from babylon_rl.serving.metrics import PROCESSES_DIRECTORY
from babylon_rl.serving.responses import ResponsesEndpoint
from babylon_rl.serving.routing import ALIASES, alias_meaning, route
from babylon_rl.serving.server_sent_events import spent_tokens
from babylon_rl.settings import Settings, load_settings
from babylon_rl.store.database import open_database
from babylon_rl.store.registry import model_id
from babylon_rl.store.releases import BASE, RoutingTable, read_routing
from babylon_rl.traces import start_traces, traced_app

STOP_S = 10
START_S = 60.0
_LOOK_S = 1.0


def create_app(gateway: Gateway) -> ASGIApp:
    """Create the application around a gateway, traced if this process is."""

    async def look_at_database() -> None:
        while True:
            gateway.metrics.database_answers.set(gateway.state.problem is None)
            await asyncio.sleep(_LOOK_S)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await gateway.start()
        looking = asyncio.create_task(look_at_database())
        yield
        looking.cancel()
        await gateway.stop()

    async def models(request: Request) -> Response:
        gateway.access.admit(request.scope, request.headers)
        return json_response({"object": "list", "data": [_model(name) for name in served_names(gateway.state.table)]})

    async def model(request: Request) -> Response:
        gateway.access.admit(request.scope, request.headers)
        name = request.path_params["name"].replace("%2F", "/")
        if name not in served_names(gateway.state.table) and alias_meaning(name) is None:
            raise ApiError(404, f"There is no model {name}; `GET /v1/models` lists those that there are.", "model_not_found", "model")
        return json_response(_model(name))

    async def embeddings(request: Request) -> Response:
        client = gateway.access.admit(request.scope, request.headers)
        with gateway.access.open_call(client):
            body = await read_json(request.receive, request.headers.get("content-type"), BODY_LIMIT, BODY_TIMEOUT_S)
            status, content = await gateway.upstreams.embeddings(body)
        client.spend(spent_tokens(None, len(body), 0))
        return Response(content, status, media_type="application/json")

    async def ready(_: Request) -> Response:
        state, problem = gateway.state, gateway.state.problem
        known = state.reads or state.restored
        serving = "base, to this machine alone" if not known else "as the registry says" if problem is None else "as last known"
        return json_response({"ready": True, "database": problem or "ok", "serving": serving, "recording": gateway.log.report()})

    async def samples(request: Request) -> Response:
        gateway.access.admit(request.scope, request.headers)
        return Response(gateway.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    routes = [
        RoutedPath("/v1/chat/completions", gateway), RoutedPath("/v1/responses", ResponsesEndpoint(gateway)),
        RoutedPath("/v1/embeddings", embeddings, methods=["POST"]), RoutedPath("/v1/models", models),
        RoutedPath("/v1/models/{name:path}", model), RoutedPath("/ready", ready), RoutedPath("/metrics", samples),
        RoutedPath("/health", json_response({"status": "ok"}), methods=["GET"]),
    ]  # fmt: skip
    handlers = error_handlers(
        refusal,
        "served: POST /v1/chat/completions, /v1/responses, /v1/embeddings; GET /v1/models, /health, /ready, /metrics",
        "The gateway failed; its log has the reason.",
    )
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    traced: ASGIApp = traced_app(Door(app, refusal, lambda: gateway.access.keyed))
    return traced


def served_names(table: RoutingTable) -> list[str]:
    """Return the model names of requests: available versions, the base, the aliases."""
    usable = [version.version for version in table.versions.values() if version.can_be_asked]
    return [*map(model_id, usable), *usable, BASE, *ALIASES]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "babylon-rl"}


def worker() -> ASGIApp:
    """Create the application of one of several processes, which reads the settings itself."""
    settings = load_settings()
    start_logs(settings)
    start_traces(settings.otel_exporter_otlp_endpoint, secrets_of(settings))
    # Values of now of a worker that was killed; what it counted stays.
    for file in Path(os.environ[PROCESSES_DIRECTORY]).glob("gauge_live*_*.db"):
        if not psutil.pid_exists(pid := int(file.stem.rpartition("_")[2])):
            mark_process_dead(pid)
    return create_app(Gateway(settings))


def serve(settings: Settings, host: str, port: int, workers: int, announce: Callable[[str], None]) -> None:
    """Serve until interrupted; ``announce`` gets lines for people once the address is bound."""
    start_logs(settings)
    start_traces(settings.otel_exporter_otlp_endpoint, secrets_of(settings))
    bound = bind(host, port)
    bound.listen(2048)
    with ExitStack() as stack:
        announce(configuration(settings, _registry(settings, stack)))
        announce(f"Gateway on {url_of(bound)}/v1. Ctrl-C ends it.")
        stack.enter_context(call_writer(settings))
        if workers == 1:
            uvicorn_server(create_app(Gateway(settings)), timeout_graceful_shutdown=STOP_S).run(sockets=[bound])
        else:
            from uvicorn.supervisors import Multiprocess

            directory = settings.home / "gateway" / f"metrics-{os.getpid()}"
            # An earlier supervisor may have had the same process id, and counters add up over the files.
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            os.environ[PROCESSES_DIRECTORY] = str(directory)
            application = "babylon_rl.serving.gateway_process:worker"
            server = uvicorn_server(application, factory=True, workers=workers, timeout_graceful_shutdown=STOP_S)
            Multiprocess(server.config, sockets=[bound]).run()


@contextmanager
def running_gateway(settings: Settings) -> Iterator[tuple[str, str]]:
    """Serve on loopback in a thread; yield the base URL for OpenAI clients, and a key that this gateway alone takes.

    It routes by the registry from the first request on, and when the block ends its calls are in the database.

    Raises:
        DatabaseError: the calls could not be written in time; they wait on disk.
        ModelUnavailable: it did not start in time, or could not read the registry.
    """
    key = new_key()
    gateway = Gateway(settings, own_key=key)
    server = uvicorn_server(create_app(gateway), timeout_graceful_shutdown=STOP_S)

    def late() -> str:
        return f"The gateway did not start within {START_S:g} s: {gateway.state.problem or 'see its log'}."

    with call_writer(settings):
        with in_thread(server, "babylon-gateway", late, ready=lambda: gateway.state.reads, within_s=START_S) as url:
            yield f"{url}/v1", key
        # The gateway has ended here and completed its last segment, and the writer still runs.
        wait_until_written(settings)


def _registry(settings: Settings, stack: ExitStack) -> RoutingTable | None:
    """Read the routing table, None without an answer; an embedded server runs as long as ``stack``."""
    try:
        database = stack.enter_context(open_database(settings, prepare=False))
        with database.connect(autocommit=True) as connection, connection.answering_within(ANSWER_S):
            return read_routing(connection)
    except (BabylonError, psycopg.Error, OSError):
        return None


def configuration(settings: Settings, table: RoutingTable | None) -> str:
    """The line that tells an operator how calls are routed; ``table`` None: no registry."""
    pinned = settings.rl_model_version or settings.wandb_model
    parts = [
        f"USE_RL_MODEL {'on' if settings.rl_enabled else 'off'}",
        *([f"pinned to {pinned}"] if pinned else []),
        *(["the registry does not answer"] if table is None else _released(table, settings)),
        f"at most {settings.rl_rollout_percentage:g} % of agents",
        f"fallback to base {'on' if settings.rl_fallback_to_base else 'off'}",
        f"recording {settings.trajectory_sampling_rate if settings.record_agent_trajectories else 0:.0%} of calls",
        f"LOCAL_ENDPOINT {shown_url(settings.local_endpoint)}",
    ]
    line = f"RL Model Configuration: {', '.join(parts)}."
    try:
        # A pin that cannot be followed fails every request: it is said before the first.
        if table is not None:
            route(table, settings)
    except ModelUnavailable as unusable:
        return f"{line} Warning: RL_MODEL_VERSION={pinned}: {unusable}"
    return line


def _released(table: RoutingTable, settings: Settings) -> list[str]:
    parts = [f"{table.deployed} is deployed" if table.deployed else "no version is deployed"]
    if (trial := table.trial) is not None:
        share = f"{min(trial.percentage, settings.rl_rollout_percentage):g} % of agents"
        parts.append(f"{trial.version} is {trial.state} for {f'{len(trial.agent_ids)} listed agents' if trial.agent_ids else share}")
    if (test := table.test) is not None:
        arms = ", ".join(f"{arm} {share:g} %" for arm, share in zip(test.arms, test.shares, strict=True))
        parts.append(f"A/B test {test.name} ({arms})")
    return parts
