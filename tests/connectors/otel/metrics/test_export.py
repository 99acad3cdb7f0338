"""Times of exports, and sums over threads and periods."""

import asyncio
import threading
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.connectors.otel.metrics.aggregation import Histogram
from cascade.connectors.otel.metrics.catalogue import BOUNDS
from tests.connectors.otel.metrics import messages
from tests.connectors.otel.metrics.exports import exporting, flush, latest, values
from tests.connectors.otel.tracing import Collector


def test_changes_are_exported_periodically(collector: Collector) -> None:
    collector.receiver.clear()
    with exporting(collector.endpoint, collector.protocol, OTEL_METRIC_EXPORT_INTERVAL="1") as metrics:
        metrics.publish(messages.task())
        collector.receiver.wait_for_requests(1)
        metrics.publish(messages.task())
        collector.receiver.wait_for_requests(2)
        flush(metrics)
        assert values(latest(collector.receiver)["cascade.task.duration"]) == {("work", "success"): 2}


def test_no_export_without_changes(collector: Collector) -> None:
    collector.receiver.clear()
    with exporting(collector.endpoint, collector.protocol) as metrics:
        flush(metrics)
        metrics.publish(messages.task())
        for _ in range(3):
            flush(metrics)
    metrics.publish(messages.task())
    flush(metrics)
    assert len(collector.receiver.requests) == 1


def test_measurements_of_concurrent_threads_are_complete(collector: Collector) -> None:
    collector.receiver.clear()
    with exporting(collector.endpoint, collector.protocol, OTEL_METRIC_EXPORT_INTERVAL="1") as metrics:

        def publish() -> None:
            for number in range(2000):
                metrics.publish(messages.task(f"task {number % 3}"))

        threads = [threading.Thread(target=publish) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        flush(metrics)
        assert sum(values(latest(collector.receiver)["cascade.task.duration"]).values()) == 8000


async def test_publish_and_flush_do_not_block_the_event_loop(collector: Collector) -> None:
    collector.receiver.clear()
    with exporting(collector.endpoint, collector.protocol) as metrics:
        for payload in (messages.started(), messages.task(), messages.skipped(), messages.stopped()):
            metrics.publish(payload)
        await asyncio.to_thread(flush, metrics)
    assert len(collector.receiver.metrics) == 1


@given(st.lists(st.floats(0, 10_000), min_size=1), st.lists(st.floats(0, 10_000)))
def test_merged_histograms_equal_one_histogram(some: list[float], more: list[float]) -> None:
    one, other = Histogram(), Histogram()
    for histogram, measured in ((one, some), (other, more)):
        for value in measured:
            histogram.record(value, (value, 1, "a", "b"))
    one.merge(other)
    every = some + more
    assert sum(one.counts) == len(every)
    assert one.total == pytest.approx(sum(every))
    assert (one.minimum, one.maximum) == (min(every), max(every))
    assert set(one.exemplars) == {bisect_left(BOUNDS, value) for value in every}
