"""The encoded size of a trace does not exceed its budget, for any content of its spans."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry import trace

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.otel.encode import encode_span
from cascade.runtime.bus import MessageBus
from cascade.runtime.events import ErrorInfo, RunStarted, TaskExecutionFinished, TaskExecutionStarted
from cascade.runtime.subscribers import TelemetrySubscriber
from cascade.telemetry.identity import RunTrace
from cascade.telemetry.span_mapping import spans_of
from cascade.telemetry.trace_budget import PartLimits
from cascade.telemetry.trace_shards import TraceShards
from cascade.testing import Spans
from tests.connectors.otel.test_parts import described, replayed
from tests.connectors.otel.tracing import Collector, warnings
from tests.lab.waiting import HANG

BUDGET = 250_000
MOST = BUDGET * 4_000_000 / 2_500_000
"""Bytes. In proportion to the budget it is 4 MB of the default. Tempo discards spans above 5 MB."""

TRACER = trace.get_tracer("tests")


def fails_below(depth: int) -> None:
    if depth:
        fails_below(depth - 1)
    raise ConnectionError("HTTPSConnectionPool(host='api.example.com', port=443): Max retries exceeded: /v1/orders")


def fails_deep_below(depth: int) -> None:
    """Recurse through two functions, because Python shows repeated frames of one function as one."""
    if depth:
        then_below(depth - 1)
    fails_below(0)


def then_below(depth: int) -> None:
    fails_deep_below(depth)


def attempt() -> int:
    task = cs.current_task()
    assert task is not None
    return task.attempt


@cs.task
async def is_flaky(x: int) -> int:
    if attempt() <= 2:
        fails_below(12)
    return x


@cs.task
async def sets_attributes(x: int) -> int:
    await asyncio.sleep(0.01)
    for number in range(4):
        trace.get_current_span().set_attribute(f"attribute.{number}", "é" * 900)
    return x


async def add_events(size: int) -> None:
    await asyncio.sleep(0.01)
    for number in range(20):
        trace.get_current_span().add_event("page", {"number": number, "content": "x" * size})


@cs.task
async def adds_events(x: int) -> int:
    await add_events(300)
    return x


@cs.task
async def makes_spans(x: int) -> int:
    await asyncio.sleep(0.01)  # all items that may run concurrently have started before the first span
    for number in range(20):
        with TRACER.start_as_current_span("GET /v1/orders", attributes={"http.url": "https://example.com/v1/orders"}):
            trace.get_current_span().set_attribute("number", number)
    return x


@cs.task
def makes_nested_spans(x: int) -> int:
    with TRACER.start_as_current_span("outer"):
        for _ in range(20):
            with TRACER.start_as_current_span("inner") as span:
                span.record_exception(ValueError("x" * 200))
    return x


@cs.task
async def makes_many_spans(x: int) -> int:
    """Create more spans than fit into a trace if all items start before the first span."""
    await asyncio.sleep(0.01)
    for _ in range(100):
        with TRACER.start_as_current_span("outer"), TRACER.start_as_current_span("inner", attributes={"n": "x" * 200}):
            pass
    return x


@cs.task
async def adds_much(x: int) -> int:
    await add_events(2_000)
    return x


THREADS: list[threading.Thread] = []


@cs.task
def leaves_a_thread(x: int) -> int:
    """The spans of the thread start when all items have ended."""

    def after_the_end() -> None:
        assert ENDED.wait(HANG)
        for _ in range(50):
            with TRACER.start_as_current_span("late", attributes={"n": "x" * 100}):
                pass

    THREADS.append(threading.Thread(target=contextvars.copy_context().run, args=(after_the_end,)))
    THREADS[-1].start()
    return x


ENDED = threading.Event()


@cs.task
async def has_large_values(values: list[str]) -> list[str]:
    return values


@cs.task
def one(x: int) -> int:
    return x


@cs.task
def total(xs: list[int]) -> int:
    return sum(xs)


@cs.task
async def starts_a_run(x: int) -> int:
    value: int = await cs.run_async(total([one(x + n) for n in range(9)]), connector=NESTED.connector, log_level="OFF")
    return value


@cs.task
def starts_a_run_in_a_thread(x: int) -> int:
    value: int = cs.run(total([one(x + n) for n in range(9)]), connector=NESTED.connector, log_level="OFF")
    return value


@cs.task
async def starts_a_large_run(x: int) -> int:
    value: int = await cs.run_async(total(one.map(x=list(range(x)))), connector=NESTED.connector, log_level="OFF")
    return value


class NESTED:
    connector: Any = None


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADE_TRACE_PART_BYTES", str(BUDGET))


def items(task: Any, count: int = 200) -> Any:
    return task.map(x=list(range(count)))


KINDS: dict[str, tuple[Callable[[], Any], int]] = {
    "stack traces": (lambda: items(is_flaky).with_retry(2, delay=0.01), 200 * 6 + 3),
    "stack traces of tasks": (
        lambda: total([is_flaky(n).with_retry(2, delay=0.01) for n in range(200)]),
        200 * 6 + 3,
    ),
    "attributes": (lambda: items(sets_attributes), 203),
    "events": (lambda: items(adds_events), 203),
    "events of attempts": (lambda: items(adds_events).with_retry(2), 403),
    "own spans": (lambda: items(makes_spans), 200 * 21 + 3),
    "own spans in threads": (lambda: items(makes_nested_spans), 200 * 22 + 3),
    "own spans of tasks": (lambda: total([makes_nested_spans(n) for n in range(100)]), 100 * 22 + 3),
    "values": (lambda: has_large_values.map(values=[["y" * 900] * 5] * 200), 203),
    "nested runs": (lambda: items(starts_a_run), 200 * (1 + 2 + 10) + 3),
    "nested runs in threads": (lambda: items(starts_a_run_in_a_thread), 200 * (1 + 2 + 10) + 3),
    "large nested run": (lambda: starts_a_large_run(2_000), 2_000 + 2 + 2 + 1 + 2),
}


@pytest.mark.usefixtures("small_budget")
@pytest.mark.parametrize("kind", KINDS)
def test_no_trace_exceeds_its_budget(collector: Collector, kind: str) -> None:
    make, count = KINDS[kind]
    connector = NESTED.connector = collector.connector(capture={"arguments", "results"})
    spans = collector.trace_of(make(), connector=connector)
    waits = [span for span in spans if span.name.endswith(" wait") and "retry" not in span.attributes.values()]
    roots = [span for span in spans if span.name.endswith(" part")]
    assert len(spans) - len(waits) - len(roots) == count, "none is missing"
    check(spans, at_least=2)


def check(spans: Spans, *, at_least: int, most: float = MOST) -> None:
    """Check that each trace is within its budget, and has one root and no span without its parent."""
    traces = spans.traces()
    assert len(traces) >= at_least
    assert max(sum(span.size for span in each) for each in traces.values()) < most
    assert [len(each.roots()) for each in traces.values()] == [1] * len(traces)
    assert [each.orphans() for each in traces.values()] == [[]] * len(traces)
    roots = [span for span in spans.roots() if "cascade.part.number" in span.attributes]
    assert len(roots) == len(traces) - 1
    for root in roots:
        (link,) = root.links
        assert link.trace_id == root.attributes["cascade.part.parent.trace_id"]
        assert link.trace_id in traces


@pytest.mark.timeout(300)
def test_2000_flaky_items_fit_the_default_limits(collector: Collector) -> None:
    """Without a limit in bytes they were one trace of 12,004 spans, and Tempo discarded 6,575 of them."""
    spans = collector.trace_of(items(is_flaky, 2_000).with_retry(2, delay=0.01))
    assert len([span for span in spans if not span.name.endswith(" part")]) == 2_000 * 6 + 3
    check(spans, at_least=3, most=4_000_000)
    assert max(len(each) for each in spans.traces().values()) <= PartLimits().spans + 6 * 64


@pytest.mark.timeout(300)
def test_500_concurrent_items_with_20_spans_each_are_in_several_traces(collector: Collector) -> None:
    spans = collector.trace_of(items(makes_spans, 500))
    assert len(spans.named("GET /v1/orders")) == 10_000
    check(spans, at_least=2, most=4_000_000)


@pytest.mark.usefixtures("small_budget")
def test_spans_below_tasks_are_left_out_when_a_trace_is_full(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """In each of the first parts 20 items run concurrently, with 60 KB of spans each."""
    memory = MemoryConnector()
    spans = collector.trace_of(items(makes_many_spans, 100), connector=[collector.connector(), memory])
    check(spans, at_least=4)
    left_out = spans.one("run map(makes_many_spans)").attributes["cascade.run.spans.left_out"]
    assert len(spans.named("makes_many_spans")) == 100
    made = len(spans.named("outer")) + len(spans.named("inner"))
    assert 2_000 < made < 20_000
    assert left_out <= 20_000 - made <= 2 * left_out, "an inner span below one that is left out is not counted"
    (warned,) = [message for message in warnings(caplog) if "largest size" in message]
    assert f"; {left_out} spans" in warned
    (stopped,) = [payload["body"] for payload in memory.payloads if payload["body"].get("event") == "ENGINE_STOPPED"]
    assert stopped["metadata"]["left_out"] == left_out


@cs.task
async def starts_a_run_in_a_span(x: int) -> int:
    with TRACER.start_as_current_span("large", attributes={f"n{number}": "x" * 1_000 for number in range(500)}):
        value: int = await cs.run_async(one(x), connector=NESTED.connector, log_level="OFF")
    return value


@pytest.mark.usefixtures("small_budget")
def test_a_run_below_a_span_that_is_left_out_is_a_child_of_the_task(collector: Collector) -> None:
    connector = NESTED.connector = collector.connector()
    spans = collector.trace_of(starts_a_run_in_a_span(1), connector=connector)
    task = spans.one("starts_a_run_in_a_span")
    assert spans.named("large") == []
    assert spans.one("run one").parent_span_id == task.span_id
    assert len(spans.named("one")) == 1


@pytest.mark.usefixtures("small_budget")
def test_content_that_code_adds_to_the_span_of_a_task_is_left_out_when_a_trace_is_full(collector: Collector) -> None:
    spans = collector.trace_of(items(adds_much, 100))
    check(spans, at_least=4)
    contents = [len(span.events) for span in spans.named("adds_much")]
    assert len(contents) == 100
    assert set(contents) == {0, 20}, "all or nothing"
    assert contents.count(0) == spans.one("run map(adds_much)").attributes["cascade.run.spans.left_out"]


@pytest.mark.usefixtures("small_budget")
def test_spans_of_threads_after_the_end_of_their_tasks_do_not_exceed_a_trace(collector: Collector) -> None:
    ENDED.clear()
    collector.receiver.clear()
    try:
        cs.run(items(leaves_a_thread, 100), connector=collector.connector(), log_level="ERROR")
    finally:
        ENDED.set()
        for thread in THREADS:
            thread.join()
        THREADS.clear()
    cs.run(one(1), connector=collector.connector(), log_level="ERROR")  # its flush delivers the late spans
    spans = collector.receiver.spans
    assert len(spans.named("late")) > 100
    assert max(sum(span.size for span in each) for each in spans.traces().values()) < MOST


@cs.task
async def starts_a_flaky_run(x: int) -> int:
    target = total(items(fails_twice, 10).with_retry(2, delay=0))
    value: int = await cs.run_async(target, connector=NESTED.connector, log_level="OFF")
    return value


@cs.task
async def fails_twice(x: int) -> int:
    await asyncio.sleep(0.01)
    if attempt() <= 2:
        fails_deep_below(60)
    return x


@pytest.mark.usefixtures("small_budget")
def test_concurrent_nested_runs_share_the_budget_of_their_trace(collector: Collector) -> None:
    connector = NESTED.connector = collector.connector()
    spans = collector.trace_of(items(starts_a_flaky_run, 20), connector=connector)
    check(spans, at_least=5)
    assert len(spans.named("fails_twice")) == 200


@cs.task
async def fails_late(x: int) -> int:
    """Small items succeed first. Then all items fail at the same time, as in an outage."""
    if x < 100:
        return x
    await asyncio.sleep(0.01)
    if attempt() <= 2:
        fails_deep_below(100)
    return x


@pytest.mark.usefixtures("small_budget")
def test_texts_are_shortened_if_later_children_are_larger_than_all_earlier_ones(collector: Collector) -> None:
    """Each of 300 items has two stack traces of 16 KB. Many items have started before the first one ends."""
    memory = MemoryConnector()
    target = items(fails_late, 400).with_retry(2, delay=0.01)
    spans = collector.trace_of(target, connector=[collector.connector(), memory])
    check(spans, at_least=3)
    shown = [span.events[-1].attributes for span in spans.named("fails_late attempt") if span.status == "ERROR"]
    assert shown
    for each in shown:
        assert each["exception.type"] == "ConnectionError"
        assert each["exception.message"].startswith("HTTPSConnectionPool(host='api.example.com'")
    cut = [each["exception.stacktrace"] for each in shown if "…" in each["exception.stacktrace"]]
    assert cut
    for stack in cut:
        assert stack.startswith("Traceback (most recent call last):\n")
        assert "/v1/orders" in stack[-100:] or len(stack.encode()) <= 256, "the message is the last line"
    assert replayed(collector, memory) == {described(span) for span in spans}, "live and from messages alike"


async def test_errors_are_shortened_in_the_event_and_the_status_of_a_span() -> None:
    """60 tasks fail at the same time. The text of an error is in the event and in the status of its span."""
    limits = PartLimits(bytes=800_000)
    run_trace = RunTrace("run", "a" * 32, parts=TraceShards(limits))
    bus, connector = MessageBus(), MemoryConnector()
    TelemetrySubscriber(bus, connector)
    error = ErrorInfo("LookupError", "m" * 2_000, "Traceback (most recent call last):\n" + "  frame\n" * 2_000)
    tasks: list[dict[str, Any]] = [
        {"run_id": "run", "task_id": f"t{number}", "task_name": "fails"} for number in range(60)
    ]
    bus.publish(RunStarted(run_id="run", target_tasks=["fails"], task_counts={"fails": 60}, trace=run_trace))
    for task in tasks:
        bus.publish(TaskExecutionStarted(**task, start_ns=1))
    for task in tasks:
        failed: dict[str, Any] = {"status": "Failed", "result": "failure", "start_ns": 1, "end_ns": 2}
        bus.publish(
            TaskExecutionFinished(**task, **failed, error=f"LookupError: {error.message}"[:2_000], exception=error)
        )
    await bus.drain("run")
    spans = [data for payload in connector.payloads for data in spans_of(payload)]
    assert {data.trace_id for data in spans} == {"a" * 32}, "all have started while there was room"
    assert limits.bytes < sum(len(encode_span(data)) for data in spans) < limits.max_bytes
    failures = [data for data in spans if data.events]
    assert len(failures) == 60
    sizes = [len(data.error or "") for data in failures]
    assert sizes[0] == 2_000, "unchanged while there is room"
    for data in failures:
        (event,) = data.events
        assert event.attributes["exception.message"].startswith("mmm")
        assert (data.error or "").startswith("LookupError: mmm")


@cs.task
async def fails_for_ever(x: int) -> int:
    fails_below(20)
    return x


@pytest.mark.usefixtures("small_budget")
def test_a_task_with_very_many_attempts_does_not_exceed_the_trace(collector: Collector) -> None:
    memory = MemoryConnector()
    target = fails_for_ever(1).with_retry(2_000, delay=0)
    spans = collector.trace_of(target, connector=[collector.connector(), memory], fails=ConnectionError)
    check(spans, at_least=1)
    task = spans.one("fails_for_ever")
    assert task.attributes["cascade.task.attempts"] == 2_001
    shown = spans.named("fails_for_ever attempt")
    assert 100 < len(shown) < 2_000
    assert {span.parent_span_id for span in shown} == {task.span_id}
    assert replayed(collector, memory) == {described(span) for span in spans}


@pytest.mark.usefixtures("small_budget")
def test_runs_in_one_trace_of_a_caller_share_its_budget(collector: Collector) -> None:
    collector.receiver.clear()
    above = trace.SpanContext(0xA1, 0xB1, is_remote=True, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(above)):
        for _ in range(5):
            cs.run(items(one, 300), connector=collector.connector(), log_level="ERROR")
    spans = collector.receiver.spans
    assert len(spans.named("one")) == 1_500
    shared, *others = sorted(spans.traces().values(), key=lambda each: each[0].trace_id != f"{0xA1:032x}")
    assert shared[0].trace_id == f"{0xA1:032x}"
    assert len(shared.named("run map(one)")) == 5
    assert max(sum(span.size for span in each) for each in (shared, *others)) < MOST
    assert all("cascade.part.number" in root.attributes for each in others for root in each.roots())


@pytest.mark.usefixtures("small_budget")
def test_fast_items_share_traces(collector: Collector) -> None:
    spans = collector.trace_of(items(one, 2_000))
    check(spans, at_least=3)
    assert len(spans.traces()) <= 6, "750 KB"
