"""OpenTelemetry traces of runs, their steps, iterations, judge requests and gateway calls.

Without OTEL_EXPORTER_OTLP_ENDPOINT nothing of OpenTelemetry is imported, and ``span`` yields a span that keeps nothing. OpenTelemetry's
own instrumentations add requests of aiohttp, statements of psycopg and the requests that a server answers. A thread sends ended spans: a
collector that does not answer costs spans, never a request or a run. Attributes are ids, names, counts and statements without values,
redacted as log records are; prompts, answers and messages of errors are not among them.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from inspect import isgeneratorfunction
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast
from uuid import UUID

from babylon_rl.errors import missing_package
from babylon_rl.logs import Redactor

if TYPE_CHECKING:
    import psycopg

_LOG = logging.getLogger(__name__)
EXPORT_S = 2.0  # the longest a batch of spans is tried, and so what a process that ends may wait for a collector
# Names by OpenTelemetry's conventions; every other attribute is named babylon.NAME.
_CONVENTIONS = {
    "model": "gen_ai.request.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "status": "http.response.status_code",
    "error": "error.type",
}
Attribute = str | int | float | bool | None
Kind = Literal["internal", "client"]
C = TypeVar("C", bound="psycopg.Connection[Any]")
F = TypeVar("F", bound=Callable[..., Any])


class Span:
    """A span under way; the one without an ``inner`` span keeps nothing."""

    def __init__(self, inner: Any = None) -> None:
        self._inner = inner

    def note(self, **attributes: Attribute) -> None:
        """Set attributes; None leaves one out."""
        if self._inner is not None:
            for name, value in attributes.items():
                if value is not None:
                    self._inner.set_attribute(_CONVENTIONS.get(name, f"babylon.{name}"), value)


class _Tracing:
    def __init__(self, endpoint: str, redactor: Redactor) -> None:
        # Names of attributes as the stable conventions have them; read by the instrumentations.
        os.environ.setdefault("OTEL_SEMCONV_STABILITY_OPT_IN", "http,database")
        from opentelemetry.instrumentation.aiohttp_client import AioHttpClientInstrumentor
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

        class RunIds(RandomIdGenerator):
            """Trace ids: that of the Dagster run, else random."""

            def generate_trace_id(self) -> int:
                return _run_trace.get() or super().generate_trace_id()

        # The exporter's own lines, one for each try, are replaced by one for each change.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.CRITICAL)
        self.exporter = _exporter(endpoint, redactor)
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over the name; OTEL_TRACES_SAMPLER and the like are read by the SDK.
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: "babylon-rl"}
        self.provider = TracerProvider(resource=Resource.create(named), id_generator=RunIds(), shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("babylon_rl")
        self.requests = AioHttpClientInstrumentor()
        self.requests.instrument(tracer_provider=self.provider)


_tracing: _Tracing | None = None
_run_trace: ContextVar[int | None] = ContextVar("babylon_rl_run_trace", default=None)
_UNTRACED = nullcontext(Span())


def start_traces(endpoint: str | None, secrets: Iterable[str] = ()) -> None:
    """Trace this process from now on, if there is an ``endpoint`` (OTEL_EXPORTER_OTLP_ENDPOINT). A second call changes nothing."""
    global _tracing
    if endpoint is None or _tracing is not None:
        return
    try:
        _tracing = _Tracing(endpoint, Redactor(secrets))
        # Also at the end of a multiprocessing child, where atexit's functions do not run; one of Celery's runs neither (celery_app.py).
        Finalize(None, stop_traces, exitpriority=10)
    except ModuleNotFoundError as missing:
        _LOG.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set, and nothing is traced: %s", missing_package(missing.name) or missing)


def stop_traces() -> None:
    """Send the waiting spans, and trace nothing more."""
    global _tracing
    if _tracing is not None:
        _tracing.requests.uninstrument()
        _tracing.exporter.is_last = True
        _tracing.provider.shutdown()
        _tracing = None


def span(name: str, kind: Kind = "internal", **attributes: Attribute) -> AbstractContextManager[Span]:
    """A span around a block, in the span that is open here.

    It has the fields of the log context (run, window, batch, version) as attributes. An error marks it by its class and passes through.
    """
    return _UNTRACED if _tracing is None else _opened(_tracing, name, kind, attributes)


@contextmanager
def _opened(tracing: _Tracing, name: str, kind: Kind, attributes: Mapping[str, Attribute]) -> Iterator[Span]:
    from opentelemetry.trace import SpanKind, StatusCode, use_span
    from structlog.contextvars import get_contextvars

    fields = get_contextvars()
    try:
        trace_id = UUID(fields.get("run")).int  # of 128 bits, as a trace's is
    except (ValueError, TypeError, AttributeError):
        trace_id = None
    # A span that begins a trace gets the Dagster run's id for it (RunIds). Only while it is made: other traces of this context have their
    # own.
    token = _run_trace.set(trace_id)
    try:
        inner = tracing.tracer.start_span(name, kind=SpanKind[kind.upper()])
    finally:
        _run_trace.reset(token)
    with use_span(inner, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        traced = Span(inner)
        traced.note(**{**fields, **attributes})
        try:
            yield traced
        except BaseException as error:
            inner.set_status(StatusCode.ERROR)
            traced.note(error=type(error).__name__)
            raise


def note(**attributes: Attribute) -> None:
    """Set attributes of the span that is open here, if there is one."""
    if _tracing is not None:
        from opentelemetry.trace import get_current_span

        Span(get_current_span()).note(**attributes)


def traced_app(app: Any) -> Any:
    """Trace the requests that an ASGI application answers, in their callers' traces; unchanged while nothing is traced."""
    if _tracing is None:
        return app
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

    untraced = "/health$,/ready$,/metrics$"
    return OpenTelemetryMiddleware(app, untraced, tracer_provider=_tracing.provider, exclude_spans=["receive", "send"])


def traced_connection(connection: C) -> C:
    """Trace the statements of a connection of psycopg; unchanged while nothing is traced."""
    # Connection by connection, as the instrumentation of all of them would open psycopg's own class in the place of ours.
    if _tracing is not None:
        from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor

        PsycopgInstrumentor.instrument_connection(connection, tracer_provider=_tracing.provider)
    return connection


def traced_step(function: F) -> F:
    """Trace each call of an asset's function as ``step NAME``, a generator to its end."""
    name = f"step {function.__name__}"

    @wraps(function)
    def generator(*arguments: Any, **named: Any) -> Any:
        with span(name):
            yield from function(*arguments, **named)

    @wraps(function)
    def plain(*arguments: Any, **named: Any) -> Any:
        with span(name):
            return function(*arguments, **named)

    return cast(F, generator if isgeneratorfunction(function) else plain)


def _exporter(endpoint: str, redactor: Redactor) -> Any:
    """An exporter to a collector: attributes are redacted, messages of errors left out, and a lost collector is logged.

    It says once that the collector is gone and once that it is back, and gives up at the end of the process.
    """
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExportResult
    from opentelemetry.trace import Status

    def cleaned(span: ReadableSpan) -> ReadableSpan:
        # Without its events and the description of its status, in which instrumentations put messages of errors.
        attributes = {name: redactor.clean(value) for name, value in (span.attributes or {}).items()}
        return ReadableSpan(
            span.name, span.context, span.parent, span.resource, attributes,
            links=span.links, kind=span.kind, status=Status(span.status.status_code), start_time=span.start_time, end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )  # fmt: skip

    class Exporter(OTLPSpanExporter):
        is_last = works_not = False

        def export(self, spans: Sequence[Any]) -> SpanExportResult:
            # The process ends: a collector that is known to be away is not waited for once more.
            if self.is_last and self.works_not:
                return SpanExportResult.FAILURE
            began_s = time.monotonic()
            result = super().export([cleaned(span) for span in spans])
            if (result is SpanExportResult.FAILURE) is not self.works_not:
                self.works_not = not self.works_not
                after = f"after {time.monotonic() - began_s:.1f} s"
                if self.works_not:
                    _LOG.warning("%d spans could not be sent to %s %s; they are lost, nothing else is", len(spans), endpoint, after)
                else:
                    _LOG.info("spans are sent to %s again", endpoint)
            return result

    return Exporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_S)
