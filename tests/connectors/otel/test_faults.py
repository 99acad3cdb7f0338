"""Runs with faulty collectors: the result of the run is unchanged, and one warning counts undelivered spans."""

import math
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace

import cascade as cs
from cascade.connectors.otel import OtelConnector
from cascade.testing import Spans
from tests.connectors.otel import servers
from tests.connectors.otel.tracing import Collector, warnings
from tests.lab.receiver import Fault, FaultyReceiver
from tests.lab.waiting import HANG

ITEMS = 300
SPANS = ITEMS + 3  # the map, the run, and its marker


@cs.task
async def double(x: int) -> int:
    return 2 * x


def run_against(connector: OtelConnector) -> None:
    result = cs.run(double.map(x=list(range(ITEMS))), connector=connector, log_level="ERROR")
    assert result == [2 * x for x in range(ITEMS)]


def assert_complete(spans: Spans) -> None:
    assert len(spans.named("double")) == ITEMS
    assert len(spans) == SPANS
    assert spans.orphans() == []


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault(delay=0.2), id="responds slowly"),
        pytest.param(Fault(disconnect=True, times=1), id="closes the connection"),
        pytest.param(Fault.unavailable(times=1), id="is unavailable"),
        pytest.param(Fault.unavailable(times=1, retry_after=0.5), id="is unavailable with Retry-After"),
        pytest.param(Fault.throttled(times=1, retry_after=1.0), id="is throttled"),
    ],
)
def test_all_spans_are_delivered_if_a_collector(
    fault: Fault, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.receiver.clear()
    collector.receiver.fault = fault
    try:
        run_against(collector.connector())
    finally:
        collector.receiver.fault = None
    assert_complete(Spans({span.span_id: span for span in collector.receiver.spans}.values()))
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(Fault.invalid_body(), "the answer is not OTLP", id="sends an invalid response"),
        pytest.param(
            Fault(http_status=400, grpc_code="INVALID_ARGUMENT", message="not like this"),
            "not like this",
            id="refuses the request",
        ),
        pytest.param(Fault.too_large(), "too large", id="refuses each span as too large"),
    ],
)
def test_one_warning_counts_the_lost_spans_if_a_collector(
    fault: Fault, reason: str, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.receiver.clear()
    collector.receiver.fault = fault
    try:
        run_against(collector.connector(metrics=False))
    finally:
        collector.receiver.fault = None
    (warning,) = warnings(caplog)
    assert warning.startswith(f"OtelConnector: {SPANS} spans were lost at {collector.endpoint}")
    assert reason in warning
    assert warning.count("\n") < 3


@pytest.mark.parametrize(
    "fault",
    [Fault(rejected_spans=2), Fault(http_status=400, grpc_code="INVALID_ARGUMENT")],
    ids=["accepts a part", "refuses"],
)
def test_the_response_of_a_collector_is_printable_and_masked(
    fault: Fault, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.receiver.clear()
    text = "\x1b]0;owned\x07 password=hunter2X9\n✅ Run finished\u202e"
    collector.receiver.fault = replace(fault, message=text)
    try:
        run_against(collector.connector(metrics=False))
    finally:
        collector.receiver.fault = None
    (warning,) = warnings(caplog)
    assert r"\x1b]0;owned\x07 password=*** ✅ Run finished\u202e" in warning
    assert warning.isprintable()


def test_a_partial_success_is_logged_with_the_reason_of_the_collector(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.receiver.clear()
    collector.receiver.fault = Fault(rejected_spans=2, message="too old")
    try:
        run_against(collector.connector(metrics=False))
    finally:
        collector.receiver.fault = None
    (warning,) = warnings(caplog)
    lost = SPANS - len(collector.receiver.spans)
    assert lost >= 2
    assert warning.startswith(f"OtelConnector: {lost} spans were lost")
    assert "too old" in warning


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(Fault(disconnect=True), "", id="always closes the connection"),
        pytest.param(Fault.throttled(retry_after=3600), "slow down", id="is throttled for an hour"),
        pytest.param(Fault.unavailable(retry_after=3600), "try again", id="is unavailable for an hour"),
    ],
)
def test_spans_stay_queued_if_a_collector(
    fault: Fault, reason: str, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.receiver.clear()
    collector.receiver.fault = fault
    try:
        # Over gRPC the receiver does not close the connection. It responds UNAVAILABLE, for which the flush waits.
        run_against(collector.connector(metrics=False, flush_timeout=1.0))
    finally:
        collector.receiver.fault = None
    (warning,) = warnings(caplog)
    assert warning.startswith(f"OtelConnector: {SPANS} spans are not yet delivered at {collector.endpoint}")
    assert reason in warning
    assert warning.count("\n") < 3


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_requests_above_the_limit_of_a_collector_are_split(protocol: str, caplog: pytest.LogCaptureFixture) -> None:
    with FaultyReceiver(max_request_bytes=20_000) as receiver:
        run_against(OtelConnector(receiver.endpoint(protocol), protocol=protocol))
        assert_complete(receiver.spans)
    assert warnings(caplog) == []


def test_a_redirect_is_not_followed_because_headers_may_be_secret(caplog: pytest.LogCaptureFixture) -> None:
    with FaultyReceiver() as elsewhere, FaultyReceiver() as receiver:
        receiver.fault = Fault(redirect=f"{elsewhere.http_endpoint}/v1/traces")
        run_against(OtelConnector(receiver.http_endpoint, headers={"authorization": "secret"}, metrics=False))
        assert elsewhere.requests == []
    (warning,) = warnings(caplog)
    assert f"{SPANS} spans were lost" in warning
    assert "307" in warning


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_self_signed_certificate_is_refused(
    protocol: str, certificate: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultyReceiver(certfile=certificate, keyfile=certificate) as receiver:
        run_against(OtelConnector(receiver.endpoint(protocol), protocol=protocol, metrics=False))
        assert receiver.requests == []
    (warning,) = warnings(caplog)
    assert f"{SPANS} spans are not yet delivered" in warning
    if protocol != "grpc":  # gRPC writes the reason to its own log only
        assert "certificate" in warning.lower()


def test_an_error_of_a_proxy_is_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def respond(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")

    with servers.raw_server(respond) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        run_against(OtelConnector("http://collector.invalid:4318", metrics=False))
    # The exporter of metrics of an earlier test may use the proxy too, and logs a warning of its own.
    (warning,) = [line for line in warnings(caplog) if "collector.invalid" in line]
    assert f"{SPANS} spans were lost" in warning
    assert "407" in warning


def test_a_collector_that_starts_during_a_run_gets_all_its_spans(caplog: pytest.LogCaptureFixture) -> None:
    port = int(servers.unused_endpoint().rpartition(":")[2])

    @cs.task
    async def last(found: list[int]) -> int:
        stack.append(servers.http_server(port))
        seen.append(stack[0].__enter__())
        return len(found)

    stack: list[Any] = []
    seen: list[servers.HttpServer] = []
    connector = OtelConnector(f"http://127.0.0.1:{port}", metrics=False)
    try:
        assert cs.run(last(double.map(x=list(range(ITEMS)))), connector=connector, log_level="ERROR") == ITEMS
        arrived = servers.span_names(seen[0].bodies)
    finally:
        stack[0].__exit__(None, None, None)
    assert len(arrived) == SPANS + 1
    assert warnings(caplog) == []


STRANGE: dict[str, Any] = {
    "text": "ü" * 3,
    "empty": "",
    "long": "x" * 1_000_000,
    "surrogate": "a\ud800b",
    "nul": "a\0b",
    "bytes": b"\xff\x00",
    "int": -(2**63),
    "too big": 2**64,
    "huge": 10**5000,
    "float": 1.5,
    "nan": math.nan,
    "inf": -math.inf,
    "yes": True,
    "none": None,
    "texts": ["a", "b"],
    "numbers": (1, 2, 3),
    "mixed": [1, "a", None],
    "many": list(range(10_000)),
    "map": {"a": 1},
    "nested": [[1], {"a": [2]}],
    "set": {1},
    "object": object(),
    "": "no name",
    "k" * 10_000: "long name",
}


def test_an_attribute_that_cannot_be_exported_loses_only_its_own_span(
    collector: Collector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", str(HANG))  # for a request of 3 MB on a loaded machine

    @cs.task
    def strange(key: str, value: Any) -> None:
        trace.get_current_span().set_attribute(key, value)
        with trace.get_tracer("mine").start_as_current_span("own") as own:
            own.set_attribute(key, value)
            own.add_event("event", {key: value})

    keys, values = list(STRANGE), list(STRANGE.values())
    spans = collector.trace_of(strange.map(key=keys, value=values), connector=collector.connector(metrics=False))
    # A repeated request may arrive twice. The large attributes split the trace.
    lost = 2 * len(STRANGE) + 3 - len({span.span_id for span in spans if not span.name.endswith(" part")})
    logged = [warning for warning in warnings(caplog) if warning.startswith("OtelConnector")]
    assert len(spans.named("strange")) >= len(STRANGE) - 3
    assert [warning.partition(" at ")[0] for warning in logged] == (
        [f"OtelConnector: {lost} spans were lost"] if lost else []
    )
    by_index = {span.attributes["cascade.map.index"]: span for span in spans.named("strange")}
    assert by_index[keys.index("text")].attributes["text"] == "üüü"
    assert len(by_index[keys.index("long")].attributes["long"]) == 1_000_000
    assert by_index[keys.index("many")].attributes["many"] == list(range(10_000))
    assert by_index[keys.index("int")].attributes["int"] == -(2**63)


@pytest.mark.parametrize("capture", [("arguments", "results")])
def test_values_of_every_type_and_size_can_be_captured(
    collector: Collector, capture: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    @cs.task
    async def same(value: Any) -> Any:
        return value

    spans = collector.trace_of(same.map(value=list(STRANGE.values())), connector=collector.connector(capture=capture))
    assert len(spans.named("same")) == len(STRANGE)
    shown = sum("cascade.task.output" in span.attributes for span in spans.named("same"))
    assert shown == sum(value is not None for value in STRANGE.values())
    assert warnings(caplog) == []
