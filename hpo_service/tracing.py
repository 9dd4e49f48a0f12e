"""OpenTelemetry spans, configured by its own environment variables; without these it is not even imported.

The server's spans are children of the caller's (`traceparent`). Spans of a draw and a commit are children of their
call's, though another thread runs them; a commit of many calls gives each of them a span.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import structlog

from hpo_service import __version__, extras

R = TypeVar("R")

SERVICE = "hpo-service"
LAST_SPANS_SECONDS = 2.0  # to send what is left when the server ends; the collector may be down
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_NOTHING: AbstractContextManager[Any] = nullcontext()

log = structlog.get_logger()
_tracer: Any = None  # None: tracing is off, and costs only this comparison


def is_on() -> bool:
    return _tracer is not None


def is_wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment names an exporter or an endpoint for spans, and does not disable it."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporters = _exporters(environment)
    return exporters != ["none"] and bool(exporters or any(environment.get(name) for name in _ENDPOINTS))


def configure() -> Callable[[], None]:
    """Start tracing if the environment asks for it. Return a function that stops it and sends what is left."""
    global _tracer
    if not is_wanted():
        return lambda: None
    try:
        provider = _provider()
    except ImportError:
        log.warning(f"OTEL_* variables ask for traces, but OpenTelemetry is not installed: {extras.install('otel')}")
        return lambda: None
    except Exception as error:  # a tracer that cannot begin is no reason not to serve
        log.warning("tracing cannot begin; the server goes on without", error=str(error))
        return lambda: None
    _tracer = provider.get_tracer(SERVICE, __version__)

    def end() -> None:
        global _tracer
        _tracer = None
        sending = threading.Thread(target=provider.shutdown, daemon=True)
        sending.start()
        sending.join(LAST_SPANS_SECONDS)

    return end


def _exporters(environment: Mapping[str, str]) -> list[str]:
    return [name.strip() for name in environment.get("OTEL_TRACES_EXPORTER", "").split(",") if name.strip()]


def _provider() -> Any:
    """The SDK reads the other variables itself: sampler, limits, batches, headers, resource."""
    # imported when needed: they are an extra, and cost 20 MB
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

    resource = Resource.create({"service.version": __version__})
    if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": SERVICE}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for name in _exporters(os.environ) or ["otlp"]:
        if name == "otlp":
            provider.add_span_processor(BatchSpanProcessor(_otlp()))
        elif name == "console":
            provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
        elif name != "none":
            raise ValueError(f"OTEL_TRACES_EXPORTER names {name!r}; there are otlp, console and none")
    return provider


def _otlp() -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    protocol = next((os.environ[name] for name in _PROTOCOLS if os.environ.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        raise ValueError(f"{_PROTOCOLS[1]} is {protocol!r}; only http/protobuf is spoken here")
    return OTLPSpanExporter()


@contextmanager
def request(headers: Iterable[tuple[bytes, bytes]], attributes: Mapping[str, Any]) -> Iterator[Any]:
    """A request's span, a child of the caller's if the headers name one; None without tracing."""
    if _tracer is None:
        yield None
        return
    from opentelemetry import propagate
    from opentelemetry.trace import SpanKind

    carrier = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    parent = propagate.extract(carrier)
    with _tracer.start_as_current_span(
        attributes["http.request.method"], parent, kind=SpanKind.SERVER, attributes=attributes
    ) as span:
        yield span


def answered(span: Any, route: str, method: str, status: int) -> None:
    """Complete the request's span with its route and status. span: None without tracing."""
    if span is None:
        return
    from opentelemetry.trace import StatusCode

    span.update_name(f"{method} {route}")
    span.set_attributes({"http.route": route, "http.response.status_code": status})
    if status >= 500:
        span.set_attribute("error.type", str(status))
        span.set_status(StatusCode.ERROR)


def span(name: str) -> AbstractContextManager[Any]:
    """A child of this thread's current span."""
    return _NOTHING if _tracer is None else _tracer.start_as_current_span(name)


def context() -> Any:
    """This task's trace context; None without tracing."""
    if _tracer is None:
        return None
    from opentelemetry import context as contexts

    return contexts.get_current()


def carried(work: Callable[..., R]) -> Callable[..., R]:
    """Wrap the function, so that another thread runs it with this task's trace context."""
    if _tracer is None:
        return work
    from opentelemetry import context as contexts

    here = contexts.get_current()

    def there(*arguments: Any) -> R:
        token = contexts.attach(here)
        try:
            return work(*arguments)
        finally:
            contexts.detach(token)

    return there


def committed(calls: Iterable[Any], began_ns: int, ended_ns: int, together: int) -> None:
    """Add a span of a commit to each call. calls: their trace contexts; together: how many the commit wrote."""
    tracer = _tracer
    if tracer is None:
        return
    for each in calls:
        if each is not None:
            made = tracer.start_span("commit", each, start_time=began_ns, attributes={"hpo.calls": together})
            made.end(ended_ns)
