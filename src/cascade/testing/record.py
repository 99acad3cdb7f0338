"""Runs a workflow without a server, with a fixed clock on request, and records its events, messages and spans."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cascade._imports import missing_extra
from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.connectors.fanout import FanoutConnector
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine
from cascade.runtime.events import Event
from cascade.runtime.subscribers import TelemetrySubscriber
from cascade.spec.resource import ResourceDefinition
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
        spans: The spans; empty with `spans=False`.
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
    spans: bool = True,
) -> RunRecord:
    """Run a workflow without a server and return its record. An error of the run is recorded, not raised.

    Raises:
        ImportError: `spans` is true and the extra `[otel]` is not installed.
    """
    bus, connector, events = MessageBus(), MemoryConnector(), list[Event]()
    bus.subscribe(Event, events.append)
    recorder = _SpanRecorder() if spans else None
    publishing: Any = FanoutConnector([recorder.connector, connector]) if recorder else connector
    TelemetrySubscriber(bus, publishing)
    executor = LocalExecutor()
    engine = Engine(NativeSolver(), executor, bus, system_resources=system_resources, connector=publishing, clock=clock)
    for resource in resources:
        engine.register(resource)
    outcome: list[tuple[Any, BaseException | None]] = []
    asyncio.run(_run(engine, target, params, outcome))
    executor.close()
    value, error = outcome.pop()
    return RunRecord(value, error, events, connector.payloads, recorder.spans() if recorder else Spans(()))


async def _run(
    engine: Engine, target: Any, params: Mapping[str, Any] | None, outcome: list[tuple[Any, BaseException | None]]
) -> None:
    # The outcome is not returned: in debug mode `asyncio.run` calls `repr` on the result of its task.
    try:
        outcome.append((await engine.run(target, dict(params or {})), None))
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - recorded
        outcome.append((None, error))


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
