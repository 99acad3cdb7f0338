"""Recording of metrics with the instruments of the application's meter provider, which exports them."""

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

from cascade._forks import ForkSafeLock
from cascade.connectors import _lifetime
from cascade.connectors.otel import environment
from cascade.connectors.otel.encode import SCOPE, VERSION
from cascade.connectors.otel.metrics import catalogue as m
from cascade.connectors.otel.metrics.aggregation import CardinalityLimit, Gauges
from cascade.connectors.otel.metrics.catalogue import Key, attributes_of


def application_meter_provider() -> MeterProvider | None:
    """Return the meter provider that the application has set, or None."""
    provider = environment.global_provider(metrics.get_meter_provider, "meter")
    return None if isinstance(provider, _ProxyMeterProvider) else provider


class Instruments:
    """Sink that records with the instruments of a meter provider. All connectors share it, because instruments are unique."""

    def __init__(self, provider: MeterProvider) -> None:
        meter = provider.get_meter(SCOPE, VERSION)
        self._lock = threading.Lock()
        self._limit = CardinalityLimit()
        self._attributes: dict[Key, dict[str, Any]] = {}
        self.gauges = Gauges()
        self._histograms = {
            one: meter.create_histogram(
                one.name, one.unit, one.description, explicit_bucket_boundaries_advisory=m.BOUNDS
            )
            for one in (m.RUN_DURATION, m.TASK_DURATION, m.TASK_WAIT)
        }
        counted = (m.TASK_RETRIES, m.TASK_SKIPS, m.CACHE_HITS)
        self._counters = {one: meter.create_counter(one.name, one.unit, one.description) for one in counted}
        _create_observables(meter, self.gauges)
        _lifetime.watch(self)

    def record(self, key: Key, seconds: float, end_ns: int, payload: Mapping[str, Any]) -> None:  # noqa: ARG002 - the protocol's
        self._histograms[key[0]].record(seconds, self._attributes_of(key), _context_of(payload))

    def add(self, key: Key) -> None:
        self._counters[key[0]].add(1, self._attributes_of(key))

    def touch(self) -> None:
        """Do nothing: the provider reads the gauges at each export."""

    def reset_after_fork(self) -> None:
        self._lock = threading.Lock()
        self.gauges.reset_after_fork()

    def start_exit(self) -> Callable[[], None]:
        """Do nothing: the provider exports."""
        return lambda: None

    def _attributes_of(self, key: Key) -> dict[str, Any]:
        found = self._attributes.get(key)
        if found is None:
            with self._lock:
                key = self._limit.admit(key)
                found = self._attributes.setdefault(key, attributes_of(key))
        return found


def _create_observables(meter: metrics.Meter, gauges: Gauges) -> None:
    # The meter references the callbacks, which therefore must not reference `Instruments`.
    def telemetry_of(metric: m.Metric, _: CallbackOptions) -> Iterable[Observation]:
        counts = gauges.telemetry().items()
        return [Observation(value, attributes_of(key)) for key, value in counts if key[0] is metric]

    callbacks: dict[m.Metric, Callable[[CallbackOptions], Iterable[Observation]]] = {
        m.RUN_ACTIVE: lambda _: [Observation(gauges.active_runs)],
        m.TASK_ACTIVE: lambda _: [Observation(gauges.active_tasks)],
    }
    for one, callback in callbacks.items():
        meter.create_observable_up_down_counter(one.name, [callback], one.unit, one.description)
    for one in m.TELEMETRY:
        meter.create_observable_counter(one.name, [partial(telemetry_of, one)], one.unit, one.description)


_instruments: "weakref.WeakKeyDictionary[MeterProvider, Instruments]" = weakref.WeakKeyDictionary()
_creation = ForkSafeLock()


def instruments_of(provider: Any) -> Instruments:
    """Return the instruments of a meter provider.

    Raises:
        TypeError: `provider` is not a meter provider.
    """
    if not isinstance(provider, MeterProvider):
        raise TypeError(f"meter_provider={provider!r} is not an opentelemetry MeterProvider")
    with _creation:
        found = _instruments.get(provider)
        if found is None:
            found = _instruments[provider] = Instruments(provider)
        return found


def _context_of(payload: Mapping[str, Any]) -> Context:
    """Return a context with the span of the payload, from which the SDK takes the exemplar."""
    trace_id, span_id = int(payload["trace_id"] or "0", 16), int(payload["span_id"] or "0", 16)
    span = SpanContext(trace_id, span_id, is_remote=False, trace_flags=TraceFlags(payload.get("trace_flags", 1)))
    return trace.set_span_in_context(NonRecordingSpan(span), Context())
