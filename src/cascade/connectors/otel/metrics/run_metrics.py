"""Metrics of the runs of one connector, measured from their messages."""

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol, Self

from opentelemetry.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource

from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.connectors.otel.buffer import FlushReport
from cascade.connectors.otel.metrics import catalogue as m
from cascade.connectors.otel.metrics.aggregation import Gauges
from cascade.connectors.otel.metrics.catalogue import Key
from cascade.connectors.otel.metrics.export import MetricExporter
from cascade.connectors.otel.metrics.instruments import instruments_of
from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.routing import Share
from cascade.connectors.otel.sdk_settings import MetricSettings
from cascade.connectors.otel.transport import prepare
from cascade.telemetry.span_mapping import error_type

MAX_RUNS = 1000
"""Active runs of one connector. A further run replaces the oldest one, whose end may never be published."""

logger = get_logger("cascade.connectors.otel")


class Sink(Protocol):
    """Records measurements. Called on the threads of event loops; must not block.

    A key is a metric and the values of its attributes, in the order of the attributes; None is a missing value.
    """

    gauges: Gauges

    def record(self, key: Key, seconds: float, end_ns: int, payload: Mapping[str, Any]) -> None:
        """Add a duration to a histogram. The span of the payload is its exemplar."""
        ...

    def add(self, key: Key) -> None:
        """Add one to a counter."""
        ...

    def touch(self) -> None:
        """Handle a change of a gauge."""
        ...


class RunMetrics:
    """Metrics of the runs of one connector, exported by Cascade or recorded with a meter provider.

    Connectors of one destination share its exporter, and those of one meter provider share its instruments. A process
    has therefore one time series of each metric. Only the constructors raise exceptions.
    """

    def __init__(self, sink: Sink | None = None, exporter: MetricExporter | None = None) -> None:
        self._sink = sink
        self._exporter = exporter
        self._gauges = sink.gauges if sink else Gauges()
        self._lock = threading.Lock()
        self._runs: dict[str, None] = {}
        self._tasks: set[object] = set()
        self._gauges.attach(self)

    @classmethod
    def for_endpoint(
        cls,
        resource: Callable[[], Resource],
        options: ExportOptions,
        share: Share[MetricExporter],
        environ: Mapping[str, str] = os.environ,
    ) -> Self:
        """Export to a collector, to standard output, or to both, as the `OTEL_METRIC*` variables configure it.

        Args:
            resource: Returns the current resource, the same as that of the spans.
            options: Options of the signal "metrics".
            share: Returns the exporter of the destination, which connectors share.
            environ: The environment.
        """
        settings = MetricSettings.from_environment(environ)
        if not settings.exporters:
            return cls()
        if "otlp" in settings.exporters:
            prepare(options)
        exporter = share(partial(MetricExporter, settings, resource, options))
        return cls(exporter.aggregator, exporter)

    @classmethod
    def for_provider(cls, meter_provider: MeterProvider) -> Self:
        """Record with the instruments of a provider, which exports them.

        Raises:
            TypeError: `meter_provider` is not a meter provider.
        """
        return cls(instruments_of(meter_provider))

    def reserve(self, exit_timeout: float) -> None:
        """Register as a user of the exporter. It is flushed for `exit_timeout` seconds when the process exits."""
        if self._exporter is not None:
            self._exporter.reserve(self, exit_timeout)

    def publish(self, payload: Mapping[str, Any]) -> None:
        """Record the measurements of a message. Most messages have none."""
        if self._sink is None:
            return
        try:
            _measure(payload, self._sink, self)
        except Exception as error:
            raise_in_tests(error)
            logger.debug("OtelConnector: a message cannot be measured", exc_info=True)

    @property
    def active_runs(self) -> int:
        return len(self._runs)

    @property
    def active_tasks(self) -> int:
        return len(self._tasks)

    def start_task(self, task: object) -> None:
        """Count a task as active until `end_task`. Tasks start and end in any thread: a set needs no lock for that."""
        self._tasks.add(task)

    def end_task(self, task: object) -> None:
        """Count a task as ended. A forked child may end tasks that started in the parent."""
        self._tasks.discard(task)

    def start_run(self, run_id: str) -> None:
        self._gauges.start_run()
        with self._lock:
            self._runs[run_id] = None
            if len(self._runs) > MAX_RUNS:
                del self._runs[next(iter(self._runs))]

    def end_run(self, run_id: str) -> None:
        with self._lock:
            self._runs.pop(run_id, None)

    def add_report(self, signal: str, report: Callable[[], FlushReport]) -> None:
        """Add the counts of a signal to the metrics. `report` is called at each export, in the exporting thread."""
        self._gauges.add_report(signal, report)

    def start_flush(self, timeout: float) -> Callable[[float], None]:
        """Start an export. The returned function waits for it, at most until its argument, a time of `time.monotonic`."""
        return self._exporter.start_flush(timeout) if self._exporter is not None else lambda _: None

    def reset_after_fork(self) -> None:
        self._lock = threading.Lock()
        self._runs, self._tasks = {}, set()


def _measure(payload: Mapping[str, Any], sink: Sink, metrics: RunMetrics) -> None:
    body = payload["body"]
    match body.get("state") or body.get("event"):
        case "COMPLETED" | "FAILED":
            _record_end(payload, body, sink)
        case "SKIPPED":
            _record_skip(payload, body, sink)
        case "PENDING" if body["metadata"].get("reason") == "retry":
            sink.add((m.TASK_RETRIES, body["task_name"]))
        case "ENGINE_STARTED":
            metrics.start_run(payload["run_id"])
            sink.touch()
        case "ENGINE_STOPPED":
            _record_run_end(payload, body, sink, metrics)


def _record_end(payload: Mapping[str, Any], body: Mapping[str, Any], sink: Sink) -> None:
    metadata = body["metadata"]
    end_ns = metadata["end_ns"]
    if metadata.get("kind") != "map":
        error = None if body["state"] == "COMPLETED" else error_type(metadata, body.get("error"))
        key = (m.TASK_DURATION, body["task_name"], metadata["result"], error)
        sink.record(key, _seconds(metadata["start_ns"], end_ns), end_ns, payload)
    if "waits" in metadata:
        _record_waits(payload, metadata["waits"], sink)


def _record_skip(payload: Mapping[str, Any], body: Mapping[str, Any], sink: Sink) -> None:
    metadata = body["metadata"]
    reason = metadata.get("reason")
    sink.add((m.TASK_SKIPS, body["task_name"], reason))
    if reason == "CacheHit":
        sink.add((m.CACHE_HITS, body["task_name"]))
    _record_waits(payload, metadata.get("waits", ()), sink)


def _record_waits(payload: Mapping[str, Any], waits: Iterable[Mapping[str, Any]], sink: Sink) -> None:
    for wait in waits:
        seconds = _seconds(wait["start_ns"], wait["end_ns"])
        sink.record((m.TASK_WAIT, wait["reason"]), seconds, wait["end_ns"], payload)


def _record_run_end(payload: Mapping[str, Any], body: Mapping[str, Any], sink: Sink, metrics: RunMetrics) -> None:
    metrics.end_run(payload["run_id"])
    metadata = body["metadata"]
    end_ns = metadata["end_ns"]
    key = (m.RUN_DURATION, metadata.get("target"), metadata.get("result"))
    sink.record(key, _seconds(metadata["start_ns"], end_ns), end_ns, payload)
    sink.touch()


def _seconds(start_ns: int, end_ns: int) -> float:
    return max(0.0, (end_ns - start_ns) / 1e9)  # the clock may have been set back
