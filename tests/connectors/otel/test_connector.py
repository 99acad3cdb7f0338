"""`OtelConnector`: conformance, arguments, and collectors that are unreachable, silent or unavailable."""

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.otel import OtelConnector
from cascade.connectors.report import ConnectorReport
from cascade.runtime.exceptions import TelemetryLostError
from cascade.testing import ConnectorConformance
from tests.connectors.otel import servers
from tests.connectors.otel.tracing import Collector
from tests.lab.receiver import Fault, FaultyReceiver
from tests.lab.time_limits import subprocess_environment
from tests.lab.waiting import HANG, NEVER, until_blocking


@cs.task
def one() -> int:
    return 1


@pytest.fixture
def unused_endpoint() -> str:
    return servers.unused_endpoint()


@pytest.fixture
def silent_endpoint() -> Iterator[str]:
    with servers.silent_server() as endpoint:
        yield endpoint


class _Conformance(ConnectorConformance):
    protocol: str

    @pytest.fixture(autouse=True)
    def _receiver(self, unused_endpoint: str) -> Iterator[None]:
        self.unused_endpoint = unused_endpoint
        with FaultyReceiver() as receiver:
            self.collector = Collector(receiver, self.protocol)
            yield

    def make_connector(self) -> OtelConnector:
        return self.collector.connector()

    def make_dead_connector(self) -> OtelConnector:
        return OtelConnector(self.unused_endpoint, protocol=self.protocol)


class TestOverHttp(_Conformance):
    protocol = "http/protobuf"


class TestOverGrpc(_Conformance):
    protocol = "grpc"


@pytest.mark.usefixtures("real_limits")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("server", ["unused_endpoint", "silent_endpoint"])
def test_an_unreachable_or_silent_collector_causes_one_warning(
    server: str, protocol: str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = request.getfixturevalue(server)
    assert cs.run(one(), connector=OtelConnector(endpoint, protocol=protocol, flush_timeout=NEVER)) == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "3 spans are not yet delivered" in record.getMessage()
    assert endpoint in record.getMessage()
    assert record.getMessage().count("\n") <= 2


def test_an_unavailable_collector_causes_one_warning_for_all_runs(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.receiver.clear()
    collector.receiver.fault = Fault.unavailable()
    for _ in range(2):
        assert cs.run(one(), connector=collector.connector(flush_timeout=0.2, metrics=False)) == 1
    collector.receiver.fault = None
    assert ["3 spans are not yet delivered" in message for message in caplog.messages] == [True]
    assert "try again" in caplog.messages[0]
    until_blocking(lambda: len(caplog.messages) > 1)
    assert caplog.messages[1].endswith(": 6 spans were delivered late")
    assert len(collector.receiver.spans.traces()) == 2


def test_a_run_ends_when_an_unavailable_collector_has_recovered_and_accepted_all_spans(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.receiver.clear()
    collector.receiver.fault = Fault.unavailable()

    @cs.task
    def last(x: int) -> int:
        collector.receiver.wait_for_requests(1)
        threading.Thread(target=recover).start()
        return x

    def recover() -> None:
        collector.receiver.wait_for_requests(3)
        collector.receiver.fault = None

    assert cs.run(last(one()), connector=collector.connector()) == 1
    assert {span.name for span in collector.receiver.spans} == {"run last", "run last started", "one", "last"}
    assert caplog.messages == []


@pytest.mark.usefixtures("real_limits")
@pytest.mark.parametrize("shared", [True, False], ids=["one connector", "a connector for each run"])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize("server", ["unused_endpoint", "silent_endpoint"])
def test_only_the_first_run_waits_for_an_unreachable_or_silent_collector(
    server: str,
    protocol: str,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    limits: pytest.MonkeyPatch,
    *,
    shared: bool,
) -> None:
    """Later runs would exceed the time limit of the test if they waited as long as the first one."""
    endpoint = request.getfixturevalue(server)
    logger = logging.getLogger("tests.app")

    @cs.task
    def work() -> int:
        logger.warning("record")
        return 1

    def connector() -> OtelConnector:
        return OtelConnector(endpoint, protocol=protocol, flush_timeout=NEVER, logs=True)

    made = connector()
    assert cs.run(work(), connector=made) == 1
    for limit in ("FIRST_RESPONSE_WAIT", "UNREACHABLE_WAIT"):
        limits.setattr(f"cascade.connectors.otel.health.{limit}", NEVER)
    for _ in range(3):
        assert cs.run(work(), connector=made if shared else connector()) == 1
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("cascade")]
    assert ["3 spans are not yet delivered" in message for message in messages] == [True]
    assert "1 log records are not yet delivered" in messages[0]


def test_a_collector_that_recovers_gets_all_spans(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    collector.receiver.fault = Fault.unavailable(times=1)
    spans = collector.trace_of(one())
    assert {span.name for span in spans} == {"run one", "run one started", "one"}
    assert caplog.messages == []


def test_a_partial_success_is_counted(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    collector.receiver.fault = Fault.partial_success(1, "too old", times=1)
    assert cs.run(one(), connector=collector.connector()) == 1
    assert ["1 spans were lost" in message and "too old" in message for message in caplog.messages] == [True]


RUNS = """
import sys

import cascade as cs
from cascade.connectors.otel import OtelConnector

@cs.task
def one() -> int:
    return 1

for _ in range(int(sys.argv[3])):
    cs.run(one(), connector=OtelConnector(sys.argv[1], protocol=sys.argv[2]), log_level="OFF")
"""


@pytest.mark.parametrize(("runs", "lines"), [(1, 1), (3, 2)])
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_exit_reports_lost_spans_that_no_warning_has_counted(
    runs: int, lines: int, protocol: str, unused_endpoint: str
) -> None:
    command = [sys.executable, "-c", RUNS, unused_endpoint, protocol, str(runs)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=HANG)
    warnings = done.stderr.splitlines()
    assert len(warnings) == lines
    assert "3 spans are not yet delivered" in warnings[0]
    if runs > 1:
        assert f"{3 * runs} spans were lost" in warnings[1]
        assert "connection refused" in warnings[1]


RUN = """
import sys
import cascade as cs
from cascade.connectors.otel import OtelConnector, export_queue, health
from tests.lab.time_limits import raise_time_limits

@cs.task
def one() -> int:
    return 1

"""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_the_exit_delivers_to_a_collector_that_has_recovered(protocol: str, unused_endpoint: str) -> None:
    """The collector recovers after the last retry and after the flush of the run. Only the exit waits for it."""
    program = f"""{RUN}
raise_time_limits()
health.KNOWN_UNREACHABLE_WAIT, health.INITIAL_BACKOFF = 0.0, 1000.0
cs.run(one(), connector=OtelConnector("{unused_endpoint}", protocol="{protocol}", metrics=False), log_level="OFF")
print("ended", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=subprocess_environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ended\n"
        port = int(unused_endpoint.rpartition(":")[2])
        with servers.http_server(port) if protocol != "grpc" else servers.grpc_server(port) as server:
            _, lines = process.communicate(timeout=HANG)
    assert sorted(servers.span_names(server.bodies)) == ["one", "run one", "run one started"]
    assert "3 spans were delivered late" in lines.splitlines()[1]


def test_the_exit_is_bounded_by_the_flush_timeout_for_each_signal(collector: Collector) -> None:
    """With another time limit, or without one, the exit would take longer than `HANG`."""
    collector.receiver.fault = Fault.unavailable()
    program = f"""{RUN}
from cascade.connectors.otel.metrics import export
export_queue.ExportQueue.__init__.__kwdefaults__["exit_timeout"] = export.EXIT_TIMEOUT = 2 * {HANG}
connector = OtelConnector("{collector.endpoint}", protocol="{collector.protocol}", logs=True, flush_timeout=0.05)
cs.run(one(), connector=connector, log_level="OFF")
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=HANG,
        env=subprocess_environment(),
    )
    assert len(done.stderr.splitlines()) == 1
    assert "3 spans are not yet delivered" in done.stderr


@pytest.mark.usefixtures("real_limits")
@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_spans_of_runs_during_an_outage_are_delivered_after_it(
    protocol: str, unused_endpoint: str, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        cs.run(one(), connector=OtelConnector(unused_endpoint, protocol=protocol, metrics=False))
    port = int(unused_endpoint.rpartition(":")[2])
    with servers.http_server(port) if protocol != "grpc" else servers.grpc_server(port) as server:
        until_blocking(lambda: len(caplog.messages) == 2)
        assert sorted(servers.span_names(server.bodies)) == [*["one"] * 3, *["run one"] * 3, *["run one started"] * 3]
    assert "3 spans are not yet delivered" in caplog.messages[0]
    assert "9 spans were delivered late" in caplog.messages[1]


def test_a_strict_connector_raises_an_error_for_undelivered_spans(unused_endpoint: str) -> None:
    for _ in range(2):
        with pytest.raises(
            TelemetryLostError, match=r"3 spans are not yet delivered at .*: connection refused"
        ) as caught:
            cs.run(one(), connector=OtelConnector(unused_endpoint, strict=True))
        assert (caught.value.lost, caught.value.pending) == (0, 3)


def test_the_error_of_a_strict_connector_counts_lost_and_queued_spans_separately(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.receiver.clear()
    collector.receiver.fault = Fault.bad_request(times=1)

    @cs.task
    def second() -> int:
        collector.receiver.wait_for_requests(1)
        collector.receiver.fault = Fault.throttled(retry_after=300)
        return 1

    with pytest.raises(TelemetryLostError, match="1 spans were lost and 2 spans are not yet delivered") as caught:
        cs.run(second(), connector=collector.connector(strict=True, metrics=False))
    collector.receiver.fault = None
    assert (caught.value.lost, caught.value.pending) == (1, 2)
    assert caplog.messages == []


@pytest.mark.parametrize("signal", ["traces", "metrics", "logs"])
def test_telemetry_that_a_login_page_answers_is_lost(signal: str, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tests.app")

    @cs.task
    def work() -> int:
        logger.warning("record")
        return 1

    with servers.http_server() as page, FaultyReceiver() as receiver, pytest.MonkeyPatch.context() as patch:
        page.default_response = (
            200,
            {"Content-Type": "text/html; charset=utf-8"},
            b"<!doctype html><title>Sign in</title>",
        )
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http_endpoint)
        patch.setenv(f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT", f"{page.endpoint}/v1/{signal}")
        assert cs.run(work(), connector=OtelConnector(logs=True)) == 1
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("cascade")]
    assert "the answer is not OTLP but text/html" in message
    lost = {"traces": "3 spans were lost", "metrics": "metrics were not accepted", "logs": "1 log records were lost"}
    assert lost[signal] in message


def test_the_error_of_a_run_takes_precedence_over_undelivered_spans(unused_endpoint: str) -> None:
    with pytest.raises(ZeroDivisionError):
        cs.run(cs.task(lambda: 1 / 0, name="divide")(), connector=OtelConnector(unused_endpoint, strict=True))


def test_an_unreachable_collector_does_not_affect_another_one(collector: Collector, unused_endpoint: str) -> None:
    spans = collector.trace_of(one(), connector=[OtelConnector(unused_endpoint), collector.connector()])
    assert {span.name for span in spans} == {"run one", "run one started", "one"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detail": "everything"}, "detail='everything'"),
        ({"parent": "adopt"}, "parent='adopt'"),
        ({"semconv": "mine"}, "semconv='mine'"),
        ({"capture": ["secrets"]}, "'secrets' is unknown"),
        ({"flush_timeout": 0}, "flush_timeout=0"),
        ({"flush_timeout": float("nan")}, "flush_timeout=nan"),
        ({"hold_timeout": 0}, "hold_timeout=0"),
        ({"hold_timeout": -1.0}, "hold_timeout=-1"),
        ({"endpoint": "nonsense://"}, "nonsense"),
        ({"protocol": "http/json"}, "http/json"),
        ({"tracer_provider": 5}, "tracer_provider=5"),
    ],
    ids=str,
)
def test_invalid_arguments_raise_an_error_with_their_value(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        OtelConnector(**options)


def test_concurrent_runs_share_a_connector(collector: Collector) -> None:
    connector = collector.connector()
    collector.receiver.clear()

    async def both() -> list[Any]:
        return await asyncio.gather(*(cs.run_async(one(), connector=connector, log_level="ERROR") for _ in range(2)))

    assert asyncio.run(both()) == [1, 1]
    spans = collector.receiver.spans
    assert len(spans.traces()) == 2
    assert (len(spans), spans.orphans()) == (6, [])


def test_each_of_ten_thousand_tasks_has_a_span(collector: Collector) -> None:
    @cs.task
    async def item(x: int) -> int:
        return x

    spans = collector.trace_of(item.map(x=list(range(10_000))))
    assert len(spans.named("item")) == 10_000


def test_the_report_counts_the_spans_of_the_connectors_own_runs(collector: Collector) -> None:
    collector.receiver.clear()
    connector, other = (collector.connector() for _ in range(2))
    assert connector.report() == ConnectorReport()
    cs.run(one(), connector=connector, log_level="OFF")
    cs.run(one(), connector=other, log_level="OFF")
    cs.run(one(), connector=other, log_level="OFF")
    spans = len(collector.receiver.spans)
    assert connector.report() == ConnectorReport(sent=spans // 3, connected=True)
    assert other.report() == ConnectorReport(sent=2 * spans // 3, connected=True)


def test_the_report_counts_the_spans_of_replayed_messages(collector: Collector) -> None:
    collector.receiver.clear()
    messages = MemoryConnector()
    cs.run(one(), connector=messages, log_level="OFF")
    connector = collector.connector()

    async def replay() -> None:
        await connector.connect()
        for message in messages.messages:
            await connector.publish(message.topic, message.payload)
        await connector.disconnect()

    asyncio.run(replay())
    assert connector.report() == ConnectorReport(sent=len(collector.receiver.spans), connected=True)


def test_the_report_counts_lost_spans_with_the_reason(collector: Collector) -> None:
    collector.receiver.fault = Fault(http_status=400, grpc_code="INVALID_ARGUMENT")
    connector = collector.connector()
    cs.run(one(), connector=connector, log_level="OFF")
    report = connector.report()
    assert report.lost == 3
    assert (report.sent, report.queued, report.connected) == (0, 0, True)
    assert report.last_error


def test_the_report_counts_queued_spans_while_the_collector_is_unreachable(unused_endpoint: str) -> None:
    connector = OtelConnector(unused_endpoint)
    cs.run(one(), connector=connector, log_level="OFF")
    report = connector.report()
    assert (report.sent, report.lost, report.queued, report.connected) == (0, 0, 3, False)
    assert report.last_error
