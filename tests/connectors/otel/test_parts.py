"""Runs and maps with more children than one trace takes."""

from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.otel import OtelConnector
from cascade.telemetry.identity import part_id, part_trace_id, span_id
from cascade.testing import render_trace
from tests.connectors.otel.tracing import Collector, replay

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
    """A plain function, whose thread has a span of its own below the task's."""
    with trace.get_tracer("mine").start_as_current_span("own"):
        task = cs.current_task()
        assert task is not None
        return task.traceparent


def test_further_items_of_a_map_stand_in_traces_of_their_own(collector: Collector) -> None:
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


def test_further_tasks_of_a_run_stand_in_traces_of_their_own(collector: Collector) -> None:
    spans = collector.trace_of(total([double(n) for n in range(25)]))
    root = next(span for span in spans.roots() if span.kind == "SERVER")
    assert [part.name for part in spans.parts(root)] == ["run total part"] * 2
    children = [span for span in spans.children(root) if span.name != "run total started"]
    assert len(children) == 26
    assert root.attributes["cascade.parts"] == 2
    last = spans.one("total")
    assert last.trace_id == part_trace_id(root.attributes["cascade.run.id"], "", 2), "the target is last in the plan"
    sources = {(link.trace_id, link.span_id) for link in last.links}
    assert sources == {(span.trace_id, span.span_id) for span in spans.named("double")}, "in whatever trace they stand"
    (tree,) = [part for part in render_trace(spans).split("\n\n") if "run total" in part]
    assert "double" in tree
    assert "total" in tree


def test_items_stand_in_the_trace_of_their_map(collector: Collector) -> None:
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


def test_it_is_known_before_a_child_starts_where_it_goes(collector: Collector) -> None:
    beside = MemoryConnector()
    wanted = inner.map(x=list(range(15)))
    spans = collector.trace_of(wanted, connector=[collector.connector(), beside])
    headers = {
        payload["body"]["task_id"]: (payload["trace_id"], payload["span_id"], payload["parent_span_id"])
        for payload in beside.payloads
        if payload["body"].get("state") == "RUNNING"
    }
    for span in (*spans.named("inner"), spans.one("map(inner)")):
        assert headers[span.attributes["cascade.task.id"]] == (span.trace_id, span.span_id, span.parent_span_id)


def test_a_callers_own_provider_samples_parts_as_it_does_their_run() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(0.5)), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for _ in range(8):
        exporter.clear()
        cs.run(double.map(x=list(range(35))), connector=OtelConnector(tracer_provider=provider), log_level="ERROR")
        assert len(exporter.get_finished_spans()) in {0, 35 + 1 + 1 + 1 + 3}, "all or nothing"


def test_messages_alone_make_the_same_spans(collector: Collector) -> None:
    """As a bridge does, which only sees the wire."""
    beside = MemoryConnector()
    spans = collector.trace_of(double.map(x=list(range(25))), connector=[collector.connector(), beside])
    collector.receiver.clear()
    replay(collector.connector(), beside.payloads)
    assert {described(span) for span in collector.receiver.spans} == {described(span) for span in spans}


def described(span: Any) -> tuple[Any, ...]:
    links = tuple((link.trace_id, link.span_id) for link in span.links)
    return span.name, span.trace_id, span.span_id, span.parent_span_id, span.start_ns, span.end_ns, links


@pytest.mark.parametrize("size", ["0", "-1", "many", "1.5", "99999999999"])
def test_a_part_size_that_is_none_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv("CASCADE_TRACE_PART_SIZE", size)
    with pytest.raises(ValueError, match=f"CASCADE_TRACE_PART_SIZE='{size}'"):
        cs.run(double(1))
