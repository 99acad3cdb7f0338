"""Runs in web servers, workers and a notebook, with the programs of `docs/servers.md`."""

import concurrent.futures
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from uuid import UUID

import pytest

from cascade.testing import OtlpReceiver
from stack.build import ROOT
from tests.connectors.otel.instances import runs_by_instance, spans_by_instance
from tests.connectors.otel.logs.conftest import lines
from tests.lab.programs import is_missing
from tests.lab.waiting import HANG

BLOCK = re.compile(r"^## (.+?)$|^```py\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def hosts() -> None:
    """Skip the test without the packages of the dependency group `hosts`, which `make test-extras` does not install."""
    packages = ("gunicorn", "celery", "fastapi", "uvicorn", "nbclient", "ipykernel", "opentelemetry.distro")
    if absent := [name for name in packages if find_spec(name) is None]:
        is_missing(", ".join(absent))


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as found:
        yield found


def example(section: str) -> str:
    """Return the program of a section of the page."""
    found: dict[str, str] = {}
    current = ""
    for title, code in BLOCK.findall((ROOT / "docs" / "servers.md").read_text("utf-8")):
        current = title or current
        if code:
            found[current] = code
    return found[section]


def environment(receiver: OtlpReceiver, **more: str) -> dict[str, str]:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("OTEL_", "CASCADE_"))}
    exporting = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    return {**inherited, **exporting, "PYTHONUNBUFFERED": "1", **more}


@contextmanager
def serving(folder: Path, environ: Mapping[str, str], *arguments: str, descriptor: int = 0) -> Iterator[None]:
    """Start a server process, and stop it with SIGTERM. Its output is shown if the test fails."""
    command = [sys.executable, "-m", *arguments]
    log = folder / "output.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environ, stdout=output, stderr=output, pass_fds=(descriptor,) if descriptor else ()
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(HANG)
        finally:
            process.kill()
            print(log.read_text())  # noqa: T201 - pytest shows it
    assert "lost" not in log.read_text()


def run(folder: Path, environ: Mapping[str, str], *command: str) -> str:
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr
    assert "lost" not in done.stderr
    return done.stdout


@contextmanager
def listening() -> Iterator[tuple[str, int]]:
    """Return a socket that a server inherits, so that no other program can use the port."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        os.set_inheritable(bound.fileno(), True)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}", bound.fileno()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=HANG) as answer:  # noqa: S310 - ours
        return str(answer.read().decode())


def get_all(urls: list[str]) -> list[str]:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return list(pool.map(get, urls))


def check_counts(receiver: OtlpReceiver, task: str, runs: int) -> Counter[str]:
    """Check that runs, spans and metrics are consistent for each process; return the number of runs per process."""
    by_process = spans_by_instance(receiver, f"run {task}")
    assert by_process.total() == runs
    assert spans_by_instance(receiver, task) == spans_by_instance(receiver, f"run {task} started") == by_process
    assert runs_by_instance(receiver) == by_process
    assert receiver.spans.orphans() == []
    return by_process


@pytest.mark.parametrize("options", [["--preload"], []], ids=["preload", "no preload"])
def test_gunicorn(options: list[str], receiver: OtlpReceiver, tmp_path: Path) -> None:
    (tmp_path / "wsgi.py").write_text(example("gunicorn"))
    done = 0
    with listening() as (url, descriptor):
        arguments = ("gunicorn", *options, "--workers", "2", "--bind", f"fd://{descriptor}", "wsgi:app")
        with serving(tmp_path, environment(receiver), *arguments, descriptor=descriptor):
            # The kernel selects the worker. Repeat until both workers have responded.
            while len(spans_by_instance(receiver, "run length")) < 2:
                assert get_all([f"{url}/four"] * 4) == ["5"] * 4
                done += 4
    assert len(check_counts(receiver, "length", done)) == 2


def test_celery_prefork(receiver: OtlpReceiver, tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(
        example("Celery")
        + """
from opentelemetry import trace

@app.task
def span_at_the_end():
    with trace.get_tracer("jobs").start_as_current_span("late"):
        pass
"""
    )
    queue, results = tmp_path / "queue", tmp_path / "results"
    for folder in (queue, results, tmp_path / "control"):
        folder.mkdir()
    (tmp_path / "celeryconfig.py").write_text(
        "broker_url = 'filesystem://'\n"
        f"broker_transport_options = {{'data_folder_in': {str(queue)!r}, 'data_folder_out': {str(queue)!r},"
        f" 'control_folder': {str(tmp_path / 'control')!r}}}\n"
        f"result_backend = {results.as_uri()!r}\n"
        "broker_connection_retry_on_startup = False\n"
        "worker_prefetch_multiplier = 1\n"
    )
    client = """
import jobs, json
made = []
while len({pid for _, pid in made}) < 2:
    sent = [jobs.work.delay(number) for number in range(4)]
    made += [one.get(timeout=100) for one in sent]
jobs.span_at_the_end.delay().get(timeout=100)
print(json.dumps(made))
"""
    environ = environment(receiver)
    worker = ("celery", "--app", "jobs", "worker", "--pool", "prefork", "--concurrency", "2", "--loglevel", "WARNING")
    with serving(tmp_path, environ, *worker):
        made = json.loads(run(tmp_path, environ, sys.executable, "-c", client))
    assert [value for value, _ in made] == [0, 2, 4, 6] * (len(made) // 4)
    by_process = check_counts(receiver, "double", len(made))
    assert sorted(by_process.values()) == sorted(Counter(pid for _, pid in made).values())
    late = spans_by_instance(receiver, "late")
    assert late.total() == 1
    assert late.keys() <= by_process.keys()


def test_fastapi_under_uvicorn(receiver: OtlpReceiver, tmp_path: Path) -> None:
    (tmp_path / "api.py").write_text(example("FastAPI"))
    with listening() as (url, descriptor):
        arguments = ("uvicorn", "api:app", "--fd", str(descriptor), "--log-level", "warning")
        with serving(tmp_path, environment(receiver), *arguments, descriptor=descriptor):
            urls = [f"{url}/{way}/{x}" for x in range(6) for way in ("async", "thread")]
            assert get_all(urls) == [str(2 * x) for x in range(6) for _ in range(2)]
    assert len(check_counts(receiver, "double", 12)) == 1


def test_a_notebook(receiver: OtlpReceiver, tmp_path: Path) -> None:
    program = """
import json, sys, nbformat
from nbclient import NotebookClient
cells = [nbformat.v4.new_code_cell(code) for code in json.load(sys.stdin)]
cells[-1].metadata["tags"] = ["raises-exception"]
notebook = nbformat.v4.new_notebook(cells=cells)
NotebookClient(notebook, kernel_name="python3", timeout=100).execute()
print(json.dumps([[output.get("data", {}).get("text/plain") or output.get("evalue") for output in cell.outputs]
                  for cell in notebook.cells]))
"""
    cells = [
        example("Notebooks"),
        "await cs.run_async(double(4), connector=connector, log_level='WARNING')",
        "cs.run(double(1))",
    ]
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(cells),
        cwd=tmp_path,
        env=environment(receiver),
        capture_output=True,
        text=True,
        timeout=HANG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second, (error,) = json.loads(done.stdout)
    assert (first, second) == (["42"], ["8"])
    assert "run_async" in error
    assert len(check_counts(receiver, "double", 2)) == 1


def test_opentelemetry_instrument(receiver: OtlpReceiver, tmp_path: Path) -> None:
    (tmp_path / "report.py").write_text(example("opentelemetry-instrument"))
    program = Path(sys.executable).with_name("opentelemetry-instrument")
    assert run(tmp_path, environment(receiver), str(program), sys.executable, "report.py") == "42\n"
    by_process = spans_by_instance(receiver, "run double")
    assert by_process == {str(UUID(next(iter(by_process)))): 1}, "the SDK's random id"
    assert spans_by_instance(receiver, "double") == spans_by_instance(receiver, "run double started") == by_process
    assert runs_by_instance(receiver) == by_process
    (line,) = [line for line in lines(receiver.logs) if line.scope == "report"]
    (span,) = receiver.spans.named("double")
    assert (line.body, line.ids[:2]) == ("a line of a task", (span.trace_id, span.span_id))
