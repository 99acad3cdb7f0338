"""`examples/fastapi_app.py` under uvicorn: requests, background tasks, spans of requests, and a shutdown during a run."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from cascade.testing import OtlpReceiver, ReceivedSpan, Spans
from stack.build import ROOT
from tests.e2e.hosts import environment, get, listening, serving
from tests.lab.programs import is_missing
from tests.lab.waiting import HANG, until_blocking

INSTRUMENT = (str(Path(sys.executable).with_name("opentelemetry-instrument")),)
WAITING = """
import asyncio, pathlib
from fastapi import BackgroundTasks
import cascade as cs
from fastapi_app import app, run

@cs.task
async def wait():
    print("waiting", flush=True)
    while not pathlib.Path("end").exists():
        await asyncio.sleep(0.01)
    return "the end"

@app.post("/wait")
async def start_waiting(background: BackgroundTasks) -> str:
    background.add_task(run, wait())
    return "started"
"""
PARENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


@pytest.fixture(autouse=True)
def hosts() -> None:
    """Skip the test without the packages of the dependency group `hosts`."""
    packages = ("fastapi", "uvicorn", "opentelemetry.distro", "opentelemetry.instrumentation.fastapi")
    if absent := [name for name in packages if find_spec(name) is None]:
        is_missing(", ".join(absent))


@contextmanager
def serve(
    receiver: OtlpReceiver, folder: Path, *options: str, app: str = "fastapi_app:app", launcher: tuple[str, ...] = ()
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    environ = environment(receiver, PYTHONPATH=str(ROOT / "examples"))
    with listening() as (url, descriptor):
        arguments = ("uvicorn", app, "--fd", str(descriptor), "--log-level", "warning", *options)
        with serving(folder, environ, *arguments, descriptor=descriptor, launcher=launcher) as process:
            yield url, process


def test_requests_and_background_tasks(receiver: OtlpReceiver, tmp_path: Path) -> None:
    with serve(receiver, tmp_path) as (url, _):
        assert get(f"{url}/letters?text=one+three") == "8"
        assert get(f"{url}/letters/in-a-thread?text=two+three") == "8"
        assert get(f"{url}/reports/first?text=a+bc", "POST") == '"first"'
        until_blocking(lambda: get(f"{url}/reports/first") == "3")
    spans = receiver.spans
    assert len(spans.named("run total")) == 2
    assert len(spans.named("run save")) == 1
    runs = [span for span in spans if span.name in {"run total", "run save"}]
    assert len({span.trace_id for span in runs}) == 3
    assert len({span.resource["service.instance.id"] for span in spans}) == 1


def test_the_span_of_a_request_is_the_parent_of_its_runs(receiver: OtlpReceiver, tmp_path: Path) -> None:
    with serve(receiver, tmp_path, launcher=INSTRUMENT) as (url, _):
        assert get(f"{url}/letters?text=one+three", headers=PARENT) == "8"
        assert get(f"{url}/letters/in-a-thread?text=two+three") == "8"
        get(f"{url}/reports/first?text=a+bc", "POST")
    spans = receiver.spans
    for request, run in {
        "GET /letters": "run total",
        "GET /letters/in-a-thread": "run total",
        "POST /reports/{name}": "run save",
    }.items():
        parent = spans.one(request)
        below = [span for span in spans.named(run) if parent.span_id in ancestors(spans, span)]
        assert [span.trace_id for span in below] == [parent.trace_id]
    assert spans.one("GET /letters").trace_id == PARENT["traceparent"].split("-")[1]
    assert len(spans.traces()) == 3
    assert [span.name for span in spans.orphans()] == ["GET /letters"], "its parent is the client"
    assert len({span.span_id for span in spans}) == len(spans)


def ancestors(spans: Spans, span: ReceivedSpan) -> set[str]:
    """Return the ids of the span's parent, of the parent of that span, and so on."""
    found: set[str] = set()
    while span.parent_span_id and span.parent_span_id != PARENT["traceparent"].split("-")[2]:
        found.add(span.parent_span_id)
        span = spans.by_id(span.parent_span_id)
    return found


@pytest.mark.parametrize("launcher", [(), INSTRUMENT], ids=["plain", "instrumented"])
def test_a_shutdown_waits_for_a_run_in_the_background(
    launcher: tuple[str, ...], receiver: OtlpReceiver, tmp_path: Path
) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    with serve(receiver, tmp_path, app="waiting:app", launcher=launcher) as (url, process):
        assert get(f"{url}/wait", "POST") == '"started"'
        until_blocking(lambda: "waiting" in (tmp_path / "output.txt").read_text())
        process.send_signal(signal.SIGTERM)
        (tmp_path / "end").touch()
        process.wait(HANG)
    assert receiver.spans.one("run wait").attributes["cascade.run.result"] == "success"
    assert receiver.spans.one("wait").parent_span_id == receiver.spans.one("run wait").span_id


def test_a_shutdown_with_a_time_limit_cancels_the_run(receiver: OtlpReceiver, tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    with serve(receiver, tmp_path, "--timeout-graceful-shutdown", "1", app="waiting:app") as (url, process):
        assert get(f"{url}/wait", "POST") == '"started"'
        until_blocking(lambda: "waiting" in (tmp_path / "output.txt").read_text())
        process.send_signal(signal.SIGTERM)
        process.wait(HANG)
    assert "graceful shutdown exceeded" in (tmp_path / "output.txt").read_text()
    assert receiver.spans.one("wait").attributes["cascade.task.result"] == "cancellation"
    assert receiver.spans.one("run wait").attributes["cascade.run.result"] == "cancellation"
    assert receiver.spans.orphans() == []
