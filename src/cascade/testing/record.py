"""Run a workflow, and look at what it said."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine
from cascade.runtime.events import Event
from cascade.runtime.subscribers import TelemetrySubscriber
from cascade.spec.resource import ResourceDefinition
from cascade.spec.telemetry import Body, Header, TaskStateEvent
from cascade.telemetry.wire import decode
from cascade.testing.clock import FixedClock
from cascade.testing.received import Spans


@dataclass(frozen=True)
class RunRecord:
    """What came of a run: its `value` or its `error`, the engine's `events`, the wire's `payloads`, and the `spans`."""

    value: Any = None
    error: BaseException | None = None
    events: list[Event] = field(default_factory=list)
    payloads: list[dict[str, Any]] = field(default_factory=list)
    spans: Spans = field(default_factory=lambda: Spans(()))

    @property
    def messages(self) -> list[tuple[Header, Body]]:
        """The messages, decoded."""
        return [decode(payload) for payload in self.payloads]

    def states(self, task_name: str) -> list[str]:
        """The states that tasks of this name went through, in order: `["RUNNING", "COMPLETED"]`."""
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
    """Run a workflow without any server; an error of the run is recorded, not raised.

    `spans=True` needs the extra `[otel]`: the spans go through the OpenTelemetry SDK and the OTLP encoding.
    """
    bus, connector, events = MessageBus(), MemoryConnector(), list[Event]()
    bus.subscribe(Event, events.append)
    tracer = _SpanRecorder() if spans else None
    moved_by: Any = tracer.together_with(connector) if tracer else connector
    TelemetrySubscriber(bus, moved_by)
    executor = LocalExecutor()
    engine = Engine(NativeSolver(), executor, bus, system_resources=system_resources, connector=moved_by, clock=clock)
    for resource in resources:
        engine.register(resource)
    outcome: list[tuple[Any, BaseException | None]] = []
    asyncio.run(_run(engine, target, params, outcome))
    executor.close()
    value, error = outcome.pop()
    return RunRecord(value, error, events, connector.payloads, tracer.spans() if tracer else Spans(()))


async def _run(
    engine: Engine, target: Any, params: Mapping[str, Any] | None, outcome: list[tuple[Any, BaseException | None]]
) -> None:
    # Not returned: `asyncio.run` calls `repr` on the result of its task.
    try:
        outcome.append((await engine.run(target, dict(params or {})), None))
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - recorded
        outcome.append((None, error))


class _SpanRecorder:
    """An OtelConnector on a tracer provider of its own, whose spans stay in memory."""

    def __init__(self) -> None:
        from cascade._extras import missing_extra

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
        self._connector = OtelConnector(tracer_provider=provider)

    def together_with(self, connector: MemoryConnector) -> Any:
        from cascade.connectors.fanout import FanoutConnector

        return FanoutConnector([self._connector, connector])

    def spans(self) -> Spans:
        from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

        from cascade.testing._decode import spans_of_request

        return Spans(spans_of_request(encode_spans(self._exporter.get_finished_spans())))
