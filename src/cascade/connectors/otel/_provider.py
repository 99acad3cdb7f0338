"""Which tracer provider a connector works with: the caller's, the application's, or one of its own."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk import resources
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, Tracer, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.sampling import (
    ParentBased,
    ParentBasedTraceIdRatio,
    Sampler,
    StaticSampler,
    TraceIdRatioBased,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.sdk.version import __version__ as sdk_version

from cascade.connectors.otel._batch import encode
from cascade.connectors.otel._below import TaskIds, mark_spans_of
from cascade.connectors.otel._encode import Envelope
from cascade.connectors.otel._ids import PresetIds, PresetSampler
from cascade.connectors.otel._options import ExportOptions
from cascade.connectors.otel._outbox import Outbox
from cascade.connectors.otel._routes import Route, RoutingProcessor
from cascade.connectors.otel._scope import SCOPE, scope_version
from cascade.connectors.otel._sharing import Registry, destination
from cascade.connectors.otel._transport import open_transport, prepare
from cascade.runtime.threads import is_shutdown
from cascade.telemetry import attributes as a
from cascade.telemetry.topics import source

_EXPORTERS = "OTEL_TRACES_EXPORTER"
_KNOWN_EXPORTERS = ("otlp", "console", "none")

# With these a task is sampled when its run is.
_PLAIN_SAMPLERS = (StaticSampler, TraceIdRatioBased, ParentBased, ParentBasedTraceIdRatio)
_LIMITS = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
)
"""Limits that the SDK's own spans observe."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Tracing:
    """A tracer whose ids can be preset. `route` is None where the provider's own processors export."""

    provider: TracerProvider
    tracer: Tracer
    ids: PresetIds
    sampler: PresetSampler
    route: Route | None = None
    endpoint: str = ""

    @property
    def is_direct(self) -> bool:
        """Whether a finished span may go to the outbox without ever being one of the SDK's."""
        return self.route is not None and isinstance(self.provider, _OwnProvider) and self.provider.is_plain


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


_shared: Registry[Tracing] = Registry()


def own(options: ExportOptions, environ: Mapping[str, str] = os.environ) -> Tracing | None:
    """The provider of our own for this destination, which becomes the process's if there is none yet.

    None if the SDK is disabled.

    Raises:
        ValueError: OTEL_TRACES_EXPORTER names an exporter that we do not have.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    tracing = _shared.get(destination(options, environ), partial(_made, options, environ))
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        trace.set_tracer_provider(tracing.provider)
    return tracing


def _made(options: ExportOptions, environ: Mapping[str, str]) -> Tracing:
    exporters = _exporters(environ)
    provider = _OwnProvider(resource=_resource(environ), shutdown_on_exit=False)
    envelope = Envelope(provider.resource, InstrumentationScope(SCOPE, scope_version(), ""))
    prepare(options)
    pack = partial(encode, envelope=envelope)
    outbox = Outbox(partial(open_transport, options), pack=pack, request_timeout=options.timeout)
    route = Route(outbox) if "otlp" in exporters else None
    provider.add_span_processor(RoutingProcessor(route))
    mark_spans_of(provider)
    provider.is_plain = provider.is_plain and not any(name in environ for name in _LIMITS)
    if "console" in exporters:
        provider.add_span_processor(SimpleSpanProcessor(_ConsoleExporter()))
    made = _tracing(provider, route, options.endpoint)
    if made is None:
        raise RuntimeError("the SDK's TracerProvider returned a tracer that is not the SDK's")
    return made


class _ConsoleExporter(ConsoleSpanExporter):
    """Prints spans. A standard output that is closed or full affects neither the run nor the other exporter."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            return super().export(spans)
        except Exception:  # noqa: BLE001 - telemetry never breaks a run
            return SpanExportResult.FAILURE


class _OwnProvider(TracerProvider):
    """Tells ours from the application's.

    It `is_plain` while it has no processors but ours, and its sampler lets a child follow its parent. All its tracers
    sample the parts of a run as they sample the run.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.is_plain = type(self.sampler) in _PLAIN_SAMPLERS
        self.sampler: Sampler = PresetSampler(self.sampler)

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        if not isinstance(span_processor, (RoutingProcessor, TaskIds)):
            self.is_plain = False
        super().add_span_processor(span_processor)


def _tracing(provider: TracerProvider, route: Route | None, endpoint: str) -> Tracing | None:
    tracer = provider.get_tracer(SCOPE, scope_version())
    if not isinstance(tracer, Tracer):
        return None
    if not isinstance(tracer.id_generator, PresetIds):
        tracer.id_generator = PresetIds(tracer.id_generator)
    if not isinstance(tracer.sampler, PresetSampler):
        tracer.sampler = PresetSampler(tracer.sampler)
    mark_spans_of(provider)
    return Tracing(provider, tracer, tracer.id_generator, tracer.sampler, route, endpoint)


def _exporters(environ: Mapping[str, str]) -> set[str]:
    names = {name.strip().lower() for name in environ.get(_EXPORTERS, "otlp").split(",") if name.strip()}
    if unknown := names.difference(_KNOWN_EXPORTERS):
        raise ValueError(
            f"{_EXPORTERS}={environ[_EXPORTERS]!r}: {unknown.pop()!r} is unknown; choose from {_KNOWN_EXPORTERS}"
        )
    return names


def _resource(environ: Mapping[str, str]) -> Resource:
    """`Resource.create` reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, and lets its arguments win over them."""
    named = _detected()
    ours = {a.SERVICE_NAME: "cascade", a.SERVICE_VERSION: scope_version(), a.SERVICE_INSTANCE_ID: source()}
    given = environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if environ.get("OTEL_SERVICE_NAME"):
        del ours[a.SERVICE_NAME]
    return named.merge(Resource({key: value for key, value in ours.items() if f"{key}=" not in given.replace(" ", "")}))


def _detected() -> Resource:
    """`Resource.create`. It needs a ThreadPoolExecutor: without, the environment's attributes and those of the SDK."""
    try:
        return Resource.create()
    except RuntimeError as error:
        if not is_shutdown(error):
            raise
    sdk = {
        resources.TELEMETRY_SDK_LANGUAGE: "python",
        resources.TELEMETRY_SDK_NAME: "opentelemetry",
        resources.TELEMETRY_SDK_VERSION: sdk_version,
    }
    return Resource(sdk).merge(resources.OTELResourceDetector().detect())
