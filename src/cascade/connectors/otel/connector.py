"""`OtelConnector`: a run is a trace, a task is a span."""

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, TraceFlags

from cascade._forks import no_fork
from cascade._loggers import get_logger
from cascade.connectors import _lifetime
from cascade.connectors._arguments import captures, one_of, positive, whole
from cascade.connectors.otel.batch import FlushReport
from cascade.connectors.otel.export_queue import CAPACITY, Bounds
from cascade.connectors.otel.health import HOLD_TIMEOUT
from cascade.connectors.otel.live_spans import Inherited, LiveRun, SpanFactory, complete, parent_context, span_context
from cascade.connectors.otel.provider import Tracing
from cascade.connectors.otel.routing import ExportTarget
from cascade.connectors.otel.signals import Exports, ExportSetup, Signals
from cascade.connectors.otel.span_data import SpanData
from cascade.connectors.otel.span_mapping import spans_of
from cascade.connectors.otel.task_span import NoActivation, SpanActivation
from cascade.runtime.exceptions import TelemetryLostError
from cascade.runtime.task_context import TaskContext
from cascade.spec.protocols import MessageCallback
from cascade.telemetry import attributes as a
from cascade.telemetry.identity import RunTrace, SpanRef, place_run
from cascade.telemetry.safe import masked_name

if TYPE_CHECKING:
    from cascade.connectors.otel.signals import CapacityWaiter

logger = get_logger("cascade.connectors.otel")

FLUSH_TIMEOUT = 5.0
"""Seconds that a run's end waits for the last span's acknowledgement; less for a peer that does not answer."""

_LEFT_OUT = (
    "OtelConnector: traces of run %s have reached their largest size; %d spans of the program, or contents that it has "
    "added to spans of tasks, were left out; set a smaller CASCADE_TRACE_PART_SIZE, or a larger CASCADE_TRACE_PART_BYTES "
    "if the storage accepts it"
)

_IGNORED = frozenset({"RUNNING"})
"""A span is made when it has ended, or before, when its task's code begins."""


class OtelConnector:
    """Exports runs as OpenTelemetry traces over OTLP, and makes a task's span the current one while its code runs.

    Every `OTEL_*` variable that the SDK honours keeps its meaning; arguments win over them. An `endpoint`, `protocol`
    or `headers` argument makes a provider of the connector's own; without, the application's is used if it has set one.
    The provider is chosen when the first run starts.

    Args:
        endpoint: URL of the collector, such as `http://localhost:4318`; port 4317 means gRPC.
        protocol: "http/protobuf" or "grpc".
        headers: Sent with each request, for authentication.
        tracer_provider: A provider of OpenTelemetry's SDK to use as it is: its resource, sampler, processors and limits
            apply.
        capture: Values to export, of "params", "arguments" and "results"; secrets are masked even then.
        strict: Raise `TelemetryLostError` at a run's end when spans were lost or are not yet delivered, instead of one
            warning.
        flush_timeout: Seconds that a run's end, and the process's, may wait for the collector. Spans that are not
            delivered by then stay queued.
        parent: What to do with an inbound trace, the current span or TRACEPARENT: "join" it, "link" to it, or "none".
        detail: "full"; "tasks" omits attempts, waits and resources; "run" exports the span of the run alone, at its end.
        semconv: "cicd" adds the attributes of OpenTelemetry's CI/CD conventions.
        metrics: False exports none. Without an `endpoint`, `protocol` or `headers` argument they go to the application's
            meter provider if it has set one.
        logs: True exports what tasks say through `logging`, a level such as "INFO" what is at least that; None leaves
            it to OTEL_LOGS_EXPORTER.
        on_full: With "wait", a full buffer holds back tasks that have not started yet while the collector answers;
            with "drop", and while the collector does not answer, a full buffer loses spans.
        hold_timeout: Seconds for which a collector that answers only "later" (429, 503, UNAVAILABLE) may hold back tasks.
        max_buffer_bytes: Memory for spans that wait to be exported; 64 MiB, for some 100,000 tasks. Connectors of one
            destination share the memory; the largest bounds of those with a run in progress hold.

    Raises:
        ValueError: An argument has a value that is not allowed, or contradicts another one.
        TypeError: `tracer_provider` is no tracer provider.
    """

    waits_in_publish_queue = True
    """`publish` does not wait for room: messages wait in the publish queue while `is_full`."""

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
        self.ignored = _IGNORED
        self._strict = strict
        self.flush_timeout = positive("flush_timeout", flush_timeout)
        self._parent = one_of("parent", parent, ("join", "link", "none"))
        self._detail = one_of("detail", detail, ("full", "tasks", "run"))
        self._cicd = one_of("semconv", semconv, (None, "cicd")) == "cicd"
        self._waits = one_of("on_full", on_full, ("wait", "drop")) == "wait"
        exporting = {"endpoint": endpoint, "protocol": protocol, "headers": headers}
        self._bounds = Bounds(
            whole("max_buffer_bytes", max_buffer_bytes), positive("hold_timeout", hold_timeout), self.flush_timeout
        )
        self._setup = ExportSetup(tracer_provider, exporting, metrics=metrics, logs=logs)
        self._exports: Exports | None = None
        self._runs: dict[str, LiveRun] = {}
        self._ended: list[ExportTarget] = []
        self._capacity_waiter: CapacityWaiter | None = None
        self._connections = 0
        self._has_spans = False  # exported since the last flush began
        _lifetime.watch(self)

    async def connect(self) -> None:
        """Choose the providers at the first run. The exporter connects by itself, when it has something to send.

        Raises:
            Exception: A provider could not be made. Later calls raise nothing, and nothing is exported.
        """
        self._connections += 1
        self._reserve(self._exports or self._set_up())

    async def disconnect(self) -> None:
        """Flush, at most `flush_timeout` seconds. A provider that others may use goes on living.

        Raises:
            TelemetryLostError: Spans were lost or are not yet delivered, and the connector is strict.
        """
        self._connections = max(0, self._connections - 1)
        if not self._connections:
            for run_id in list(self._runs):
                self._end_run(run_id)
        if self._tracing is None:
            if self._strict and self._setup.error:
                raise TelemetryLostError(f"OtelConnector: no spans are exported: {self._setup.error}", lost=0)
            return
        # A run has imported asyncio already, which takes as long as half of all that is imported here.
        with no_fork:
            from cascade.connectors.otel.signals import flush

        targets, self._ended = self._ended, []
        has_spans, self._has_spans = self._has_spans, False
        if has_spans and not targets and self._target is not None:  # a replay, which has no run here
            targets = [self._target]
        report, warning = await flush(
            *(self._tracing, targets, self.flush_timeout, self._signals), has_spans=has_spans, strict=self._strict
        )
        if not self._connections and self._target is not None:
            self._target.queue.release(self)
        self._report(report, warning)

    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:  # noqa: ARG002 - the protocol's
        """Turn a terminal message into its spans. Messages of runs from elsewhere make the same spans."""
        exports = self._exports or self._set_up()
        exports.signals.metrics.publish(payload)
        if exports.factory is None:
            return
        try:
            run = self._runs.get(payload["run_id"])
            self._emit_all(payload, run)
            if run is not None and (left_out := payload["body"].get("metadata", {}).get("left_out")):
                logger.warning(_LEFT_OUT, payload["run_id"], left_out)
        finally:
            if payload["body"].get("event") == "ENGINE_STOPPED":
                self._end_run(payload["run_id"])

    async def subscribe(self, topic: str, callback: MessageCallback) -> None:
        """Do nothing: OTLP has no way back in."""

    def is_full(self) -> bool:
        """Whether the buffer is so full that no further task should start; False if the collector does not answer."""
        target = self._target
        return self._waits and target is not None and target.queue.is_full()

    async def room(self) -> None:
        with no_fork:
            from cascade.connectors.otel.signals import CapacityWaiter

        if self._target is not None:
            self._capacity_waiter = self._capacity_waiter or CapacityWaiter()
            await self._capacity_waiter.wait(self._target.queue)

    def place_run(self, run_id: str, target: str, start_ns: int, parent: SpanRef | None) -> RunTrace:
        """Start the run's span, so that the sampling decision is known to all its children."""
        inherited = Inherited.from_caller()
        place = place_run(run_id, _parent_of(inherited.span, parent), self._parent)
        if self._factory is None or self._tracing is None:
            return place
        above = SpanRef(place.trace_id, place.parent_span_id, place.flags, place.tracestate)
        context = parent_context(above, inherited.context, is_remote=inherited.is_remote)
        links = tuple(Link(span_context(link)) for link in place.links)
        root = self._factory.start(
            f"run {masked_name(target)}",
            place.trace_id,
            place.span_id,
            context,
            start_ns,
            kind=SpanKind.SERVER,
            links=links,
        )
        own = root.get_span_context()
        place = replace(place, flags=int(own.trace_flags), tracestate=own.trace_state.to_header())
        export_target = ExportTarget(self._target.queue, run_id) if self._target else None
        run = self._runs[run_id] = LiveRun(place, root, self._factory, export_target, inherited)
        run.stands_in(place.trace_id)
        self._signals.start_run(run_id)
        return place

    def activate(self, task: TaskContext) -> AbstractContextManager[None]:
        """Make the span of the task, or of its attempt, the current one."""
        run = self._runs.get(task.run_id)
        return NoActivation() if run is None else SpanActivation(task, run, self._signals.metrics, self._detail)

    # No cached_property: in Python 3.11 it has a lock, which a thread may hold when the process forks.
    @property
    def _tracing(self) -> Tracing | None:
        return (self._exports or self._set_up()).tracing

    @property
    def _factory(self) -> SpanFactory | None:
        return (self._exports or self._set_up()).factory

    @property
    def _signals(self) -> Signals:
        return (self._exports or self._set_up()).signals

    @property
    def _target(self) -> ExportTarget | None:
        return (self._exports or self._set_up()).target

    def _set_up(self) -> Exports:
        exports = self._exports = self._setup()
        self._reserve(exports)
        return exports

    def _reserve(self, exports: Exports) -> None:
        if exports.target is not None:
            exports.target.queue.reserve(self, self._bounds)
        exports.signals.reserve(self.flush_timeout)

    def reset_after_fork(self) -> None:
        """Forget the runs of the parent process, which exports them. Spans below their tasks are exported here too."""
        for run in self._runs.values():
            run.lock = threading.Lock()
        self._runs, self._ended, self._capacity_waiter, self._connections, self._has_spans = {}, [], None, 0, False

    def start_exit(self) -> Callable[[], None]:
        """Do nothing: the queue and the metrics have flushes of their own at the exit."""
        return lambda: None

    def _emit_all(self, payload: dict[str, Any], run: LiveRun | None) -> None:
        if run is not None and not run.is_recording:
            return
        self._has_spans = self._has_spans or bool(payload.get("trace_flags", 1) & TraceFlags.SAMPLED)
        is_pending = payload["body"].get("state") == "PENDING"
        failures: list[Exception] = []
        for data in spans_of(payload, detail=self._detail, cicd=self._cicd):
            try:
                self._emit(data, run)
            except Exception as error:  # noqa: BLE001 - a processor of the program; the other spans do not depend on it
                failures.append(error)
            if run is not None and is_pending:
                run.ended.add(data.span_id)
        if run is not None and is_pending:
            run.forget_omitted(payload)
        if failures:
            raise failures[0]

    def _emit(self, data: SpanData, run: LiveRun | None) -> None:
        if run is not None and data.span_id in run.ended:
            run.ended.discard(data.span_id)  # a failed attempt, which ended when its retry was announced
            return
        live = run.spans.pop(data.span_id, None) if run is not None and run.spans else None
        if run is not None and data.span_id == run.root_id:
            complete(run.root, data, linked=len(run.trace.links))
        elif live is not None:
            complete(live, data)
        elif (factory := self._factory) is not None:
            if run is not None:
                run.stands_in(data.trace_id)
            factory.finished(data, run)

    def _end_run(self, run_id: str) -> None:
        """Forget a run; a span whose message was lost ends now, with an error status."""
        run = self._runs.pop(run_id, None)
        if run is None:
            return
        self._signals.end_run(run_id)
        for span in (*run.leftovers(), run.root):
            if span.is_recording():
                span.set_attribute(a.RUN_RESULT if span is run.root else a.TASK_RESULT, "cancellation")
                span.set_status(Status(StatusCode.ERROR, "its last message was lost"))
                try:
                    span.end()
                except Exception:
                    logger.debug("OtelConnector: a span processor has raised an error", exc_info=True)
        run.leave()
        if run.target is not None:
            self._ended.append(run.target)

    def _report(self, report: FlushReport, warning: str) -> None:
        """Warn of undelivered spans, once for each outage, and of other signals; a strict connector raises instead."""
        warnings = [warning] if warning else []
        is_undelivered = bool(report.lost or report.pending or (self._target is None and report.reason))
        if is_undelivered and self._tracing is not None:
            is_news = self._target is None or self._target.queue.announce(report)
            text = report.text("spans", self._tracing.endpoint)
            if self._strict:
                message = "; ".join([f"OtelConnector: {text}", *warnings])
                raise TelemetryLostError(message, lost=report.lost, pending=report.pending)
            warnings = [text, *warnings] if is_news else warnings
        if warnings:
            logger.warning("OtelConnector: %s", "; ".join(warnings))


def _parent_of(current: SpanRef | None, task: SpanRef | None) -> SpanRef | None:
    """The parent of a run: the current span; its task's span if the current one, below the task, is left out."""
    if current is None or task is None:
        return current or task
    is_left_out = current.trace_id == task.trace_id and task.flags & ~current.flags & TraceFlags.SAMPLED
    return task if is_left_out else current
