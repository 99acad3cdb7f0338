"""Runs in web servers and workers, with the programs of `docs/servers.md`."""

import json
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from uuid import UUID

import pytest

from cascade.testing import OtlpReceiver
from tests.connectors.otel.instances import runs_by_instance, spans_by_instance
from tests.connectors.otel.logs.conftest import lines
from tests.e2e.hosts import check_counts, environment, example, get_all, listening, run, serving
from tests.lab.programs import is_missing


@pytest.fixture(autouse=True)
def hosts() -> None:
    """Skip the test without the packages of the dependency group `hosts`, which `make test-extras` does not install."""
    packages = ("gunicorn", "celery", "fastapi", "uvicorn", "opentelemetry.distro")
    if absent := [name for name in packages if find_spec(name) is None]:
        is_missing(", ".join(absent))


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
