"""Application of the gateway: its paths besides the chat, and errors in OpenAI's envelope."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path as FilePath
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Path
from starlette.types import ASGIApp, Receive, Scope, Send

from babylon_rl.serving.api_errors import ApiError
from babylon_rl.serving.gateway import Gateway, peer
from babylon_rl.serving.metrics import PUBLISH_S, Gauge, ProcessMetrics
from babylon_rl.serving.routed_call import BASE
from babylon_rl.serving.routing import ALIASES, MODEL_PREFIX
from babylon_rl.store.releases import RoutingTable

CHATS = "/v1/chat/completions"


def create_app(gateway: Gateway, metrics_directory: FilePath | None = None) -> ASGIApp:
    """Create the application around a gateway; processes that share a port share ``metrics_directory``."""

    async def publish() -> None:
        while True:
            metrics.publish()
            await asyncio.sleep(PUBLISH_S)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await gateway.start()
        publishing = asyncio.create_task(publish()) if metrics_directory is not None else None
        yield
        if publishing is not None:
            publishing.cancel()
        await gateway.stop()
        metrics.publish()

    async def models(request: Request) -> Response:
        gateway.access.admit(peer(request.scope), request.headers)
        return _json({"object": "list", "data": [_model(name) for name in served_names(gateway.state.table)]})

    async def model(request: Request) -> Response:
        gateway.access.admit(peer(request.scope), request.headers)
        name = request.path_params["name"]
        if name not in served_names(gateway.state.table):
            raise ApiError(404, f"There is no model {name}; `GET /v1/models` lists those that there are.", "model_not_found", "model")
        return _json(_model(name))

    async def health(_: Request) -> Response:
        return _json({"status": "ok"})

    async def ready(_: Request) -> Response:
        state, problem = gateway.state, gateway.state.problem
        known = state.reads or state.restored
        serving = "base, to this machine alone" if not known else "as the registry says" if problem is None else "as last known"
        return _json({"ready": True, "database": problem or "ok", "serving": serving, "recording": gateway.log.report()})

    def database_answers() -> float:
        return float(gateway.state.problem is None)

    async def samples(request: Request) -> Response:
        gateway.access.admit(peer(request.scope), request.headers)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    gauges = [
        # All processes see the same spool.
        Gauge("babylon_gateway_spool", "Recording: bytes on disk, and calls by their end.", gateway.log.gauge, ("state",), least=True),
        Gauge("babylon_gateway_database_answers", "1 while the routing table is fresh.", database_answers, least=True),
        Gauge("babylon_gateway_open_requests", "Requests under way.", lambda: gateway.open_exchanges),
    ]
    metrics = ProcessMetrics([*gateway.metrics.families, *gauges], metrics_directory)
    routes = [
        Path(CHATS, gateway), Path("/v1/models", models), Path("/v1/models/{name:path}", model),
        Path("/health", health), Path("/ready", ready), Path("/metrics", samples),
    ]  # fmt: skip
    others = Starlette(
        routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _no_path, ApiError: _refused, Exception: _internal}
    )
    chats = ServerErrorMiddleware(gateway, handler=_internal)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        # The layers that chats need not pass cost a twentieth of a millisecond before the first token.
        await (chats if scope.get("path") == CHATS else others)(scope, receive, send)

    return app


def served_names(table: RoutingTable) -> list[str]:
    """Return the model names of requests: available versions, the base, the aliases."""
    usable = [v.version for v in table.versions.values() if v.status not in ("training", "failed") and not v.pruned]
    return [*(f"{MODEL_PREFIX}{version}" for version in usable), *usable, BASE, *ALIASES]


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "babylon-rl"}


def _json(document: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")


async def _no_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = "POST /v1/chat/completions; GET /v1/models, /health, /ready, /metrics"
    refused = ApiError(error.status_code, f"{request.method} {request.url.path} is not served here; served: {known}.", "not_found")
    return Response(refused.body, refused.status, media_type="application/json")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return Response(error.body, error.status, headers=dict(error.headers), media_type="application/json")


async def _internal(_: Request, error: Exception) -> Response:
    refused = ApiError(500, "The gateway failed; its log has the reason.", "internal_error")
    return Response(refused.body, 500, media_type="application/json")
