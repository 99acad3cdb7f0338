"""The parts of `make stack-look` that need no server. tests/e2e/test_look.py tests the others."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest

import cascade as cs
from cascade.testing import FixedClock, ReceivedSpan, Spans, record_run
from stack import chromium, look
from stack.addresses import reserved_port
from stack.build import ROOT
from stack.running import Running, compose_urls
from tests.lab.waiting import until_blocking


@cs.task
async def load() -> int:
    return 1


def program(folder: Path, lines: str) -> str:
    """Write a program that replaces Chromium."""
    path = folder / "browser"
    path.write_text(f"#!/bin/sh\n{lines}\n")
    path.chmod(0o755)
    return str(path)


def test_the_urls_of_grafana_set_each_text_of_the_dashboard_of_a_run() -> None:
    run = record_run(load())
    grafana = {
        page.name: urlsplit(page.url)
        for page in look.pages(look.first_of(run.spans), Running("http://j", None, "http://g"))
    }
    dashboards = {
        found["uid"]: found
        for path in (ROOT / "stack" / "grafana" / "dashboards").glob("*.json")
        for found in [json.loads(path.read_text())]
    }
    assert grafana["grafana-runs"].path.rpartition("/")[2] in dashboards
    url = grafana["grafana-run"]
    variables = dashboards[url.path.rpartition("/")[2]]["templating"]["list"]
    query = parse_qs(url.query)
    assert query["var-trace_id"] == [run.spans[0].trace_id]
    assert query["var-run_id"] == [run.spans.one("run load").attributes["cascade.run.id"]]
    texts = {f"var-{variable['name']}" for variable in variables if variable["type"] == "textbox"}
    assert texts == {name for name in query if name.startswith("var-")}
    assert int(query["from"][0]) * 1_000_000 < run.spans.one("run load").start_ns


@cs.task
async def convert(x: int) -> int:
    return x


def in_one_trace(monkeypatch: pytest.MonkeyPatch) -> Spans:
    """Return the spans of two runs in the trace of a caller, the later run first."""
    monkeypatch.setenv("TRACEPARENT", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    runs = [
        record_run(target, clock=FixedClock(start)) for target, start in ((convert(1), 2 * 10**18), (load(), 10**18))
    ]
    return Spans(span for run in runs for span in run.spans)


def searched_for(first: ReceivedSpan) -> dict[str, str]:
    (page,) = [page for page in look.pages(first, Running("http://j")) if page.name == "jaeger-search"]
    return dict(parse_qsl(urlsplit(page.url).query))


def test_the_latest_run_in_a_trace_is_shown_or_the_run_with_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = in_one_trace(monkeypatch)
    earlier = str(spans.one("run load").attributes["cascade.run.id"]).replace("-", "")
    for found, name in ((look.first_of(spans), "convert"), (look.first_of(spans, earlier), "load")):
        assert found.name == f"run {name} started"
        assert searched_for(found)["operation"] == f"run {name} started"


def test_the_search_for_runs_of_a_target_contains_an_old_run(monkeypatch: pytest.MonkeyPatch) -> None:
    first = look.first_of(in_one_trace(monkeypatch))
    query = searched_for(first)
    assert (query["lookback"], "end" in query) == ("custom", False)
    assert int(query["start"]) * 1_000 < first.start_ns


def test_a_part_is_shown_with_the_search_for_the_traces_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASCADE_TRACE_PART_SIZE", "2")
    spans = record_run(convert.map(x=[1, 2, 3])).spans
    root = spans.one("run map(convert)")
    (part,) = [found for trace_id, found in spans.traces().items() if trace_id != root.trace_id]
    query = searched_for(look.first_of(part))
    assert json.loads(query["tags"]) == {"cascade.run.id": root.attributes["cascade.run.id"]}
    assert "operation" not in query


def test_the_ports_of_compose_come_from_the_environment_then_from_the_file_then_from_the_defaults() -> None:
    settings = "# JAEGER_PORT=1\nJAEGER_PORT=2\nexport PROMETHEUS_PORT='3' # taken\nGRAFANA_PORT=\nOTHER=x\n"
    assert compose_urls({"JAEGER_PORT": "4"}, settings) == {
        "JAEGER_PORT": "http://127.0.0.1:4",
        "PROMETHEUS_PORT": "http://127.0.0.1:3",
        "GRAFANA_PORT": "http://127.0.0.1:3000",
    }


@pytest.mark.parametrize("ports", [{}, {"JAEGER_PORT": "2001", "PROMETHEUS_PORT": "2002", "GRAFANA_PORT": "2003"}])
def test_the_ports_are_those_that_compose_publishes(
    ports: dict[str, str], compose_config: Callable[..., dict[str, Any]]
) -> None:
    services = compose_config("grafana", **ports)["services"]
    published = {
        f"{name.upper()}_PORT": f"http://{services[name]['ports'][0]['host_ip']}:{services[name]['ports'][0]['published']}"
        for name in ("jaeger", "prometheus", "grafana")
    }
    assert compose_urls(ports, "") == published


def test_a_url_without_a_server_has_no_page() -> None:
    problem = look.problem_of(f"http://127.0.0.1:{reserved_port()}/trace/1")
    assert problem is not None
    assert "no answer" in problem
    assert "refused" in problem


def test_the_variable_selects_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = program(tmp_path, "exit 0")
    assert chromium.find({"CHROMIUM": named}) == named
    assert chromium.find({"CHROMIUM": "none"}) is None
    with pytest.raises(chromium.ScreenshotError, match="CHROMIUM=/never/there: there is no such program"):
        chromium.find({"CHROMIUM": "/never/there"})
    monkeypatch.setenv("PATH", str(tmp_path))
    assert chromium.find({}) is None
    (tmp_path / "browser").rename(tmp_path / "chromium-browser")
    assert chromium.find({}) == str(tmp_path / "chromium-browser")


def test_a_missing_screenshot_raises_an_error_with_the_output_of_chromium(tmp_path: Path) -> None:
    failing = program(tmp_path, 'echo "$@" > "$0.arguments"\necho cannot open the shared memory >&2\nexit 3')
    picture = tmp_path / "a picture.png"
    picture.write_text("of an earlier look")
    with pytest.raises(chromium.ScreenshotError) as caught:
        chromium.save(failing, "http://127.0.0.1:1/page", picture)
    assert str(caught.value) == (
        f"{failing} ended with exit code 3 and saved no screenshot of http://127.0.0.1:1/page\n"
        "cannot open the shared memory"
    )
    assert not picture.exists()
    arguments = (tmp_path / "browser.arguments").read_text().split()
    assert "--headless=new" in arguments
    assert ("--no-sandbox" in arguments) == (os.geteuid() == 0)


def test_an_unresponsive_chromium_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chromium, "TIMEOUT", 0.5)
    hanging = program(tmp_path, 'mkfifo "$0.pipe"\ncat < "$0.pipe" &\nwait')
    with pytest.raises(chromium.ScreenshotError, match=r"did not end in 0\.5 s and saved no screenshot"):
        chromium.save(hanging, "http://127.0.0.1:1/", tmp_path / "picture.png")
    pipe = tmp_path / "browser.pipe"  # missing if the program did not reach its first line
    until_blocking(lambda: not pipe.exists() or not has_reader(pipe))


def has_reader(pipe: Path) -> bool:
    """Whether a process has opened the pipe. Otherwise opening it for writing fails."""
    with suppress(OSError):
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return True
    return False
