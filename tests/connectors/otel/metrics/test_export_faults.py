"""Collectors that do not support metrics, are unreachable or silent; forks, and the exit of the process."""

import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.connectors.otel import servers
from tests.connectors.otel.metrics import messages
from tests.connectors.otel.metrics.exports import exporting, flush, latest, metrics_of, values
from tests.connectors.otel.tracing import Collector
from tests.lab.receiver import Fault, FaultyReceiver
from tests.lab.waiting import HANG, NEVER

TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"


@pytest.fixture
def clean(collector: Collector, caplog: pytest.LogCaptureFixture) -> Iterator[FaultyReceiver]:
    caplog.set_level(logging.DEBUG, "cascade.connectors.otel")
    collector.receiver.clear()
    yield collector.receiver
    collector.receiver.fault = None


@pytest.mark.parametrize("status", [404, 405, 501])
def test_a_collector_without_support_for_metrics_gets_one_request_and_no_warning_is_logged(
    status: int, collector: Collector, clean: FaultyReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    clean.fault = Fault(http_status=status, grpc_code="UNIMPLEMENTED", times=1)
    with exporting(collector.endpoint, collector.protocol) as metrics:
        for _ in range(3):
            metrics.publish(messages.started())
            metrics.publish(messages.task())
            flush(metrics)
    assert len(clean.requests) == 1
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


@pytest.mark.parametrize("temporality", ["cumulative", "delta"])
def test_the_next_export_repeats_values_that_were_not_accepted(
    temporality: str, collector: Collector, clean: FaultyReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    with exporting(collector.endpoint, collector.protocol, **{TEMPORALITY: temporality}) as metrics:
        for fault in (Fault.unavailable(times=1), Fault.bad_request(times=1), Fault.unauthorized(times=1), None):
            clean.fault = fault
            metrics.publish(messages.task())
            flush(metrics)
    counts = [values(metrics_of(request)["cascade.task.duration"]) for request in clean.metrics]
    assert counts == [{("work", "success"): 1}, {("work", "success"): 3 if temporality == "delta" else 4}]
    # A slow machine may add a failed attempt to connect, which has the level DEBUG too.
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname != "DEBUG"]
    assert "bad request" in warning.lower()
    debug = " ".join(record.getMessage() for record in caplog.records if record.levelname == "DEBUG").lower()
    assert "try again" in debug
    assert "credentials" in debug


def test_a_flush_exports_again_while_the_collector_answers_later(collector: Collector, clean: FaultyReceiver) -> None:
    clean.fault = Fault.unavailable(times=3)
    with exporting(collector.endpoint, collector.protocol) as metrics:
        metrics.publish(messages.task())
        flush(metrics)
        assert len(clean.requests) == 4
        assert values(latest(clean)["cascade.task.duration"]) == {("work", "success"): 1}


def test_a_failed_export_is_repeated_without_changes(collector: Collector, clean: FaultyReceiver) -> None:
    clean.fault = Fault.unavailable(times=3)
    with exporting(collector.endpoint, collector.protocol, OTEL_METRIC_EXPORT_INTERVAL="1") as metrics:
        metrics.publish(messages.task())
        clean.wait_for_requests(4)
        flush(metrics)
    assert values(latest(clean)["cascade.task.duration"]) == {("work", "success"): 1}


@pytest.mark.usefixtures("real_limits")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_an_unreachable_collector_delays_no_flush_and_logs_no_warning(
    protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    with exporting(servers.unused_endpoint(), protocol) as metrics:
        for _ in range(3):
            metrics.publish(messages.task())
            flush(metrics, NEVER)
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


@pytest.mark.usefixtures("real_limits")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_silent_collector_delays_no_flush_and_logs_no_warning(
    protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    with servers.silent_server() as endpoint, exporting(endpoint, protocol) as metrics:
        for _ in range(3):
            metrics.publish(messages.task())
            flush(metrics, NEVER)
        metrics.reserve(NEVER)
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


def test_a_flush_ends_at_its_limit_while_the_collector_hangs(
    collector: Collector, clean: FaultyReceiver, limits: pytest.MonkeyPatch
) -> None:
    with exporting(collector.endpoint, collector.protocol) as metrics:
        metrics.publish(messages.task())
        flush(metrics)
        clean.fault = Fault.silence()
        limits.undo()
        metrics.publish(messages.task())
        flush(metrics, 0.01)
        metrics.publish(messages.task())
        flush(metrics, NEVER)
        assert len(clean.metrics) == 1


@pytest.mark.usefixtures("real_limits")
def test_an_invalid_certificate_causes_no_warning_of_the_metrics(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    with exporting("https://127.0.0.1:1", OTEL_EXPORTER_OTLP_CERTIFICATE=str(empty)) as metrics:
        metrics.publish(messages.task())
        flush(metrics, NEVER)
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


def test_concurrent_flushes_all_end(collector: Collector, clean: FaultyReceiver) -> None:
    with exporting(collector.endpoint, collector.protocol) as metrics:

        def run() -> None:
            for _ in range(20):
                metrics.publish(messages.task())
                flush(metrics, NEVER)

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert values(latest(clean)["cascade.task.duration"]) == {("work", "success"): 80}


PROGRAM = """
import os, sys
from tests.connectors.otel.metrics import messages
from tests.connectors.otel.metrics.exports import RESOURCE, flush
from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.buffer import FlushReport
from cascade.connectors.otel.metrics import RunMetrics
from tests.lab.time_limits import raise_time_limits

if "live" in sys.argv:
    raise_time_limits()
options = ExportOptions.from_environment(endpoint=sys.argv[1], protocol=sys.argv[2], signal="metrics")
metrics = RunMetrics.for_endpoint(lambda: RESOURCE, options, lambda make: make())
"""


def program(code: str, endpoint: str, protocol: str, *, is_live: bool = True) -> None:
    # Python 3.12 and later warn of a fork beside threads.
    options = ["-W", "ignore:This process:DeprecationWarning"]
    command = [
        sys.executable,
        *options,
        "-c",
        PROGRAM + textwrap.dedent(code),
        endpoint,
        protocol,
        *(["live"] if is_live else []),
    ]
    environ = {**os.environ, "GRPC_VERBOSITY": "NONE"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG, check=False, env=environ)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_forked_child_starts_at_zero(collector: Collector, clean: FaultyReceiver) -> None:
    program(
        """
        sent = [5]
        metrics.add_report("traces", lambda: FlushReport(sent=sent[0]))
        metrics.publish(messages.started("parents"))
        metrics.start_task('a')
        metrics.publish(messages.task("both"))
        flush(metrics, 100)
        metrics.publish(messages.task("parents"))
        if os.fork() == 0:
            metrics.end_task('a')
            metrics.publish(messages.started("childs"))
            sent[0] = 7
            metrics.publish(messages.task("both"))
            flush(metrics, 100)
            os._exit(0)
        assert os.wait()[1] == 0
        """,
        collector.endpoint,
        collector.protocol,
    )
    before, child, parent = (metrics_of(request) for request in clean.metrics)
    durations = [values(one["cascade.task.duration"]) for one in (before, child, parent)]
    assert durations == [
        {("both", "success"): 1},
        {("both", "success"): 1},
        {("both", "success"): 1, ("parents", "success"): 1},
    ]
    assert values(child["cascade.task.active"]) == {(): 0}
    assert values(child["cascade.run.active"]) == {(): 1}
    assert values(child["cascade.telemetry.sent"]) == {("traces",): 2}
    assert values(parent["cascade.task.active"]) == {(): 1}


def test_the_process_exports_before_it_exits(collector: Collector, clean: FaultyReceiver) -> None:
    program("metrics.publish(messages.task())", collector.endpoint, collector.protocol)
    assert values(latest(clean)["cascade.task.duration"]) == {("work", "success"): 1}


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_process_with_an_unreachable_collector_exits(protocol: str) -> None:
    program("metrics.publish(messages.task())", servers.unused_endpoint(), protocol, is_live=False)
    with servers.silent_server() as endpoint:
        program("metrics.publish(messages.task())", endpoint, protocol, is_live=False)


def test_the_first_export_imports_the_metrics_of_the_sdk(collector: Collector) -> None:
    program(
        """
        metrics.publish(messages.task())
        assert "opentelemetry.sdk.metrics" not in sys.modules
        flush(metrics, 100)
        assert "opentelemetry.sdk.metrics" in sys.modules
        """,
        collector.endpoint,
        collector.protocol,
    )
