"""A replay of messages exports the same spans as the run."""

import asyncio
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.otel import OtelConnector
from cascade.telemetry.wire import dumps, loads
from tests.connectors.otel import servers
from tests.lab.waiting import HANG


def recorder() -> tuple[OtelConnector, InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return OtelConnector(tracer_provider=provider), exporter


def as_facts(spans: tuple[ReadableSpan, ...]) -> list[Any]:
    return sorted(
        (
            span.name,
            *((span.context.trace_id, span.context.span_id) if span.context else ()),
            span.parent.span_id if span.parent else 0,
            span.start_time,
            span.end_time,
            span.status.status_code.name,
            span.status.description or "",
            str(sorted((span.attributes or {}).items())),
            [(event.name, event.timestamp, str(event.attributes)) for event in span.events],
            sorted(link.context.span_id for link in span.links),
            span.kind.name,
        )
        for span in spans
    )


def workflow() -> Any:
    @cs.task
    def flaky(x: int) -> int:
        task = cs.current_task()
        assert task is not None
        if task.attempt < 2:
            raise TimeoutError if x == 2 else ConnectionError(f"no {x}")
        return x

    mapped = flaky.map(x=[1, 2, 3]).with_retry(2, delay=0.002).with_constraints(cpu=1).with_label(lambda x: f"x = {x}")
    skipped = cs.task(lambda: 1, name="skipped")().run_if(cs.task(lambda: False, name="no")())
    failing = cs.task(lambda m: 1 / 0, name="fails")(mapped)
    return cs.task(lambda *_: None, name="end")(failing, skipped)


def replayed(payloads: list[dict[str, Any]]) -> tuple[ReadableSpan, ...]:
    connector, exporter = recorder()

    async def publish() -> None:
        for payload in payloads:
            await connector.publish("topic", loads(dumps(payload)))

    asyncio.run(publish())
    return exporter.get_finished_spans()


def test_a_replay_of_all_messages_exports_the_same_spans() -> None:
    connector, exporter = recorder()
    memory = MemoryConnector()
    with pytest.raises(ZeroDivisionError):
        cs.run(workflow(), connector=[connector, memory], system_resources={"cpu": 1}, log_level="ERROR")
    live = exporter.get_finished_spans()
    assert {span.name for span in live} >= {"flaky attempt", "flaky wait", "map(flaky)", "fails", "skipped skipped"}
    without_pending = [p for p in memory.payloads if p["body"].get("state") not in {"PENDING", "RUNNING"}]
    for a, b in zip(as_facts(replayed(without_pending)), as_facts(live), strict=True):
        assert a == b


async def test_the_end_of_a_replay_waits_for_its_delivery() -> None:
    memory = MemoryConnector()
    await cs.run_async(cs.task(lambda: 1, name="one")(), connector=memory, log_level="OFF")
    with servers.http_server() as server:
        server.may_respond.clear()
        connector = OtelConnector(server.endpoint, metrics=False, flush_timeout=HANG)
        await connector.connect()
        for payload in memory.payloads:
            await connector.publish("topic", payload)
        end = asyncio.create_task(connector.disconnect())
        assert await asyncio.to_thread(server.received.acquire, timeout=HANG)
        assert not end.done()
        server.may_respond.set()
        await end
        assert sorted(servers.span_names(server.bodies)) == ["one", "run one", "run one started"]
