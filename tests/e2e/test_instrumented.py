"""`opentelemetry-instrument` with an instrumented library: one trace, whatever exports it."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from cascade.testing import OtlpReceiver
from tests.connectors.mqtt.broker import Listener
from tests.connectors.mqtt.messages import events
from tests.e2e.hosts import environment
from tests.lab.mosquitto import MosquittoProcess
from tests.lab.programs import is_missing, program
from tests.lab.waiting import HANG

FLOW = """
import os, sys
import cascade as cs
import requests
from opentelemetry import trace

@cs.task
def fetch(url: str) -> int:
    return requests.get(url, timeout=60).status_code

@cs.task
async def total(codes: list[int]) -> int:
    with trace.get_tracer("mine").start_as_current_span("sum"):
        return sum(codes)

@cs.task
def fail(value: int) -> int:
    raise LookupError(f"no row {value}")

target = total(fetch.map(url=[os.environ["URL"]] * 3))
if "fail" in sys.argv:
    target = fail(target)
print("first")
print(cs.run(target, log_level="WARNING"))
"""
IN_CODE = "import cascade.connectors.otel\nconnector = cascade.connectors.otel.OtelConnector()\n"
SPANS = {"run total", "run total started", "map(fetch)", "fetch", "GET", "total", "sum"}


@pytest.fixture(autouse=True)
def instrumentation() -> None:
    if find_spec("opentelemetry.distro") is None or find_spec("opentelemetry.instrumentation.requests") is None:
        is_missing("opentelemetry-instrumentation-requests")


class Server(ThreadingHTTPServer):
    """Answers each request with 200, and keeps its `traceparent`."""

    def __init__(self) -> None:
        self.parents: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        self.server.parents.append(self.headers.get("traceparent", ""))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@contextmanager
def broker(environ: dict[str, str]) -> Iterator[Listener]:
    program("mosquitto")
    with MosquittoProcess() as mosquitto, Listener(mosquitto.port, "cascade/telemetry/#") as listener:
        environ["CASCADE_MQTT_URL"] = f"mqtt://127.0.0.1:{mosquitto.port}"
        yield listener


@pytest.fixture
def environ(receiver: OtlpReceiver, server: Server) -> dict[str, str]:
    url = f"http://127.0.0.1:{server.server_port}/"
    return environment(receiver, URL=url, CASCADE_CONNECTOR="otel", OTEL_TRACES_EXPORTER="otlp")


def execute(
    folder: Path, environ: dict[str, str], *arguments: str, code: str = FLOW, instrumented: bool = True
) -> subprocess.CompletedProcess[str]:
    (folder / "flow.py").write_text(code)
    command = [sys.executable, "flow.py", *arguments]
    if instrumented:
        command.insert(0, str(Path(sys.executable).with_name("opentelemetry-instrument")))
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=HANG, check=False)


def check_trace(receiver: OtlpReceiver, server: Server) -> None:
    """Check that all spans are in one trace, once each, below their tasks, from one provider."""
    spans = receiver.spans
    assert len(spans.traces()) == 1, spans.summary()
    assert spans.orphans() == []
    assert len({span.span_id for span in spans}) == len(spans)
    assert {span.name for span in spans} >= SPANS
    requests = spans.named("GET")
    assert {span.parent_span_id for span in requests} == {span.span_id for span in spans.named("fetch")}
    assert sorted(server.parents) == sorted(f"00-{span.trace_id}-{span.span_id}-01" for span in requests)
    assert spans.one("sum").parent_span_id == spans.one("total").span_id
    assert len({span.resource["service.instance.id"] for span in spans}) == 1
    assert {span.attributes["cascade.run.id"] for span in spans} == {
        spans.one("run total started").attributes["cascade.run.id"]
    }


@pytest.mark.parametrize("connector", ["environment", "code"])
def test_all_spans_are_in_one_trace(
    connector: str, environ: dict[str, str], receiver: OtlpReceiver, server: Server, tmp_path: Path
) -> None:
    code = FLOW
    if connector == "code":
        del environ["CASCADE_CONNECTOR"]
        code = IN_CODE + FLOW.replace("log_level=", "connector=connector, log_level=")
    done = execute(tmp_path, environ, code=code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "first\n600\n", "")
    check_trace(receiver, server)


def test_the_ids_are_those_of_the_messages(
    environ: dict[str, str], receiver: OtlpReceiver, server: Server, tmp_path: Path
) -> None:
    environ["CASCADE_CONNECTOR"] = "otel,mqtt"
    with broker(environ) as listener:
        done = execute(tmp_path, environ)
        assert (done.returncode, done.stdout, done.stderr) == (0, "first\n600\n", "")
        received = events(listener.wait_for(lambda messages: any(b"ENGINE_STOPPED" in m.payload for m in messages)))
    check_trace(receiver, server)
    completed = [one for one in received if one["body"].get("state") == "COMPLETED"]
    assert {one["body"]["task_name"] for one in completed} == {"fetch", "map(fetch)", "total"}
    for one in completed:
        span = receiver.spans.by_id(one["span_id"])
        assert (span.trace_id, span.attributes["cascade.run.id"]) == (one["trace_id"], one["run_id"])


def test_exit_code_and_output_of_a_failure_are_those_without_instrumentation(
    environ: dict[str, str], receiver: OtlpReceiver, tmp_path: Path
) -> None:
    plain, instrumented = (execute(tmp_path, environ, "fail", instrumented=choice) for choice in (False, True))
    assert (plain.returncode, instrumented.returncode) == (1, 1)
    assert plain.stdout == instrumented.stdout == "first\n"
    assert plain.stderr.splitlines()[-2:] == instrumented.stderr.splitlines()[-2:]
    assert "LookupError: no row 600" in instrumented.stderr
    assert len(receiver.spans.traces()) == 2
    assert [span.status for span in receiver.spans.named("run fail")] == ["ERROR", "ERROR"]


def test_without_an_exporter_of_the_distribution_nothing_is_exported(
    environ: dict[str, str], receiver: OtlpReceiver, server: Server, tmp_path: Path
) -> None:
    environ["OTEL_TRACES_EXPORTER"] = "none"
    done = execute(tmp_path, environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "first\n600\n", "")
    assert list(receiver.spans) == []
    assert len({parent.split("-")[1] for parent in server.parents}) == 1, "the requests have the trace id of the run"


def test_the_console_exporter_prints_each_span_once(
    environ: dict[str, str], receiver: OtlpReceiver, server: Server, tmp_path: Path
) -> None:
    environ["OTEL_TRACES_EXPORTER"] = "console"
    done = execute(tmp_path, environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(receiver.spans) == []
    for name in SPANS:
        expected = 3 if name in {"fetch", "GET"} else 1
        assert (
            done.stdout.count(f'\n    "name": "{name}"') + done.stdout.startswith(f'{{\n    "name": "{name}"')
            == expected
        )
