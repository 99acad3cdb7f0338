"""The client over recorded responses; `tests/e2e` uses a real Jaeger."""

import json
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.lab.jaeger import Jaeger

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


class Fake(BaseHTTPRequestHandler):
    answers: dict[str, tuple[int, Any]]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        timeless = re.sub(r"&start=\d+", "", self.path)
        known = (path for path in (self.path, timeless, self.path.partition("?")[0]) if path in self.answers)
        status, body = self.answers.get(next(known, ""), (404, {"error": "not found"}))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: Any) -> None: ...  # noqa: A002 - the base class's name


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    Fake.answers, Fake.asked = {}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Fake) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def jaeger(server: ThreadingHTTPServer) -> Jaeger:
    return Jaeger(f"http://127.0.0.1:{server.server_port}/")


def answer(path: str, body: Any, status: int = 200) -> None:
    Fake.answers[path] = status, body


def test_a_trace_is_as_it_was_sent(jaeger: Jaeger) -> None:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "etl"}}]}
    group = {"resource": resource, "scopeSpans": [{"scope": {"name": "cascade"}, "spans": [SPAN]}]}
    answer(f"/api/v3/traces/{TRACE}", {"result": {"resourceSpans": [group]}})
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
    answer(f"/api/v3/traces/{TRACE}", {"result": {"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}})
    assert [(span.kind, span.status) for span in jaeger.trace(TRACE)] == [("INTERNAL", "ERROR")]


def test_a_trace_that_is_not_there_is_empty_and_not_waited_for_without_end(jaeger: Jaeger) -> None:
    assert len(jaeger.trace(TRACE)) == 0
    with pytest.raises(AssertionError, match=rf"not in Jaeger within 0 s; trace {TRACE} has no spans"):
        jaeger.wait_for(TRACE, lambda spans: len(spans) == 1, timeout=0)


def test_a_search_asks_for_what_it_was_given(jaeger: Jaeger) -> None:
    answer("/api/traces", {"data": [{"traceID": TRACE}]})
    assert jaeger.find("etl", operation="load", tags={"error": "true"}, min_duration="2s", limit=3) == {TRACE}
    query = "service=etl&limit=3&operation=load&minDuration=2s&tags=%7B%22error%22%3A+%22true%22%7D"
    assert Fake.asked == [f"/api/traces?{query}"]


def test_a_curve_of_the_monitor_tab_has_the_numbers_of_an_operation(jaeger: Jaeger) -> None:
    def curve(operation: str, *values: Any) -> dict[str, Any]:
        labels = [{"name": "service_name", "value": "etl"}, {"name": "operation", "value": operation}]
        return {"labels": labels, "metricPoints": [{"gaugeValue": {"doubleValue": value}} for value in values]}

    answer("/api/metrics/latencies", {"metrics": [curve("run a", "NaN", 1.5, 2), curve("run b", 7)]})
    assert jaeger.monitor("latencies", "etl") == [1.5, 2, 7]
    assert jaeger.monitor("latencies", "etl", operation="run a", quantile=0.5) == [1.5, 2]
    assert jaeger.monitor("calls", "etl", span_kind="internal") == []
    queries = [dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(path).query)) for path in Fake.asked]
    page = {"service": "etl", "spanKind": "server", "step": "60000", "lookback": "3600000", "ratePer": "600000"}
    assert queries == [
        {**page, "quantile": "0.95"},
        {**page, "quantile": "0.5", "groupByOperation": "true"},
        {**page, "spanKind": "internal"},
    ]


def test_services_and_operations(jaeger: Jaeger) -> None:
    answer("/api/services", {"data": ["etl"]})
    answer("/api/operations", {"data": [{"name": "load", "spanKind": ""}]})
    assert (jaeger.services(), jaeger.operations("etl")) == ({"etl"}, {"load"})


def found(trace_id: str, *spans: tuple[str, int], tags: tuple[str, ...] = ("cascade.run.target",)) -> dict[str, Any]:
    """A trace in a search's answer, of spans with a name and a start time in microseconds."""
    shown = [{"key": key, "type": "string", "value": "x"} for key in tags]
    return {
        "traceID": trace_id,
        "spans": [{"traceID": trace_id, "operationName": n, "startTime": t, "tags": shown} for n, t in spans],
    }


MARKED = ("cascade.run.target", "cascade.run.started")


def searched(service: str, operations: dict[str, list[dict[str, Any]]], started: list[dict[str, Any]]) -> None:
    """`started`: the latest trace with the marker of a run that is in no other run."""
    answer(f"/api/operations?service={service}", {"data": [{"name": name} for name in operations]})
    searches = {name: {"operation": name} for name in operations}
    for name, query in {**searches, "": {"tags": '{"cascade.run.started": "true"}'}}.items():
        path = f"/api/traces?{urllib.parse.urlencode({'service': service, **query, 'limit': '1'})}"
        answer(path, {"data": operations.get(name, started)})


def start_in(path: str) -> float:
    """The start of the range of time of a search, in seconds of the epoch."""
    return float(urllib.parse.parse_qs(urllib.parse.urlsplit(path).query)["start"][0]) / 1_000_000


def test_the_latest_run_is_that_which_started_last_of_any_service(jaeger: Jaeger) -> None:
    answer("/api/services", {"data": ["etl", "web", "billing"]})
    marked = found("a", ("run load started", 50), tags=MARKED)
    searched("etl", {"run load started": [marked], "run load": [], "load": []}, [marked])
    own = found("own", ("run job", 98), tags=())
    searched("web", {"GET /": [found("web", ("GET /", 99))], "run job": [own]}, [])
    invoice = found("c", ("run invoice started", 70), tags=MARKED)
    nested = found("part", ("run pay started", 80), ("run pay", 80), ("pay", 81))
    searched("billing", {"run invoice": [], "run pay": [nested], "pay": [nested]}, [invoice])
    assert jaeger.latest_run() == "c", "neither a span of the program nor a part whose items start runs"


def test_the_latest_run_may_have_no_marker(jaeger: Jaeger) -> None:
    answer("/api/services", {"data": ["etl"]})
    searched(
        "etl", {"run load": [found("without", ("run load", 90))]}, [found("a", ("run x started", 50), tags=MARKED)]
    )
    assert jaeger.latest_run() == "without"


def test_the_latest_run_may_be_older_than_two_days(jaeger: Jaeger) -> None:
    answer("/api/services", {"data": ["etl"]})
    searched("etl", {"run load": []}, [found("a", ("run load started", 50), tags=MARKED)])
    assert jaeger.latest_run() == "a"
    searches = [path for path in Fake.asked if path.startswith("/api/traces?")]
    assert len(searches) == 2
    assert all(start_in(path) < time.time() - 14 * 86_400 for path in searches)


def test_a_jaeger_without_runs_has_no_latest_one(jaeger: Jaeger) -> None:
    answer("/api/services", {"data": ["web"]})
    searched("web", {"GET /": [found("web", ("GET /", 99))]}, [])
    assert jaeger.latest_run() is None


def test_what_a_page_shows(jaeger: Jaeger) -> None:
    with pytest.raises(AssertionError, match=f"Jaeger has no trace {TRACE}"):
        jaeger.page(TRACE)
    answer(f"/api/traces/{TRACE}", {"data": [{"traceID": TRACE, "spans": []}]})
    assert jaeger.page(TRACE)["spans"] == []


def test_jaegers_troubles_are_told(jaeger: Jaeger) -> None:
    answer("/api/services", {"error": "no storage"}, 500)
    with pytest.raises(RuntimeError, match=r"/api/services.*500.*no storage"):
        jaeger.services()


def test_an_address_must_be_one() -> None:
    with pytest.raises(ValueError, match="must begin with http"):
        Jaeger("file:///etc/passwd")
