"""The trace of a run is complete and correct, and searches find it."""

import signal
from collections.abc import Iterable
from typing import Any

import pytest

from cascade.testing import ReceivedSpan, Spans
from tests.e2e.runs import Run, run
from tests.e2e.stacks import Predicate, Processes, Stack

SERVICE = "e2e"


def has(name: str) -> Predicate:
    return lambda spans: bool(spans.named(name))


def names(spans: Iterable[ReceivedSpan]) -> list[str]:
    return sorted(span.name for span in spans)


def run_report(stack: Stack, service: str = SERVICE) -> tuple[dict[str, Any], Spans]:
    result = run({**stack.environment, "OTEL_SERVICE_NAME": service}, "report")
    return result, stack.wait_for(result["trace_id"], has("run summary"))


def run_failure(stack: Stack) -> tuple[dict[str, Any], Spans]:
    result = run({**stack.environment, "OTEL_SERVICE_NAME": SERVICE}, "failure")
    return result, stack.wait_for(result["trace_id"], has("run total"))


def test_a_run_is_one_trace_and_a_tree(stack: Stack) -> None:
    result, spans = run_report(stack)
    assert result["trace_id"] == result["run_id"].replace("-", "")
    assert spans.orphans() == []
    root = spans.one("run summary")
    assert spans.roots() == [root]
    assert root.kind == "SERVER"
    others = ["run summary started", "say", "shell", "story skipped", "summary", "total"]
    tasks = ["choose", "flaky", "load", "map(double)", *others]
    assert names(spans.children(root)) == tasks
    assert names(spans.children(spans.one("flaky"))) == ["flaky attempt", "flaky attempt", "flaky wait"]
    items = spans.children(spans.one("map(double)"))
    assert sorted(item.attributes["cascade.map.index"] for item in items) == [0, 1, 2]
    assert [names(spans.children(item)) for item in items] == [["multiply"]] * 3


def test_the_tasks_own_spans_and_subprocesses_belong_to_the_trace(stack: Stack) -> None:
    result, spans = run_report(stack)
    assert result["value"] == f"v1: 12 brief {result['trace_id']}"
    for own in spans.named("multiply"):
        assert own.attributes["factor"] == 2
        assert own.attributes["cascade.run.id"] == result["run_id"]
    assert [event.name for event in spans.one("total").events] == ["added"]
    assert spans.one("total").events[0].attributes == {"numbers": 3}


def test_statuses_attributes_and_links_arrive(stack: Stack) -> None:
    _, spans = run_report(stack)
    root = spans.one("run summary")
    assert root.status == "UNSET"
    assert root.attributes["cascade.run.result"] == "success"
    assert root.attributes["cascade.run.tasks.retried"] == 1
    first, second = sorted(spans.named("flaky attempt"), key=lambda span: span.start_ns)
    assert (first.status, second.status) == ("ERROR", "UNSET")
    assert first.attributes["error.type"] == "ConnectionError"
    assert first.events[0].attributes["exception.message"] == "the first attempt always fails"
    assert "workflows.py" in first.events[0].attributes["exception.stacktrace"]
    story = spans.one("story skipped")
    assert story.attributes["cascade.task.skip.reason"] == "Pruned"
    assert [spans.by_id(link.span_id).name for link in story.links] == ["choose"]
    consumed = {spans.by_id(link.span_id).name for link in spans.one("summary").links}
    assert consumed == {"choose", "flaky", "say", "shell", "total"}
    assert {link.trace_id for span in spans for link in span.links} == {root.trace_id}


def test_durations_are_those_of_the_run(stack: Stack) -> None:
    _, spans = run_report(stack)
    root, wait = spans.one("run summary"), spans.one("flaky wait")
    assert wait.duration_ms >= 10
    assert wait.attributes["cascade.wait.reason"] == "retry"
    for span in spans:
        assert root.start_ns <= span.start_ns <= span.end_ns <= root.end_ns
    for span in spans:
        for link in span.links:
            assert spans.by_id(link.span_id).end_ns <= span.start_ns


def test_searches_find_a_run(stack: Stack) -> None:
    service = "e2e-found"
    result, spans = run_report(stack, service)
    one = {result["trace_id"]}
    assert stack.find(service) == one
    assert stack.find(service, operation="total") == one
    assert stack.find(service, operation="unknown") == set()
    assert stack.find(service, tags={"cascade.run.id": result["run_id"]}) == one
    assert stack.find(service, tags={"cascade.task.name": "say"}) == one
    assert stack.find(service, tags={"error": "true"}) == one
    assert stack.find(service, tags={"error.type": "ConnectionError"}) == one
    assert stack.find(service, tags={"error.type": "ValueError"}) == set()
    assert spans[0].resource["service.name"] == service


def test_the_trace_of_a_failed_run_has_the_error(stack: Stack) -> None:
    result, spans = run_failure(stack)
    assert result["error"] == "ValueError"
    root, failed = spans.one("run total"), spans.one("break_down")
    assert (root.status, failed.status) == ("ERROR", "ERROR")
    assert (root.attributes["error.type"], failed.attributes["error.type"]) == ("ValueError", "ValueError")
    assert failed.events[0].name == "exception"
    assert failed.events[0].attributes["exception.message"] == "cannot use [3, 1, 2]"
    assert "in break_down" in failed.events[0].attributes["exception.stacktrace"]
    assert spans.orphans() == []
    found = stack.find(SERVICE, tags={"error": "true", "cascade.run.id": result["run_id"]})
    assert found == {result["trace_id"]}


def test_a_search_finds_an_active_run(stack: Stack) -> None:
    environment = {**stack.environment, "OTEL_SERVICE_NAME": "e2e-live"}
    with Run(environment, "endless") as endless:
        endless.wait_for_line("running")
        waiting = set[str]()

        def started(spans: Spans) -> bool:
            return bool(spans.named("run forever started"))

        while not waiting:
            waiting = stack.find("e2e-live", operation="run forever started")
        (trace_id,) = waiting
        assert not stack.wait_for(trace_id, started).named("run forever")
        endless.process.send_signal(signal.SIGTERM)
        assert endless.result()["trace_id"] == trace_id
    spans = stack.wait_for(trace_id, has("run forever"))
    assert spans.orphans() == []
    assert spans.one("run forever").attributes["cascade.run.result"] == "cancellation"
    assert spans.one("forever").attributes["cascade.task.result"] == "cancellation"


def test_jaegers_page_has_references_logs_and_no_warnings(processes: Processes) -> None:
    result, spans = run_report(processes)
    page = processes.jaeger.page(result["trace_id"])
    shown = {span["spanID"]: span for span in page["spans"]}
    assert len(shown) == len(spans)
    summary = shown[spans.one("summary").span_id]
    kinds = sorted(reference["refType"] for reference in summary["references"])
    assert kinds == ["CHILD_OF", *["FOLLOWS_FROM"] * 5]
    (log,) = shown[spans.one("total").span_id]["logs"]
    assert {"key": "event", "type": "string", "value": "added"} in log["fields"]
    (process,) = page["processes"].values()
    assert process["serviceName"] == SERVICE
    warnings = [warning for span in page["spans"] for warning in span.get("warnings") or ()]
    assert warnings == []


def test_jaeger_shows_a_wait_below_its_item_with_the_times_as_measured(processes: Processes) -> None:
    result = run({**processes.environment, "OTEL_SERVICE_NAME": "e2e-waits"}, "narrow")
    spans = processes.wait_for(result["trace_id"], has("run count"))
    page = processes.jaeger.page(result["trace_id"])
    parents = {span["spanID"]: [one["spanID"] for one in span["references"]] for span in page["spans"]}
    waits = spans.named("brief wait")
    assert len(waits) == 2
    for wait in waits:
        (item,) = (spans.by_id(parent) for parent in parents[wait.span_id])
        assert (item.name, item.attributes["cascade.map.index"]) == ("brief", wait.attributes["cascade.map.index"])
        assert wait.start_ns < wait.end_ns <= item.start_ns
    # The page's API compares the clocks of all spans. The newer API skips spans with the same `host.name`.
    warned = {span["spanID"]: span["warnings"] for span in page["spans"] if span.get("warnings")}
    assert warned.keys() <= {wait.span_id for wait in waits}
    assert all("not applying" in warning for warnings in warned.values() for warning in warnings)
    assert [span.name for span in spans if "@jaeger@warnings" in span.attributes] == []


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_both_protocols_arrive(processes: Processes, protocol: str) -> None:
    port = processes.ports.otlp_grpc if protocol == "grpc" else processes.ports.otlp_http
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": processes.ports.url(port),
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
    }
    result = run(environment, "report")
    assert processes.wait_for(result["trace_id"], has("run summary")).orphans() == []
