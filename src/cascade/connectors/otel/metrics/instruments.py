"""The application's meter provider as the sink: its readers, views and exporters apply."""

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.metrics._internal import _ProxyMeterProvider
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from cascade._forks import ModuleLock
from cascade.connectors import _lifetime
from cascade.connectors.otel import _environment
from cascade.connectors.otel.metrics import catalogue as m
from cascade.connectors.otel.metrics.catalogue import CardinalityLimit, Key, attributes_of
from cascade.connectors.otel.metrics.gauges import Gauges
from cascade.connectors.otel.scope import SCOPE, scope_version


def application() -> MeterProvider | None:
    """The process's meter provider, if the application has set one."""
    provider = _environment.global_provider(metrics.get_meter_provider, "meter")
    return None if isinstance(provider, _ProxyMeterProvider) else provider


class Instruments:
    """One set of instruments for each provider, which all connectors share: a second one would be a conflict."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter(SCOPE, scope_version())
        self._lock = threading.Lock()
        self._limit = CardinalityLimit()
        self._attributes: dict[Key, dict[str, Any]] = {}
        self.gauges = Gauges()
        self._histograms = {one: _histogram(meter, one) for one in (m.RUN_DURATION, m.TASK_DURATION, m.TASK_WAIT)}
        counted = (m.TASK_RETRIES, m.TASK_SKIPS, m.CACHE_HITS)
        self._counters = {one: meter.create_counter(one.name, one.unit, one.meaning) for one in counted}
        self._observe_levels(meter)
        _lifetime.watch(self)

    def observe(self, key: Key, seconds: float, end_ns: int, payload: Mapping[str, Any]) -> None:  # noqa: ARG002 - the protocol's
        self._histograms[key[0]].record(seconds, self._attributes_of(key), _context_of(payload))

    def count(self, key: Key) -> None:
        self._counters[key[0]].add(1, self._attributes_of(key))

    def touch(self) -> None:
        pass

    def reset_after_fork(self) -> None:
        self._lock = threading.Lock()
        self.gauges.reset_after_fork()

    def start_exit(self) -> Callable[[], None]:
        """Do nothing: exporting is the provider's part."""
        return lambda: None

    def _attributes_of(self, key: Key) -> dict[str, Any]:
        found = self._attributes.get(key)
        if found is None:
            with self._lock:
                key = self._limit.admit(key)
                found = self._attributes.setdefault(key, attributes_of(key))
        return found

    def _observe_levels(self, meter: metrics.Meter) -> None:
        gauges = self.gauges  # the meter keeps the callbacks, and must not keep these instruments

        def active_runs(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(gauges.active_runs)]

        def active_tasks(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(gauges.active_tasks)]

        def telemetry_of(metric: m.Metric, _: CallbackOptions) -> Iterable[Observation]:
            counts = gauges.telemetry().items()
            return [Observation(value, attributes_of(key)) for key, value in counts if key[0] is metric]

        for one, callback in ((m.RUN_ACTIVE, active_runs), (m.TASK_ACTIVE, active_tasks)):
            meter.create_observable_up_down_counter(one.name, [callback], one.unit, one.meaning)
        for one in (m.TELEMETRY_SENT, m.TELEMETRY_LOST, m.TELEMETRY_RETRIED):
            meter.create_observable_counter(one.name, [partial(telemetry_of, one)], one.unit, one.meaning)


_made: "weakref.WeakKeyDictionary[MeterProvider, Instruments]" = weakref.WeakKeyDictionary()
_making = ModuleLock()


def instruments_of(provider: Any) -> Instruments:
    """The instruments of this provider.

    Raises:
        TypeError: It is no meter provider.
    """
    if not isinstance(provider, MeterProvider):
        raise TypeError(f"meter_provider={provider!r} is no opentelemetry MeterProvider")
    with _making:
        found = _made.get(provider)
        if found is None:
            found = _made[provider] = Instruments(provider)
        return found


def _histogram(meter: metrics.Meter, metric: m.Metric) -> metrics.Histogram:
    return meter.create_histogram(
        metric.name, metric.unit, metric.meaning, explicit_bucket_boundaries_advisory=m.BOUNDS
    )


def _context_of(payload: Mapping[str, Any]) -> Context:
    """With the measurement's span as the current one: the SDK's exemplars ask for it."""
    trace_id, span_id = int(payload["trace_id"] or "0", 16), int(payload["span_id"] or "0", 16)
    span = SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(payload.get("trace_flags", 1)))
    return trace.set_span_in_context(NonRecordingSpan(span), Context())
