"""Connector that exports runs as traces and tasks as spans."""

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind, TraceFlags

from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.connectors import _lifetime
from cascade.connectors._options import captures, one_of, positive, whole
from cascade.connectors.otel.buffer import FlushReport
from cascade.connectors.otel.encode import encode_span, encode_task
from cascade.connectors.otel.export_queue import CAPACITY, Bounds
from cascade.connectors.otel.flush import CapacityWaiter, flush
from cascade.connectors.otel.health import HOLD_TIMEOUT
from cascade.connectors.otel.live_spans import (
    InheritedContext,
    LiveRun,
    complete,
    emit_finished,
    parent_context,
    parent_of_run,
    span_context,
)
from cascade.connectors.otel.provider import RunTracer
from cascade.connectors.otel.routing import ExportTarget
from cascade.connectors.otel.signals import Exports, ExportSetup, Signals
from cascade.connectors.otel.task_span import SpanActivation
from cascade.connectors.report import ConnectorReport
from cascade.runtime.exceptions import TelemetryLostError
from cascade.runtime.task_context import TaskContext
from cascade.spec.protocols import MessageCallback
from cascade.telemetry.identity import RunTrace, SpanRef, place_run
from cascade.telemetry.sanitize import masked_name
from cascade.telemetry.span_data import SpanData
from cascade.telemetry.span_mapping import spans_of

logger = get_logger("cascade.connectors.otel")

FLUSH_TIMEOUT = 5.0
"""Seconds that the end of a run waits at most for the delivery of its spans. It waits less if the collector does not respond."""

_LEFT_OUT = (
    "OtelConnector: traces of run %s have reached their largest size; %d spans of the program, or contents that it added "
    "to spans of tasks, were left out; set a smaller CASCADE_TRACE_PART_SIZE, or a larger CASCADE_TRACE_PART_BYTES if the "
    "storage accepts it"
)


class OtelConnector:
    """Exports runs as OpenTelemetry traces over OTLP, and makes the span of a task the current span while its code runs.

    All `OTEL_*` variables of the SDK apply; arguments take precedence. With an `endpoint`, `protocol` or `headers`
    argument Cascade creates a tracer provider, otherwise it uses the provider of the application if there is one. The
    provider is chosen when the first run starts.

    Args:
        endpoint: URL of the collector, such as `http://localhost:4318`. Port 4317 means gRPC.
        protocol: "http/protobuf" or "grpc".
        headers: Headers of each request, for authentication.
        tracer_provider: A provider of the OpenTelemetry SDK. Its resource, sampler, processors and limits apply.
        capture: Values to export: "params", "arguments", "results". Secrets are masked.
        strict: Raise `TelemetryLostError` at the end of a run if spans were lost or are not yet delivered, instead of
            logging a warning.
        flush_timeout: Seconds that the end of a run, and of the process, may wait for the collector. Undelivered spans
            stay queued.
        parent: Use of an inbound trace, which is the current span or TRACEPARENT: "join", "link" or "none".
        detail: "full"; "tasks" omits attempts, waits and resources; "run" exports only the span of the run.
        semconv: "cicd" adds the attributes of the CI/CD conventions of OpenTelemetry.
        metrics: False disables metrics. Without an `endpoint`, `protocol` or `headers` argument they are recorded with the
            meter provider of the application if there is one.
        logs: True exports the `logging` records of tasks, and a level such as "INFO" those of at least that level. None
            follows OTEL_LOGS_EXPORTER.
        on_full: With "wait", a full buffer delays the start of tasks while the collector responds. With "drop", or while
            the collector does not respond, a full buffer drops spans.
        hold_timeout: Seconds for which a collector that only requests retries (429, 503, UNAVAILABLE) may delay tasks.
        max_buffer_bytes: Memory for queued spans; the default of 64 MiB is enough for some 100,000 tasks. Connectors of
            one destination share the memory; the largest limits of the connectors with runs in progress apply.

    Raises:
        ValueError: An argument has an invalid value, or contradicts another argument.
        TypeError: `tracer_provider` is not a tracer provider.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        protocol: str | None = None,
        headers: Mapping[str, str] | None = None,
        tracer_provider: trace.TracerProvider | None = None,
        capture: Iterable[str] = (),
        strict: bool = False,
        flush_timeout: float = FLUSH_TIMEOUT,
        parent: Literal["join", "link", "none"] = "join",
        detail: Literal["full", "tasks", "run"] = "full",
        semconv: Literal["cicd"] | None = None,
        metrics: bool = True,
        logs: bool | str | None = None,
        on_full: Literal["wait", "drop"] = "wait",
        max_buffer_bytes: int = CAPACITY,
        hold_timeout: float = HOLD_TIMEOUT,
    ) -> None:
        self.capture = captures(capture)
        self.ignored = frozenset({"RUNNING"})  # only messages that end a span are needed
        self._strict = strict
        self.flush_timeout = positive("flush_timeout", flush_timeout)
        self._parent = one_of("parent", parent, ("join", "link", "none"))
        self._detail = one_of("detail", detail, ("full", "tasks", "run"))
        self._cicd = one_of("semconv", semconv, (None, "cicd")) == "cicd"
        self._waits_when_full = one_of("on_full", on_full, ("wait", "drop")) == "wait"
        exporting = {"endpoint": endpoint, "protocol": protocol, "headers": headers}
        self._bounds = Bounds(
            whole("max_buffer_bytes", max_buffer_bytes), positive("hold_timeout", hold_timeout), self.flush_timeout
        )
        self._setup = ExportSetup(tracer_provider, exporting, metrics=metrics, logs=logs)
        self._exports: Exports | None = None
        self._runs: dict[str, LiveRun] = {}
        self._ended: list[ExportTarget] = []  # targets of the runs that have ended since the last flush
        self._own: ExportTarget | None = None  # counts the spans of all runs, and gets those of replayed messages
        self._has_spans = False  # whether spans were exported since the start of the last flush
        self._connect_count = 0
        self._capacity_waiter = CapacityWaiter()
        _lifetime.watch(self)

    async def connect(self) -> None:
        """Set up the exports at the first run. The connection to the collector is opened for the first request.

        Raises:
            Exception: A provider cannot be created. Later calls do not raise an exception, and nothing is exported.
        """
        self._connect_count += 1
        self._reserve(self._exports or self._set_up())

    async def disconnect(self) -> None:
        """Flush for at most `flush_timeout` seconds. The providers stay open, because others may use them.

        Raises:
            TelemetryLostError: Spans were lost or are not yet delivered, and the connector is strict.
        """
        self._connect_count = max(0, self._connect_count - 1)
        if not self._connect_count:
            for run_id in list(self._runs):
                self._end_run(run_id)
        tracer = self._tracer
        if tracer is None:
            if self._strict and self._setup.error:
                raise TelemetryLostError(f"OtelConnector: no spans are exported: {self._setup.error}", lost=0)
            return
        targets, self._ended = self._ended, []
        has_spans, self._has_spans = self._has_spans, False
        if has_spans and not targets and self._own is not None:  # the messages were replayed, so no run has ended
            targets = [self._own] if tracer.target is None else [self._own, tracer.target]
        report, warning = await flush(
            *(tracer, targets, self.flush_timeout, self._signals), has_spans=has_spans, strict=self._strict
        )
        if not self._connect_count and tracer.target is not None:
            tracer.target.queue.release(self)
        self._report(tracer, report, warning)

    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:  # noqa: ARG002 - the protocol's
        """Export the spans that the message completes. A message of another process produces the same spans."""
        self._export(payload)

    def put(self, topic: str, payload: dict[str, Any], qos: int = 0) -> bool:  # noqa: ARG002 - the protocol's
        """Export the spans that the message completes and return True, or return False if `is_full`."""
        if self.is_full():
            return False
        self._export(payload)
        return True

    def _export(self, payload: dict[str, Any]) -> None:
        exports = self._exports or self._set_up()
        exports.signals.metrics.publish(payload)
        if exports.tracer is None:
            return
        try:
            run = self._runs.get(payload["run_id"])
            self._emit_all(payload, run, exports.tracer)
            if run is not None and (left_out := payload["body"].get("metadata", {}).get("left_out")):
                logger.warning(_LEFT_OUT, payload["run_id"], left_out)
        finally:
            if payload["body"].get("event") == "ENGINE_STOPPED":
                self._end_run(payload["run_id"])

    async def subscribe(self, topic: str, callback: MessageCallback) -> None:
        """Do nothing: OTLP cannot receive messages."""

    def report(self) -> ConnectorReport:
        """Return the counts of spans. All are 0 if a tracer provider of the application exports the spans."""
        return ConnectorReport() if self._own is None else self._own.queue.connector_report(self._own.counters)

    def is_full(self) -> bool:
        """Return whether the buffer is so full that no task should start. It is False if the collector does not respond."""
        return self._own is not None and self._waits_when_full and self._own.queue.is_full()

    async def room(self) -> None:
        """Wait until the buffer has capacity, but not longer than half a second."""
        if self._own is not None:
            await self._capacity_waiter.wait(self._own.queue)

    def place_run(self, run_id: str, target: str, start_ns: int, parent: SpanRef | None) -> RunTrace:
        """Start the span of the run. Its sampling decision applies to all spans of the run."""
        inherited = InheritedContext.from_caller()
        tracer = self._tracer
        run_trace = place_run(run_id, parent_of_run(inherited.span, parent), self._parent)
        if tracer is None:
            return run_trace
        parent = SpanRef(run_trace.trace_id, run_trace.parent_span_id, run_trace.flags, run_trace.tracestate)
        root = tracer.start(
            f"run {masked_name(target)}",
            run_trace.trace_id,
            run_trace.span_id,
            parent_context(parent, inherited.context, is_remote=inherited.is_remote),
            start_ns,
            kind=SpanKind.SERVER,
            links=tuple(Link(span_context(link)) for link in run_trace.links),
        )
        sampled = root.get_span_context()
        run_trace = replace(run_trace, flags=int(sampled.trace_flags), tracestate=sampled.trace_state.to_header())
        export_target = ExportTarget(self._own.queue, run_id, self._own.counters) if self._own else None
        run = self._runs[run_id] = LiveRun(run_trace, root, tracer, export_target, inherited)
        run.add_trace(run_trace.trace_id)
        self._signals.start_run(run_id)
        return run_trace

    def activate(self, task: TaskContext) -> AbstractContextManager[None]:
        """Make the span of the task, or of its attempt, the current span while the code of the task runs."""
        run = self._runs.get(task.run_id)
        return nullcontext() if run is None else SpanActivation(task, run, self._signals.metrics, self._detail)

    # No cached_property: in Python 3.11 it has a lock, which a thread may hold when the process forks.
    @property
    def _tracer(self) -> RunTracer | None:
        return (self._exports or self._set_up()).tracer

    @property
    def _signals(self) -> Signals:
        return (self._exports or self._set_up()).signals

    def _set_up(self) -> Exports:
        exports = self._exports = self._setup()
        self._reserve(exports)
        return exports

    def _reserve(self, exports: Exports) -> None:
        if exports.tracer is not None and exports.tracer.target is not None:
            exports.tracer.target.queue.reserve(self, self._bounds)
            self._own = self._own or ExportTarget(exports.tracer.target.queue)
        exports.signals.reserve(self.flush_timeout)

    def reset_after_fork(self) -> None:
        """Drop the runs, which the parent process exports. Spans that the child starts below their tasks are still exported."""
        for run in self._runs.values():
            run.lock = threading.Lock()
        self._runs, self._ended, self._connect_count, self._has_spans = {}, [], 0, False
        self._capacity_waiter = CapacityWaiter()

    def start_exit(self) -> Callable[[], None]:
        """Do nothing: the queues and the exporter of metrics have exit flushes of their own."""
        return lambda: None

    def _emit_all(self, payload: dict[str, Any], run: LiveRun | None, tracer: RunTracer) -> None:
        if run is not None and not run.root.is_recording():
            return
        self._has_spans = self._has_spans or bool(payload.get("trace_flags", 1) & TraceFlags.SAMPLED)
        if run is not None and self._export_task(payload, run, tracer):
            return
        is_pending = payload["body"].get("state") == "PENDING"
        failure: Exception | None = None
        for data in spans_of(payload, detail=self._detail, cicd=self._cicd):
            try:
                self._emit(data, run, tracer)
            except Exception as error:  # noqa: BLE001 - raised by code of the application; the other spans are still exported
                raise_in_tests(error)
                failure = failure or error
            if run is not None and is_pending:
                run.ended.add(data.span_id)
        if run is not None and is_pending:
            run.drop_omitted(payload)
        if failure is not None:
            raise failure

    def _export_task(self, payload: dict[str, Any], run: LiveRun, tracer: RunTracer) -> bool:
        """Export the span of a task by `encode_task`. Returns False for a message that only `spans_of` can map."""
        target, needs_mapping = run.target, self._cicd or self._detail == "run" or payload["span_id"] in run.spans
        if target is None or needs_mapping or not tracer.is_direct:
            return False
        encoded = encode_task(payload)
        if encoded is None:
            return False
        if payload["trace_id"] not in run.traces:
            run.add_trace(payload["trace_id"])
        if payload.get("trace_flags", 1) & TraceFlags.SAMPLED:
            target.queue.put(encoded, counters=target.counters)
        return True

    def _emit(self, data: SpanData, run: LiveRun | None, tracer: RunTracer) -> None:
        target = self._own
        if run is not None:
            if data.span_id in run.ended:
                run.ended.discard(data.span_id)  # the span of this attempt was exported with the message of its retry
                return
            if data.span_id == run.root_id:
                complete(run.root, data, linked=len(run.trace.links))
                return
            if run.spans and (live := run.spans.pop(data.span_id, None)) is not None:
                complete(live, data)
                return
            if data.trace_id not in run.traces:
                run.add_trace(data.trace_id)
            target = run.target or target
        if target is None or not tracer.is_direct:
            emit_finished(tracer, data, run)
        elif data.flags & TraceFlags.SAMPLED:
            encoded = encode_span(data)
            target.queue.put(encoded, urgent=data.is_marker, important=data.has_children, counters=target.counters)

    def _end_run(self, run_id: str) -> None:
        """Drop a run. Spans whose last message was lost are ended with an error status."""
        run = self._runs.pop(run_id, None)
        if run is None:
            return
        self._signals.end_run(run_id)
        run.end_unfinished()
        run.remove_traces()
        if run.target is not None:
            self._ended.append(run.target)

    def _report(self, tracer: RunTracer, report: FlushReport, warning: str) -> None:
        """Log one warning per outage about undelivered spans, with the warning of the other signals. A strict connector raises."""
        warnings = [warning] if warning else []
        target = tracer.target
        if report.lost or report.pending or (target is None and report.reason):
            text = report.text("spans", tracer.endpoint)
            is_new = target is None or target.queue.starts_outage(report)
            if self._strict:
                message = "; ".join([f"OtelConnector: {text}", *warnings])
                raise TelemetryLostError(message, lost=report.lost, pending=report.pending)
            warnings = [text, *warnings] if is_new else warnings
        if warnings:
            logger.warning("OtelConnector: %s", "; ".join(warnings))
