"""Which tracer provider a connector works with: the caller's, the application's, or one of its own."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Tracer, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from cascade.connectors.otel._below import mark_spans_of
from cascade.connectors.otel._ids import PresetIds
from cascade.connectors.otel._options import ExportOptions
from cascade.connectors.otel._outbox import SpanOutbox
from cascade.connectors.otel._routes import SCOPE, Route, RoutingProcessor
from cascade.connectors.otel._transport import open_transport
from cascade.telemetry import attributes as a
from cascade.telemetry.topics import source

_EXPORTERS = "OTEL_TRACES_EXPORTER"
_KNOWN_EXPORTERS = ("otlp", "console", "none")


@dataclass(frozen=True, slots=True)
class Tracing:
    """A tracer whose ids can be preset. `route` is None where the provider's own processors export."""

    provider: TracerProvider
    tracer: Tracer
    ids: PresetIds
    route: Route | None = None
    endpoint: str = ""


def foreign(provider: Any) -> Tracing | None:
    """Work with a provider that is not ours; None if it records nothing (OTEL_SDK_DISABLED).

    Raises:
        TypeError: It is no tracer provider.
    """
    if not isinstance(provider, trace.TracerProvider):
        raise TypeError(f"tracer_provider={provider!r} is no opentelemetry TracerProvider")
    return _tracing(provider, None, "") if isinstance(provider, TracerProvider) else None


def application() -> TracerProvider | None:
    """The process's provider, if the application has set one of the SDK's, and it is not ours."""
    provider = trace.get_tracer_provider()
    return provider if isinstance(provider, TracerProvider) and not isinstance(provider, _OwnProvider) else None


def own(options: ExportOptions, environ: Mapping[str, str] = os.environ) -> Tracing | None:
    """A provider of our own, which becomes the process's if there is none yet.

    Raises:
        ValueError: OTEL_TRACES_EXPORTER names an exporter that we do not have.
    """
    exporters = _exporters(environ)
    outbox = SpanOutbox(partial(open_transport, options), request_timeout=options.timeout)
    route = Route(outbox) if "otlp" in exporters else None
    provider = _OwnProvider(resource=_resource(environ), shutdown_on_exit=False)
    provider.add_span_processor(RoutingProcessor(route))
    if "console" in exporters:
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        trace.set_tracer_provider(provider)
    return _tracing(provider, route, options.endpoint)


class _OwnProvider(TracerProvider):
    """Tells ours from the application's."""


def _tracing(provider: TracerProvider, route: Route | None, endpoint: str) -> Tracing | None:
    tracer = provider.get_tracer(SCOPE, _version())
    if not isinstance(tracer, Tracer):
        return None
    if not isinstance(tracer.id_generator, PresetIds):
        tracer.id_generator = PresetIds(tracer.id_generator)
    mark_spans_of(provider)
    return Tracing(provider, tracer, tracer.id_generator, route, endpoint)


def _exporters(environ: Mapping[str, str]) -> set[str]:
    names = {name.strip().lower() for name in environ.get(_EXPORTERS, "otlp").split(",") if name.strip()}
    if unknown := names.difference(_KNOWN_EXPORTERS):
        raise ValueError(
            f"{_EXPORTERS}={environ[_EXPORTERS]!r}: {unknown.pop()!r} is unknown; choose from {_KNOWN_EXPORTERS}"
        )
    return names


def _resource(environ: Mapping[str, str]) -> Resource:
    """`Resource.create` reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, and lets its arguments win over them."""
    named = Resource.create()
    ours = {a.SERVICE_NAME: "cascade", a.SERVICE_VERSION: _version(), a.SERVICE_INSTANCE_ID: source()}
    given = environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if environ.get("OTEL_SERVICE_NAME"):
        del ours[a.SERVICE_NAME]
    return named.merge(Resource({key: value for key, value in ours.items() if f"{key}=" not in given.replace(" ", "")}))


def _version() -> str:
    try:
        return version("cascade-runs")
    except PackageNotFoundError:  # run from a source tree
        return "0"
