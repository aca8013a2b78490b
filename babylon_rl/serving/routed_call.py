"""One call on its way through the gateway, and how it is counted and traced."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from babylon_rl.serving.access import Client
from babylon_rl.serving.call_entry import CallEntry
from babylon_rl.serving.chat_request import CallContext, ChatRequest
from babylon_rl.serving.metrics import GatewayMetrics
from babylon_rl.serving.routing import Route
from babylon_rl.serving.usage import Usage, spent_tokens
from babylon_rl.store.releases import BASE
from babylon_rl.traces import note

CLIENT_LEFT = 499


@dataclass(eq=False)
class RoutedCall:
    """State of one call: ``chosen`` is the route it should take, ``route`` the one it took."""

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


def count_call(metrics: GatewayMetrics, call: RoutedCall) -> None:
    """Count a call that has ended."""
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


def trace_call(call: RoutedCall) -> None:
    """Note in the request's span how a call was routed and how it ended."""
    usage = call.usage or Usage()
    note(
        version=call.route.version or BASE, arm=call.chosen.arm, call=call.call_id, status=call.status, fallback=call.fallback,
        prompt_tokens=usage.prompt_tokens or None, completion_tokens=usage.completion_tokens or None,
    )  # fmt: skip


def _header_value(value: str) -> bytes:
    # Reasons name versions and models, which other producers may have written: a line break would end the header.
    if not value.isprintable():
        value = "".join(character if character.isprintable() else " " for character in value)
    return value.encode("latin-1", "replace")
