"""The mapping of runs to spans, as a receiver gets them over HTTP and gRPC."""

import asyncio
import importlib.metadata
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.otel import OtelConnector
from cascade.runtime.engine import run_nested
from cascade.telemetry import attributes as names
from cascade.telemetry.identity import span_id
from cascade.telemetry.topics import source
from cascade.testing import ReceivedSpan
from tests.connectors.otel.tracing import Collector
from tests.lab.waiting import HANG, until_blocking


@cs.task
def one() -> int:
    return 1


@cs.task
async def add(x: int, y: int = 0) -> int:
    return x + y


@cs.task
def flaky() -> str:
    task = cs.current_task()
    assert task is not None
    if task.attempt < 2:
        raise ConnectionError("try again")
    return "ok"


def attributes(span: Any, *names: str) -> dict[str, Any]:
    return {name: span.attributes.get(f"cascade.{name}") for name in names}


def test_the_run_and_its_marker_have_name_and_tags(collector: Collector) -> None:
    spans = collector.trace_of(one(), name="nightly", tags=["etl", "customer 7"])
    assert {span.name: attributes(span, "run.target", "run.tags") for span in spans if span.name != "one"} == {
        name: {"run.target": "nightly", "run.tags": ["etl", "customer 7"]}
        for name in ("run nightly", "run nightly started")
    }


def test_the_run_of_a_chosen_id_is_the_trace_of_that_id(collector: Collector) -> None:
    chosen = uuid4()
    spans = collector.trace_of(one(), run_id=str(chosen))
    assert {span.trace_id for span in spans} == {chosen.hex}


def test_a_run_is_a_root_span_of_kind_server(collector: Collector) -> None:
    memory = MemoryConnector()
    spans = collector.trace_of(
        add(one(), cs.Param("n", default=1, type=int)), connector=[collector.connector(), memory]
    )
    (root,) = spans.roots()
    header = memory.payloads[0]
    run_id = header["run_id"]
    assert (root.name, root.kind, root.status) == ("run add", "SERVER", "UNSET")
    assert (root.trace_id, root.span_id) == (run_id.replace("-", ""), span_id(run_id))
    assert attributes(root, "run.id", "run.target", "run.result", "run.inputs", "run.tasks.completed") == {
        "run.id": run_id,
        "run.target": "add",
        "run.result": "success",
        "run.inputs": ["n"],
        "run.tasks.completed": 2,
    }
    assert {(p["trace_id"], p["span_id"]) for p in memory.payloads} == {
        (span.trace_id, span.span_id) for span in spans if span.name != "run add started"
    }
    assert {span.kind for span in spans if span is not root} == {"INTERNAL"}


def test_a_run_is_visible_while_it_is_in_progress(collector: Collector) -> None:
    collector.receiver.clear()

    @cs.task
    def until_it_shows() -> Any:
        return collector.receiver.wait_for(lambda spans: bool(spans.named("run until_it_shows started")))

    spans = cs.run(until_it_shows(), connector=collector.connector(), log_level="ERROR")
    marker = spans.one("run until_it_shows started")
    assert spans.named("run until_it_shows") == []
    assert marker.parent_span_id == collector.receiver.spans.one("run until_it_shows").span_id
    assert (marker.end_ns - marker.start_ns, marker.kind) == (1, "INTERNAL")
    run_id = marker.attributes["cascade.run.id"]
    assert marker.span_id == span_id(run_id, "run.started"), "the id does not depend on the target"
    own = {"cascade.run.id": run_id, "cascade.run.target": "until_it_shows", "cascade.run.started": True}
    assert marker.attributes == own


def test_the_span_of_a_task_has_the_times_of_its_messages(collector: Collector) -> None:
    memory = MemoryConnector()
    target = one()
    spans = collector.trace_of(target, connector=[collector.connector(), memory])
    span = spans.one("one")
    (body,) = (p["body"] for p in memory.payloads if p["body"].get("state") == "COMPLETED")
    assert span.parent_span_id == spans.one("run one").span_id
    assert span.duration_ms == pytest.approx(body["duration_ms"], abs=1e-9)
    assert span.status == "UNSET"
    assert attributes(span, "task.id", "task.name", "task.result") == {
        "task.id": body["task_id"],
        "task.name": "one",
        "task.result": "success",
    }
    assert span.attributes["code.function.name"] == f"{__name__}.one"


def test_an_attempt_is_a_child_of_a_task_with_retries(collector: Collector) -> None:
    spans = collector.trace_of(add(flaky().with_retry(3), one()), fails=TypeError)  # type: ignore[arg-type]
    first, second = spans.named("flaky attempt")
    task = spans.one("flaky")
    assert {first.parent_span_id, second.parent_span_id} == {task.span_id}
    assert [attempt.attributes["cascade.task.attempt"] for attempt in (first, second)] == [1, 2]
    assert (first.status, first.attributes["error.type"], first.events[0].name) == (
        "ERROR",
        "ConnectionError",
        "exception",
    )
    assert (second.status, second.events, task.status, task.events) == ("UNSET", (), "UNSET", ())
    assert attributes(task, "task.attempts", "task.max_attempts") == {"task.attempts": 2, "task.max_attempts": 3}
    assert spans.named("one attempt") == []


def test_the_failure_of_the_last_attempt_is_the_failure_of_the_task(collector: Collector) -> None:
    spans = collector.trace_of(cs.task(lambda: 1 / 0, name="divide")().with_retry(1), fails=ZeroDivisionError)
    assert [s.status for s in spans.named("divide attempt")] == ["ERROR", "ERROR"]
    assert spans.one("divide").status == "ERROR"


def test_a_retried_attempt_that_timed_out_has_the_result_timeout(collector: Collector) -> None:
    @cs.task
    def late() -> int:
        task = cs.current_task()
        if task is not None and task.attempt == 1:
            raise TimeoutError("no answer")
        return 1

    memory = MemoryConnector()
    spans = collector.trace_of(late().with_retry(1), connector=[collector.connector(), memory])
    first, second = spans.named("late attempt")
    results = [span.attributes["cascade.task.result"] for span in (first, second, spans.one("late"))]
    assert (results, first.status) == (["timeout", "success", "success"], "ERROR")
    pending, *_, completed = (
        p["body"]["metadata"] for p in memory.payloads if p["body"].get("state") in {"PENDING", "COMPLETED"}
    )
    assert pending["result"] == completed["attempts"][0]["result"] == "timeout"


def test_waits_are_spans_with_their_reason(collector: Collector) -> None:
    slow = cs.task(lambda x: time.sleep(0.01), name="slow")
    spans = collector.trace_of(slow.map(x=[1, 2]).with_constraints(cpu=1), system_resources={"cpu": 1})
    wait = spans.one("slow wait")
    assert wait.attributes["cascade.wait.reason"] == "resource"
    held = next(
        span for span in spans.named("slow") if span.attributes["cascade.task.id"] == wait.attributes["cascade.task.id"]
    )
    assert wait.parent_span_id == held.span_id
    assert wait.end_ns <= held.start_ns
    assert wait.start_ns < held.start_ns, "earlier than its parent"
    assert spans.children(held) == [wait]
    assert {span.name for span in spans.children(spans.one("map(slow)"))} == {"slow"}


@pytest.mark.parametrize("provider", ["own", "callers"])
def test_all_spans_of_an_item_have_its_index_and_label(collector: Collector, provider: str) -> None:
    class Busy:
        """Fails once for each item."""

        def __init__(self) -> None:
            self.seen: set[int] = set()

        def __call__(self, x: int) -> int:
            mine = (tracer_provider or trace.get_tracer_provider()).get_tracer("mine")
            with mine.start_as_current_span("below"), mine.start_as_current_span("further below"):
                trace.get_current_span().add_event("called")
            if x not in self.seen:
                self.seen.add(x)
                raise ConnectionError(x)
            return x

    busy = cs.task(Busy(), name="busy", label=lambda x: f"number {x}")
    items = busy.map(x=[7, 8]).with_retry(1, delay=0.002).with_constraints(cpu=1)
    target = cs.task(lambda *_: None, name="end")(items, one().with_label("alone"))
    tracer_provider = TracerProvider(shutdown_on_exit=False) if provider == "callers" else None
    if tracer_provider is None:
        connector = collector.connector()
    else:
        exporter = OTLPSpanExporter(f"{collector.receiver.http_endpoint}/v1/traces")
        tracer_provider.add_span_processor(SimpleSpanProcessor(exporter))
        connector = OtelConnector(tracer_provider=tracer_provider)
    spans = collector.trace_of(target, system_resources={"cpu": 1}, connector=connector)
    by_id = {span.span_id: span for span in spans}

    def items_above(span: ReceivedSpan) -> list[ReceivedSpan]:
        above = by_id.get(span.parent_span_id or "")
        return [*([span] if span.name == "busy" else []), *(items_above(above) if above else [])]

    counts = Counter((span.name, span.attributes.get("cascade.map.index")) for span in spans)
    for index in (0, 1):
        item = ("busy", "busy attempt", "busy wait", "below", "further below")
        assert {name for name, of in counts if of == index} == set(item), counts
        assert counts["busy attempt", index] == counts["below", index] == 2
    for span in spans:
        indexes = [item.attributes["cascade.map.index"] for item in items_above(span)]
        found = [span.attributes.get(key) for key in ("cascade.map.index", "cascade.task.label")]
        label = "alone" if span.name == "one" else None
        assert found == [indexes[0], f"number {7 + indexes[0]}"] if indexes else found == [None, label], span.name
    assert Counter(span.attributes.get("cascade.task.label") for span in spans)["alone"] == 1


def test_the_delay_of_a_retry_is_a_wait_between_the_attempts(collector: Collector) -> None:
    spans = collector.trace_of(flaky().with_retry(1, delay=0.005))
    wait, (first, second) = spans.one("flaky wait"), spans.named("flaky attempt")
    assert wait.attributes["cascade.wait.reason"] == "retry"
    assert wait.parent_span_id == spans.one("flaky").span_id
    assert first.end_ns <= wait.start_ns <= wait.end_ns <= second.start_ns


def test_a_retry_delay_that_a_cancellation_ends_is_a_wait(collector: Collector, limits: pytest.MonkeyPatch) -> None:
    limits.setattr("cascade.telemetry.limits.MIN_WAIT_NS", 0)
    memory = MemoryConnector()

    @cs.task
    def fails() -> None:
        until_blocking(lambda: any(payload["body"].get("state") == "PENDING" for payload in memory.payloads))
        raise KeyError("the run ends")

    target = consumer(flaky().with_retry(1, delay=3_600), fails())
    spans = collector.trace_of(target, fails=KeyError, connector=[collector.connector(), memory])
    task, wait = spans.one("flaky"), spans.one("flaky wait")
    assert (task.attributes["cascade.task.result"], wait.attributes["cascade.wait.reason"]) == ("cancellation", "retry")
    assert spans.one("flaky attempt").end_ns <= wait.start_ns < wait.end_ns <= task.end_ns


def test_dependencies_are_links(collector: Collector) -> None:
    a, b = one(), one()
    spans = collector.trace_of(add(a, y=b))
    span = spans.one("add")
    assert {link.span_id for link in span.links} == {s.span_id for s in spans.named("one")}
    assert span.attributes["cascade.task.dependencies"] == 2


def test_links_are_limited_and_the_number_of_dependencies_is_exact(collector: Collector) -> None:
    count = cs.task(lambda *values: len(values), name="count")
    span = collector.trace_of(count(*(one() for _ in range(150)))).one("count")
    assert (len(span.links), span.attributes["cascade.task.dependencies"]) == (128, 150)


def test_a_map_is_a_span_with_a_child_for_each_item(collector: Collector) -> None:
    spans = collector.trace_of(add.map(x=[1, 2, 3]))
    whole = spans.one("map(add)")
    assert whole.attributes["cascade.map.size"] == 3
    assert whole.parent_span_id == spans.one("run map(add)").span_id
    items = spans.named("add")
    assert sorted(item.attributes["cascade.map.index"] for item in items) == [0, 1, 2]
    assert {item.parent_span_id for item in items} == {whole.span_id}


def no() -> Any:
    return cs.task(lambda: False, name="no")()


def consumer(*given: Any) -> Any:
    return cs.task(lambda *_: None, name="end")(*given)


def chosen(routes: dict[str, Any], selector: Any = None) -> Any:
    selector = cs.task(lambda: "a", name="choose")() if selector is None else selector
    return consumer(cs.Router(selector, {"a": one(), **routes}))


class Hit:
    def check(self, task_id: str, inputs: dict[str, Any]) -> Any:
        return 1

    def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None:
        raise NotImplementedError


def named(name: str, *given: Any) -> Any:
    return cs.task(lambda *_: 1, name=name)(*given)


SKIPS: dict[str, tuple[Any, dict[str, tuple[str, tuple[str, ...]]]]] = {
    "condition": (lambda: named("x").run_if(no()), {"x skipped": ("ConditionFalse", ("no",))}),
    "input": (lambda: named("x").run_if(cs.Param("go", default=0, type=int)), {"x skipped": ("ConditionFalse", ())}),
    "condition of a consumer": (
        lambda: consumer(named("x").run_if(no()), one()),
        {"x skipped": ("ConditionFalse", ("no",)), "end skipped": ("UpstreamSkipped_Data", ("no", "x skipped"))},
    ),
    "condition several tasks away": (
        lambda: consumer(named("z", named("y", named("x").run_if(no())))),
        {
            "x skipped": ("ConditionFalse", ("no",)),
            "y skipped": ("UpstreamSkipped_Data", ("no", "x skipped")),
            "z skipped": ("UpstreamSkipped_Data", ("no", "y skipped")),
            "end skipped": ("UpstreamSkipped_Data", ("no", "z skipped")),
        },
    ),
    "consumer of a task with a condition that is an input": (
        lambda: consumer(named("x").run_if(cs.Param("go", default=0, type=int))),
        {"x skipped": ("ConditionFalse", ()), "end skipped": ("UpstreamSkipped_Data", ("x skipped",))},
    ),
    "skipped condition": (
        lambda: consumer(one()).run_if(named("x").run_if(no())),
        {"x skipped": ("ConditionFalse", ("no",)), "end skipped": ("UpstreamSkipped_Condition", ("no", "x skipped"))},
    ),
    "condition that is a map": (
        lambda: named("x").run_if(add.map(x=[])),
        {"x skipped": ("ConditionFalse", ("map(add)",))},
    ),
    "map": (
        lambda: consumer(add.map(x=[1, 2]).run_if(no())),
        {
            "map(add) skipped": ("ConditionFalse", ("no",)),
            "end skipped": ("UpstreamSkipped_Data", ("no", "map(add) skipped")),
        },
    ),
    "nested": (
        lambda: consumer([named("x").run_if(no())]),
        {"x skipped": ("ConditionFalse", ("no",)), "end skipped": ("UpstreamSkipped_Data", ("no", "x skipped"))},
    ),
    "constraint": (
        lambda: consumer().with_constraints(cpu=named("x").run_if(no())),
        {"x skipped": ("ConditionFalse", ("no",)), "end skipped": ("UpstreamSkipped_Data", ("no", "x skipped"))},
    ),
    "route": (
        lambda: chosen({"b": named("x", named("y"))}),
        {"x skipped": ("Pruned", ("choose",)), "y skipped": ("Pruned", ("choose",))},
    ),
    "route of an input": (
        lambda: chosen({"b": named("x")}, cs.Param("style", default="a", type=str)),
        {"x skipped": ("Pruned", ())},
    ),
    "chosen route": (
        lambda: chosen({"a": named("x").run_if(no()), "b": named("y")}),
        {
            "x skipped": ("ConditionFalse", ("no",)),
            "y skipped": ("Pruned", ("choose",)),
            "end skipped": ("UpstreamSkipped_Route", ("no", "x skipped")),
        },
    ),
    "skipped selector": (
        lambda: chosen({"b": named("x")}, cs.task(lambda: "a", name="choose")().run_if(no())),
        {
            "choose skipped": ("ConditionFalse", ("no",)),
            "end skipped": ("UpstreamSkipped_Data", ("no", "choose skipped")),
            "x skipped": ("Pruned", ("no", "choose skipped")),
            "one skipped": ("Pruned", ("no", "choose skipped")),
        },
    ),
    "cache": (lambda: named("x").with_cache(Hit()), {"x skipped": ("CacheHit", ())}),
    "cached items": (
        lambda: cs.task(lambda a: a, name="x").map(a=[1]).with_cache(Hit()),
        {"x skipped": ("CacheHit", ())},
    ),
}
"""Workflows by kind of skip, with the reasons and the links of their spans."""


@pytest.mark.parametrize("kind", SKIPS)
def test_a_skipped_task_has_a_reason_and_links_to_the_tasks_that_caused_the_skip(
    collector: Collector, kind: str
) -> None:
    make, expected = SKIPS[kind]
    target, memory = make(), MemoryConnector()
    has_value = expected.get(f"{target.task_name} skipped", ("CacheHit",))[0] == "CacheHit"
    runs = {"connector": [collector.connector(), memory], "system_resources": {"cpu": 1}}
    spans = collector.trace_of(target, fails=() if has_value else cs.DependencyMissingError, **runs)
    found = {
        span.name: (
            span.attributes["cascade.task.skip.reason"],
            tuple(spans.by_id(link.span_id).name for link in span.links),
        )
        for span in spans
        if span.attributes.get("cascade.task.result") == "skip"
    }
    assert found == expected
    for span_name in expected:
        span = spans.one(span_name)
        assert (span.end_ns - span.start_ns, span.status, span.kind) == (1, "UNSET", "INTERNAL")
        assert span.attributes["cascade.task.name"] == span_name.removesuffix(" skipped")
        assert all(spans.by_id(link.span_id).start_ns < span.start_ns for link in span.links)
        assert "cascade.task.dependencies" not in span.attributes
    links = {
        p["span_id"]: p["body"]["metadata"].get("links", [])
        for p in memory.payloads
        if p["body"].get("state") == "SKIPPED"
    }
    assert links == {
        span.span_id: [{"trace_id": link.trace_id, "span_id": link.span_id} for link in span.links]
        for span in map(spans.one, expected)
    }


def test_a_cached_task_has_links_to_its_dependencies(collector: Collector) -> None:
    spans = collector.trace_of(named("x", one()).with_cache(Hit()))
    assert [spans.by_id(link.span_id).name for link in spans.one("x skipped").links] == ["one"]


@pytest.mark.parametrize("shape", ["plain", "async"])
def test_a_resource_is_a_span_for_its_setup_and_one_for_its_teardown(collector: Collector, shape: str) -> None:
    @cs.resource(name="db")
    def plain() -> Iterator[int]:
        yield 1

    @cs.resource(name="db")
    async def coroutine() -> AsyncIterator[int]:
        yield 1

    definition = plain if shape == "plain" else coroutine
    spans = collector.trace_of(cs.task(lambda d=cs.inject(definition): d, name="use")())
    run, use, setup, teardown = (spans.one(name) for name in ("run use", "use", "db setup", "db teardown"))
    assert run.start_ns <= setup.start_ns <= setup.end_ns <= use.start_ns
    assert use.end_ns <= teardown.start_ns <= teardown.end_ns <= run.end_ns
    for span, step in ((setup, "setup"), (teardown, "teardown")):
        assert (span.parent_span_id, span.status) == (run.span_id, "UNSET")
        assert span.span_id == span_id(run.attributes["cascade.run.id"], f"{step}:db")
        assert span.attributes["cascade.resource.name"] == "db"
        assert span.attributes["cascade.resource.result"] == "success"
    assert "cascade.resource.hold_seconds" not in setup.attributes
    assert teardown.attributes["cascade.resource.hold_seconds"] == (teardown.start_ns - setup.end_ns) / 1e9


@pytest.mark.parametrize("shape", ["plain", "async"])
def test_the_span_of_a_setup_or_teardown_is_current_in_its_code(collector: Collector, shape: str) -> None:
    def mark(step: str) -> None:
        trace.get_current_span().set_attribute("step", step)
        with trace.get_tracer("mine").start_as_current_span(f"in {step}"):
            task = cs.current_task()
            assert task is not None
            assert (task.kind, task.name) == ("resource", f"db {step}")

    @cs.resource(name="db")
    def plain() -> Iterator[int]:
        mark("setup")
        yield 1
        mark("teardown")

    @cs.resource(name="db")
    async def coroutine() -> AsyncIterator[int]:
        mark("setup")
        yield 1
        mark("teardown")

    definition = plain if shape == "plain" else coroutine
    spans = collector.trace_of(cs.task(lambda d=cs.inject(definition): cs.current_task(), name="use")())
    for step in ("setup", "teardown"):
        span, below = spans.one(f"db {step}"), spans.one(f"in {step}")
        assert span.attributes["step"] == step
        assert span.attributes["cascade.resource.result"] == "success"
        assert below.parent_span_id == span.span_id
        assert below.attributes["cascade.run.id"] == span.attributes["cascade.run.id"]
    assert [span.name for span in spans if span.parent_span_id == spans.one("use").span_id] == []


@pytest.mark.parametrize("detail", ["tasks", "run"])
def test_a_resource_without_a_span_runs_in_the_span_of_the_run(collector: Collector, detail: Any) -> None:
    @cs.resource
    def db() -> Iterator[int]:
        with trace.get_tracer("mine").start_as_current_span("connect"):
            yield 1

    target = cs.task(lambda d=cs.inject(db): d, name="use")()
    spans = collector.trace_of(target, connector=collector.connector(detail=detail))
    assert spans.one("connect").parent_span_id == spans.one("run use").span_id
    assert not [span for span in spans if span.name.startswith("db ")]


def test_a_setup_that_fails_is_an_error_and_has_no_teardown(collector: Collector) -> None:
    @cs.resource
    def db() -> Iterator[int]:
        raise OSError("no disk")
        yield 1

    spans = collector.trace_of(cs.task(lambda d=cs.inject(db): d, name="use")(), fails=OSError)
    setup = spans.one("db setup")
    assert (setup.status, setup.status_message) == ("ERROR", "OSError: no disk")
    assert setup.attributes["error.type"] == "OSError"
    assert [event.attributes["exception.message"] for event in setup.events] == ["no disk"]
    assert not [span for span in spans if span.name == "db teardown"]


def test_a_teardown_that_fails_after_its_run_is_an_error_and_an_event_of_the_run(collector: Collector) -> None:
    @cs.resource
    def db() -> Iterator[int]:
        yield 1
        raise OSError("rollback failed")

    def fail(db: int = cs.inject(db)) -> None:
        raise LookupError("not there")

    spans = collector.trace_of(cs.task(fail)(), fails=LookupError)
    teardown, run = spans.one("db teardown"), spans.one("run fail")
    assert (teardown.status, teardown.status_message) == ("ERROR", "OSError: rollback failed")
    assert (run.status, run.attributes["error.type"]) == ("ERROR", "LookupError")
    events = [(event.attributes["exception.type"], event.attributes["exception.message"]) for event in run.events]
    assert events == [("LookupError", "not there"), ("OSError", "rollback failed")]


def test_allowed_failures_are_errors_of_their_spans_and_events_of_a_successful_run(collector: Collector) -> None:
    def check(x: int) -> int:
        if x % 2:
            raise LookupError(f"not {x}")
        return x

    spans = collector.trace_of(cs.task(check).map(x=range(200)).with_label("row").allow_failure())
    run, all_items = spans.one("run map(check)"), spans.one("map(check)")
    assert (run.status, run.attributes["cascade.run.result"]) == ("UNSET", "success")
    assert run.attributes["cascade.run.tasks.failed"] == 100
    assert (all_items.status, all_items.attributes["cascade.task.result"]) == ("UNSET", "success")
    assert Counter(span.status for span in spans if span.name == "check") == {"ERROR": 100, "UNSET": 100}
    assert [event.name for event in run.events] == ["cascade.task.failed"] * 64
    failed = {span.attributes["cascade.task.id"] for span in spans if span.status == "ERROR"}
    for event in run.events:
        index = event.attributes["cascade.map.index"]
        assert event.attributes.pop("cascade.task.id") in failed
        assert event.attributes == {
            "cascade.task.name": "check",
            "cascade.task.label": "row",
            "cascade.map.index": index,
            "error.type": "LookupError",
            "exception.message": f"not {index}",
        }


def test_a_run_without_fail_fast_has_an_event_for_each_failure(collector: Collector) -> None:
    def fail(x: int) -> None:
        raise LookupError(f"not {x}")

    task = cs.task(fail, threaded=False)
    collector.receiver.clear()
    with pytest.raises(LookupError):
        cs.run(cs.task(str)([task(1), task(2)]), connector=collector.connector(), log_level="OFF", fail_fast=False)
    run, skipped = collector.receiver.spans.one("run str"), collector.receiver.spans.one("str skipped")
    assert (run.status, run.attributes["cascade.run.result"]) == ("ERROR", "failure")
    assert sorted(event.name for event in run.events) == ["cascade.task.failed", "cascade.task.failed", "exception"]
    assert skipped.attributes["cascade.task.skip.reason"] == "UpstreamFailed"


def test_a_failure_is_an_error_with_its_exception(collector: Collector) -> None:
    def fail() -> None:
        raise LookupError("not there")

    spans = collector.trace_of(cs.task(fail)(), fails=LookupError)
    for span in (spans.one("fail"), spans.one("run fail")):
        assert (span.status, span.status_message) == ("ERROR", "LookupError: not there")
        assert span.attributes["error.type"] == "LookupError"
        (event,) = span.events
        assert event.name == "exception"
        assert event.attributes["exception.type"] == "LookupError"
        assert event.attributes["exception.message"] == "not there"
        assert "in fail" in event.attributes["exception.stacktrace"]
    assert spans.one("run fail").attributes["cascade.run.result"] == "failure"


def test_a_timeout_has_the_result_timeout(collector: Collector) -> None:
    async def late() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    assert (
        collector.trace_of(cs.task(late)(), fails=TimeoutError).one("late").attributes["cascade.task.result"]
        == "timeout"
    )


def test_the_trace_of_a_cancelled_run_is_complete(collector: Collector) -> None:
    collector.receiver.clear()
    running = asyncio.Event()

    @cs.task
    async def forever() -> None:
        running.set()
        await asyncio.Event().wait()

    async def cancelled() -> None:
        run = asyncio.ensure_future(cs.run_async(add(forever()), connector=collector.connector(), log_level="ERROR"))  # type: ignore[arg-type]
        await running.wait()
        run.cancel()
        await asyncio.wait({run})

    asyncio.run(cancelled())
    spans = collector.receiver.spans
    assert {span.name for span in spans} == {"run add", "run add started", "forever"}
    assert outcome(spans.one("forever")) == ("cancellation", "UNSET", None, "cancelled", [])
    root = spans.one("run add")
    assert (root.attributes["cascade.run.result"], root.status, root.status_message) == (
        "cancellation",
        "ERROR",
        "cancelled",
    )
    assert (root.attributes["error.type"], root.events) == ("cancellation", ())


def outcome(span: Any) -> tuple[Any, ...]:
    """Return the result, status, error type, cancellation reason and event names of a span."""
    names = ("cascade.task.result", "error.type", "cascade.task.cancellation.reason")
    result, kind, reason = (span.attributes.get(name) for name in names)
    return result, span.status, kind, reason, [event.name for event in span.events]


@cs.task
async def waits(started: Any = None) -> None:
    if started is not None:
        started.set()
    await asyncio.Event().wait()


@cs.task
async def breaks(x: int = 0) -> None:
    if x:
        await asyncio.Event().wait()
    await asyncio.sleep(0)
    raise LookupError("first")


def test_a_failure_is_an_error_on_one_task_span(collector: Collector) -> None:
    gather = cs.task(lambda *_: None, name="gather")
    spans = collector.trace_of(gather(waits(), breaks()), fails=LookupError)
    assert outcome(spans.one("breaks")) == ("failure", "ERROR", "LookupError", None, ["exception"])
    assert outcome(spans.one("waits")) == (
        "cancellation",
        "UNSET",
        None,
        "cancelled because task 'breaks' failed",
        [],
    )
    assert sorted(span.name for span in spans if span.status == "ERROR") == ["breaks", "run gather"]
    root = spans.one("run gather")
    assert attributes(root, "run.result", "run.tasks.failed", "run.tasks.cancelled") == {
        "run.result": "failure",
        "run.tasks.failed": 1,
        "run.tasks.cancelled": 1,
    }


def test_a_failure_of_an_item_is_an_error_on_one_item_span(collector: Collector) -> None:
    spans = collector.trace_of(breaks.map(x=[1, 0, 2]).with_retry(1), fails=LookupError)
    errors = sorted(span.name for span in spans if span.status == "ERROR")
    assert errors == ["breaks", "breaks attempt", "breaks attempt", "run map(breaks)"]
    assert outcome(spans.one("map(breaks)")) == ("failure", "UNSET", None, None, [])
    stopped = [span for span in spans.named("breaks attempt") if span.status != "ERROR"]
    assert [outcome(span) for span in stopped] == [("cancellation", "UNSET", None, None, [])] * 2
    assert attributes(spans.one("run map(breaks)"), "run.tasks.failed", "run.tasks.cancelled") == {
        "run.tasks.failed": 1,
        "run.tasks.cancelled": 2,
    }


def test_a_map_that_cannot_start_has_an_error(collector: Collector) -> None:
    spans = collector.trace_of(breaks.map(x=cs.task(lambda: 5, name="five")()), fails=TypeError)  # type: ignore[arg-type]
    assert outcome(spans.one("map(breaks)")) == ("error", "ERROR", "TypeError", None, ["exception"])


def test_inputs_have_no_spans(collector: Collector) -> None:
    spans = collector.trace_of(add(cs.Param("n", default=1), cs.Env("NOT_SET", default=1)))  # type: ignore[arg-type]
    assert {span.name for span in spans} == {"run add", "run add started", "add"}


@pytest.mark.parametrize(
    ("detail", "names"),
    [
        ("run", {"run flaky"}),
        ("tasks", {"run flaky", "run flaky started", "flaky"}),
        ("full", {"run flaky", "run flaky started", "flaky", "flaky attempt", "flaky wait"}),
    ],
)
def test_detail_selects_the_spans(collector: Collector, detail: Any, names: set[str]) -> None:
    spans = collector.trace_of(flaky().with_retry(1, delay=0.002), connector=collector.connector(detail=detail))
    assert {span.name for span in spans} == names


def test_with_detail_run_a_run_has_no_links_to_its_parts(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADE_TRACE_PART_SIZE", "2")
    target = cs.task(list, name="all")([one() for _ in range(5)])
    (run,) = collector.trace_of(target, connector=collector.connector(detail="run"))
    assert (run.name, run.links, run.attributes["cascade.run.tasks.completed"]) == ("run all", (), 6)
    assert "cascade.parts" not in run.attributes


def test_semconv_cicd_adds_the_attributes_of_the_conventions(collector: Collector) -> None:
    spans = collector.trace_of(one(), connector=collector.connector(semconv="cicd"))
    assert spans.one("run one").attributes["cicd.pipeline.name"] == "one"
    assert spans.one("run one").attributes["cicd.pipeline.result"] == "success"
    assert spans.one("one").attributes["cicd.pipeline.task.run.result"] == "success"


def test_values_are_exported_only_with_capture_and_secrets_never(collector: Collector) -> None:
    login = cs.task(lambda x, password: {"token": x}, name="login")
    target = login(cs.Param("user"), password="hunter2").run_if(cs.Param("api_key"))
    params = {"user": "someone", "api_key": "hunter2"}
    assert "someone" not in str(list(collector.trace_of(target, params=params)))
    spans = collector.trace_of(
        target, params=params, connector=collector.connector(capture=("params", "arguments", "results"))
    )
    task, run = spans.one("login"), spans.one("run login")
    assert task.attributes["cascade.task.arguments"] == '{"password": "***", "0": "someone"}'
    assert task.attributes["cascade.task.output"] == '{"token": "***"}'
    assert run.attributes["cascade.run.params"] == '{"user": "someone", "api_key": "***"}'
    assert "hunter2" not in str(list(spans))


@pytest.mark.parametrize("threaded", [True, False])
def test_a_secret_that_is_passed_by_position_is_masked(collector: Collector, threaded: bool) -> None:
    def login(user: str, password: str, /, api_key: str = "") -> None: ...

    login_task = cs.task(login, threaded=threaded)
    password = cs.task(lambda: "hunter2", name="read")()
    for target, expected in (
        (login_task("me", password, "hunter2"), '{"0": "me", "2": "***", "1": "***"}'),
        (login_task.map(user=["me"], password=["hunter2"]), '{"0": "me", "1": "***"}'),
    ):
        spans = collector.trace_of(target, connector=collector.connector(capture=["arguments"]))
        assert spans.one("login").attributes["cascade.task.arguments"] == expected
        assert "hunter2" not in str(list(spans))


def test_attribute_values_are_cut(collector: Collector) -> None:
    def fail() -> None:
        raise ValueError("x" * 10_000)

    span = collector.trace_of(cs.task(fail)(), fails=ValueError).one("fail")
    assert len(span.events[0].attributes["exception.message"].encode()) <= 2_000
    assert len(span.status_message.encode()) <= 2_000


def test_the_resource_names_the_service_and_the_process(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = collector.trace_of(one()).one("one").resource
    assert resource["service.name"] == "cascade"
    assert "service.version" not in resource, "the application has none"
    assert resource["host.name"] == socket.gethostname()
    assert resource["service.instance.id"] == source()
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=7,team=a,host.name=node-3")
    resource = collector.trace_of(one()).one("one").resource
    assert (resource["service.name"], resource["service.version"], resource["team"]) == ("mine", "7", "a")
    assert resource["host.name"] == "node-3"


def test_the_version_of_cascade_is_that_of_the_scope_of_all_signals(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.version=7")
    log = cs.task(lambda: logging.getLogger("cascade.tests").warning("record"), name="log")
    spans = collector.trace_of(log(), connector=collector.connector(logs=True))
    ours = ("cascade", importlib.metadata.version("cascade-runs"))
    assert {(span.scope, span.scope_version) for span in spans} == {ours}
    received = collector.receiver
    points = [(one.resource, one.scope_metrics) for export in received.metrics for one in export.resource_metrics]
    records = [(one.resource, one.scope_logs) for export in received.logs for one in export.resource_logs]
    assert {(each.scope.name, each.scope.version) for _, scopes in points for each in scopes} == {ours}
    assert {(each.scope.name, each.scope.version) for _, scopes in records for each in scopes} == {
        ("cascade.tests", ours[1])
    }
    for resource in (*(resource for resource, _ in points), *(resource for resource, _ in records)):
        assert {one.key: one.value.string_value for one in resource.attributes}["service.version"] == "7"


@pytest.mark.parametrize("kind", ["thread", "loop", "attempt"])
def test_the_span_of_a_task_is_current_while_its_code_runs(collector: Collector, kind: str) -> None:
    tracer = trace.get_tracer("users")

    def work() -> None:
        trace.get_current_span().set_attribute("rows", 3)
        with tracer.start_as_current_span("inner"):
            pass

    async def async_work() -> None:
        work()

    target = cs.task(async_work if kind == "loop" else work, name="work")()
    spans = collector.trace_of(target.with_retry(1) if kind == "attempt" else target)
    own, inner = spans.one("work attempt" if kind == "attempt" else "work"), spans.one("inner")
    assert own.attributes["rows"] == 3
    assert inner.parent_span_id == own.span_id
    assert inner.attributes["cascade.task.id"] == own.attributes["cascade.task.id"]
    assert inner.attributes["cascade.run.id"] == own.attributes["cascade.run.id"]
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_subprocess_has_the_span_of_its_task_as_parent(collector: Collector) -> None:
    shown: list[str] = []
    collect = cs.task(shown.append, name="collect")
    spans = collector.trace_of(collect(cs.shell("echo $TRACEPARENT")))
    span = spans.one("shell")
    assert shown == [f"00-{span.trace_id}-{span.span_id}-01"]


def test_a_current_span_is_joined_linked_or_ignored(collector: Collector) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("users")
    with tracer.start_as_current_span("request") as request:
        outer = f"{request.get_span_context().trace_id:032x}", f"{request.get_span_context().span_id:016x}"
        joined, linked, ignored = (_run_below(collector, one(), parent) for parent in ("join", "link", "none"))
    assert (joined.trace_id, joined.parent_span_id) == outer
    assert linked.trace_id != outer[0]
    assert [(link.trace_id, link.span_id) for link in linked.links] == [outer]
    assert (ignored.parent_span_id, ignored.links) == (None, ())
    assert ignored.trace_id not in {outer[0], linked.trace_id}


def _run_below(collector: Collector, target: Any, parent: Any) -> Any:
    collector.receiver.clear()
    cs.run(target, connector=collector.connector(parent=parent), log_level="ERROR")
    return collector.receiver.spans.one("run one")


def test_a_parent_of_the_environment_is_joined(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{'a' * 32}-{'b' * 16}-01")
    collector.receiver.clear()
    cs.run(one(), connector=collector.connector(), log_level="ERROR")
    run = collector.receiver.spans.one("run one")
    assert (run.trace_id, run.parent_span_id) == ("a" * 32, "b" * 16)
    assert collector.receiver.spans.one("one").trace_id == "a" * 32


def test_a_nested_run_is_a_child_of_its_task(collector: Collector, tmp_path: Any) -> None:
    file = tmp_path / "inner.py"
    file.write_text("import cascade as cs\ninner = cs.task(lambda n: n, name='inner')(cs.Param('n'))\n")
    spans = collector.trace_of(cs.subflow(str(file), "inner", params={"n": 1}))
    assert spans.one("run inner").parent_span_id == spans.one("subflow").span_id
    assert spans.one("inner").parent_span_id == spans.one("run inner").span_id
    assert len(spans.traces()) == 1


@pytest.mark.parametrize("is_in_thread", [False, True])
def test_a_search_for_started_runs_does_not_find_a_run_in_the_trace_of_another(
    collector: Collector, is_in_thread: bool
) -> None:
    connector = collector.connector()

    @cs.task
    def with_own_engine() -> int:
        return cs.run(one(), connector=connector, log_level="ERROR")

    @cs.task
    async def with_engine_of_the_run() -> int:
        return await run_nested(one())

    spans = collector.trace_of((with_own_engine if is_in_thread else with_engine_of_the_run)())
    started = [span.name for span in spans if "cascade.run.started" in span.attributes]
    assert started == [spans.roots()[0].name + " started"]
    assert len(spans.named("run one started")) == 1


def test_a_run_that_a_task_starts_in_a_trace_of_its_own_is_found_as_a_started_run(collector: Collector) -> None:
    connector = collector.connector(parent="link")
    outer = cs.task(lambda: cs.run(one(), connector=connector, log_level="ERROR"), name="outer")
    spans = collector.trace_of(outer(), connector=connector)
    assert spans.one("run one started").attributes["cascade.run.started"] is True
    assert len(spans.traces()) == 2


def test_requests_of_the_exporter_have_no_spans(collector: Collector) -> None:
    code = f"""
import http.client, socket
from opentelemetry import context, trace
import cascade as cs
from cascade.connectors.otel import OtelConnector
from tests.lab.time_limits import raise_time_limits

raise_time_limits()
# Like instrumentation: a span for each connection, unless instrumentation is suppressed.
original = socket.socket.connect
def connect(self, address):
    if context.get_value(context._SUPPRESS_INSTRUMENTATION_KEY):
        return original(self, address)
    with trace.get_tracer("net").start_as_current_span("connect"):
        return original(self, address)
socket.socket.connect = connect
cs.run(cs.task(lambda: 1, name="t")(), connector=OtelConnector({collector.endpoint!r}, protocol={collector.protocol!r}))
"""
    environment = {**os.environ, "OTEL_SERVICE_NAME": "own-traffic"}  # spans of other tests may still arrive
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL, timeout=HANG, env=environment)
    ours = [span for span in collector.receiver.spans if span.resource["service.name"] == "own-traffic"]
    assert {span.name for span in ours} == {"run t", "run t started", "t"}


def test_names_have_no_ids_indexes_or_numbers(collector: Collector) -> None:
    added = add.map(x=[1, 2]).with_retry(1).with_label(lambda x: f"{x}")
    spans = collector.trace_of(cs.task(list, name="collect")(added))
    names = {"run collect", "run collect started", "collect", "map(add)", "add", "add attempt"}
    assert {span.name for span in spans} == names


KINDS = ("started", "attempt", "wait", "setup", "teardown", "part")
TYPES: dict[str, type] = {"any": object, "string": str, "int": int, "double": float, "bool": bool, "string[]": list}


def kind_of(span: ReceivedSpan) -> str:
    found = [kind for kind in KINDS if kind in span.name.split()]
    return found[0] if found else "run" if span.name.startswith("run ") else "map" if "map(" in span.name else "task"


def test_each_attribute_is_on_its_documented_spans(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADE_TRACE_PART_SIZE", "2")

    @cs.resource
    def database() -> Iterator[int]:
        yield 1

    @cs.task
    def reads(x: int, db: Any = cs.inject(database)) -> int:
        return x

    many = cs.task(lambda *xs: 1, name="many")
    good = many(
        reads.map(x=[1, 2, 3]).with_label("read"),
        one().run_if(one()),
        flaky().with_retry(1, delay=0.002),
        cs.Param("p", 1),
    )
    captures = {"connector": collector.connector(capture=("params", "arguments", "results"), semconv="cicd")}
    spans = [*collector.trace_of(good, params={"p": 2}, **captures)]
    spans += collector.trace_of(breaks.map(x=[0]), fails=LookupError)
    documented = {row.name: row for row in names.DOCUMENTED}
    for span in spans:
        kind = kind_of(span)
        for name, value in span.attributes.items():
            row = documented[name]
            assert isinstance(value, TYPES[row.type]), name
            where = {"map": ("map", "task"), "part": ("part",)}.get(kind, (kind,))
            stated = re.findall(r"[\w.]+", row.spans)
            assert "every" in stated or "all" in stated or set(where).intersection(stated), (span.name, name)
    assert {kind_of(span) for span in spans} == {*KINDS, "run", "map", "task"}


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ("a", "a"),
        (1, 1),
        (0.5, 0.5),
        (True, True),
        (["a", "b"], ["a", "b"]),
        ([1, 2], "[1, 2]"),
        ({"a": 1}, '{"a": 1}'),
    ],
)
def test_simple_results_are_attributes_of_their_type(collector: Collector, result: Any, shown: Any) -> None:
    give = cs.task(lambda: result, name="give")
    spans = collector.trace_of(give(), connector=collector.connector(capture=("results",)))
    found = spans.one("give").attributes["cascade.task.output"]
    assert (type(found), found) == (type(shown), shown)


def test_all_attempts_of_a_long_history_are_spans(collector: Collector) -> None:
    calls: list[None] = []

    @cs.task(threaded=False)
    def flaky() -> None:
        calls.append(None)
        if len(calls) < 150:
            raise ConnectionError

    spans = collector.trace_of(flaky().with_retry(200))
    attempts = [span.attributes["cascade.task.attempt"] for span in spans.named("flaky attempt")]
    assert sorted(attempts) == list(range(1, 151))
    assert spans.one("flaky").attributes["cascade.task.attempts"] == 150
