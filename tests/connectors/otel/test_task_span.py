"""The current span of a task, which becomes a span of the SDK at its first use."""

import threading
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import Status, StatusCode

import cascade as cs
from cascade.connectors.otel import OtelConnector
from cascade.testing import Spans
from tests.connectors.otel.tracing import Collector, provider_for
from tests.lab.waiting import HANG

kept: list[trace.Span] = []


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    kept.clear()


@cs.task
def untouched() -> bool:
    span = trace.get_current_span()
    kept.append(span)
    return span.is_recording() and span.get_span_context().is_valid


@cs.task
async def touched() -> str:
    span: Any = trace.get_current_span()
    kept.append(span)
    span.set_attribute("mine", 1)
    span.set_attributes({"more": [1, 2], "cascade.task.name": "not this"})
    span.add_event("seen", {"what": "it"})
    span.add_link(trace.SpanContext(1, 2, is_remote=False))
    span.record_exception(ValueError("handled"))
    span.set_status(Status(StatusCode.ERROR, "set by the task"))
    span.update_name("renamed")
    return f"{span.name} {span.attributes['mine']} {span.kind.name}"


def test_an_unused_span_has_the_ids_of_the_exported_span(collector: Collector) -> None:
    spans = collector.trace_of(untouched())
    context = kept[0].get_span_context()
    assert (f"{context.trace_id:032x}", f"{context.span_id:016x}") == _ids(spans.one("untouched"))
    assert context.trace_flags.sampled


def test_all_changes_to_a_span_are_exported(collector: Collector) -> None:
    renamed: list[str] = []
    spans = collector.trace_of(_appended(touched(), renamed))
    (span,) = spans.named("renamed")
    assert renamed == ["renamed 1 INTERNAL"]
    assert span.attributes["mine"] == 1
    assert span.attributes["more"] == [1, 2]
    assert span.attributes["cascade.task.name"] == "touched", "attributes of the engine take precedence"
    assert [event.name for event in span.events] == ["seen", "exception"]
    assert [link.span_id for link in span.links] == ["0000000000000002"]
    assert (span.status, span.status_message) == ("ERROR", "set by the task")


def _appended(target: Any, words: list[str]) -> Any:
    @cs.task
    async def note(word: str) -> None:
        words.append(word)

    return note(target)


@cs.task(name="login https://u:hunter2X9@h")
def leaking() -> None:
    span = trace.get_current_span()
    try:
        int("password=hunter2X9")
    except ValueError as error:
        span.record_exception(error)
        span.record_exception(error, {"exception.message": "my own"})
        span.set_status(StatusCode.ERROR, f"failed with {error}")


def test_names_and_recorded_exceptions_are_masked(collector: Collector) -> None:
    spans = collector.trace_of(leaking())
    span = spans.one("login https://***@h")
    assert spans.one("run login https://***@h").name
    first, second = span.events
    assert first.attributes["exception.message"] == "invalid literal for int() with base 10: 'password=***'"
    assert "in leaking" in first.attributes["exception.stacktrace"]
    assert second.attributes["exception.message"] == "my own"
    assert span.status_message == "failed with invalid literal for int() with base 10: 'password=***'"
    assert "hunter2" not in str(list(spans))


@pytest.mark.parametrize("task", [untouched, touched])
def test_a_span_does_not_record_after_the_end_of_its_task(collector: Collector, task: Any) -> None:
    collector.trace_of(task())
    (span,) = kept
    assert not span.is_recording()
    span.set_attribute("late", 1)
    span.end()
    collector.receiver.clear()
    with trace.get_tracer("later").start_as_current_span("below", trace.set_span_in_context(span)):
        pass
    assert all("late" not in arrived.attributes for arrived in collector.receiver.spans)


def test_a_thread_that_outlives_the_task_creates_no_second_span(collector: Collector) -> None:
    may_go, gone = threading.Event(), threading.Event()

    @cs.task
    def leaves_a_thread() -> None:
        span = trace.get_current_span()

        def late() -> None:
            may_go.wait(HANG)
            span.set_attribute("late", 1)
            gone.set()

        threading.Thread(target=late).start()

    @cs.task
    async def after(_: object) -> None:
        may_go.set()
        while not gone.is_set():
            await _turn()

    spans = collector.trace_of(after(leaves_a_thread()))
    assert len(spans.named("leaves_a_thread")) == 1


async def _turn() -> None:
    import asyncio

    await asyncio.sleep(0)


def test_threads_may_use_a_span_at_the_same_time(collector: Collector) -> None:
    @cs.task
    def many_threads() -> None:
        span = trace.get_current_span()
        barrier = threading.Barrier(8)

        def touch(number: int) -> None:
            barrier.wait()
            span.set_attribute(f"by.{number}", number)

        threads = [threading.Thread(target=touch, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    span = collector.trace_of(many_threads()).one("many_threads")
    assert {key: value for key, value in span.attributes.items() if key.startswith("by.")} == {
        f"by.{number}": number for number in range(8)
    }


class Names(SpanProcessor):
    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[str] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.started.append(span.name)

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span.name)


def test_a_processor_that_is_added_to_the_own_provider_gets_all_spans(collector: Collector) -> None:
    names = Names()
    provider_for(collector.endpoint, collector.protocol).add_span_processor(names)
    spans = collector.trace_of(untouched())
    assert sorted(names.ended) == sorted(names.started) == sorted(span.name for span in spans)


def test_the_span_limits_of_the_sdk_apply(monkeypatch: pytest.MonkeyPatch, collector: Collector) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "3")
    span = collector.trace_of(untouched()).one("untouched")
    assert len(span.attributes) == 3
    assert span.dropped_attributes_count > 0


@cs.task
def unsteady(x: int) -> int:
    task = cs.current_task()
    assert task is not None
    if x == 1 and task.attempt == 1:
        raise ValueError("not yet")
    return x


@cs.task
async def breaks(x: list[int]) -> None:
    raise RuntimeError(f"cannot take {len(x)}")


def test_with_and_without_the_sdk_the_spans_are_the_same(monkeypatch: pytest.MonkeyPatch, collector: Collector) -> None:
    def flow() -> Any:
        return breaks(unsteady.map(x=[0, 1, 2]).with_retry(2, delay=0.002))

    direct = collector.trace_of(flow(), fails=RuntimeError)
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "128")
    by_sdk = collector.trace_of(flow(), fails=RuntimeError)
    assert _shapes(direct) == _shapes(by_sdk)


def _shapes(spans: Spans) -> list[Any]:
    """Return the spans without ids and times, in a stable order."""
    parents = {span.span_id: span.name for span in spans}
    changing = ("cascade.run.id", "cascade.task.id", "exception.stacktrace")

    def shown(key: str, value: Any) -> tuple[str, Any]:
        return key, type(value) if key.endswith("_seconds") else value

    return sorted(
        (
            span.name,
            span.kind,
            span.status,
            span.status_message,
            parents.get(span.parent_span_id or ""),
            str(sorted(shown(key, value) for key, value in span.attributes.items() if key not in changing)),
            [(event.name, event.attributes["exception.message"]) for event in span.events],
            sorted(parents[link.span_id] for link in span.links),
            span.flags,
            span.scope,
            span.trace_state,
        )
        for span in spans
    )


def _ids(span: Any) -> tuple[str, str]:
    return span.trace_id, span.span_id


def test_untouched_spans_of_a_run_that_is_not_sampled_do_not_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    assert cs.run(untouched(), connector=OtelConnector("http://127.0.0.1:1"), log_level="ERROR") is False
    assert not kept[0].get_span_context().trace_flags.sampled
