"""OpenAI-compatible gateway for agents, which chooses the version that answers.

Agents call it instead of their provider. A call passes through: access, the choice of a version, its upstream, and, where that fails
before the first token, the base. The answer goes to the client as the upstream sent it; only headers say which version it came from.
"""

import asyncio
import gc
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from babylon_rl.api_errors import ApiError
from babylon_rl.errors import ModelUnavailable
from babylon_rl.http_server import BODY_TIMEOUT_S, ClientGone, Receive, cancelled_when_gone, read_json
from babylon_rl.serving.access import Access, Client
from babylon_rl.serving.call_entry import CallEntry
from babylon_rl.serving.chat_request import BODY_LIMIT, CallContext, ChatRequest
from babylon_rl.serving.live_state import LiveState
from babylon_rl.serving.metrics import GatewayMetrics
from babylon_rl.serving.routing import Route, base_route, route
from babylon_rl.serving.server_sent_events import StreamMeter, Usage, spent_tokens
from babylon_rl.serving.spool import Spool, spool_directory
from babylon_rl.serving.upstreams import StreamedAnswer, UpstreamFailed, Upstreams, WholeAnswer
from babylon_rl.settings import Settings
from babylon_rl.store.releases import BASE
from babylon_rl.traces import note
from babylon_rl.windows import utc_now

_LOG = logging.getLogger("babylon_rl.gateway")
_JSON = (b"content-type", b"application/json")
_STREAM = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
_MAX_RECORDED_BYTES = 8 * 1024**2
CLIENT_LEFT = 499
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]


@dataclass(eq=False)
class RoutedCall:
    """State of one call: ``chosen`` is the route it should take, ``route`` the one it took."""

    call_id: str
    request_id: str
    at: datetime
    started: float
    client: Client
    context: CallContext
    request: ChatRequest
    chosen: Route
    route: Route
    fallback: str | None = None
    # Of a call that ends without an answer: its client has left meanwhile.
    status: int = CLIENT_LEFT
    first_token_s: float | None = None
    usage: Usage | None = None
    recorded: bool = False

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers of the answer that name the version."""
        # A model of WANDB_MODEL is no version of the registry, and is named as the service names it.
        version = self.route.version or (BASE if self.route.arm != "wandb_model" else self.route.model_name)
        named = (("x-babylon-version", version), ("x-babylon-arm", self.chosen.arm), ("x-babylon-reason", self.route.reason))
        return [(name.encode(), _header_value(value)) for name, value in named]

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def entry(self, answer: bytes | None) -> CallEntry:
        """The call for the log; ``answer`` None leaves its texts out."""
        usage, context = self.usage, self.context
        return CallEntry(
            self.call_id, self.request_id, round(self.at.replace(tzinfo=UTC).timestamp() * 1000), context.agent_id, self.client.name,
            context.trajectory_id, context.step, context.purpose, context.action_type, context.provider_accesses, self.chosen.version,
            self.route.version, self.chosen.arm, self.route.reason, self.route.model_name, self.fallback, self.status,
            self.seconds * 1000, None if self.first_token_s is None else round(self.first_token_s * 1000, 3),
            None if usage is None else usage.prompt_tokens, None if usage is None else usage.completion_tokens,
            None if answer is None else self.request.body, answer,
        )  # fmt: skip


class Gateway:
    """The parts of one gateway process, and the ASGI endpoint of /v1/chat/completions."""

    def __init__(self, settings: Settings, *, body_timeout_s: float = BODY_TIMEOUT_S, own_key: str | None = None) -> None:
        self.settings = settings
        self._body_timeout_s = body_timeout_s
        self.access = Access(own_key=own_key)
        self.state = LiveState(settings, self.access)
        self.log = Spool(spool_directory(settings))
        self._sampling = settings.trajectory_sampling_rate if settings.record_agent_trajectories else 0.0
        self.upstreams = Upstreams(settings)
        self.metrics = GatewayMetrics(self.log.report)
        self._failing: set[tuple[str, str]] = set()  # upstream and model

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = (b"x-request-id", _request_id(headers).encode())
        call: RoutedCall | None = None
        opened = ExitStack()
        self.metrics.open_requests.inc()
        try:
            call = await self._routed(scope, headers, receive, request_id[1].decode(), opened)
            with cancelled_when_gone(receive):
                answer = await self._ask(call)
                if isinstance(answer, StreamedAnswer):
                    await self._send_stream(call, answer, [request_id, *call.headers], send)
            if isinstance(answer, WholeAnswer):
                call.status, call.usage = answer.status, answer.usage
                self._record(call, answer.body if answer.status == 200 and answer.ended else None)
                shown = call.request.shown(answer.body)
                await _send(send, answer.status, shown, [request_id, *_encoded(answer.headers), *call.headers])
        except ApiError as refused:
            extra = _encoded(refused.headers)
            if call is None:
                self.metrics.refusals.labels(str(refused.status)).inc()
            else:
                call.status = refused.status
                self._record(call, None)
                extra = [*extra, *call.headers]
            await _send(send, refused.status, refused.body, [request_id, *extra])
        except ClientGone:
            pass  # the client has left; the call has the status 499
        # An error of our own: its call is recorded with the status that the server answers, and the error goes on to the log.
        except Exception:
            if call is not None:
                call.status = 500
            raise
        finally:
            opened.close()
            self.metrics.open_requests.dec()
            if call is not None:
                self._record(call, None)
                _count(self.metrics, call)

    async def _routed(
        self, scope: MutableMapping[str, Any], headers: Mapping[str, str], receive: Receive, request_id: str, opened: ExitStack
    ) -> RoutedCall:
        """Read and route a request, an open call of its key until ``opened`` is closed. Raises ApiError, ClientGone."""
        at, started = utc_now(), time.perf_counter()
        if scope["method"] != "POST":
            raise ApiError(405, "Use POST.", "method_not_allowed", headers={"allow": "POST"})
        # Before the body is read: without a key no client makes the gateway take megabytes.
        client = self.access.admit(scope, headers)
        opened.enter_context(self.access.open_call(client))
        context = CallContext.of(headers)
        request = ChatRequest.of(await read_json(receive, headers.get("content-type"), BODY_LIMIT, self._body_timeout_s))
        # OpenAI's own field names the agent where no header does.
        agent, trajectory = client.agent(context.agent_id or request.user), context.trajectory_id
        if agent is not None and trajectory is not None:
            if not client.agents:
                self.state.own(trajectory, agent)
            elif not await self.state.may_write(trajectory, agent):
                raise ApiError(403, f"The trajectory {trajectory} is another agent's than {agent}.", "other_agent")
        context = replace(context, agent_id=agent)
        try:
            chosen = route(self.state.table, self.settings, request.model, agent, client.sha256)
        except ModelUnavailable as unknown:
            # Before the registry has answered, nobody knows whether there is such a version.
            if self.state.reads or not self.settings.rl_fallback_to_base:
                raise ApiError(404, str(unknown), "model_not_found", "model") from None
            chosen = base_route(self.settings, "the registry does not answer")
        return RoutedCall(f"gw-{uuid4().hex}", request_id, at, started, client, context, request, chosen, chosen)

    async def _ask(self, call: RoutedCall) -> WholeAnswer | StreamedAnswer:
        """Ask the chosen version, and the base if it fails. Raises ApiError: no model answered."""
        chosen = call.chosen
        try:
            return await self._ask_model(call, chosen)
        except UpstreamFailed as failed:
            detail = failed.detail and f" ({failed.detail})"
            asked_at = self.upstreams.get(chosen.upstream).url
            why = f"fallback from {chosen.version or chosen.model_name}: {failed.cause}{detail} at {asked_at}"
            base = base_route(self.settings, why, chosen.upstream)
            # Where the base itself was asked, there is nothing to fall back to.
            if not self.settings.rl_fallback_to_base or (base.upstream, base.model_name) == (chosen.upstream, chosen.model_name):
                raise failed.error from None
            call.fallback, call.route = failed.cause, base
        try:
            return await self._ask_model(call, base)
        except UpstreamFailed as failed:
            raise failed.error from None

    async def _ask_model(self, call: RoutedCall, chosen: Route) -> WholeAnswer | StreamedAnswer:
        upstream, asked = self.upstreams.get(chosen.upstream), (chosen.upstream, chosen.model_name)
        try:
            answer = await upstream.ask(chosen.model_name, call.request)
        except UpstreamFailed as failed:
            self.metrics.failures.labels(chosen.version or BASE, failed.cause).inc()
            if asked not in self._failing:  # a line for each outage, not for each call
                self._failing.add(asked)
                _LOG.warning("%s, asked at %s, fails: %s", chosen.version or chosen.model_name, upstream.url, failed.error.message)
            raise
        self._failing.discard(asked)
        call.first_token_s = call.seconds
        return answer

    async def _send_stream(self, call: RoutedCall, answer: StreamedAnswer, headers: Headers, send: Send) -> None:
        """Pass a stream on, event by event; one that breaks ends with an error event."""
        parts, size, meter = list[bytes](), 0, StreamMeter()
        delivered = False

        def record() -> None:
            call.status = 200
            self._record(call, b"".join(parts) if size <= _MAX_RECORDED_BYTES else None)

        try:
            await send({"type": "http.response.start", "status": 200, "headers": [*_STREAM, *headers]})
            async for events in answer.events():
                # Counted and kept before they are sent: also a client that leaves now has had these tokens.
                for event in events:
                    meter.count(event)
                    # A longer answer is passed on, and not kept in memory.
                    if size <= _MAX_RECORDED_BYTES:
                        parts.append(event.raw)
                        size += len(event.raw)
                call.usage = meter.usage
                # Recorded before the client has the end of its answer.
                if events[-1].closes:
                    record()
                if shown := call.request.shown_events(events):
                    await send({"type": "http.response.body", "body": shown, "more_body": True})
                # The client has the whole answer, if not its token counts.
                delivered = answer.reader.finished
        except UpstreamFailed as broken:
            self.metrics.failures.labels(call.route.version or BASE, broken.cause).inc()
            call.status = broken.error.status
            self._record(call, None)
            await send({"type": "http.response.body", "body": b"data: " + broken.error.body + b"\n\n", "more_body": True})
        # A client may leave when it has the end of the answer, without waiting for that of the stream.
        except asyncio.CancelledError:
            if delivered:
                record()
            raise
        finally:
            answer.response.close()  # where the stream has ended, its connection has been given back
        await send({"type": "http.response.body", "body": b""})

    def _record(self, call: RoutedCall, answer: bytes | None) -> None:
        """Log and trace a call once, before the client has the end of its answer."""
        if call.recorded:
            return
        call.recorded = True
        usage = call.usage or Usage()
        note(
            version=call.route.version or BASE, arm=call.chosen.arm, call=call.call_id, status=call.status, fallback=call.fallback,
            prompt_tokens=usage.prompt_tokens or None, completion_tokens=usage.completion_tokens or None,
        )  # fmt: skip
        # An error costs nothing. A client that left may have had most of its answer, and the model has worked for it.
        if call.usage is not None or call.status in (200, CLIENT_LEFT):
            call.client.spend(spent_tokens(call.usage, len(call.request.body), 0 if answer is None else len(answer)))
        # As the recorder decides whether it keeps a trajectory.
        if answer is not None and self._sampling < 1:
            kept = random.Random(call.context.trajectory_id or call.call_id).random() < self._sampling
            answer = answer if kept else None
        if not self.log.record(call.entry(answer)):
            self.metrics.unrecorded.inc()

    async def start(self) -> None:
        await asyncio.to_thread(self.state.start)
        # What exists now stays: the collector need not look at it again in the middle of a request.
        gc.collect()
        gc.freeze()

    async def stop(self) -> None:
        """Close connections; calls that are not written yet stay on disk."""
        await self.upstreams.close()
        await asyncio.to_thread(self.state.close)
        self.log.close()


def _count(metrics: GatewayMetrics, call: RoutedCall) -> None:
    version = call.route.version or BASE
    metrics.requests.labels(version, call.chosen.arm, str(call.status)).inc()
    metrics.latency.labels(version).observe(call.seconds)
    if call.first_token_s is not None:
        metrics.first_token.labels(version).observe(call.first_token_s)
    if call.fallback is not None:
        metrics.fallbacks.labels(call.fallback).inc()
    if call.usage is not None:
        metrics.tokens.labels(version, "prompt").inc(call.usage.prompt_tokens or 0)
        metrics.tokens.labels(version, "completion").inc(call.usage.completion_tokens)


def _request_id(headers: Mapping[str, str]) -> str:
    given = headers.get("x-request-id", "")
    return given if 0 < len(given) <= 100 and given.isascii() and given.isprintable() else f"req-{uuid4().hex}"


def _header_value(value: str) -> bytes:
    # Reasons name versions and models, which other producers may have written: a line break would end the header.
    if not value.isprintable():
        value = "".join(character if character.isprintable() else " " for character in value)
    return value.encode("latin-1", "replace")


def _encoded(headers: Mapping[str, str]) -> Headers:
    return [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]


async def _send(send: Send, status: int, body: bytes, headers: Headers) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [_JSON, length, *headers]})
    await send({"type": "http.response.body", "body": body})
