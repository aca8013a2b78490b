"""Market server: a snapshot played over HTTP by agents in any language.

Every start is a session with a market of its own, known by its token. A session follows ``babylon_rl.market.simulation.run.play``: one
decision a tick, filled at the quotes that the agent saw, then a tick of time. It ends when the market is over or nobody touches it, and its
result is kept. One thread serves all: a step takes well under a millisecond. docs/howto/serve-market.md describes the protocol.
"""

import logging
import re
import secrets
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from babylon_rl.api_errors import ApiError
from babylon_rl.errors import MarketError
from babylon_rl.evaluation.metrics import RunLabel, decision_lines, result_of
from babylon_rl.evaluation.play import MODEL, PLAYER_ID, engine_version, external_identity
from babylon_rl.evaluation.results import SUFFIX, RunFiles, read_result, slug
from babylon_rl.evaluation.snapshots import Snapshot
from babylon_rl.http_server import Door, client_address, error_handlers, json_response, read_json, url_of, uvicorn_server
from babylon_rl.market.simulation.actions import Action, Hold, Invalid, kind, parse_action, response_format
from babylon_rl.market.simulation.agents import FREE, Decision, Mandate
from babylon_rl.market.simulation.exchange import Exchange
from babylon_rl.market.simulation.ledger import Fill
from babylon_rl.market.simulation.observation import Newsroom, Observation
from babylon_rl.market.simulation.record import Call, Outcome
from babylon_rl.market.simulation.run import Run, Seat
from babylon_rl.serving.access import bearer_token
from babylon_rl.versions import content_version

IDLE_S = 600.0
LONGEST_BODY = 16 * 1024
BODY_WITHIN_S = 10.0
SEED = 0  # pairs these results with those of `benchmark run`, which has the same default
MOST_SESSIONS = 64  # at once
MOST_OF_A_CLIENT = 32
MOST_ENDED = 32  # sessions whose results are kept
Clock = Callable[[], float]
_LOG = logging.getLogger(__name__)


class ExternalAgent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An agent that decides elsewhere, as the body of a start request has it: its name in the result, and its mandate."""

    name: str = "outside"
    mandate: Mandate = FREE

    def decide(self, seen: Observation) -> Invalid:
        """Fail: the agent decides elsewhere."""
        return Invalid(f"{self.name} decides at tick {seen.tick} by itself")


class MarketSession:
    """One run of an outside agent through a market.

    Attributes:
        client: the address that started it.
        attempt: which start of this agent it is, from 1: a market that was seen before is no test any more.
        seen: the observation to decide on; touched_at: the time of the last request, by ``clock``, in seconds.
        run: complete once the market is over; ``run.stopped`` says why it ended before.
    """

    def __init__(self, market: Snapshot, agent: ExternalAgent, attempt: int, clock: Clock, client: str) -> None:
        self.agent, self.client = agent, client
        self.attempt = attempt
        self.touched_at = self._asked = clock()
        self._clock = clock
        self._exchange = Exchange(market.scenario, [PLAYER_ID], market.start_balance)
        self._newsroom = Newsroom(market.scenario)
        self._seat = Seat(agent, PLAYER_ID, self._exchange)
        self.run = Run(market.scenario, attempt, self._exchange, {PLAYER_ID: self._seat.record})
        self.seen = self._seat.look(self._exchange, self._newsroom)

    @property
    def over(self) -> bool:
        """True when there is nothing left to decide."""
        return self._exchange.over or self.run.stopped is not None

    @property
    def acted(self) -> bool:
        """True when this tick's decision was made."""
        return self._seat.record.decisions > self._exchange.tick

    def act(self, action: Action | Invalid, text: str = "") -> Outcome:
        """Fill or refuse this tick's decision, written as ``text``; ``Invalid`` costs the turn."""
        # From the moment the observation was there: what the agent took, its way through the network included.
        latency_ms = 1000.0 * (self._clock() - self._asked)
        call = Call(f"outside/{self.agent.name}", [], text, "", latency_ms=latency_ms)
        self._seat.act(self._exchange, self._newsroom, self.seen, Decision(action, call, latency_ms))
        return self._seat.record.outcomes[-1]

    def advance(self) -> dict[str, Any]:
        """Let a tick pass; return settlements and closed positions. Without an action it holds."""
        if not self.acted:
            self.act(Hold())
        record, before = self._seat.record, self._exchange.tick
        # In the order of ``run.play``, so that results of both compare: time passes, then the mandate closes positions.
        settlements = self._exchange.advance()
        for settlement in settlements:
            record.settle(settlement)
        self._seat.keep_mandate(self._exchange)
        self.run.ticks_played += 1
        self.seen = self._seat.look(self._exchange, self._newsroom)
        self._asked = self._clock()
        closed: list[Fill] = record.closed.get(before, [])
        return {"settlements": msgspec.to_builtins(settlements), "closed": msgspec.to_builtins(closed)}

    def stop(self, reason: str) -> None:
        """End the run after the tick of a decision that was made."""
        if not self.over and self.acted:
            self.advance()
        if not self.over:
            self.run.stopped = f"Stopped at tick {self._exchange.tick} of {self.run.scenario.ticks}: {reason}"


class SessionRegistry:
    """Registry of one server's sessions by token; those that end leave a result in ``results``. ``clock`` goes forward only."""

    def __init__(self, market: Snapshot, results: Path | None, *, idle_s: float, clock: Clock) -> None:
        self._starts = Counter[ExternalAgent]()
        self._market = market
        self._results = results
        self._idle_s = idle_s
        self._clock = clock
        self._playing: dict[str, MarketSession] = {}
        self._ended: dict[str, bytes] = {}

    def start(self, agent: ExternalAgent, client: str) -> tuple[str, MarketSession]:
        """A new session of an agent at the address ``client``, and its token. Raises ApiError: as many play as may."""
        self.sweep()
        if sum(session.client == client for session in self._playing.values()) >= MOST_OF_A_CLIENT:
            message = f"{MOST_OF_A_CLIENT} sessions of {client} play already. End one with POST /stop, or try again later."
            raise ApiError(429, message, "too_many")
        if len(self._playing) >= MOST_SESSIONS:
            raise ApiError(503, f"{MOST_SESSIONS} sessions play already. End one with POST /stop, or try again later.", "full")
        # Starts of this process count as well: the result of one that still plays is not kept yet.
        self._starts[agent] = max(self._starts[agent], _attempts(agent, self._market, self._results)) + 1
        token = secrets.token_urlsafe(24)
        session = self._playing[token] = MarketSession(self._market, agent, self._starts[agent], self._clock, client)
        return token, session

    def playing(self, token: str) -> MarketSession:
        """The running session of a token. Raises ApiError: there is none of this token, or it is over."""
        self.sweep()
        session = self._playing.get(token)
        if token in self._ended or (session is not None and session.over):
            raise ApiError(409, "The market is over. GET /result has what came of it.", "over")
        if session is None:
            message = "There is no such session. POST /start gives a token; send it as `Authorization: Bearer TOKEN`."
            raise ApiError(401, message, "no_session")
        session.touched_at = self._clock()
        return session

    def result(self, token: str) -> bytes:
        """The result of a session that is over. Raises ApiError: there is no such session, or it still plays."""
        self.sweep()
        if token in self._ended:
            return self._ended[token]
        if token in self._playing and self._playing[token].over:  # its result could not be written when it ended
            return self.end(token)
        seen = self.playing(token).seen
        message = f"The market is at tick {seen.tick} of {self._market.scenario.ticks}. POST /advance to its end, or POST /stop."
        raise ApiError(409, message, "not_over")

    def end(self, token: str) -> bytes:
        """Return the result of an ended session as JSON, kept with its decisions in ``results``, and drop the session."""
        # If the result cannot be written, the session stays, and the next request for its result tries again.
        session, market = self._playing[token], self._market
        agent, repeat = session.agent, session.attempt - 1
        identity = external_identity(agent.name, agent.mandate)
        key = content_version([identity, market.digest, market.start_balance, str(SEED), repeat])
        label = RunLabel(agent.name, identity, MODEL, agent.mandate, SEED, repeat, key, engine_version())
        found = result_of(session.run, PLAYER_ID, market, label)
        if self._results is not None:
            RunFiles(self._results, agent.name, key).keep(found, decision_lines(session.run, PLAYER_ID))
        result = self._ended[token] = msgspec.json.encode(found)
        del self._playing[token]
        while len(self._ended) > MOST_ENDED:
            del self._ended[next(iter(self._ended))]
        return result

    def sweep(self) -> None:
        """End the sessions that no request has touched for too long."""
        now = self._clock()
        for token, session in list(self._playing.items()):
            if now - session.touched_at >= self._idle_s:
                self._end_unasked(token, f"{session.agent.name} did nothing for {now - session.touched_at:.0f} s")

    def close(self) -> None:
        for token in list(self._playing):
            self._end_unasked(token, "the server ended")

    def _end_unasked(self, token: str, reason: str) -> None:
        session = self._playing[token]
        session.stop(reason)
        try:
            self.end(token)
        # Other agents play on; it is tried again after as long a time, and when its own agent asks for it.
        except OSError as unwritten:
            session.touched_at = self._clock()
            _LOG.warning("The result of %s cannot be written: %s.", session.agent.name, unwritten)


def create_app(market: Snapshot, *, idle_s: float = IDLE_S, results: Path | None = None, clock: Clock = time.perf_counter) -> ASGIApp:
    """The application: sessions play ``market``, and leave their results in ``results``."""
    sessions = SessionRegistry(market, results, idle_s=idle_s, clock=clock)
    scenario = market.scenario
    tickers = [asset.ticker for asset in scenario.assets]
    about_market = {"snapshot": market.id, "ticks": scenario.ticks, "tickSeconds": scenario.tick_seconds, "tickers": tickers}

    about = about_market | {"protocol": ["POST /start", "GET /observe", "POST /act", "POST /advance", "GET /result"]}

    async def start(request: Request) -> Response:
        asked = _start(await _body(request))
        token, session = sessions.start(asked, client_address(request.scope))
        opening = {"token": token, "name": asked.name, "mandate": asked.mandate, "attempt": session.attempt, **about_market}
        return json_response(opening | {"observation": _camel(session.seen.public())}, 201)

    async def observe(request: Request) -> Response:
        session = sessions.playing(bearer_token(request.headers))
        return json_response({"acted": session.acted, "observation": _camel(session.seen.public())})

    async def act(request: Request) -> Response:
        # Awaited before the session is looked at: from there on nothing is, so that two requests cannot make one decision twice.
        text = await _body(request)
        session = sessions.playing(bearer_token(request.headers))
        if session.acted:
            raise ApiError(409, f"Tick {session.seen.tick} has its action: one a tick. POST /advance brings the next tick.", "acted")
        action = parse_action(text)
        return _outcome(session.act(action, text), kind(action) if not isinstance(action, Invalid) else "hold")

    async def advance(request: Request) -> Response:
        token = bearer_token(request.headers)
        session = sessions.playing(token)
        happened = _camel(session.advance())
        if session.over:
            return json_response(happened | {"done": True, "result": msgspec.Raw(sessions.end(token))})
        return json_response(happened | {"done": False, "observation": _camel(session.seen.public())})

    async def schema(request: Request) -> Response:
        session = sessions.playing(bearer_token(request.headers))
        return json_response(response_format([question.market for question in session.seen.questions], tickers))

    async def stop(request: Request) -> Response:
        token = bearer_token(request.headers)
        sessions.playing(token).stop("the agent gave up")
        return json_response({"done": True, "result": msgspec.Raw(sessions.end(token))})

    async def result(request: Request) -> Response:
        return Response(sessions.result(bearer_token(request.headers)), media_type="application/json")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        sessions.close()

    routes = [Route("/", json_response(about), methods=["GET"])]
    routes += [Route("/observe", observe), Route("/schema", schema), Route("/result", result)]
    posts = {"/start": start, "/act": act, "/advance": advance, "/stop": stop}
    routes += [Route(path, handler, methods=["POST"]) for path, handler in posts.items()]
    handlers = error_handlers(
        _refusal,
        "served: GET /, /observe, /schema, /result; POST /start, /act, /advance, /stop",
        "The market server failed; its log has the reason.",
        unknown="unknown",
    )
    handlers |= {MarketError: _unreadable, OSError: _unwritten}
    return Door(Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers), _refusal)


def serve(market: Snapshot, bound: socket.socket, announce: Callable[[str], None], *, idle_s: float, results: Path | None = None) -> None:
    """Serve until interrupted; ``announce`` gets the server's address once requests are accepted."""
    server = uvicorn_server(create_app(market, idle_s=idle_s, results=results))
    bound.listen(512)
    announce(url_of(bound))
    server.run(sockets=[bound])


def _attempts(agent: ExternalAgent, market: Snapshot, directory: Path | None) -> int:
    """Attempts of an agent at a market with results in a directory."""
    results = map(read_result, () if directory is None else directory.glob(f"{slug(agent.name)}-*{SUFFIX}"))
    played = (external_identity(agent.name, agent.mandate), market.digest)
    return max((result.repeat + 1 for result in results if (result.identity, result.snapshot) == played), default=0)


def _start(text: str) -> ExternalAgent:
    try:
        start = msgspec.json.decode(text, type=ExternalAgent) if text.strip() else ExternalAgent()
    except msgspec.DecodeError as error:
        message = f'A start is {{}} or {{"name": "mine", "mandate": "free" or "one-tick"}}: {error}.'
        raise ApiError(400, message, "start") from error
    if not (0 < len(start.name) <= 80 and start.name.isprintable() and start.name.strip() == start.name):
        raise ApiError(400, "A name has 1 to 80 printable characters, without spaces around them.", "start")
    return start


def _outcome(outcome: Outcome, action: str) -> Response:
    """Response to a decision: 200 if filled or refused, 422 if no action."""
    if isinstance(outcome, Invalid):
        error = {"code": "invalid_action", "message": f"{outcome.reason}. The turn is lost; GET /schema has what an action is."}
        return json_response({"type": "invalid", "action": action, "error": error}, 422)
    return json_response({"type": "fill" if isinstance(outcome, Fill) else "refusal", **_camel(msgspec.to_builtins(outcome))})


def _camel(value: Any) -> Any:
    """The same JSON values with camelCase names; values such as ``open_perp`` stay."""
    if isinstance(value, dict):
        return {re.sub(r"_([a-z])", lambda found: found[1].upper(), name): _camel(field) for name, field in value.items()}
    return [_camel(item) for item in value] if isinstance(value, list | tuple) else value


async def _body(request: Request) -> str:
    body = await read_json(request.receive, request.headers.get("content-type"), LONGEST_BODY, BODY_WITHIN_S)
    return body.decode("utf-8", errors="replace")


def _refusal(fault: ApiError) -> Response:
    return json_response({"error": {"code": fault.code, "message": fault.message}}, fault.status, fault.headers)


async def _unreadable(_: Request, error: Exception) -> Response:
    return _refusal(ApiError(500, f"What the server has of this agent cannot be read. {error}", "unreadable"))


async def _unwritten(_: Request, error: Exception) -> Response:
    return _refusal(ApiError(507, f"The result cannot be written on the server ({error}). GET /result tries again.", "not_written"))
