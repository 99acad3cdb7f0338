"""Limits of attribute sets, whose values come from user code, and malformed messages."""

import pytest

from cascade.connectors.otel.buffer import FlushReport
from cascade.connectors.otel.metrics.aggregation import MAX_ERROR_TYPES, MAX_NAMES, MAX_SETS, MAX_TARGETS
from cascade.connectors.otel.metrics.catalogue import METRICS
from tests.connectors.otel.metrics import messages
from tests.connectors.otel.metrics.exports import attributes, exported, exporting, flush, latest, points, values
from tests.connectors.otel.tracing import Collector

OVERFLOW = {"otel.metric.overflow": True}


def test_attribute_sets_are_limited(collector: Collector) -> None:
    found = exported(
        collector,
        *(messages.task(f"task {number}") for number in range(MAX_NAMES + 5)),
        *(messages.stopped(target=f"target {number}") for number in range(MAX_TARGETS + 5)),
        *(messages.skipped("task 0", f"reason {number}") for number in range(MAX_SETS + 5)),
        messages.task("task 0"),
        messages.pending("task 1"),
        messages.pending("task 999"),
    )
    for name, limit in (("task.duration", MAX_NAMES), ("run.duration", MAX_TARGETS), ("task.skips", MAX_SETS)):
        metric = found[f"cascade.{name}"]
        assert len(points(metric)) == limit + 1
        assert values(metric)[True,] == 5
        assert attributes(points(metric)[-1]) == OVERFLOW
    assert values(found["cascade.task.duration"])["task 0", "success"] == 2
    assert values(found["cascade.task.retries"]) == {("task 1",): 1, (True,): 1}


def test_error_types_are_limited(collector: Collector) -> None:
    found = exported(collector, *(messages.failed("work", f"Error{number}") for number in range(MAX_ERROR_TYPES + 3)))
    assert len(points(found["cascade.task.duration"])) == MAX_ERROR_TYPES + 1
    assert values(found["cascade.task.duration"])[True,] == 3


@pytest.mark.injects_errors("messages that the engine never sends")
@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"body": None},
        {"body": {"type": "TaskStateEvent"}},
        messages.task() | {"trace_id": "", "span_id": "x"},
        messages.task() | {"span_id": "f" * 99},
        messages.task(result=["unhashable"]),
        messages.task(end_ns=10**400),
        messages.task(waits=[None]),
        messages.task("lone \ud800 surrogate"),
    ],
)
def test_a_malformed_message_does_not_affect_other_messages(payload: messages.Payload, collector: Collector) -> None:
    found = exported(collector, messages.task("mine"), payload, messages.task("mine"))
    assert values(found["cascade.task.duration"])["mine", "success"] == 2


def test_every_metric_has_its_documented_attributes_and_no_ids(collector: Collector) -> None:
    payloads = messages.failed(), messages.skipped(), messages.pending(), messages.stopped()
    with exporting(collector.endpoint, collector.protocol) as metrics:
        metrics.add_report("traces", lambda: FlushReport(sent=1))
        for payload in (*payloads, messages.task(waits=[messages.wait("paused", 1)])):
            metrics.publish(payload)
        flush(metrics)
        found = latest(collector.receiver)
    assert [*found] == [metric.name for metric in METRICS]
    for metric in METRICS:
        assert found[metric.name].description == metric.description
        names = {name for point in points(found[metric.name]) for name in attributes(point)}
        assert names == set(metric.attributes)
        assert not names & {"cascade.run.id", "cascade.task.id"}
