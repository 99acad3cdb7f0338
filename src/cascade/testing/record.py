"""Runs a workflow without a server, with a fixed clock on request, and records its events, messages and spans."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Unpack

from cascade._imports import missing_extra
from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.connectors.fanout import FanoutConnector
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine, refuse_event_loop, require_event_loop
from cascade.runtime.events import Event
from cascade.runtime.subscribers import TelemetrySubscriber
from cascade.runtime.threads import in_thread
from cascade.spec.resource import ResourceDefinition
from cascade.spec.targets import EngineOptions
from cascade.spec.telemetry import Body, Header, TaskStateEvent
from cascade.telemetry.wire import decode
from cascade.testing.spans import Spans


class FixedClock:
    """A clock that advances only when a test advances it: `cs.Engine(…, clock=FixedClock())`.

    Args:
        now_ns: The first time that it returns, in nanoseconds since the Unix epoch.
        step: Seconds by which each reading advances it.
    """

    def __init__(self, now_ns: int = 1_700_000_000_000_000_000, *, step: float = 0.0) -> None:
        self.now_ns = now_ns
        self._step_ns = round(step * 1e9)

    def __call__(self) -> int:
        now = self.now_ns
        self.now_ns += self._step_ns
        return now

    def advance(self, seconds: float) -> None:
        """Advance the clock. A negative number sets it back, as a correction of the system clock does."""
        self.now_ns += round(seconds * 1e9)


@dataclass(frozen=True)
class RunRecord:
    """The record of one run.

    Attributes:
        value: The result of a successful run.
        error: The exception of a failed or cancelled run.
        events: The engine's events.
        payloads: The payloads of the messages, in order.
        spans: The spans; empty with `spans=False`. Without the extra `[otel]`, each use of them raises ImportError.
    """

    value: Any = None
    error: BaseException | None = None
    events: list[Event] = field(default_factory=list)
    payloads: list[dict[str, Any]] = field(default_factory=list)
    spans: Spans = field(default_factory=lambda: Spans(()))

    @property
    def messages(self) -> list[tuple[Header, Body]]:
        """The decoded messages."""
        return [decode(payload) for payload in self.payloads]

    def states(self, task_name: str) -> list[str]:
        """Return the states of the tasks with this name, in order: `["RUNNING", "COMPLETED"]`."""
        return [
            body.state for _, body in self.messages if isinstance(body, TaskStateEvent) and body.task_name == task_name
        ]


def record_run(
    target: Any,
    params: Mapping[str, Any] | None = None,
    *,
    system_resources: Mapping[str, float] | None = None,
    resources: Iterable[ResourceDefinition] = (),
    clock: FixedClock | None = None,
    spans: bool | None = None,
    **options: Unpack[EngineOptions],
) -> RunRecord:
    """Run a workflow without a server and return its record. An error of the run is recorded, not raised.

    Args:
        target: The target, as for `cs.run`.
        params: Values of the workflow's Params, by name.
        system_resources: Capacities of the resources that `with_constraints` requests, by name.
        resources: Resources that tasks inject by name.
        clock: The clock of the run.
        spans: True records spans, False does not. None records them if the extra `[otel]` is installed.
        options: `run_id`, `name`, `tags`, `timeout`, `fail_fast` and `cache`, as for `cs.run`.

    Raises:
        RuntimeError: An event loop is running in this thread: use `record_run_async` there.
        ImportError: `spans` is true and the extra `[otel]` is not installed.
    """
    refuse_event_loop("record_run", ", or `await cascade_run_async(...)` in place of the fixture cascade_run")
    recording = _Recording(system_resources, resources, clock, spans)
    asyncio.run(recording.perform(target, params, options))
    return recording.record()


async def record_run_async(
    target: Any,
    params: Mapping[str, Any] | None = None,
    *,
    system_resources: Mapping[str, float] | None = None,
    resources: Iterable[ResourceDefinition] = (),
    clock: FixedClock | None = None,
    spans: bool | None = None,
    **options: Unpack[EngineOptions],
) -> RunRecord:
    """Run a workflow in the running event loop and return its record: in an async test, in a notebook.

    The arguments are those of `record_run`. A cancellation of this call cancels the run and is raised, not recorded.

    Raises:
        RuntimeError: No asyncio event loop is running in this thread.
        ImportError: See `record_run`.
    """
    require_event_loop("record_run_async", without="record_run")
    # A tracer provider detects its resource in threads that it waits for, which would block the event loop.
    recording = await in_thread(_Recording, system_resources, resources, clock, spans)
    await recording.perform(target, params, options)
    return await in_thread(recording.record)


class _Recording:
    """One run and its records. The arguments are those of `record_run`."""

    def __init__(
        self,
        system_resources: Mapping[str, float] | None,
        resources: Iterable[ResourceDefinition],
        clock: FixedClock | None,
        spans: bool | None,
    ) -> None:
        self._recorder, self._spans = _span_recorder(spans)
        self._events = list[Event]()
        self._memory = MemoryConnector()
        connector: Any = FanoutConnector([self._recorder.connector, self._memory]) if self._recorder else self._memory
        bus = MessageBus()
        bus.subscribe(Event, self._events.append)
        TelemetrySubscriber(bus, connector)
        self._executor = LocalExecutor()
        self._engine = Engine(
            NativeSolver(), self._executor, bus, system_resources=system_resources, connector=connector, clock=clock
        )
        for resource in resources:
            self._engine.register(resource)
        self._value: Any = None
        self._error: BaseException | None = None

    async def perform(self, target: Any, params: Mapping[str, Any] | None, options: EngineOptions) -> None:
        """Run the target. The value is not returned: in debug mode `asyncio.run` calls `repr` on the result of its task."""
        try:
            self._value = await self._engine.run(target, dict(params or {}), **options)
        except Exception as error:  # noqa: BLE001 - recorded
            self._error = error
        except asyncio.CancelledError as error:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise  # the caller is cancelled, not the run alone
            self._error = error
        finally:
            self._executor.close()

    def record(self) -> RunRecord:
        spans = self._recorder.spans() if self._recorder else self._spans
        return RunRecord(self._value, self._error, self._events, self._memory.payloads, spans)


def _span_recorder(spans: bool | None) -> "tuple[_SpanRecorder | None, Spans]":
    """Return the recorder, or None and the spans of the record."""
    if spans is False:
        return None, Spans()
    try:
        return _SpanRecorder(), Spans()
    except ImportError as error:
        if spans:
            raise
        return None, _MissingSpans(error)


class _MissingSpans(Spans):
    """The spans of a run that was recorded without the extra `[otel]`. Each use raises an error that names the extra."""

    def __init__(self, error: ImportError) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        if name == "_spans":
            raise ImportError(str(self._error), name=self._error.name)
        raise AttributeError(name)

    def __repr__(self) -> str:
        return f"<Spans: {self._error}>"


class _SpanRecorder:
    """An OtelConnector with a tracer provider of its own that keeps the spans in memory."""

    def __init__(self) -> None:
        try:
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import SimpleSpanProcessor
            from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        except ImportError as error:
            raise missing_extra("otel", error) from error
        from cascade.connectors.otel import OtelConnector

        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.connector = OtelConnector(tracer_provider=provider)

    def spans(self) -> Spans:
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

        from cascade.testing.decode import decode_spans

        return Spans(decode_spans(encode_spans(self._exporter.get_finished_spans())))
