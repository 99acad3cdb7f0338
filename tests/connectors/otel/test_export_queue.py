import contextlib
import logging
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, TracerProvider

from cascade.connectors.otel.buffer import FlushReport, estimate
from cascade.connectors.otel.encode import Envelope, encode
from cascade.connectors.otel.export_queue import Bounds, ExportQueue
from cascade.connectors.otel.health import ItemLabel
from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.reply import Reply
from cascade.connectors.otel.sender import MAX_BODY, MAX_SENDERS
from cascade.connectors.otel.transport import open_transport
from tests.connectors.otel import servers
from tests.connectors.otel.conftest import MakeSpan
from tests.lab.waiting import HANG, NEVER, until_blocking


@contextlib.contextmanager
def open_queue(endpoint: str, protocol: str = "http/protobuf", **more: Any) -> Iterator[ExportQueue]:
    options = ExportOptions.from_environment(endpoint=endpoint, protocol=protocol, environ={})
    made = ExportQueue(lambda: open_transport(options), **more)
    try:
        yield made
    finally:
        made.close(0)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeTransport:
    """Transport in memory, whose replies a function returns at once."""

    def __init__(self, reply: Callable[[bytes], Reply] = lambda _: Reply("accepted")) -> None:
        self.reply = reply
        self.sizes: list[int] = []
        self.is_closed = threading.Event()

    def send(self, body: bytes, timeout: float) -> Reply:
        self.sizes.append(len(body))
        return self.reply(body)

    def close(self) -> None:
        self.is_closed.set()


def adds_up(report: FlushReport) -> bool:
    return report.put == report.sent + report.lost + report.pending


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_spans_of_many_threads_are_delivered_once(protocol: str, make_span: MakeSpan) -> None:
    with (
        servers.http_server() if protocol != "grpc" else servers.grpc_server() as server,
        open_queue(server.endpoint, protocol) as queue,
    ):
        threads = [
            threading.Thread(target=lambda n=n: [queue.put(make_span(f"{n}-{i}")) for i in range(500)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert queue.flush(HANG) == FlushReport(put=2000, sent=2000)
        expected = sorted(f"{n}-{i}" for n in range(4) for i in range(500))
        assert sorted(servers.span_names(server.bodies)) == expected


def test_a_span_is_sent_without_a_flush(make_span: MakeSpan) -> None:
    with servers.http_server() as server, open_queue(server.endpoint) as queue:
        queue.put(make_span())
        assert server.received.acquire(timeout=HANG)


@pytest.mark.parametrize("count", [1, 4])
def test_urgent_spans_and_full_batches_do_not_wait_for_the_delay(count: int, make_span: MakeSpan) -> None:
    with servers.http_server() as server, open_queue(server.endpoint, schedule_delay=600, batch_size=4) as queue:
        for _ in range(count):
            queue.put(make_span(), urgent=count == 1)
        assert server.received.acquire(timeout=HANG)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_flush_ends_early_if_the_connection_is_refused(protocol: str, make_span: MakeSpan) -> None:
    with open_queue(servers.unused_endpoint(), protocol) as queue:
        for count in (1, 2):
            queue.put(make_span())
            report = queue.flush(NEVER)
            assert adds_up(report)
            assert (report.sent, report.lost, report.pending, report.reason) == (0, 0, count, "connection refused")


@pytest.mark.usefixtures("real_limits")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_flush_ends_early_if_no_response_arrives(protocol: str, make_span: MakeSpan) -> None:
    with servers.silent_server() as endpoint, open_queue(endpoint, protocol) as queue:
        for count in (1, 2):
            queue.put(make_span())
            report = queue.flush(NEVER)
            assert (report.sent, report.lost, report.pending) == (0, 0, count)
            assert report.reason.startswith("no answer within")


RETRYABLE = [(429, {}), (502, {}), (503, {}), (504, {}), (503, {"Retry-After": "1"})]


@pytest.mark.parametrize(("status", "headers"), RETRYABLE)
def test_a_flush_continues_after_retryable_responses(status: int, headers: dict[str, str], make_span: MakeSpan) -> None:
    with servers.http_server() as server, open_queue(server.endpoint) as queue:
        server.responses = [(status, headers, b"")] * 2
        queue.put(make_span("kept"))
        report = queue.flush(HANG)
        assert (report.sent, report.retried, report.lost) == (1, 1, 0)
        assert servers.span_names(server.bodies) == ["kept"]


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_retryable_grpc_codes_are_retried(code: grpc.StatusCode, make_span: MakeSpan) -> None:
    with servers.grpc_server() as server, open_queue(server.endpoint, "grpc", schedule_delay=0) as queue:
        server.code = code
        queue.put(make_span("kept"))
        flush = queue.start_flush(HANG)
        until_blocking(lambda: len(server.metadata) >= 3)
        server.code = None
        assert (flush.wait().sent, flush.wait().lost) == (1, 0)


def test_a_flush_does_not_wait_for_a_retry_after_its_end(make_span: MakeSpan) -> None:
    with servers.http_server() as server, open_queue(server.endpoint) as queue:
        server.default_response = (503, {"Retry-After": "300"}, b"")
        queue.put(make_span())
        report = queue.flush(2 * HANG)
        assert report == FlushReport(put=1, retried=1, pending=1, reason="503 Service Unavailable")


def test_a_full_queue_delays_tasks_for_hold_timeout_of_retryable_responses(make_span: MakeSpan) -> None:
    clock = Clock()
    replied = threading.Semaphore(0)

    def reply(_: bytes) -> Reply:
        replied.release()
        return Reply("retry", "503 Service Unavailable", retry_after=60.0)

    span = make_span()
    queue = ExportQueue(
        lambda: FakeTransport(reply), capacity=3 * estimate(span), batch_size=1, hold_timeout=30.0, clock=clock
    )
    for _ in range(3):
        queue.put(span)
    assert replied.acquire(timeout=HANG)
    until_blocking(lambda: queue.report().retried)
    assert queue.is_full()
    clock.now += 29.9
    assert queue.is_full()
    clock.now += 0.1
    assert not queue.is_full()
    assert not queue.wait_for_capacity(NEVER)
    assert not queue.put(span)
    assert queue.put(span, important=True)
    report = queue.close(0)
    assert (report.put, report.lost, report.sent) == (5, 5, 0)
    assert report.reason == "503 Service Unavailable"


def test_a_smaller_capacity_drops_no_queued_items(make_span: MakeSpan) -> None:
    span = make_span()
    queue = ExportQueue(lambda: FakeTransport(lambda _: Reply("retry", "down", unanswered=True)))
    first, second = Clock(), Clock()  # any objects can be users
    queue.reserve(first, Bounds(4 * estimate(span), HANG, HANG))
    for _ in range(4):
        assert queue.put(span)
    queue.release(first)
    queue.reserve(second, Bounds(2 * estimate(span), HANG, HANG))
    assert not queue.put(span)
    assert queue.put(span, important=True)
    assert (queue.report().lost, queue.report().pending) == (1, 5)
    queue.close(0)


def test_a_flush_waits_for_a_slow_server_that_has_responded_before(
    make_span: MakeSpan, limits: pytest.MonkeyPatch
) -> None:
    with servers.http_server() as server, open_queue(server.endpoint) as queue:
        queue.put(make_span("first"))
        assert queue.flush(HANG).sent == 1
        limits.setattr("cascade.connectors.otel.health.FIRST_RESPONSE_WAIT", 0.0)
        server.may_respond.clear()
        queue.put(make_span("second"))
        opener = threading.Timer(0.1, server.may_respond.set)
        opener.start()
        assert queue.flush(HANG) == FlushReport(put=2, sent=2)
        opener.join()


def test_a_flush_ends_at_its_limit_and_a_late_response_counts(make_span: MakeSpan) -> None:
    """The items stay queued, and are sent after the flush."""
    with servers.http_server() as server, open_queue(server.endpoint) as queue:
        queue.put(make_span("first"))
        assert queue.flush(HANG).sent == 1
        server.may_respond.clear()
        queue.put(make_span("late"), urgent=True)
        assert server.received.acquire(timeout=HANG)
        assert server.received.acquire(timeout=HANG)
        report = queue.flush(0.2)
        assert (report.sent, report.lost, report.pending) == (1, 0, 1)
        assert report.reason.startswith("no answer within")
        server.may_respond.set()
        until_blocking(lambda: queue.report().sent == 2)
        queue.put(make_span("third"))
        assert queue.flush(HANG) == FlushReport(put=3, sent=3)
        assert servers.span_names(server.bodies) == ["first", "late", "third"]


def test_spans_of_a_failed_flush_are_delivered_after_the_outage(
    make_span: MakeSpan, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = servers.unused_endpoint()
    with open_queue(endpoint, label=ItemLabel("spans", endpoint)) as queue:
        for index in range(3):
            queue.put(make_span(str(index)))
            assert queue.starts_outage(queue.flush(NEVER)) == (index == 0), "one warning for an outage"
        with servers.http_server(int(endpoint.rpartition(":")[2])) as server:
            until_blocking(lambda: queue.report().sent == 3)
            assert sorted(servers.span_names(server.bodies)) == list("012")
            until_blocking(lambda: caplog.messages)
    (message,) = caplog.messages
    assert message.startswith(f"OtelConnector: the outage at {endpoint} is over after ")
    assert message.endswith(" s: 3 spans were delivered late")


def test_the_end_of_an_outage_logs_the_number_of_lost_spans(
    make_span: MakeSpan, caplog: pytest.LogCaptureFixture
) -> None:
    is_back = threading.Event()
    span = make_span()
    transport = FakeTransport(
        lambda _: Reply("accepted") if is_back.is_set() else Reply("retry", "down", unanswered=True)
    )
    queue = ExportQueue(lambda: transport, capacity=2 * estimate(span))
    counters = queue.new_counters()
    queue.put(span, counters=counters)
    assert queue.starts_outage(queue.flush(NEVER, counters=counters))
    counters = queue.new_counters()
    for _ in range(4):
        queue.put(span, counters=counters)
    report = queue.flush(NEVER, counters=counters)
    assert (report.pending, report.lost) == (1, 3)
    assert queue.starts_outage(report), "the first loss causes a warning"
    assert not queue.starts_outage(report)
    is_back.set()
    until_blocking(lambda: caplog.messages)
    assert caplog.messages[0].endswith(" s: 2 spans were delivered late, 3 were lost: down")


@pytest.mark.parametrize("accepted", [0, 1])
def test_the_exit_logs_the_losses_of_an_outage_once(
    accepted: int, make_span: MakeSpan, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning has counted the three spans as not yet delivered. If all are lost at the exit, there is no second one."""
    down = Reply("retry", "down", unanswered=True)
    is_back, answers = threading.Event(), iter([Reply("accepted")] * accepted)
    transport = FakeTransport(lambda _: next(answers, down) if is_back.is_set() else down)
    queue = ExportQueue(lambda: transport, batch_size=1)
    for _ in range(3):
        queue.put(make_span())
    assert queue.starts_outage(queue.flush(NEVER))
    is_back.set()
    until_blocking(lambda: queue.report().sent == accepted)
    queue.start_exit()()
    lines = ["OtelConnector: 2 spans were lost when the process ended: down"] if accepted else []
    assert caplog.messages == lines


def test_the_exit_logs_losses_that_no_warning_has_counted(
    make_span: MakeSpan, caplog: pytest.LogCaptureFixture
) -> None:
    """Warnings have counted one queued span and three lost ones. A second span is queued at the exit."""
    span = make_span()
    transport = FakeTransport(lambda _: Reply("retry", "down", unanswered=True))
    queue = ExportQueue(lambda: transport, capacity=2 * estimate(span))
    for puts in (1, 4):
        counters = queue.new_counters()
        for _ in range(puts):
            queue.put(span, counters=counters)
        report = queue.flush(NEVER, counters=counters)
        if puts == 1:
            assert queue.starts_outage(report)
    assert queue.starts_outage(FlushReport(put=3, lost=3, reason="down"))
    queue.start_exit()()
    (message,) = caplog.messages
    assert message == "OtelConnector: 2 spans were lost when the process ended: down"


def test_each_loss_without_an_outage_causes_a_warning(make_span: MakeSpan) -> None:
    queue = ExportQueue(lambda: FakeTransport(lambda _: Reply("refused", "400 Bad Request")))
    for _ in range(2):
        counters = queue.new_counters()
        queue.put(make_span(), counters=counters)
        report = queue.flush(HANG, counters=counters)
        assert report == FlushReport(put=1, lost=1, reason="400 Bad Request")
        assert queue.starts_outage(report)


def test_a_server_that_starts_later_receives_all_spans(make_span: MakeSpan) -> None:
    endpoint = servers.unused_endpoint()
    transport = open_transport(ExportOptions.from_environment(endpoint=endpoint, environ={}))
    replied = threading.Semaphore(0)

    class Watched(FakeTransport):
        def send(self, body: bytes, timeout: float) -> Reply:
            reply = transport.send(body, timeout)
            replied.release()
            return reply

    queue = ExportQueue(Watched, schedule_delay=0)
    for index in range(5):
        queue.put(make_span(str(index)))
    assert replied.acquire(timeout=HANG)
    with servers.http_server(int(endpoint.rpartition(":")[2])) as server:
        # Without a flush the queue retries, too.
        assert server.received.acquire(timeout=HANG)
        assert queue.flush(HANG).sent == 5
        assert sorted(servers.span_names(server.bodies)) == list("01234")
    transport.close()
    queue.close()


def test_a_retried_batch_arrives_once_and_is_counted_as_retried(make_span: MakeSpan) -> None:
    with servers.http_server() as server, open_queue(server.endpoint) as queue:
        server.responses = [(429, {}, b""), (429, {"Retry-After": "0"}, b"")]
        queue.put(make_span("once"))
        assert queue.flush(HANG) == FlushReport(put=1, sent=1, retried=1, reason="429 Too Many Requests")
        assert servers.span_names(server.bodies) == ["once"]


def test_only_the_spans_of_a_refused_request_are_lost(make_span: MakeSpan) -> None:
    with servers.http_server() as server, open_queue(server.endpoint) as queue:
        server.responses = [(400, {}, b"")]
        queue.put(make_span("bad"))
        assert queue.flush(HANG) == FlushReport(put=1, lost=1, reason="400 Bad Request")
        queue.put(make_span("good"))
        assert queue.flush(HANG).sent == 1


def test_the_rejected_spans_of_a_partial_success_are_lost(make_span: MakeSpan) -> None:
    queue = ExportQueue(lambda: FakeTransport(lambda _: Reply("accepted", "too old", rejected=2)))
    for _ in range(5):
        queue.put(make_span())
    assert queue.close() == FlushReport(put=5, sent=3, lost=2, reason="rejected: too old")


def test_memory_is_bounded(make_span: MakeSpan) -> None:
    span = make_span()
    gate = threading.Event()
    transport = FakeTransport(lambda _: Reply("accepted") if gate.wait(HANG) else Reply("refused"))
    queue = ExportQueue(lambda: transport, capacity=3 * estimate(span))
    assert [queue.put(span) for _ in range(5)] == [True, True, True, False, False]
    assert queue.report() == FlushReport(put=5, lost=2, pending=3, reason="more than fits in memory")
    gate.set()
    assert queue.flush(HANG).sent == 3
    assert queue.put(span)
    queue.close()


@pytest.mark.parametrize("attributes", [0, 10])
def test_the_estimated_size_is_close_to_the_memory_of_a_span(attributes: int) -> None:
    tracer = TracerProvider().get_tracer("tests")
    spans = []
    tracemalloc.start()
    for index in range(500):
        span = tracer.start_span("task", attributes={f"k{n}": f"value-{index}-{n}" for n in range(attributes)})
        span.end()
        spans.append(cast("Span", span)._readable_span())
    held = tracemalloc.get_traced_memory()[0] / len(spans)
    tracemalloc.stop()
    assert 0.6 < estimate(spans[0]) / held < 1.7


@pytest.mark.injects_errors("a lone surrogate")
def test_only_a_span_that_cannot_be_encoded_is_lost(make_span: MakeSpan, caplog: pytest.LogCaptureFixture) -> None:
    with servers.http_server() as server, open_queue(server.endpoint) as queue:
        for name in ("a", "lone \ud800 surrogate", "b"):
            queue.put(make_span(name, {"key": "other \udfff surrogate"}))
        assert queue.flush(HANG) == FlushReport(put=3, sent=2, lost=1, reason="it cannot be encoded")
        assert servers.span_names(server.bodies) == ["a", "b"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_bodies_stay_below_the_limit_and_a_larger_span_is_sent_alone(make_span: MakeSpan) -> None:
    transport = FakeTransport()
    queue = ExportQueue(lambda: transport, schedule_delay=600)
    for size in (MAX_BODY // 2, MAX_BODY // 2, 10, MAX_BODY * 2, 10):
        queue.put(make_span(attributes={"text": "x" * size}))
    assert queue.close().sent == 5
    assert sorted(size > MAX_BODY for size in transport.sizes).count(True) == 1
    assert len(transport.sizes) > 2


def test_a_batch_that_is_too_large_for_the_server_is_split(make_span: MakeSpan) -> None:
    limit = 20_000
    transport = FakeTransport(
        lambda body: Reply("refused", "413", too_large=True) if len(body) > limit else Reply("accepted")
    )
    queue = ExportQueue(lambda: transport)
    for index in range(100):
        queue.put(make_span(attributes={"text": "x" * (limit if index == 50 else 1000)}))
    assert queue.close(HANG) == FlushReport(put=100, sent=99, lost=1, reason="413")


def test_a_batch_is_split_after_several_retryable_responses(
    make_span: MakeSpan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue of an overloaded collector may be smaller than the batch."""
    monkeypatch.setattr("cascade.connectors.otel.health.MAX_BUSY_FLUSH_BACKOFF", 0.001)
    limit = 30_000
    transport = FakeTransport(
        lambda body: Reply("retry", "503 queue is full") if len(body) > limit else Reply("accepted")
    )
    queue = ExportQueue(lambda: transport, schedule_delay=600)
    for _ in range(400):
        queue.put(make_span(attributes={"text": "x" * 200}))
    report = queue.flush(HANG)
    assert (report.sent, report.retried, report.lost) == (400, 400, 0)
    assert queue.close(0).pending == 0


def test_each_run_has_its_own_count(make_span: MakeSpan) -> None:
    with open_queue(servers.unused_endpoint(), schedule_delay=0) as queue:
        one, other = queue.new_counters(), queue.new_counters()
        for _ in range(3):
            queue.put(make_span(), counters=one)
            queue.put(make_span(), counters=other)
        queue.put(make_span(), counters=other)
        assert queue.flush(HANG, counters=one).pending == 3
        assert queue.flush(HANG, counters=other).pending == 4
        assert (queue.report().put, queue.report().lost, queue.report().pending) == (7, 0, 7)
        assert queue.close(0).lost == 7


def test_flushes_at_the_same_time(make_span: MakeSpan) -> None:
    with servers.http_server() as server, open_queue(server.endpoint) as queue:
        reports: list[FlushReport] = []

        def run() -> None:
            counters = queue.new_counters()
            for _ in range(50):
                queue.put(make_span(), counters=counters)
            reports.append(queue.flush(HANG, counters=counters))

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert reports == [FlushReport(put=50, sent=50)] * 8
        assert queue.report() == FlushReport(put=400, sent=400)


def test_after_close_spans_are_refused_and_the_connection_is_closed(make_span: MakeSpan) -> None:
    transport = FakeTransport()
    queue = ExportQueue(lambda: transport)
    queue.put(make_span())
    assert queue.close() == FlushReport(put=1, sent=1)
    assert transport.is_closed.wait(HANG)
    assert not queue.put(make_span())
    assert queue.close() == FlushReport(put=2, sent=1, lost=1, reason="closed")


def test_the_reason_names_the_error_of_a_transport_that_cannot_be_opened(make_span: MakeSpan) -> None:
    def fail() -> FakeTransport:
        raise OSError("no such certificate")

    queue = ExportQueue(fail)
    queue.put(make_span())
    assert queue.close() == FlushReport(put=1, lost=1, reason="cannot export: no such certificate")


def test_an_exception_of_a_transport_loses_only_its_batch(make_span: MakeSpan) -> None:
    answers = iter([ZeroDivisionError("ours")])

    def reply(_: bytes) -> Reply:
        if error := next(answers, None):
            raise error
        return Reply("accepted")

    queue = ExportQueue(lambda: FakeTransport(reply))
    queue.put(make_span())
    assert queue.flush(HANG).reason == "ZeroDivisionError: ours"
    queue.put(make_span())
    assert queue.close(HANG).sent == 1


def test_requests_of_the_export_are_not_instrumented(make_span: MakeSpan) -> None:
    seen = []

    def reply(_: bytes) -> Reply:
        keys = (context._SUPPRESS_INSTRUMENTATION_KEY, context._SUPPRESS_HTTP_INSTRUMENTATION_KEY)
        seen.append([context.get_value(key) for key in keys])
        return Reply("accepted")

    queue = ExportQueue(lambda: FakeTransport(reply))
    queue.put(make_span())
    queue.close()
    assert seen == [[True, True]]


@pytest.mark.parametrize("limit", [{"capacity": 0}, {"batch_size": 0}, {"schedule_delay": -1}, {"request_timeout": 0}])
def test_invalid_limits(limit: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="above zero"):
        ExportQueue(FakeTransport, **limit)


def test_an_important_span_replaces_the_oldest_that_are_not(make_span: MakeSpan) -> None:
    may_open = threading.Event()

    def open_late() -> FakeTransport:
        may_open.wait(HANG)  # until then nothing is sent
        return FakeTransport()

    size = estimate(make_span())
    queue = ExportQueue(open_late, capacity=3 * size)
    assert [queue.put(make_span(), important=True)] + [queue.put(make_span()) for _ in range(2)] == [True] * 3
    assert queue.put(make_span(), important=True)
    assert queue.put(make_span(), important=True)
    assert not queue.put(make_span(), important=True), "nothing is left that matters less"
    assert queue.report() == FlushReport(put=6, lost=3, pending=3, reason="more than fits in memory")
    may_open.set()
    assert queue.close(HANG).sent == 3


def test_a_slow_server_receives_several_requests_at_once(make_span: MakeSpan) -> None:
    together = threading.Barrier(3)
    first, all_put = threading.Event(), threading.Event()

    def reply(_: bytes) -> Reply:
        if not first.is_set():
            assert all_put.wait(HANG)  # so that another thread starts for a waiting batch
            time.sleep(0.03)  # above the limit for a slow response
            first.set()
        else:
            together.wait(HANG)  # passes only with three requests at once
        return Reply("accepted")

    queue = ExportQueue(lambda: FakeTransport(reply), batch_size=1)
    for _ in range(1 + 3 * 4):
        queue.put(make_span())
    all_put.set()
    assert queue.close(HANG) == FlushReport(put=13, sent=13)


def test_an_unreachable_server_receives_one_request_at_a_time(
    make_span: MakeSpan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cascade.connectors.otel.health.MAX_BACKOFF", 0.001)
    sent, sending, most = 0, 0, 0
    lock = threading.Lock()

    def reply(_: bytes) -> Reply:
        nonlocal sent, sending, most
        with lock:
            sent += 1
            number = sent
            is_late = number > 5 + MAX_SENDERS  # these requests may have been sent before the first failure
            sending += is_late
            most = max(most, sending)
        if number > 5:  # a response would end the failure
            until_blocking(lambda: queue.report().sent == 5)
        time.sleep(0.03)  # slow enough for several requests at once
        with lock:
            sending -= is_late
        return Reply("accepted") if number <= 5 else Reply("retry", "down", unanswered=True)

    queue = ExportQueue(lambda: FakeTransport(reply), batch_size=1)
    for _ in range(40):
        queue.put(make_span())
    until_blocking(lambda: sent > 10 + MAX_SENDERS)
    report = queue.close(0)
    assert (report.sent, report.lost) == (5, 35)
    assert most == 1


REPLIES = st.sampled_from(
    [
        Reply("accepted"),
        Reply("accepted", "some", rejected=2),
        Reply("accepted", "absurd", rejected=10**9),
        Reply("refused", "bad"),
        Reply("refused", "large", too_large=True),
        Reply("retry", "busy", retry_after=0.0),
        Reply("retry", "gone", unanswered=True),
        Reply("retry", "later", retry_after=60.0),
    ]
)


ACTIONS = [
    "put",
    "put urgent",
    "put important",
    "put encoded",
    "put encoded",
    "put encoded",
    "put encoded important",
    "flush one",
    "flush all",
]


@settings(max_examples=60)
@given(
    replies=st.lists(REPLIES, max_size=8),
    actions=st.lists(st.sampled_from(ACTIONS), max_size=40),
    capacity=st.sampled_from([500, 10_000, 100_000]),
)
def test_the_counts_always_add_up(replies: list[Reply], actions: list[str], capacity: int, make_span: MakeSpan) -> None:
    coming = iter(replies)
    pack = partial(encode, envelope=Envelope(partial(Resource, {})))
    transport = FakeTransport(lambda _: next(coming, Reply("accepted")))
    queue = ExportQueue(lambda: transport, encode=pack, batch_size=3, capacity=capacity)
    all_counters = [queue.new_counters(), queue.new_counters()]
    for index, action in enumerate(actions):
        counters = all_counters[index % 2]
        match action:
            case "flush one":
                assert adds_up(queue.flush(0.05, counters=counters))
            case "flush all":
                assert adds_up(queue.flush(0.05))
            case _:
                item = bytes(100) if "encoded" in action else make_span()
                queue.put(item, urgent="urgent" in action, important="important" in action, counters=counters)
        assert all(adds_up(queue.report(one)) for one in (None, *all_counters))
    total = queue.close(0.05)
    reports = [queue.report(counters) for counters in all_counters]
    assert total.pending == 0
    assert total.put == sum(action.startswith("put") for action in actions)
    assert total.sent == sum(report.sent for report in reports)
    assert total.lost == sum(report.lost for report in reports)
    assert min(total.sent, total.lost, total.retried) >= 0


PROGRAM = """
import os, sys
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext
from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.health import ItemLabel
from cascade.connectors.otel.export_queue import ExportQueue
from cascade.connectors.otel.transport import open_transport
from tests.lab.time_limits import raise_time_limits

raise_time_limits()

def span(name):
    return ReadableSpan(name, SpanContext(1, 1, False), start_time=1, end_time=2)

options = ExportOptions.from_environment(endpoint=sys.argv[1], protocol=sys.argv[2])
os.environ.pop("GRPC_VERBOSITY", None)
queue = ExportQueue(lambda: open_transport(options), schedule_delay=600, exit_timeout=100)
"""
QUIET_FORK = ("-W", "ignore:This process:DeprecationWarning")
"""Python 3.12 and later warn about a fork of a process with threads."""

FORK = """
counters = queue.new_counters()
queue.put(span("before"))
queue.flush(100)
queue.put(span("parent"), counters=counters)
if os.fork() == 0:
    assert queue.report(counters).put == 0
    queue.put(span("child"), counters=counters)
    report = queue.flush(100, counters=counters)
    os._exit(0 if (report.put, report.sent) == (1, 1) else 7)
assert os.wait()[1] == 0
"""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize(
    ("ending", "expected"), [(FORK, ["before", "child", "parent"]), ("queue.put(span('x'))", ["x"])]
)
def test_forks_and_exits(protocol: str, ending: str, expected: list[str]) -> None:
    program = PROGRAM + textwrap.dedent(ending)
    with servers.http_server() if protocol != "grpc" else servers.grpc_server() as server:
        command = [sys.executable, *QUIET_FORK, "-c", program, server.endpoint, protocol]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG)
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(servers.span_names(server.bodies)) == expected


EXIT = """
import atexit, threading

atexit.register(lambda: print(sum(queue.report().sent for queue in boxes)))

from cascade.connectors.otel.export_queue import ExportQueue
from cascade.connectors.otel.reply import Reply
from tests.lab.time_limits import raise_time_limits

raise_time_limits()
together = threading.Barrier(3)

class Transport:
    def send(self, body, timeout):
        together.wait(100)
        return Reply("accepted")

    def close(self):
        pass

boxes = [
    ExportQueue(Transport, encode=lambda entries: (b"body", []), schedule_delay=600, exit_timeout=100) for _ in range(3)
]
for queue in boxes:
    queue.put(b"encoded")
"""


def test_the_exit_flushes_all_destinations_at_the_same_time() -> None:
    """Each response is sent after all requests have arrived. Flushes one after the other would not end."""
    done = subprocess.run([sys.executable, "-c", EXIT], check=False, capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


def test_grpc_does_not_write_to_stderr(make_span: MakeSpan) -> None:
    program = (
        PROGRAM
        + "queue.put(span('x')); assert queue.flush(100).pending; queue.close(0); assert 'GRPC_VERBOSITY' not in os.environ"
    )
    with servers.http_server() as server:
        command = [sys.executable, "-c", program, server.endpoint.replace("http:", "https:"), "grpc"]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stderr) == (0, "")
