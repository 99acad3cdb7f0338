"""Tracer provider of the runs: the provider of the application, or a provider of Cascade for each destination."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import NoneType

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import NoOpMeterProvider
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
from opentelemetry.trace import SpanKind

from cascade._internal_errors import raise_in_tests
from cascade.connectors.otel import environment
from cascade.connectors.otel.encode import SCOPE, VERSION, Envelope, encode
from cascade.connectors.otel.environment import LIMITS, SettingWarning, warn_once
from cascade.connectors.otel.export_queue import ExportQueue
from cascade.connectors.otel.health import ItemLabel
from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.routing import ExportTarget, Registry, RoutingProcessor, destination
from cascade.connectors.otel.sdk_hooks import PresetIds, PresetSampler, TaskChildSampler, add_task_ids_to, for_own_span
from cascade.connectors.otel.sdk_settings import resource, sampler, span_limits
from cascade.connectors.otel.transport import open_transport, prepare

# A forked child runs fork handlers in the order of registration. The handler of a provider uses a thread pool, so the
# handler of the thread pool module, which resets its lock, must be registered first.
with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
    import_module("concurrent.futures.thread")

_CONFIG_FILE = "OTEL_CONFIG_FILE"

_PLAIN_SAMPLERS = (StaticSampler, TraceIdRatioBased, ParentBased, ParentBasedTraceIdRatio)
"""Samplers that sample a task when they sample its run."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class RunTracer:
    """Tracer of the SDK that starts spans with given ids.

    `own` is the provider if Cascade has created it, and otherwise None. `target` is None if the processors of the provider export the spans.
    """

    provider: TracerProvider
    tracer: Tracer
    ids: PresetIds
    sampler: PresetSampler
    own: "CascadeTracerProvider | None" = None
    target: ExportTarget | None = None
    endpoint: str = ""

    @property
    def is_direct(self) -> bool:
        """Whether finished spans can be encoded without a span of the SDK (`CascadeTracerProvider.is_direct`)."""
        return self.own is not None and self.own.is_direct

    def resource(self) -> Resource:
        """Return the current resource. The provider replaces it after a fork."""
        return self.provider.resource

    def start(
        self,
        name: str,
        trace_id: str,
        span_id: str,
        parent: Context,
        start_ns: int,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        links: tuple[trace.Link, ...] = (),
    ) -> trace.Span:
        with self.ids.preset(trace_id, span_id):
            return self.tracer.start_span(
                name,
                for_own_span(parent),
                kind,
                links=links,
                start_time=start_ns,
                record_exception=False,
                set_status_on_exception=False,
            )


def tracer_of(provider: trace.TracerProvider) -> RunTracer | None:
    """Return a tracer of the provider; None if the provider records nothing (no-op, or OTEL_SDK_DISABLED).

    Raises:
        TypeError: The provider is not a provider of the SDK.
    """
    if isinstance(provider, trace.NoOpTracerProvider):
        return None
    if not isinstance(provider, TracerProvider):
        kind = f"{type(provider).__module__}.{type(provider).__qualname__}"
        raise TypeError(f"a {kind} cannot export runs; use an opentelemetry.sdk.trace.TracerProvider")
    tracer = provider.get_tracer(SCOPE, VERSION)
    if not isinstance(tracer, Tracer):
        return None
    if not isinstance(tracer.id_generator, PresetIds):
        tracer.id_generator = PresetIds(tracer.id_generator)
    if not isinstance(tracer.sampler, PresetSampler):
        tracer.sampler = PresetSampler(tracer.sampler)
    add_task_ids_to(provider)
    own = provider if isinstance(provider, CascadeTracerProvider) else None
    target, endpoint = (own.target, own.endpoint) if own is not None else (None, "")
    return RunTracer(provider, tracer, tracer.id_generator, tracer.sampler, own, target, endpoint)


def application_tracer_provider() -> TracerProvider | None:
    """Return the provider of the SDK that the application has set as the global one, or None."""
    provider = _global_provider()
    return (
        provider if isinstance(provider, TracerProvider) and not isinstance(provider, CascadeTracerProvider) else None
    )


def _global_provider() -> trace.TracerProvider | None:
    return environment.global_provider(trace.get_tracer_provider, "tracer")


def _retire(tracer: RunTracer) -> None:
    if tracer.target is not None:
        tracer.target.queue.retire()


_tracers: Registry[RunTracer] = Registry(_retire)


def cascade_tracer(options: ExportOptions, environ: Mapping[str, str] = os.environ) -> RunTracer | None:
    """Return the tracer of Cascade's provider for a destination; None if the SDK is disabled.

    The provider becomes the global one if there is none.
    """
    if environment.is_disabled(environ):
        return None
    tracer = _tracers.get(destination(options, environ), lambda: _new_tracer(options, environ))
    if isinstance(_global_provider(), (trace.ProxyTracerProvider, NoneType)):
        trace.set_tracer_provider(tracer.provider)
    return tracer


def _new_tracer(options: ExportOptions, environ: Mapping[str, str]) -> RunTracer:
    exporters, _, problem = environment.exporters(environ, "traces")
    warn_once(*filter(None, (problem, _config_file(environ))))
    if "otlp" in exporters:
        prepare(options)
    provider = CascadeTracerProvider(options if "otlp" in exporters else None, environ)
    if "console" in exporters:
        provider.add_span_processor(SimpleSpanProcessor(_ConsoleExporter()))
    tracer = tracer_of(provider)
    if tracer is None:
        raise RuntimeError("the TracerProvider of the SDK returned a tracer of another library")
    return tracer


def _config_file(environ: Mapping[str, str]) -> SettingWarning | None:
    given = environment.value(environ, _CONFIG_FILE)
    message = f"{_CONFIG_FILE}={given!r} is not read; set a tracer provider, or start with opentelemetry-instrument"
    return SettingWarning(_CONFIG_FILE, given, message) if given else None


class CascadeTracerProvider(TracerProvider):
    """Provider of Cascade. It exports to `target`, which is None without an OTLP exporter.

    `is_direct` is True while finished spans can be encoded without a span of the SDK: the sampler samples a task when it
    samples its run, there are no other span processors, and no limits of spans apply.
    """

    def __init__(self, options: ExportOptions | None, environ: Mapping[str, str]) -> None:
        meters = environment.global_provider(metrics.get_meter_provider, "meter")
        super().__init__(
            resource=resource(environ),
            sampler=sampler(environ),
            span_limits=span_limits(environ),
            shutdown_on_exit=False,
            meter_provider=NoOpMeterProvider() if meters is None else None,
        )
        self.endpoint = options.endpoint if options is not None else ""
        self.target = ExportTarget(self._new_queue(options)) if options is not None else None
        is_plain = type(self.sampler) in _PLAIN_SAMPLERS
        self.sampler: Sampler = PresetSampler(TaskChildSampler(self.sampler, is_plain=is_plain))
        add_task_ids_to(self)
        self.add_span_processor(RoutingProcessor(self.target))
        has_limits = any(environment.value(environ, name) for name in LIMITS)
        self.is_direct = self.target is not None and is_plain and not has_limits

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        self.is_direct = False
        super().add_span_processor(span_processor)

    def _new_queue(self, options: ExportOptions) -> ExportQueue:
        envelope = Envelope(partial(getattr, self, "resource"))
        return ExportQueue(
            partial(open_transport, options),
            encode=partial(encode, envelope=envelope),
            request_timeout=options.timeout,
            label=ItemLabel("spans", options.endpoint),
        )


class _ConsoleExporter(ConsoleSpanExporter):
    """Prints spans. An error of standard output affects neither the run nor the other exporter."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            return super().export(spans)
        except Exception as error:  # noqa: BLE001 - telemetry must not break a run
            raise_in_tests(error)
            return SpanExportResult.FAILURE
