"""A real OTLP/HTTP receiver of traces, which decodes them, and can keep its senders waiting."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from babylon_rl_tests.http_stand_in import Handler, served


@dataclass
class Received:
    """A span as it arrived; ids in hexadecimal, ``parent`` empty for a root."""

    name: str
    trace: str
    span: str
    parent: str
    kind: str
    failed: bool
    attributes: dict[str, Any]


@dataclass
class TraceReceiver:
    """``spans`` are those taken, ``raw`` their requests; while ``answers`` is not set, every request waits."""

    url: str = ""
    spans: list[Received] = field(default_factory=list)
    raw: bytes = b""
    services: set[str] = field(default_factory=set)
    answers: threading.Event = field(default_factory=threading.Event)

    def named(self, name: str) -> list[Received]:
        """Spans of a name."""
        return [span for span in self.spans if span.name == name]

    def take(self, body: bytes) -> None:
        """Decode a request."""
        self.raw += body
        request = ExportTraceServiceRequest.FromString(body)
        for group in request.resource_spans:
            self.services |= {each.value.string_value for each in group.resource.attributes if each.key == "service.name"}
            for span in (span for scope in group.scope_spans for span in scope.spans):
                attributes = {each.key: next(iter(MessageToDict(each.value).values())) for each in span.attributes}
                ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                kind = {1: "internal", 2: "server", 3: "client"}[span.kind]
                self.spans.append(Received(span.name, *ids, kind, span.status.code == 2, attributes))


@contextmanager
def trace_receiver(answers: bool = True) -> Iterator[TraceReceiver]:
    """Serve a receiver until the block ends."""
    receiver = TraceReceiver()
    if answers:
        receiver.answers.set()

    class Answers(Handler):
        def do_POST(self) -> None:
            body = self.body()
            receiver.answers.wait(60)
            assert self.path == "/v1/traces" and self.headers["content-type"] == "application/x-protobuf"
            receiver.take(body)
            self.answer()

    with served(Answers) as receiver.url:
        yield receiver
        receiver.answers.set()
