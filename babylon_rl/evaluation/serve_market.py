"""A snapshot played over HTTP: an agent in any language observes, acts and advances, and has its result at the end.

Every start is a session with a market of its own, known by its token. One thread serves all: a step takes well under a millisecond.
docs/howto/serve-market.md describes the protocol for those who write agents.
"""

import asyncio
import re
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from babylon_rl.errors import MarketError
from babylon_rl.evaluation.market_sessions import Clock, Lobby, Outsider, RequestFault, Session, Start
from babylon_rl.evaluation.play import PLAYER_ID
from babylon_rl.evaluation.players import MODEL, engine_version, outside
from babylon_rl.evaluation.result_building import RunLabel, decision_lines, result_of
from babylon_rl.evaluation.results import SUFFIX, encode_result, read_result
from babylon_rl.evaluation.run_files import RunFiles, slug
from babylon_rl.evaluation.snapshots import Snapshot
from babylon_rl.market.simulation.actions import Invalid, kind, parse_action, response_format
from babylon_rl.market.simulation.fills import Fill
from babylon_rl.market.simulation.record import Outcome
from babylon_rl.versions import content_version

IDLE_S = 600.0
LONGEST_BODY = 16 * 1024
BODY_WITHIN_S = 10.0
KEEP_ALIVE_S = 75  # agents think between requests
SEED = 0  # of such results: with it they are paired with those that `benchmark run` makes unless it is told another


def create_app(
    market: Snapshot,
    *,
    idle_s: float = IDLE_S,
    results: Path | None = None,
    new_token: Callable[[], str] = lambda: secrets.token_urlsafe(24),
    clock: Clock = time.perf_counter,
) -> Starlette:
    """The application: every session plays ``market`` by itself; ``results`` is a directory where each that ends leaves its result."""

    def finish(session: Session) -> bytes:
        return _finished(session, market, results)

    def attempts(agent: Outsider) -> int:
        return _attempts(agent, market, results) if results is not None else 0

    lobby = Lobby(market, finish, attempts, idle_s=idle_s, new_token=new_token, clock=clock)
    scenario = market.scenario
    tickers = [asset.ticker for asset in scenario.assets]
    about_market = {"snapshot": market.id, "ticks": scenario.ticks, "tickSeconds": scenario.tick_seconds, "tickers": tickers}

    async def about(_: Request) -> Response:
        return _json(about_market | {"protocol": ["POST /start", "GET /observe", "POST /act", "POST /advance", "GET /result"]})

    async def start(request: Request) -> Response:
        asked = _start(await _body(request))
        token, session = lobby.start(asked)
        opening = {"token": token, "name": asked.name, "mandate": asked.mandate, "attempt": session.attempt, **about_market}
        return _json(opening | {"observation": _shown(session)}, 201)

    async def observe(request: Request) -> Response:
        session = lobby.playing(_token(request))
        return _json({"acted": session.acted, "observation": _shown(session)})

    async def act(request: Request) -> Response:
        text = await _body(request)
        session = lobby.playing(_token(request))
        if session.acted:
            raise RequestFault(409, "acted", f"Tick {session.seen.tick} has its action: one a tick. POST /advance brings the next tick.")
        action = parse_action(text)
        return _outcome(session.act(action, text), kind(action) if not isinstance(action, Invalid) else "hold")

    async def advance(request: Request) -> Response:
        token = _token(request)
        session = lobby.playing(token)
        happened = _camel(session.advance())
        if session.over:
            return _json(happened | {"done": True, "result": msgspec.Raw(lobby.end(token))})
        return _json(happened | {"done": False, "observation": _shown(session)})

    async def schema(request: Request) -> Response:
        session = lobby.playing(_token(request))
        return _json(response_format([question.market for question in session.seen.questions], tickers))

    async def stop(request: Request) -> Response:
        token = _token(request)
        lobby.playing(token).stop("the agent gave up")
        return _json({"done": True, "result": msgspec.Raw(lobby.end(token))})

    async def result(request: Request) -> Response:
        return Response(lobby.result(_token(request)), media_type="application/json")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        lobby.sweep(idle_s=0.0)

    routes = [Route("/", about), Route("/observe", observe), Route("/schema", schema), Route("/result", result)]
    routes += [Route(path, handler, methods=["POST"]) for path, handler in (("/start", start), ("/act", act), ("/advance", advance))]
    routes.append(Route("/stop", stop, methods=["POST"]))
    handlers = {RequestFault: _refused, MarketError: _unreadable, OSError: _unwritten, 404: _unknown, 405: _unknown}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)


def serve(market: Snapshot, bound: socket.socket, announce: Callable[[str], None], *, idle_s: float, results: Path | None = None) -> None:
    """Serve until interrupted; ``announce`` gets the server's address once requests are accepted."""
    import uvicorn

    app = create_app(market, idle_s=idle_s, results=results)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3, timeout_keep_alive=KEEP_ALIVE_S))
    bound.listen(512)
    host, port = bound.getsockname()[:2]
    announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    server.run(sockets=[bound])


def _finished(session: Session, market: Snapshot, directory: Path | None) -> bytes:
    """The result of a session as JSON; with a directory it and the decisions are also kept there, as those of `benchmark run` are."""
    agent, repeat = session.agent, session.attempt - 1
    identity = outside(agent.name, agent.mandate)
    key = content_version([identity, market.digest, market.start_balance, str(SEED), repeat])
    label = RunLabel(agent.name, identity, MODEL, agent.mandate, SEED, repeat, key, engine_version())
    result = result_of(session.run, PLAYER_ID, market, label)
    if directory is not None:
        RunFiles(directory, agent.name, key).keep(result, decision_lines(session.run, PLAYER_ID))
    return encode_result(result)


def _attempts(agent: Outsider, market: Snapshot, directory: Path) -> int:
    """The attempts of an agent at a market of which there are results in a directory."""
    known = 0
    for path in directory.glob(f"{slug(agent.name)}-*{SUFFIX}"):
        result = read_result(path)
        if (result.identity, result.snapshot) == (outside(agent.name, agent.mandate), market.digest):
            known = max(known, result.repeat + 1)
    return known


def _start(text: str) -> Start:
    try:
        asked = msgspec.json.decode(text, type=Start) if text.strip() else Start()
    except msgspec.DecodeError as error:
        raise RequestFault(400, "start", f'A start is {{}} or {{"name": "mine", "mandate": "free" or "one-tick"}}: {error}.') from error
    if not (0 < len(asked.name) <= 80 and asked.name.isprintable() and asked.name.strip() == asked.name):
        raise RequestFault(400, "start", "A name has 1 to 80 printable characters, without spaces around them.")
    return asked


def _outcome(outcome: Outcome, action: str) -> Response:
    """Response to a decision: filled 200, refused by the exchange 200 too, not an action 422; each has used up the turn."""
    if isinstance(outcome, Invalid):
        said = {"code": "invalid_action", "message": f"{outcome.reason}. The turn is lost; GET /schema has what an action is."}
        return _json({"type": "invalid", "action": action, "error": said}, 422)
    return _json({"type": "fill" if isinstance(outcome, Fill) else "refusal", **_camel(msgspec.to_builtins(outcome))})


def _shown(session: Session) -> Any:
    return _camel(session.seen.public())


def _camel(value: Any) -> Any:
    """The same JSON values with camelCase names; action tags such as ``open_perp`` are values and stay."""
    if isinstance(value, dict):
        return {re.sub(r"_([a-z])", lambda found: found[1].upper(), name): _camel(field) for name, field in value.items()}
    return [_camel(item) for item in value] if isinstance(value, list | tuple) else value


def _token(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


async def _body(request: Request) -> str:
    """The body as text, within its limits of length and time."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            async for part in request.stream():
                body += part
                if len(body) > LONGEST_BODY:
                    raise RequestFault(413, "too_long", f"A body has {LONGEST_BODY:,} bytes at most.")
    except TimeoutError:
        raise RequestFault(408, "slow", f"The body did not arrive within {BODY_WITHIN_S:.0f} s.") from None
    except ClientDisconnect:
        raise RequestFault(400, "broken_off", "The request broke off.") from None
    return body.decode("utf-8", errors="replace")


def _json(document: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(document), status, media_type="application/json")


async def _refused(_: Request, fault: Exception) -> Response:
    assert isinstance(fault, RequestFault)
    return _json({"error": {"code": fault.code, "message": str(fault)}}, fault.status)


async def _unreadable(_: Request, error: Exception) -> Response:
    return _json({"error": {"code": "unreadable", "message": f"What the server has of this agent cannot be read. {error}"}}, 500)


async def _unwritten(_: Request, error: Exception) -> Response:
    said = f"The result cannot be written on the server ({error}). GET /result tries again."
    return _json({"error": {"code": "not_written", "message": said}}, 507)


async def _unknown(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    known = "GET /, /observe, /schema, /result; POST /start, /act, /advance, /stop"
    return _json(
        {"error": {"code": "unknown", "message": f"{request.method} {request.url.path} is not served; there are {known}."}}, status
    )
