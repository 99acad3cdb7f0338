"""`make stack-look` with servers that `make stack-up` starts in a temporary folder and on free ports."""

import json
import re
import struct
import sys
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest

from stack import chromium, look
from stack.addresses import Ports
from stack.running import Running
from stack.up import State
from tests.e2e.prometheus import Prometheus
from tests.e2e.runs import Run, run
from tests.e2e.stacks import NO_COMPOSE, Processes, Servers, stack_command
from tests.lab.waiting import HANG, until_blocking

FETCH = """
import sys, urllib.request
with urllib.request.urlopen(sys.argv[2]) as answer, open(sys.argv[1], "a") as opened:
    print(sys.argv[2], answer.status, "<title>Prometheus" in answer.read().decode(), file=opened)
"""
"""A browser that requests the page and writes its URL to a file."""


@pytest.fixture(scope="module")
def started(installed_servers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of a stack that `stack up` started."""
    folder = tmp_path_factory.mktemp("up")
    done = stack_command(folder, "up")
    try:
        assert done.returncode == 0, done.stderr
        yield folder
    finally:
        stack_command(folder, "down")


@pytest.fixture(scope="module")
def trace_id(started: Path) -> str:
    """Return the trace id of an ended run."""
    return ended_run(servers_of(started), "shop", "report")


@pytest.fixture
def prometheus_has_pages(started: Path) -> None:
    """Whether Prometheus has its page. The package in Debian 13 serves a placeholder, like this Jaeger."""
    ports = ports_of(started)
    if problem := look.problem_of(f"{ports.url(ports.prometheus)}/graph"):
        pytest.skip(f"Prometheus: {problem}")


@pytest.fixture(autouse=True)
def _no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**NO_COMPOSE, "BROWSER": "none", "CHROMIUM": "none"}.items():
        monkeypatch.setenv(name, value)


def servers_of(folder: Path) -> Servers:
    ports = ports_of(folder)
    return Servers(ports.url(ports.jaeger_http), ports.url(ports.otlp_http))


def ports_of(folder: Path) -> Ports:
    state = State.load(folder)
    assert state
    return state.ports


def ended_run(servers: Servers, service: str, workflow: str) -> str:
    """Run a workflow, and return its trace id when its trace in Jaeger is complete."""
    found: str = run({**servers.environment, "OTEL_SERVICE_NAME": service}, workflow)["trace_id"]
    servers.wait_for(found, lambda spans: any(span.parent_span_id is None for span in spans))
    return found


def look_at(folder: Path, trace_id: str | None = None, out: Path = Path("nowhere")) -> str:
    return "\n".join(look.look(trace_id, folder, out))


def urls_in(text: str) -> dict[str, str]:
    """Return the URLs of the pages by title."""
    return dict(re.findall(r"^(\w+: .*)\n  (http://\S+)$", text, re.MULTILINE))


def data_of(url: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(url, timeout=HANG) as answer:  # noqa: S310 - our own Jaeger
        found: list[dict[str, Any]] = json.load(answer)["data"]
    return found


def test_the_urls_of_the_latest_run_select_it_in_the_query_api_of_jaeger(started: Path, trace_id: str) -> None:
    later = ended_run(servers_of(started), "billing", "failure")
    text = look_at(started)
    assert text.startswith(f"Run of total (billing): result failure\nTrace {later}: ")
    urls = urls_in(text)
    trace, search = urlsplit(urls["Jaeger: the trace"]), urlsplit(urls["Jaeger: runs of this target"])
    assert trace.path == f"/trace/{later}"
    (found,) = data_of(trace._replace(path=f"/api/traces/{later}").geturl())
    assert "run total" in {span["operationName"] for span in found["spans"]}
    assert search.path == "/search"
    assert [one["traceID"] for one in data_of(search._replace(path="/api/traces").geturl())] == [later]
    assert urlsplit(urls["Jaeger: the Monitor tab"]).path == "/monitor"
    assert "Choose the service billing." in text
    assert not [title for title in urls if title.startswith("Grafana")]
    assert urls_in(look_at(started, str(UUID(trace_id))))["Jaeger: the trace"].endswith(f"/trace/{trace_id}")


def test_an_active_run_is_the_latest_run(started: Path) -> None:
    servers = servers_of(started)
    with Run({**servers.environment, "OTEL_SERVICE_NAME": "night"}, "endless") as running:
        running.wait_for_line("running")
        until_blocking(lambda: servers.find("night", operation="run forever started"))
        text = look_at(started)
    assert text.startswith("Run of forever (night): active")
    search = urlsplit(urls_in(text)["Jaeger: runs of this target"])
    (found,) = data_of(search._replace(path="/api/traces").geturl())
    assert urls_in(text)["Jaeger: the trace"].endswith(f"/trace/{found['traceID']}")


def test_a_run_in_the_trace_of_its_caller_is_found_by_its_id(started: Path) -> None:
    servers = servers_of(started)
    caller = "0af7651916cd43dd8448eb211c80319d"
    variables = {**servers.environment, "OTEL_SERVICE_NAME": "web", "TRACEPARENT": f"00-{caller}-b7ad6b7169203331-01"}
    run_id = run(variables, "report")["run_id"]
    run(variables, "failure")
    servers.wait_for(caller, lambda spans: bool(spans.named("run summary") and spans.named("run total")))
    for given, shown in (
        (run_id, "Run of summary (web): result success"),
        (caller, "Run of total (web): result failure"),
    ):
        assert look_at(started, given).startswith(f"{shown}\nTrace {caller}: ")


def test_a_part_of_a_run_is_shown_without_a_state(started: Path) -> None:
    servers = servers_of(started)
    variables = {**servers.environment, "OTEL_SERVICE_NAME": "split", "CASCADE_TRACE_PART_SIZE": "10"}
    home = run(variables, "many", 15)["trace_id"]
    until_blocking(lambda: servers.find("split", operation="map(step) part"))
    (part,) = servers.find("split", operation="map(step) part")
    servers.wait_for(home, lambda spans: bool(spans.named("run count")))
    text = look_at(started, part)
    assert text.startswith(f"map(step) part (split)\nTrace {part}: 6 spans, 0 with an error")
    search = urlsplit(urls_in(text)["Jaeger: the traces of the run"])
    assert {one["traceID"] for one in data_of(search._replace(path="/api/traces").geturl())} == {home, part}


@pytest.mark.usefixtures("prometheus_has_pages")
def test_available_pages_are_opened_and_the_others_are_reported(started: Path, trace_id: str, tmp_path: Path) -> None:
    """The Jaeger of the tests has a placeholder instead of its pages. Prometheus has its pages."""
    (tmp_path / "fetch.py").write_text(FETCH)
    for name in ("jaeger-trace", "prometheus"):
        (tmp_path / f"{name}.png").write_text("of an earlier look")
    browser = f"{sys.executable} {tmp_path / 'fetch.py'} {tmp_path / 'opened'} %s"
    done = stack_command(started, "look", trace_id, "--out", str(tmp_path), BROWSER=browser)
    assert done.returncode == 0, done.stderr
    page = urls_in(done.stdout)["Prometheus: ended runs"]
    assert (tmp_path / "opened").read_text() == f"{page} 200 True\n"
    assert "Pages opened in the browser: 1 of 1." in done.stdout
    placeholder = "Not shown: the server was built without its pages and serves a placeholder."
    assert done.stdout.count(placeholder) == 3
    assert f"make stack-show TRACE={trace_id}" in done.stdout
    assert not (tmp_path / "jaeger-trace.png").exists()
    assert look.problem_of(page.replace("/graph?", "/nothing?")) == "HTTP status 404 Not Found"


@pytest.mark.usefixtures("prometheus_has_pages")
def test_without_a_display_and_chromium_the_urls_are_printed(
    started: Path, trace_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = look_at(started, trace_id)
    assert text.endswith("No page was opened: BROWSER=none.\nNo screenshots: CHROMIUM=none.")
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY", "CHROMIUM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "")
    text = look_at(started, trace_id)
    assert "No page was opened: there is no display." in text
    assert "No screenshots: none of chromium, chromium-browser, google-chrome is installed." in text


def test_the_stack_of_compose_is_found_by_its_ports(
    started: Path, trace_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = urls_in(look_at(started, trace_id))
    monkeypatch.setenv("JAEGER_PORT", str(ports_of(started).jaeger_http))
    text = look_at(tmp_path, trace_id)
    assert "It needs Prometheus, which is not running." in text
    assert urls_in(text) == {title: url for title, url in expected.items() if title.startswith("Jaeger")}
    monkeypatch.setenv("PROMETHEUS_PORT", str(ports_of(started).prometheus))
    assert urls_in(look_at(tmp_path, trace_id)) == expected


def test_the_query_of_the_page_of_prometheus_counts_the_ended_runs(processes: Processes) -> None:
    result = run({**processes.environment, "OTEL_SERVICE_NAME": "counted"}, "report")
    spans = processes.wait_for(result["trace_id"], lambda spans: bool(spans.named("run summary")))
    url = processes.ports.url(processes.ports.prometheus)
    (page,) = [
        page for page in look.pages(look.first_of(spans), Running("http://jaeger", url)) if page.name == "prometheus"
    ]
    (query,) = parse_qs(urlsplit(page.url).query)["g0.expr"]
    expected = {"cascade_run_target": "summary", "cascade_run_result": "success"}
    until_blocking(lambda: expected in [labels for labels, _ in Prometheus(url).values(query)])


@pytest.mark.usefixtures("prometheus_has_pages")
def test_chromium_saves_screenshots_of_available_pages(
    started: Path, trace_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHROMIUM")
    if chromium.find({}) is None:
        pytest.skip(f"none of {', '.join(chromium.NAMES)} is installed")
    monkeypatch.setattr(chromium, "TIMEOUT", HANG)
    text = look_at(started, trace_id, tmp_path / "look")
    (picture,) = (tmp_path / "look").iterdir()
    assert text.endswith(f"Screenshot: {picture}")
    assert picture.name == "prometheus.png"
    width, height, rows = decoded(picture.read_bytes())
    assert (width, height) == (1600, 1200)
    assert len(set(rows)) > 20


def decoded(png: bytes) -> tuple[int, int, list[bytes]]:
    """Return the width, the height and the encoded rows of a PNG file. The rows differ unless the picture is empty."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    data, position = b"", 8
    while position < len(png):
        (size,) = struct.unpack(">I", png[position : position + 4])
        if png[position + 4 : position + 8] == b"IDAT":
            data += png[position + 8 : position + 8 + size]
        position += 12 + size
    pixels = zlib.decompress(data)
    step = len(pixels) // height
    return width, height, [pixels[start : start + step] for start in range(0, len(pixels), step)]


@pytest.mark.usefixtures("prometheus_has_pages")
def test_a_failure_of_chromium_is_an_error_after_the_urls(started: Path, trace_id: str, tmp_path: Path) -> None:
    done = stack_command(started, "look", trace_id, "--out", str(tmp_path), CHROMIUM="false")
    assert done.returncode == 1
    assert "Prometheus: ended runs\n" in done.stdout
    assert "false ended with exit code 1 and saved no screenshot of http://127.0.0.1:" in done.stderr
