"""One call on its way through the gateway, and the metrics of all of them."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from babylon_rl.serving.access import Client
from babylon_rl.serving.call_entry import CallEntry
from babylon_rl.serving.chat_request import CallContext, ChatRequest
from babylon_rl.serving.metrics import Counter, Histogram, MetricFamily
from babylon_rl.serving.routing import Route
from babylon_rl.serving.usage import Usage, spent_tokens
from babylon_rl.store.releases import BASE
from babylon_rl.traces import Span

CLIENT_LEFT = 499


@dataclass(eq=False)
class RoutedCall:
    """State of one call.

    ``chosen`` is the route of the version that should answer, ``route`` of the one that does.
    """

    call_id: str
    request_id: str
    at: datetime
    started: float
    client: Client
    context: CallContext
    body: bytes
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
        """Time since the request came."""
        return time.perf_counter() - self.started

    def answered(self) -> None:
        """Note that the answer, or its first token, is there."""
        self.first_token_s = self.seconds

    def spend(self, answer_bytes: int) -> None:
        """Take the call from its client's budget; an error costs nothing."""
        # A client that left may have had most of its answer, and the model has worked for it.
        if self.usage is not None or self.status in (200, CLIENT_LEFT):
            self.client.spend(spent_tokens(self.usage, len(self.body), answer_bytes))

    def entry(self, answer: bytes | None) -> CallEntry:
        """The call for the log; ``answer`` None leaves its texts out."""
        usage, context = self.usage, self.context
        return CallEntry(
            self.call_id, self.request_id, round(self.at.replace(tzinfo=UTC).timestamp() * 1000), context.agent_id, self.client.name,
            context.trajectory_id, context.step, context.purpose, context.action_type, context.provider_accesses, self.chosen.version,
            self.route.version, self.chosen.arm, self.route.reason, self.route.model_name, self.fallback, self.status,
            self.seconds * 1000, None if self.first_token_s is None else round(self.first_token_s * 1000, 3),
            None if usage is None else usage.prompt_tokens, None if usage is None else usage.completion_tokens,
            None if answer is None else self.body, answer,
        )  # fmt: skip


class GatewayMetrics:
    """Counters and histograms of the calls of one gateway process."""

    def __init__(self) -> None:
        self.requests = Counter("babylon_gateway_requests_total", "Routed calls; 499: the client left.", ("version", "arm", "status"))
        self.refusals = Counter("babylon_gateway_refusals_total", "Requests that were not routed.", ("status",))
        self.failures = Counter("babylon_gateway_upstream_failures_total", "Failed requests to upstreams.", ("version", "cause"))
        self.fallbacks = Counter("babylon_gateway_fallbacks_total", "Calls that the base answered instead.", ("cause",))
        self.tokens = Counter("babylon_gateway_tokens_total", "Tokens of prompts and answers.", ("version", "kind"))
        self.latency = Histogram("babylon_gateway_latency_seconds", "Time to the end of the answer.", ("version",))
        self.first_token = Histogram("babylon_gateway_first_token_seconds", "Time to the answer or its first token.", ("version",))
        self.unrecorded = Counter("babylon_gateway_unrecorded_total", "Calls that were not recorded: the spool was full.")

    def count(self, call: RoutedCall) -> None:
        """Count a call that has ended."""
        version = call.route.version or BASE
        self.requests.add(version, call.chosen.arm, str(call.status))
        self.latency.observe(call.seconds, version)
        if call.first_token_s is not None:
            self.first_token.observe(call.first_token_s, version)
        if call.fallback is not None:
            self.fallbacks.add(call.fallback)
        if call.usage is not None:
            self.tokens.add(version, "prompt", by=call.usage.prompt_tokens or 0)
            self.tokens.add(version, "completion", by=call.usage.completion_tokens)

    @property
    def families(self) -> tuple[MetricFamily, ...]:
        """All of them."""
        counters = (self.requests, self.refusals, self.failures, self.fallbacks, self.tokens, self.unrecorded)
        return (*counters, self.latency, self.first_token)


def trace_call(traced: Span, call: RoutedCall) -> None:
    """Note in its span how a call was routed and how it ended."""
    usage = call.usage or Usage()
    traced.note(
        version=call.route.version or BASE, arm=call.chosen.arm, call=call.call_id, status=call.status,
        fallback=call.fallback, prompt_tokens=usage.prompt_tokens or None, completion_tokens=usage.completion_tokens or None,
    )  # fmt: skip
    if call.status >= 500:
        traced.failed(str(call.status))


def new_call_id() -> str:
    """Return a fresh id of a call."""
    return f"gw-{uuid4().hex}"


def _header_value(value: str) -> bytes:
    # Reasons name versions and models, which other producers may have written: a line break would end the header.
    if not value.isprintable():
        value = "".join(character if character.isprintable() else " " for character in value)
    return value.encode("latin-1", "replace")
