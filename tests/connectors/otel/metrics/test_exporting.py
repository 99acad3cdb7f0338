"""When exports happen, and that threads and periods add up."""

import asyncio
import threading
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascade.connectors.otel.metrics import RunMetrics
from cascade.connectors.otel.metrics.aggregation import Histogram
from cascade.connectors.otel.metrics.catalogue import BOUNDS
from tests.connectors.otel.metrics import messages
from tests.connectors.otel.metrics.exports import exporting, latest, values
from tests.connectors.otel.tracing import Collector
from tests.lab.waiting import HANG


def test_exports_happen_by_themselves(collector: Collector) -> None:
    collector.receiver.clear()
    with exporting(collector.endpoint, collector.protocol, OTEL_METRIC_EXPORT_INTERVAL="1") as metrics:
        metrics.publish(messages.task())
        collector.receiver.wait_for_requests(1)
        metrics.publish(messages.task())
        collector.receiver.wait_for_requests(2)
        metrics.flush(HANG)
        assert values(latest(collector.receiver)["cascade.task.duration"]) == {("work", "success"): 2}


def test_nothing_is_sent_without_news(collector: Collector) -> None:
    collector.receiver.clear()
    with exporting(collector.endpoint, collector.protocol) as metrics:
        metrics.flush(HANG)
        metrics.publish(messages.task())
        for _ in range(3):
            metrics.flush(HANG)
        metrics.close(HANG)
        metrics.publish(messages.task())
        metrics.flush(HANG)
    assert len(collector.receiver.requests) == 1


def test_threads_lose_nothing(collector: Collector) -> None:
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
        metrics.flush(HANG)
        assert sum(values(latest(collector.receiver)["cascade.task.duration"]).values()) == 8000


async def test_the_event_loop_is_not_held_up(collector: Collector) -> None:
    collector.receiver.clear()
    with exporting(collector.endpoint, collector.protocol) as metrics:
        for payload in (messages.started(), messages.task(), messages.skipped(), messages.stopped()):
            metrics.publish(payload)
        await asyncio.to_thread(metrics.flush, HANG)
        await asyncio.to_thread(metrics.close, HANG)
    assert len(collector.receiver.metrics) == 1


@given(st.lists(st.floats(0, 10_000), min_size=1), st.lists(st.floats(0, 10_000)))
def test_histograms_add_up(some: list[float], more: list[float]) -> None:
    one, other = Histogram(), Histogram()
    for histogram, measured in ((one, some), (other, more)):
        for value in measured:
            histogram.record(value, (value, 1, "a", "b"))
    one.absorb(other)
    every = some + more
    assert sum(one.counts) == len(every)
    assert one.total == pytest.approx(sum(every))
    assert (one.smallest, one.largest) == (min(every), max(every))
    assert set(one.examples) == {bisect_left(BOUNDS, value) for value in every}


def test_off_is_off() -> None:
    metrics = RunMetrics()
    metrics.publish(messages.task())
    metrics.entered()
    metrics.left()
    metrics.flush(HANG)
    metrics.close(HANG)
