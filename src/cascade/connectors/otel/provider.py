"""Which tracer provider a connector works with: the caller's, the application's, or one of its own."""

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import NoneType
from typing import Any

from opentelemetry import metrics, trace
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
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from cascade.connectors.otel import environment
from cascade.connectors.otel.batch import encode
from cascade.connectors.otel.encode import Envelope
from cascade.connectors.otel.environment import LIMITS, SettingWarning, warn_once
from cascade.connectors.otel.export_queue import ExportQueue
from cascade.connectors.otel.health import ItemLabel
from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.routing import ExportTarget, Registry, RoutingProcessor, destination
from cascade.connectors.otel.scope import SCOPE, scope_version
from cascade.connectors.otel.sdk_hooks import BelowTasks, PresetIds, PresetSampler, TaskIds, mark_spans_of
from cascade.connectors.otel.sdk_settings import resource, sampler, span_limits
from cascade.connectors.otel.sender import Pack
from cascade.connectors.otel.transport import open_transport, prepare

# A forked child runs the fork handlers in the order of their registration. The handler of the SDK's provider uses a
# thread pool, whose module registers one too: registered after the provider, it releases its lock too late.
with contextlib.suppress(RuntimeError):  # the interpreter is shutting down
    import_module("concurrent.futures.thread")

_CONFIG_FILE = "OTEL_CONFIG_FILE"

# With these a task is sampled when its run is.
_PLAIN_SAMPLERS = (StaticSampler, TraceIdRatioBased, ParentBased, ParentBasedTraceIdRatio)


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Tracing:
    """A tracer whose ids can be preset. `target` is None where the provider's own processors export."""

    provider: TracerProvider
    tracer: Tracer
    ids: PresetIds
    sampler: PresetSampler
    target: ExportTarget | None = None
    endpoint: str = ""

    def resource(self) -> Resource:
        """The provider's resource, which is another one after a fork."""
        return self.provider.resource

    @property
    def is_own(self) -> bool:
        """Whether the provider is Cascade's own, and not the application's."""
        return isinstance(self.provider, _OwnProvider)

    @property
    def is_direct(self) -> bool:
        """Whether a finished span may go to the queue without ever being one of the SDK's."""
        return self.target is not None and isinstance(self.provider, _OwnProvider) and self.provider.is_plain


def tracing_of(provider: trace.TracerProvider) -> Tracing | None:
    """Work with this provider, of the application or our own; None if it records nothing (NoOp, OTEL_SDK_DISABLED).

    Raises:
        TypeError: It is a provider of another library than the SDK.
    """
    if isinstance(provider, trace.NoOpTracerProvider):
        return None
    if not isinstance(provider, TracerProvider):
        kind = f"{type(provider).__module__}.{type(provider).__qualname__}"
        raise TypeError(f"a {kind} cannot export runs; use an opentelemetry.sdk.trace.TracerProvider")
    tracer = provider.get_tracer(SCOPE, scope_version())
    if not isinstance(tracer, Tracer):
        return None
    if not isinstance(tracer.id_generator, PresetIds):
        tracer.id_generator = PresetIds(tracer.id_generator)
    if not isinstance(tracer.sampler, PresetSampler):
        tracer.sampler = PresetSampler(tracer.sampler)
    mark_spans_of(provider)
    target, endpoint = (provider.target, provider.endpoint) if isinstance(provider, _OwnProvider) else (None, "")
    return Tracing(provider, tracer, tracer.id_generator, tracer.sampler, target, endpoint)


def application_provider() -> TracerProvider | None:
    """The process's provider, if the application has set one of the SDK's, and it is not ours."""
    provider = _global()
    return provider if isinstance(provider, TracerProvider) and not isinstance(provider, _OwnProvider) else None


def _global() -> trace.TracerProvider | None:
    return environment.global_provider(trace.get_tracer_provider, "tracer")


def _retire(tracing: Tracing) -> None:
    if tracing.target is not None:
        tracing.target.queue.retire()


_shared: Registry[Tracing] = Registry(_retire)


def own_tracing(options: ExportOptions, environ: Mapping[str, str] = os.environ) -> Tracing | None:
    """The provider of our own for this destination, which becomes the process's if there is none yet.

    None if the SDK is disabled.
    """
    if environment.is_disabled(environ):
        return None
    tracing = _shared.get(destination(options, environ), partial(_made, options, environ))
    if isinstance(_global(), (trace.ProxyTracerProvider, NoneType)):
        trace.set_tracer_provider(tracing.provider)
    return tracing


def _made(options: ExportOptions, environ: Mapping[str, str]) -> Tracing:
    exporters, _, problem = environment.exporters(environ, "traces")
    warn_once(*filter(None, (problem, _config_file(environ))))
    provider = _OwnProvider(
        resource=resource(environ), sampler=sampler(environ), span_limits=span_limits(environ), shutdown_on_exit=False
    )
    envelope = Envelope(lambda: provider.resource, InstrumentationScope(SCOPE, scope_version(), ""))
    if "otlp" in exporters:
        prepare(options)
        pack = partial(encode, envelope=envelope)
        provider.target, provider.endpoint = ExportTarget(_queue(options, pack)), options.endpoint
    mark_spans_of(provider)
    provider.add_span_processor(RoutingProcessor(provider.target))
    provider.is_plain = provider.is_plain and not any(environment.value(environ, name) for name in LIMITS)
    if "console" in exporters:
        provider.add_span_processor(SimpleSpanProcessor(_ConsoleExporter()))
    made = tracing_of(provider)
    if made is None:
        raise RuntimeError("the SDK's TracerProvider returned a tracer that is not the SDK's")
    return made


def _queue(options: ExportOptions, pack: Pack) -> ExportQueue:
    return ExportQueue(
        partial(open_transport, options),
        pack=pack,
        request_timeout=options.timeout,
        label=ItemLabel("spans", options.endpoint),
    )


class _ConsoleExporter(ConsoleSpanExporter):
    """Prints spans. A standard output that is closed or full affects neither the run nor the other exporter."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            return super().export(spans)
        except Exception:  # noqa: BLE001 - telemetry never breaks a run
            return SpanExportResult.FAILURE


def _config_file(environ: Mapping[str, str]) -> SettingWarning | None:
    given = environment.value(environ, _CONFIG_FILE)
    message = f"{_CONFIG_FILE}={given!r} is not read; set a tracer provider, or start with opentelemetry-instrument"
    return SettingWarning(_CONFIG_FILE, given, message) if given else None


class _OwnProvider(TracerProvider):
    """A provider of Cascade's own, as opposed to the application's.

    It `is_plain` while it has no processors but ours, and its sampler lets a child follow its parent. All its tracers
    sample the parts of a run as they sample the run, and with a plain sampler a span below a task as the task.
    """

    def __init__(self, **settings: Any) -> None:
        meters = environment.global_provider(metrics.get_meter_provider, "meter")
        self.target: ExportTarget | None = None
        self.endpoint = ""
        super().__init__(meter_provider=NoOpMeterProvider() if meters is None else None, **settings)
        self.is_plain = type(self.sampler) in _PLAIN_SAMPLERS
        self.sampler: Sampler = PresetSampler(BelowTasks(self.sampler, is_plain=self.is_plain))

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        if not isinstance(span_processor, (RoutingProcessor, TaskIds)):
            self.is_plain = False
        super().add_span_processor(span_processor)
