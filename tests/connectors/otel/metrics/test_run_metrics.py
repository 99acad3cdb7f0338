"""Metrics that a collector gets for the messages of a run."""

import threading
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.otel.buffer import FlushReport
from cascade.connectors.otel.metrics.catalogue import BOUNDS
from tests.connectors.otel.metrics import messages
from tests.connectors.otel.metrics.exports import (
    attributes,
    exported,
    exporting,
    flush,
    latest,
    metrics_of,
    points,
    values,
)
from tests.connectors.otel.tracing import Collector

TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
FILTER = "OTEL_METRICS_EXEMPLAR_FILTER"
DELTA, CUMULATIVE = 1, 2


def test_durations_are_histograms(collector: Collector) -> None:
    found = exported(
        collector,
        *(messages.task("work", seconds=seconds) for seconds in (0.0005, 0.003, 0.005, 4000)),
        messages.failed("work"),
        messages.task("other", kind="map"),
        messages.stopped(seconds=2),
        messages.stopped(result="failure", seconds=3),
    )
    tasks = found["cascade.task.duration"]
    assert tasks.unit == "s"
    good, bad = points(tasks)
    assert attributes(good) == {"cascade.task.name": "work", "cascade.task.result": "success"}
    assert (good.count, good.sum, good.min, good.max) == (4, pytest.approx(4000.0085), 0.0005, 4000)
    assert tuple(good.explicit_bounds) == BOUNDS
    buckets = {bound: count for bound, count in zip((*BOUNDS, "more"), good.bucket_counts, strict=True) if count}
    assert buckets == {0.001: 1, 0.005: 2, "more": 1}
    assert good.start_time_unix_nano < good.time_unix_nano
    assert attributes(bad) == {
        "cascade.task.name": "work",
        "cascade.task.result": "failure",
        "error.type": "ValueError",
    }
    assert values(found["cascade.run.duration"]) == {("it", "success"): 1, ("it", "failure"): 1}
    assert [point.sum for point in points(found["cascade.run.duration"])] == [2, 3]


def test_counters(collector: Collector) -> None:
    found = exported(
        collector,
        messages.pending("shaky"),
        messages.pending("shaky"),
        messages.pending("shaky", reason="resource"),
        messages.skipped("hit"),
        messages.skipped("cut", reason="Pruned"),
        messages.task(waits=[messages.wait("resource", 2), messages.wait("retry", 1)]),
        messages.skipped("held", reason="Pruned", waits=[messages.wait("resource", 0.5)]),
        messages.task(state="RUNNING"),
    )
    assert values(found["cascade.task.retries"]) == {("shaky",): 2}
    assert values(found["cascade.task.cache.hits"]) == {("hit",): 1}
    assert values(found["cascade.task.skips"]) == {("hit", "CacheHit"): 1, ("cut", "Pruned"): 1, ("held", "Pruned"): 1}
    assert values(found["cascade.task.wait.duration"]) == {("resource",): 2, ("retry",): 1}
    assert values(found["cascade.task.duration"]) == {("work", "success"): 1}
    assert found["cascade.task.retries"].sum.is_monotonic


def test_active_runs_and_tasks_are_up_down_counters(collector: Collector) -> None:
    receiver = collector.receiver
    receiver.clear()
    with exporting(collector.endpoint, collector.protocol) as metrics:
        metrics.publish(messages.started("one"))
        metrics.publish(messages.started("other"))
        threads = [threading.Thread(target=metrics.start_task, args=[name]) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        flush(metrics)
        metrics.end_task("b")
        metrics.publish(messages.stopped("one"))
        flush(metrics)
    before, after = (metrics_of(request) for request in receiver.metrics[:2])
    assert (values(before["cascade.run.active"]), values(before["cascade.task.active"])) == ({(): 2}, {(): 3})
    assert (values(after["cascade.run.active"]), values(after["cascade.task.active"])) == ({(): 1}, {(): 2})
    assert not after["cascade.run.active"].sum.is_monotonic


def test_the_resource_and_the_scope_are_those_of_the_traces(collector: Collector) -> None:
    exported(collector, messages.task())
    (resource,) = collector.receiver.metrics[-1].resource_metrics
    assert [(one.key, one.value.string_value) for one in resource.resource.attributes] == [("service.name", "tests")]
    assert resource.scope_metrics[0].scope.name == "cascade"
    assert resource.scope_metrics[0].scope.version


def test_an_exemplar_has_the_ids_of_its_span(collector: Collector) -> None:
    found = exported(
        collector,
        messages.task(seconds=0.003, span_id="0d" * 8),
        messages.task(seconds=0.004, span_id="0e" * 8),
        messages.task(seconds=2, span_id="0f" * 8),
        messages.task(seconds=60, flags=0),
    )
    (point,) = points(found["cascade.task.duration"])
    short, long = sorted(point.exemplars, key=lambda one: float(one.as_double))
    assert (short.span_id.hex(), short.trace_id.hex(), short.as_double) == ("0e" * 8, messages.TRACE, 0.004)
    assert (long.span_id.hex(), long.time_unix_nano) == ("0f" * 8, messages.START + 2 * 10**9)


@pytest.mark.parametrize(("choice", "expected"), [("trace_based", 1), ("always_on", 2), ("Always_Off", 0)])
def test_the_exemplar_filter_selects_measurements(choice: str, expected: int, collector: Collector) -> None:
    payloads = messages.task(seconds=1), messages.task(seconds=60, flags=0)
    (point,) = points(exported(collector, *payloads, **{FILTER: choice})["cascade.task.duration"])
    assert len(point.exemplars) == expected


@pytest.mark.parametrize(
    ("choice", "cells", "telemetry"),
    [
        ("", (CUMULATIVE, 2), (CUMULATIVE, 3)),
        ("DELTA", (DELTA, 1), (DELTA, 2)),
        ("lowmemory", (DELTA, 1), (CUMULATIVE, 3)),
    ],
)
def test_temporality(choice: str, cells: Any, telemetry: Any, collector: Collector) -> None:
    receiver = collector.receiver
    receiver.clear()
    sent = [1]
    with exporting(collector.endpoint, collector.protocol, **{TEMPORALITY: choice}) as metrics:
        metrics.add_report("traces", lambda: FlushReport(sent=sent[0]))
        metrics.publish(messages.started())
        for _ in range(2):
            metrics.publish(messages.task())
            metrics.publish(messages.pending())
            flush(metrics)
            sent[0] = 3
        metrics.publish(messages.stopped())
    first, second = (metrics_of(request) for request in receiver.metrics[:2])
    histogram, counter = second["cascade.task.duration"], second["cascade.task.retries"]
    sum_of_sent, active = second["cascade.telemetry.sent"], second["cascade.run.active"]
    assert (histogram.histogram.aggregation_temporality, points(histogram)[0].count) == cells
    assert (counter.sum.aggregation_temporality, points(counter)[0].as_int) == cells
    assert (sum_of_sent.sum.aggregation_temporality, points(sum_of_sent)[0].as_int) == telemetry
    assert (active.sum.aggregation_temporality, points(active)[0].as_int) == (CUMULATIVE, 1)
    before, now = points(first["cascade.task.duration"])[0], points(histogram)[0]
    expected = before.time_unix_nano if cells[0] == DELTA else before.start_time_unix_nano
    assert now.start_time_unix_nano == expected
    assert len(now.exemplars) == 1


def test_sent_lost_and_retried_telemetry_is_counted(collector: Collector) -> None:
    collector.receiver.clear()
    with exporting(collector.endpoint, collector.protocol) as metrics:
        metrics.add_report("traces", lambda: FlushReport(put=9, sent=5, lost=3, retried=2, pending=1))
        metrics.publish(messages.started())
        flush(metrics)
        found = latest(collector.receiver)
    counts = {name: values(found[f"cascade.telemetry.{name}"]) for name in ("sent", "lost", "retried")}
    assert counts == {"sent": {("traces",): 5}, "lost": {("traces",): 3}, "retried": {("traces",): 2}}


def test_a_real_run(collector: Collector) -> None:
    calls = []

    @cs.task
    def numbers() -> list[int]:
        return [1, 2, 3]

    @cs.task
    def square(n: int) -> int:
        return n * n

    @cs.task
    def shaky(squares: list[int]) -> int:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("not yet")
        return sum(squares)

    memory = MemoryConnector()
    assert cs.run(shaky(square.map(n=numbers())).with_retry(max_attempts=2), connector=memory, log_level="ERROR") == 14
    found = exported(collector, *memory.payloads)
    tasks = {("numbers", "success"): 1, ("square", "success"): 3, ("shaky", "success"): 1}
    assert values(found["cascade.task.duration"]) == tasks
    assert values(found["cascade.run.duration"]) == {("shaky", "success"): 1}
    assert values(found["cascade.task.retries"]) == {("shaky",): 1}
    assert values(found["cascade.run.active"]) == {(): 0}


def test_metrics_have_the_name_of_the_run_and_no_tags(collector: Collector) -> None:
    memory = MemoryConnector()
    value = cs.task(lambda: 1, name="value")
    cs.run([value(), value()], name="nightly", tags=["finance"], run_id="r-7", connector=memory, log_level="ERROR")
    found = exported(collector, *memory.payloads)
    assert values(found["cascade.run.duration"]) == {("nightly", "success"): 1}
    assert values(found["cascade.task.duration"]) == {("value", "success"): 2}
    exported_text = str(found)
    assert "finance" not in exported_text
    assert "r-7" not in exported_text
