"""`RunMetrics`: the metrics of one connector's runs."""

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, Self

from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource

from cascade._loggers import get_logger
from cascade.connectors.otel._options import ExportOptions
from cascade.connectors.otel._sharing import Share
from cascade.connectors.otel._tally import FlushReport
from cascade.connectors.otel._transport import open_transport, prepare
from cascade.connectors.otel.metrics import catalogue as m
from cascade.connectors.otel.metrics.aggregation import Ledger
from cascade.connectors.otel.metrics.catalogue import Key
from cascade.connectors.otel.metrics.export import Collector, Console, Destination, Exporter
from cascade.connectors.otel.metrics.gauges import Gauges, Levels
from cascade.connectors.otel.metrics.instruments import Instruments, instruments_of
from cascade.connectors.otel.metrics.settings import Settings
from cascade.connectors.otel.span_data import error_type

logger = get_logger("cascade.connectors.otel")


class RunMetrics:
    """The metrics of one connector's runs: aggregated and exported here, or recorded with a meter provider.

    Connectors that export to one destination share its exporter, and those of one meter provider its instruments. So a
    process has one series of each metric. No method but the constructors raises.
    """

    def __init__(
        self, sink: Ledger | Instruments | None = None, exporter: Exporter | None = None, *, is_shared: bool = False
    ) -> None:
        self._sink = sink
        self._exporter = exporter
        self._is_shared = is_shared
        self._gauges = sink.gauges if sink else Gauges()
        self._levels = Levels(self._gauges)

    @classmethod
    def own(
        cls,
        resource: Callable[[], Resource],
        options: ExportOptions,
        environ: Mapping[str, str] = os.environ,
        share: Share[Exporter] | None = None,
    ) -> Self:
        """Export to `options`, whose signal is "metrics", as the `OTEL_METRIC*` variables configure it.

        Args:
            resource: Returns the current resource, the same as that of the spans.
            options: Made for the signal "metrics".
            environ: The environment.
            share: Returns the exporter of the destination, which connectors share. None makes an exporter.
        """
        settings = Settings.from_environment(environ)
        if not settings.exporters:
            return cls()
        if "otlp" in settings.exporters:
            prepare(options)
        make = partial(_exporter, settings, resource, options)
        exporter = make() if share is None else share(make)
        return cls(exporter.ledger, exporter, is_shared=share is not None)

    @classmethod
    def of(cls, meter_provider: MeterProvider) -> Self:
        """Record with a provider's instruments, which the provider exports.

        Raises:
            TypeError: It is no meter provider.
        """
        return cls(instruments_of(meter_provider))

    def reserve(self, exit_timeout: float) -> None:
        """Register as a user of the exporter, which the process's exit flushes for `exit_timeout` seconds."""
        if self._exporter is not None:
            self._exporter.reserve(self, exit_timeout)

    def publish(self, payload: Mapping[str, Any]) -> None:
        """Take in a message of a run, at once: any message, those that say nothing here included."""
        sink = self._sink
        if sink is None:
            return
        try:
            measure(payload, sink, self._levels)
        except Exception:
            logger.debug("OtelConnector: no metrics from a message", exc_info=True)

    def entered(self) -> None:
        """A call of a task's code begins; from any thread."""
        self._levels.enter_task()

    def left(self) -> None:
        """That call has ended."""
        self._levels.leave_task()

    def end_run(self, run_id: str) -> None:
        """The run is over, though the message of its end may have been lost."""
        self._levels.end_run(run_id)

    def watch(self, signal: str, report: Callable[[], FlushReport]) -> None:
        """Count what becomes of the telemetry of a signal; `report` is called at each export, in the exporting thread."""
        self._gauges.watch(signal, report)

    def flush(self, timeout: float) -> None:
        """Export now, and wait for it `timeout` seconds at most."""
        self.start_flush(timeout)(math.inf)

    def start_flush(self, timeout: float) -> Callable[[float], None]:
        """Begin an export; the returned function waits for it, at most until its argument, a time of `time.monotonic`."""
        return self._exporter.start_flush(timeout) if self._exporter is not None else _no_wait

    def close(self, timeout: float) -> None:
        """Flush, and count no more. An exporter that is not shared is closed."""
        if self._exporter is not None:
            (self._exporter.flush if self._is_shared else self._exporter.close)(timeout)
        self._sink = None


def _no_wait(_limit: float) -> None:
    """Nothing is exported here."""


def _exporter(settings: Settings, resource: Callable[[], Resource], options: ExportOptions) -> Exporter:
    return Exporter(
        Ledger(settings),
        partial(_destination, settings, resource, options),
        interval=settings.interval,
        request_timeout=options.timeout,
    )


def _destination(settings: Settings, resource: Callable[[], Resource], options: ExportOptions) -> Destination:
    collector = Collector(resource, partial(open_transport, options)) if "otlp" in settings.exporters else None
    if "console" in settings.exporters or collector is None:
        return Console(resource, collector)
    return collector


CACHE_HIT = "CacheHit"


class Sink(Protocol):
    """Takes measurements, on the event loop's threads; quick, and never blocks.

    A key is a metric and the values of its attributes, in their order; None for one that has no value.
    """

    def observe(self, key: Key, seconds: float, end_ns: int, payload: Mapping[str, Any]) -> None:
        """Add a duration to a histogram; the payload's span is its example."""
        ...

    def count(self, key: Key) -> None:
        """Add one to a counter."""
        ...

    def touch(self) -> None:
        """Something that is not measured here, such as a level, has changed."""
        ...


def measure(payload: Mapping[str, Any], sink: Sink, levels: Levels) -> None:
    """Hand the sink all that this message says; nothing for most."""
    body = payload["body"]
    kind = body["type"]
    if kind == "TaskStateEvent":
        state = body["state"]
        if state in {"COMPLETED", "FAILED"}:
            _ended(payload, body, sink)
        elif state == "SKIPPED":
            _skipped(payload, body, sink)
        elif state == "PENDING" and body["metadata"].get("reason") == "retry":
            sink.count((m.TASK_RETRIES, body["task_name"]))
    elif kind == "LifecycleEvent":
        _lifecycle(payload, body, sink, levels)


def _ended(payload: Mapping[str, Any], body: Mapping[str, Any], sink: Sink) -> None:
    metadata = body["metadata"]
    end_ns = metadata["end_ns"]
    if metadata.get("kind") != "map":
        error = None if body["state"] == "COMPLETED" else error_type(body, metadata)
        key = (m.TASK_DURATION, body["task_name"], metadata["result"], error)
        sink.observe(key, _seconds(metadata["start_ns"], end_ns), end_ns, payload)
    if "waits" in metadata:
        _waited(payload, metadata, sink)


def _skipped(payload: Mapping[str, Any], body: Mapping[str, Any], sink: Sink) -> None:
    metadata = body["metadata"]
    reason = metadata.get("reason")
    sink.count((m.TASK_SKIPS, body["task_name"], reason))
    if reason == CACHE_HIT:
        sink.count((m.CACHE_HITS, body["task_name"]))
    _waited(payload, metadata, sink)


def _waited(payload: Mapping[str, Any], metadata: Mapping[str, Any], sink: Sink) -> None:
    for wait in metadata.get("waits", ()):
        seconds = _seconds(wait["start_ns"], wait["end_ns"])
        sink.observe((m.TASK_WAIT, wait["reason"]), seconds, wait["end_ns"], payload)


def _lifecycle(payload: Mapping[str, Any], body: Mapping[str, Any], sink: Sink, levels: Levels) -> None:
    metadata = body["metadata"]
    if body["event"] == "ENGINE_STARTED":
        levels.start_run(payload["run_id"])
    else:
        levels.end_run(payload["run_id"])
        key = (m.RUN_DURATION, metadata.get("target"), metadata.get("result"))
        end_ns = metadata["end_ns"]
        sink.observe(key, _seconds(metadata["start_ns"], end_ns), end_ns, payload)
    sink.touch()


def _seconds(start_ns: int, end_ns: int) -> float:
    # A clock that is set back makes no negative duration.
    return max(0.0, (end_ns - start_ns) / 1e9)
