"""Client of Jaeger with recorded responses. `tests/e2e` uses a real Jaeger."""

import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from stack.jaeger.client import Jaeger

TRACE = "41e103ab756d45a18cac818ae1c16f7b"
SPAN = {
    "traceId": TRACE,
    "spanId": "1ec5c5e0c92fefb2",
    "parentSpanId": "73ca2a8328c9e7cd",
    "name": "load",
    "kind": 2,
    "startTimeUnixNano": "1000",
    "endTimeUnixNano": "3000",
    "attributes": [
        {"key": "text", "value": {"stringValue": "a"}},
        {"key": "number", "value": {"intValue": "7"}},
        {"key": "yes", "value": {"boolValue": True}},
        {"key": "share", "value": {"doubleValue": 0.5}},
        {"key": "bytes", "value": {"bytesValue": "AP8="}},
        {"key": "list", "value": {"arrayValue": {"values": [{"intValue": "1"}, {"stringValue": "b"}]}}},
        {"key": "map", "value": {"kvlistValue": {"values": [{"key": "k", "value": {"intValue": "2"}}]}}},
        {"key": "nothing", "value": {}},
    ],
    "events": [{"name": "added", "timeUnixNano": "2000", "attributes": [{"key": "n", "value": {"intValue": "3"}}]}],
    "links": [{"traceId": TRACE, "spanId": "00000000000000ff"}],
    "status": {"code": 2, "message": "ValueError"},
}


class RecordedResponses(BaseHTTPRequestHandler):
    recorded: dict[str, tuple[int, Any]]
    paths: list[str]

    def do_GET(self) -> None:
        self.paths.append(self.path)
        timeless = re.sub(r"&start=\d+", "", self.path)
        known = (path for path in (self.path, timeless, self.path.partition("?")[0]) if path in self.recorded)
        status, body = self.recorded.get(next(known, ""), (404, {"error": "not found"}))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002 - the base class's name


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    RecordedResponses.recorded, RecordedResponses.paths = {}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), RecordedResponses) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def jaeger(server: ThreadingHTTPServer) -> Jaeger:
    return Jaeger(f"http://127.0.0.1:{server.server_port}/")


def respond(path: str, body: Any, status: int = 200) -> None:
    RecordedResponses.recorded[path] = status, body


def test_a_trace_is_decoded(jaeger: Jaeger) -> None:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "etl"}}]}
    group = {"resource": resource, "scopeSpans": [{"scope": {"name": "cascade"}, "spans": [SPAN]}]}
    respond(f"/api/v3/traces/{TRACE}", {"result": {"resourceSpans": [group]}})
    (span,) = jaeger.trace(TRACE)
    assert (span.name, span.kind, span.status, span.status_message) == ("load", "SERVER", "ERROR", "ValueError")
    assert (span.start_ns, span.end_ns, span.parent_span_id) == (1000, 3000, "73ca2a8328c9e7cd")
    assert span.attributes == {
        "text": "a",
        "number": 7,
        "yes": True,
        "share": 0.5,
        "bytes": b"\x00\xff",
        "list": [1, "b"],
        "map": {"k": 2},
        "nothing": None,
    }
    assert (span.events[0].name, span.events[0].attributes) == ("added", {"n": 3})
    assert span.links[0].span_id == "00000000000000ff"
    assert (span.resource, span.scope) == ({"service.name": "etl"}, "cascade")


def test_an_enum_may_be_a_name(jaeger: Jaeger) -> None:
    span = {**SPAN, "kind": "SPAN_KIND_INTERNAL", "status": {"code": "STATUS_CODE_ERROR"}}
    respond(f"/api/v3/traces/{TRACE}", {"result": {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}})
    assert [(span.kind, span.status) for span in jaeger.trace(TRACE)] == [("INTERNAL", "ERROR")]


def test_a_missing_trace_has_no_spans_and_the_wait_for_it_ends(jaeger: Jaeger) -> None:
    assert len(jaeger.trace(TRACE)) == 0
    with pytest.raises(AssertionError, match=rf"not in Jaeger within 0 s; trace {TRACE} has no spans"):
        jaeger.wait_for(TRACE, lambda spans: len(spans) == 1, timeout=0)


def test_a_search_sends_its_conditions(jaeger: Jaeger) -> None:
    respond("/api/traces", {"data": [{"traceID": TRACE}]})
    assert jaeger.find("etl", operation="load", tags={"error": "true"}, min_duration="2s", limit=3) == {TRACE}
    query = "service=etl&limit=3&operation=load&minDuration=2s&tags=%7B%22error%22%3A+%22true%22%7D"
    assert RecordedResponses.paths == [f"/api/traces?{query}"]


def test_a_curve_of_the_monitor_tab_has_the_values_of_an_operation(jaeger: Jaeger) -> None:
    def curve(operation: str, *values: Any) -> dict[str, Any]:
        labels = [{"name": "service_name", "value": "etl"}, {"name": "operation", "value": operation}]
        return {"labels": labels, "metricPoints": [{"gaugeValue": {"doubleValue": value}} for value in values]}

    respond("/api/metrics/latencies", {"metrics": [curve("run a", "NaN", 1.5, 2), curve("run b", 7)]})
    assert jaeger.monitor("latencies", "etl") == [1.5, 2, 7]
    assert jaeger.monitor("latencies", "etl", operation="run a", quantile=0.5) == [1.5, 2]
    assert jaeger.monitor("calls", "etl", span_kind="internal") == []
    queries = [dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(path).query)) for path in RecordedResponses.paths]
    page = {"service": "etl", "spanKind": "server", "step": "60000", "lookback": "3600000", "ratePer": "600000"}
    assert queries == [
        {**page, "quantile": "0.95"},
        {**page, "quantile": "0.5", "groupByOperation": "true"},
        {**page, "spanKind": "internal"},
    ]


def test_services_and_operations(jaeger: Jaeger) -> None:
    respond("/api/services", {"data": ["etl"]})
    respond("/api/operations", {"data": [{"name": "load", "spanKind": ""}]})
    assert (jaeger.services(), jaeger.operations("etl")) == ({"etl"}, {"load"})


def search_result(
    trace_id: str, *spans: tuple[str, int], tags: tuple[str, ...] = ("cascade.run.target",)
) -> dict[str, Any]:
    """Return a trace as a search returns it: its spans have a name and a start time in microseconds."""
    shown = [{"key": key, "type": "string", "value": "x"} for key in tags]
    return {
        "traceID": trace_id,
        "spans": [{"traceID": trace_id, "operationName": n, "startTime": t, "tags": shown} for n, t in spans],
    }


MARKED = ("cascade.run.target", "cascade.run.started")


def respond_to_searches(
    service: str, operations: dict[str, list[dict[str, Any]]], started: list[dict[str, Any]]
) -> None:
    """Set the responses to the searches for the latest run; `started` has the latest trace with a marker span."""
    respond(f"/api/operations?service={service}", {"data": [{"name": name} for name in operations]})
    searches = {name: {"operation": name} for name in operations}
    for name, query in {**searches, "": {"tags": '{"cascade.run.started": "true"}'}}.items():
        path = f"/api/traces?{urllib.parse.urlencode({'service': service, **query, 'limit': '1'})}"
        respond(path, {"data": operations.get(name, started)})


def start_of_search(path: str) -> float:
    """Return the start of the time range of a search, in seconds since the epoch."""
    return float(urllib.parse.parse_qs(urllib.parse.urlsplit(path).query)["start"][0]) / 1_000_000


def test_the_latest_run_of_all_services_is_found(jaeger: Jaeger) -> None:
    respond("/api/services", {"data": ["etl", "web", "billing"]})
    marked = search_result("a", ("run load started", 50), tags=MARKED)
    respond_to_searches("etl", {"run load started": [marked], "run load": [], "load": []}, [marked])
    own = search_result("own", ("run job", 98), tags=())
    respond_to_searches("web", {"GET /": [search_result("web", ("GET /", 99))], "run job": [own]}, [])
    invoice = search_result("c", ("run invoice started", 70), tags=MARKED)
    nested = search_result("part", ("run pay started", 80), ("run pay", 80), ("pay", 81))
    respond_to_searches("billing", {"run invoice": [], "run pay": [nested], "pay": [nested]}, [invoice])
    assert jaeger.latest_run() == "c", "neither a span of the program nor a part whose items start runs"


def test_the_latest_run_may_have_no_marker(jaeger: Jaeger) -> None:
    respond("/api/services", {"data": ["etl"]})
    respond_to_searches(
        "etl",
        {"run load": [search_result("without", ("run load", 90))]},
        [search_result("a", ("run x started", 50), tags=MARKED)],
    )
    assert jaeger.latest_run() == "without"


def test_the_latest_run_may_be_older_than_two_days(jaeger: Jaeger) -> None:
    respond("/api/services", {"data": ["etl"]})
    respond_to_searches("etl", {"run load": []}, [search_result("a", ("run load started", 50), tags=MARKED)])
    assert jaeger.latest_run() == "a"
    searches = [path for path in RecordedResponses.paths if path.startswith("/api/traces?")]
    assert len(searches) == 2
    assert all(start_of_search(path) < time.time() - 14 * 86_400 for path in searches)


def test_without_runs_there_is_no_latest_run(jaeger: Jaeger) -> None:
    respond("/api/services", {"data": ["web"]})
    respond_to_searches("web", {"GET /": [search_result("web", ("GET /", 99))]}, [])
    assert jaeger.latest_run() is None


def test_the_data_of_a_page(jaeger: Jaeger) -> None:
    with pytest.raises(AssertionError, match=f"Jaeger has no trace {TRACE}"):
        jaeger.page(TRACE)
    respond(f"/api/traces/{TRACE}", {"data": [{"traceID": TRACE, "spans": []}]})
    assert jaeger.page(TRACE)["spans"] == []


def test_an_error_response_is_raised(jaeger: Jaeger) -> None:
    respond("/api/services", {"error": "no storage"}, 500)
    with pytest.raises(RuntimeError, match=r"/api/services.*500.*no storage"):
        jaeger.services()


def test_an_invalid_url_is_refused() -> None:
    with pytest.raises(ValueError, match="must begin with http"):
        Jaeger("file:///etc/passwd")
