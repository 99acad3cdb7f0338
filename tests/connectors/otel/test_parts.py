"""Runs and maps with more children than fit into one trace."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.otel import OtelConnector
from cascade.telemetry.identity import part_id, part_trace_id, span_id
from cascade.testing import ReceivedSpan
from tests.connectors.otel.tracing import Collector, replay
from tests.lab.time_limits import subprocess_environment
from tests.lab.waiting import HANG

SIZE = 10


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADE_TRACE_PART_SIZE", str(SIZE))


@cs.task
async def double(x: int) -> int:
    return 2 * x


@cs.task
async def total(xs: list[int]) -> int:
    return sum(xs)


@cs.task
def inner(x: int) -> str:
    """A plain function with a span below the span of the task."""
    with trace.get_tracer("mine").start_as_current_span("own"):
        task = cs.current_task()
        assert task is not None
        return task.traceparent


def test_further_items_of_a_map_are_in_traces_of_their_own(collector: Collector) -> None:
    spans = collector.trace_of(double.map(x=list(range(25))))
    whole = spans.one("map(double)")
    assert [span.attributes["cascade.map.index"] for span in spans.children(whole)] == list(range(25))
    first, second = spans.parts(whole)
    assert {first.name, second.name} == {"map(double) part"}
    assert [
        (part.attributes["cascade.part.first"], part.attributes["cascade.part.last"]) for part in (first, second)
    ] == [
        (10, 19),
        (20, 24),
    ]
    run_id, map_id = whole.attributes["cascade.run.id"], whole.attributes["cascade.task.id"]
    assert first.trace_id == part_trace_id(run_id, map_id, 1)
    assert first.span_id == span_id(run_id, part_id(map_id), 1)
    assert whole.attributes["cascade.parts"] == 2
    assert {(link.trace_id, link.span_id) for link in whole.links} == {
        (part.trace_id, part.span_id) for part in (first, second)
    }
    assert [(link.trace_id, link.span_id) for link in first.links] == [(whole.trace_id, whole.span_id)]
    below = [span for span in spans if span.parent_span_id == first.span_id]
    assert len(below) == SIZE
    assert first.start_ns == min(span.start_ns for span in below)
    assert first.end_ns == max(span.end_ns for span in below)
    assert sorted(len(part) for part in spans.traces().values()) == [1 + 5, 1 + SIZE, 3 + SIZE]


def test_further_tasks_of_a_run_are_in_traces_of_their_own(collector: Collector) -> None:
    spans = collector.trace_of(total([double(n) for n in range(25)]))
    root = next(span for span in spans.roots() if span.kind == "SERVER")
    assert [part.name for part in spans.parts(root)] == ["run total part"] * 2
    children = [span for span in spans.children(root) if span.name != "run total started"]
    assert len(children) == 26
    assert root.attributes["cascade.parts"] == 2
    last = spans.one("total")
    assert last.trace_id == part_trace_id(root.attributes["cascade.run.id"], "", 2), "the target is last in the plan"
    sources = {(link.trace_id, link.span_id) for link in last.links}
    assert sources == {(span.trace_id, span.span_id) for span in spans.named("double")}, "in any trace"


def test_items_are_in_the_trace_of_their_map(collector: Collector) -> None:
    before: list[Any] = [double(n) for n in range(12)]
    spans = collector.trace_of(total(double.map(x=[total(before), *range(14)])))
    whole = spans.one("map(double)")
    root = next(span for span in spans.roots() if span.kind == "SERVER")
    assert whole.trace_id != root.trace_id
    items = [span for span in spans.named("double") if "cascade.map.index" in span.attributes]
    assert [span.trace_id == whole.trace_id for span in items] == [True] * SIZE + [False] * 5
    assert len(spans.children(whole)) == 15


@pytest.mark.parametrize("retries", [0, 1])
def test_spans_below_an_item_are_in_its_part(collector: Collector, retries: int) -> None:
    spans = collector.trace_of(inner.map(x=list(range(15))).with_retry(retries + 1))
    for own in spans.named("own"):
        (parent,) = [span for span in spans if (span.trace_id, span.span_id) == (own.trace_id, own.parent_span_id)]
        assert parent.name == "inner attempt"
        assert own.attributes["cascade.task.id"] == parent.attributes["cascade.task.id"]


def test_the_part_of_a_child_is_known_before_it_starts(collector: Collector) -> None:
    memory = MemoryConnector()
    target = inner.map(x=list(range(15)))
    spans = collector.trace_of(target, connector=[collector.connector(), memory])
    headers = {
        payload["body"]["task_id"]: (payload["trace_id"], payload["span_id"], payload["parent_span_id"])
        for payload in memory.payloads
        if payload["body"].get("state") == "RUNNING"
    }
    for span in (*spans.named("inner"), spans.one("map(inner)")):
        assert headers[span.attributes["cascade.task.id"]] == (span.trace_id, span.span_id, span.parent_span_id)


def test_a_provider_of_the_caller_samples_parts_like_their_run() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(0.5)), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for _ in range(8):
        exporter.clear()
        cs.run(double.map(x=list(range(35))), connector=OtelConnector(tracer_provider=provider), log_level="ERROR")
        assert len(exporter.get_finished_spans()) in {0, 35 + 1 + 1 + 1 + 3}, "all or nothing"


def test_a_replay_of_messages_exports_the_same_parts(collector: Collector) -> None:
    """A bridge gets only the messages."""
    memory = MemoryConnector()
    spans = collector.trace_of(double.map(x=list(range(25))), connector=[collector.connector(), memory])
    assert replayed(collector, memory) == {described(span) for span in spans}


def replayed(collector: Collector, memory: MemoryConnector) -> set[tuple[Any, ...]]:
    collector.receiver.clear()
    replay(collector.connector(), memory.payloads)
    return {described(span) for span in collector.receiver.spans}


def described(span: ReceivedSpan) -> tuple[Any, ...]:
    links = tuple((link.trace_id, link.span_id, *sorted(link.attributes.items())) for link in span.links)
    events = tuple((event.name, event.time_ns, *sorted(event.attributes.items())) for event in span.events)
    return span.name, span.trace_id, span.span_id, span.parent_span_id, span.start_ns, span.end_ns, links, events


def test_a_map_and_its_parts_have_links_to_each_other(collector: Collector) -> None:
    spans = collector.trace_of(double.map(x=list(range(25))))
    whole, parts = spans.one("map(double)"), spans.parts(spans.one("map(double)"))
    ranges = [
        {"cascade.part.number": number, "cascade.part.first": first, "cascade.part.last": last}
        for number, first, last in ((1, 10, 19), (2, 20, 24))
    ]
    assert [link.attributes for link in whole.links] == [
        {**each, "cascade.link.name": "map(double) part"} for each in ranges
    ]
    assert [(event.name, event.attributes) for event in whole.events] == [
        ("cascade.part", {**each, "cascade.part.trace_id": part.trace_id})
        for each, part in zip(ranges, parts, strict=True)
    ]
    assert [event.time_ns for event in whole.events] == [part.start_ns for part in parts]
    for each, part in zip(ranges, parts, strict=True):
        assert part.attributes["cascade.part.parent.trace_id"] == whole.trace_id
        assert [link.attributes for link in part.links] == [{**each, "cascade.link.name": "map(double)"}]


def test_a_run_and_its_parts_have_links_to_each_other(collector: Collector) -> None:
    spans = collector.trace_of(total([double(n) for n in range(25)]))
    root = spans.one("run total")
    assert [link.attributes["cascade.link.name"] for link in root.links] == ["run total part"] * 2
    assert [event.attributes["cascade.part.first"] for event in root.events] == [10, 20]
    for part in spans.parts(root):
        assert part.attributes["cascade.part.parent.trace_id"] == root.trace_id
        assert part.links[0].attributes["cascade.link.name"] == "run total"
        assert "cascade.task.id" not in part.attributes


def test_a_map_has_links_to_64_parts_and_the_number_of_all(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASCADE_TRACE_PART_SIZE", "1")
    spans = collector.trace_of(double.map(x=list(range(151))))
    whole = spans.one("map(double)")
    assert (len(whole.links), len(whole.events), whole.attributes["cascade.parts"]) == (64, 64, 150)
    assert whole.dropped_links_count == whole.dropped_events_count == 0
    assert len(spans.parts(whole)) == 150, "each part leads to the map"
    assert len(spans.children(whole)) == 151


def test_the_root_of_a_part_is_exported_with_its_last_child(collector: Collector) -> None:
    """The last item waits until the roots of the earlier parts have been received."""
    receiver = collector.receiver
    receiver.clear()
    name = "map(waits_for_the_roots) part"

    @cs.task
    async def waits_for_the_roots(x: int) -> int:
        if x == 29:
            await asyncio.to_thread(receiver.wait_for, lambda spans: len(spans.named(name)) == 1, HANG)
        return x

    cs.run(waits_for_the_roots.map(x=list(range(30))), connector=collector.connector(), log_level="ERROR")
    spans = receiver.spans
    assert [part.attributes["cascade.part.number"] for part in spans.named(name)] == [1, 2]
    assert spans.orphans() == []


def test_the_message_of_the_last_child_has_its_part(collector: Collector) -> None:
    memory = MemoryConnector()
    collector.trace_of(total([double(n) for n in range(25)]), connector=[collector.connector(), memory])
    bodies = [payload["body"] for payload in memory.payloads]
    ended = [
        part for body in bodies if body["type"] == "TaskStateEvent" for part in body["metadata"].get("ended_parts", ())
    ]
    assert [(part["part"], part["name"], "task_id" in part) for part in ended] == [
        (1, "run total", False),
        (2, "run total", False),
    ]
    (stopped,) = (body for body in bodies if body.get("event") == "ENGINE_STOPPED")
    assert [(part["part"], part["ended"]) for part in stopped["metadata"]["parts"]] == [(1, True), (2, True)]


@cs.task
async def fails_at_15(x: int) -> int:
    await asyncio.sleep(0 if x <= 15 else 3600)
    if x == 15:
        raise ValueError
    return x


def test_parts_of_a_failed_map_have_one_root_each(collector: Collector) -> None:
    spans = collector.trace_of(fails_at_15.map(x=list(range(100))), fails=ValueError)
    whole = spans.one("map(fails_at_15)")
    numbers = [part.attributes["cascade.part.number"] for part in spans.named("map(fails_at_15) part")]
    assert sorted(numbers) == list(range(1, whole.attributes["cascade.parts"] + 1))
    assert len(spans.parts(whole)) == len(numbers)
    results = {span.attributes["cascade.task.result"] for span in spans.named("fails_at_15")}
    assert results == {"success", "failure", "cancellation"}


@cs.task
async def waits(x: int) -> int:
    await asyncio.sleep(3600)
    return x


def test_parts_of_a_cancelled_run_have_roots(collector: Collector) -> None:
    async def cancelled() -> None:
        run = asyncio.ensure_future(
            cs.run_async(waits.map(x=list(range(35))), connector=[collector.connector(), Trigger()], log_level="OFF")
        )
        await asyncio.wait_for(started.wait(), HANG)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run

    class Trigger(MemoryConnector):
        """Reports the start of the last item."""

        async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
            body = payload["body"]
            if body.get("state") == "RUNNING" and body["metadata"].get("map_index") == 34:
                started.set()

    started = asyncio.Event()
    collector.receiver.clear()
    asyncio.run(cancelled())
    spans = collector.receiver.spans
    whole = spans.one("map(waits)")
    assert [part.attributes["cascade.part.number"] for part in spans.parts(whole)] == [1, 2, 3]
    assert spans.orphans() == []


@pytest.mark.parametrize("detail", ["run", "tasks"])
def test_parts_have_roots_where_their_tasks_have_spans(collector: Collector, detail: str) -> None:
    spans = collector.trace_of(double.map(x=list(range(25))), connector=collector.connector(detail=detail))
    assert len(spans.named("map(double) part")) == (0 if detail == "run" else 2)


def test_the_root_of_a_part_is_exported_by_a_provider_of_the_caller() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "mine"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    cs.run(double.map(x=list(range(25))), connector=OtelConnector(tracer_provider=provider), log_level="ERROR")
    finished = exporter.get_finished_spans()
    names = [span.name for span in finished]
    first = names.index("map(double) part")
    assert names.count("map(double) part") == 2
    assert first < names.index("map(double)"), "before the map has ended"
    assert finished[first].resource.attributes["service.name"] == "mine"
    assert (finished[first].links[0].attributes or {})["cascade.part.number"] == 1


@pytest.mark.parametrize("name", ["CASCADE_TRACE_PART_SIZE", "CASCADE_TRACE_PART_BYTES"])
@pytest.mark.parametrize("size", ["0", "-1", "many", "1.5", "99999999999"])
def test_a_limit_that_is_not_a_number_raises_an_error_with_its_name(
    monkeypatch: pytest.MonkeyPatch, name: str, size: str
) -> None:
    monkeypatch.setenv(name, size)
    with pytest.raises(ValueError, match=f"{name}='{size}'"):
        cs.run(double(1))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_complete_parts_of_a_killed_process_have_roots(collector: Collector) -> None:
    """The process is killed after its roots have been received, while the last item runs."""
    collector.receiver.clear()
    program = [sys.executable, "-c", KILLED, collector.endpoint, collector.protocol]
    with subprocess.Popen(program, env=subprocess_environment()) as process:
        collector.receiver.wait_for(lambda spans: len(spans.named("map(step) part")) == 2, HANG)
        assert process.poll() is None
        process.kill()
    spans = collector.receiver.spans
    parts = spans.named("map(step) part")
    assert [part.attributes["cascade.part.number"] for part in parts] == [1, 2]
    traces = spans.traces()
    assert [len(traces[part.trace_id]) for part in parts] == [1 + SIZE, 1 + SIZE]
    assert spans.named("run map(step)") == spans.named("map(step)") == []


KILLED = """
import asyncio, sys
import cascade as cs
from tests.lab.time_limits import raise_time_limits

@cs.task
async def step(x):
    if x == 34:
        await asyncio.sleep(3600)
    return x

raise_time_limits()
cs.run(step.map(x=list(range(35))), connector=cs.OtelConnector(sys.argv[1], protocol=sys.argv[2]))
"""
