"""The pages of the stack that show a run: their URLs, opened in a browser and saved as screenshots."""

import os
import sys
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlencode

from cascade.telemetry import attributes as a
from cascade.testing import ReceivedSpan, Spans
from stack import chromium, running, up
from stack.build import ROOT
from stack.running import Running

FOLDER = ROOT / "build" / "look"
"""The default folder of the screenshots."""

_TIMEOUT = 30.0
"""Seconds for the answer of a page."""

_ENDED_RUNS = "sum by (cascade_run_target, cascade_run_result) (cascade_run_duration_seconds_count)"


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the stack.

    Attributes:
        name: The name of its screenshot, without `.png`.
        title: The server and the page.
        url: The URL.
        hint: What the page shows of the run.
    """

    name: str
    title: str
    url: str
    hint: str


def look(trace_id: str | None, folder: Path = up.FOLDER, out: Path = FOLDER) -> Iterator[str]:
    """Open the pages of a run and save screenshots of them; gives lines for the terminal as it proceeds.

    Args:
        trace_id: The id of the trace or of the run; None for the latest run of any service.
        folder: The folder of the stack that `make stack-up` started.
        out: The folder of the screenshots.

    Raises:
        ServerError: No stack is running, or Jaeger has no run or no such trace.
        ScreenshotError: Chromium saved no screenshot.
    """
    found = running.find(folder)
    spans = running.trace(trace_id, found.jaeger)
    yield _summary(spans)
    served = list[Page]()
    for page in pages(spans, found):
        yield f"\n{page.title}\n  {page.url}\n  {page.hint}"
        if (problem := problem_of(page.url)) is None:
            served.append(page)
        else:
            (out / f"{page.name}.png").unlink(missing_ok=True)  # of an earlier look: the page was served then
            yield f"  Not shown: {problem}."
    if not any(page.name == "jaeger-trace" for page in served):
        yield f"\nThe trace in the terminal: make stack-show TRACE={spans[0].trace_id}"
    if served:
        yield f"\n{_open(served, os.environ)}"
        yield from _screenshots(served, out)


def pages(spans: Spans, stack: Running) -> list[Page]:
    """The pages that show the run of a trace, or its service."""
    first = _first(spans)
    found = _of_jaeger(first, stack)
    if stack.prometheus:
        url = f"{stack.prometheus}/graph?{urlencode({'g0.expr': _ENDED_RUNS, 'g0.tab': '1'})}"
        found.append(Page("prometheus", "Prometheus: ended runs", url, "The number of runs by target and result."))
    return found + (_of_grafana(first, stack.grafana) if stack.grafana else [])


def _of_jaeger(first: ReceivedSpan, stack: Running) -> list[Page]:
    service = _service(first)
    query = {"service": service, "operation": first.name, "lookback": "2d", "limit": "20"}
    needs = "" if stack.prometheus else " It needs Prometheus, which is not running."
    return [
        Page(
            "jaeger-trace",
            "Jaeger: the trace",
            f"{stack.jaeger}/trace/{first.trace_id}",
            "The tasks and waits as a tree over time. A span has Tags, Logs (exceptions, events) and References (inputs).",
        ),
        Page(
            "jaeger-search",
            "Jaeger: runs of this target",
            f"{stack.jaeger}/search?{urlencode(query)}",
            "The latest 20 of two days, active and ended. A trace with errors has a red label.",
        ),
        Page(
            "jaeger-monitor",
            "Jaeger: the Monitor tab",
            f"{stack.jaeger}/monitor",
            f"Rates, errors and durations, less than a minute after a run. Choose the service {service}.{needs}",
        ),
    ]


def _of_grafana(first: ReceivedSpan, grafana: str) -> list[Page]:
    since = first.start_ns // 1_000_000 - 60_000
    query = {"var-trace_id": first.trace_id, "var-run_id": _run_id(first), "from": str(since), "to": "now"}
    return [
        Page(
            "grafana-run",
            "Grafana: one run",
            f"{grafana}/d/cascade-run?{urlencode(query)}",
            "The trace of the run from Tempo, and its tasks.",
        ),
        Page(
            "grafana-runs",
            "Grafana: all runs",
            f"{grafana}/d/cascade-runs",
            "Runs and tasks by result, durations, waits, and the latest runs.",
        ),
    ]


def problem_of(url: str) -> str | None:
    """The reason why a URL shows no page to a person; None if it does.

    All pages of the stack are drawn by scripts. A page without any is a placeholder: that of a Jaeger which was built
    without its pages is served with the status 200.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            text = answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        with error:
            return f"HTTP status {error.code} {error.reason}"
    except (OSError, HTTPException) as error:
        return f"no answer ({error})"
    if "<script" not in text:
        return "a placeholder is served, since the server was built without its pages"
    return None


def _first(spans: Spans) -> ReceivedSpan:
    """The marker of the run's start, which lists active and ended runs; else the run's span, else the first span."""
    marked = [span for span in spans if a.RUN_TARGET in span.attributes]
    return min(marked or spans, key=lambda span: (span.start_ns, a.RUN_RESULT in span.attributes))


def _service(span: ReceivedSpan) -> str:
    return str(span.resource[a.SERVICE_NAME])


def _run_id(span: ReceivedSpan) -> str:
    return str(span.attributes.get(a.RUN_ID, ""))


def _summary(spans: Spans) -> str:
    first = _first(spans)
    results = [
        span.attributes[a.RUN_RESULT]
        for span in spans
        if a.RUN_RESULT in span.attributes and _run_id(span) == _run_id(first)
    ]
    target = first.attributes.get(a.RUN_TARGET, first.name)
    errors = sum(span.status == "ERROR" for span in spans)
    state = f"result {results[0]}" if results else "active, or its end was not exported"
    return (
        f"Run of {target} ({_service(first)}): {state}\n"
        f"Trace {first.trace_id}: {len(spans)} spans, {errors} with an error"
    )


def _open(served: Sequence[Page], environment: Mapping[str, str]) -> str:
    """Open pages in the browser; returns a line about it."""
    browser = environment.get("BROWSER")
    if browser == "none":
        return "No page was opened: BROWSER=none."
    displays = environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")
    if not browser and not displays and sys.platform not in {"darwin", "win32"}:
        return "No page was opened: there is no display. BROWSER=command names a browser."
    opened = sum(webbrowser.open_new_tab(page.url) for page in served)
    return f"Pages opened in the browser: {opened} of {len(served)}."


def _screenshots(served: Sequence[Page], out: Path) -> Iterator[str]:
    program = chromium.find(os.environ)
    if program is None:
        names = ", ".join(chromium.NAMES)
        is_off = os.environ.get("CHROMIUM") == "none"
        yield f"No screenshots: {'CHROMIUM=none' if is_off else f'none of {names} is installed. CHROMIUM=path names another'}."
        return
    out.mkdir(parents=True, exist_ok=True)
    for page in served:
        path = out / f"{page.name}.png"
        chromium.save(program, page.url, path)
        yield f"Screenshot: {path}"
