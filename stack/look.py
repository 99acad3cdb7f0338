"""Opens the pages of a run in the browser and saves screenshots of them."""

import json
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
"""Seconds for the response of a page."""

_TWO_DAYS = 2 * 86_400

_ENDED_RUNS = "sum by (cascade_run_target, cascade_run_result) (cascade_run_duration_seconds_count)"


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the stack.

    Attributes:
        name: The name of its screenshot, without `.png`.
        title: The server and the page.
        url: The URL.
        hint: A line of help.
    """

    name: str
    title: str
    url: str
    hint: str


def look(trace_id: str | None, folder: Path = up.FOLDER, out: Path = FOLDER) -> Iterator[str]:
    """Open the pages of a run and save screenshots; yields the lines for the terminal.

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
    first = first_of(spans, running.plain_id(trace_id) if trace_id else "")
    yield _summary(spans, first)
    served = list[Page]()
    for page in pages(first, found):
        yield f"\n{page.title}\n  {page.url}\n  {page.hint}"
        if (problem := problem_of(page.url)) is None:
            served.append(page)
        else:
            (out / f"{page.name}.png").unlink(missing_ok=True)  # an earlier screenshot, when the page was available
            yield f"  Not shown: {problem}."
    if not any(page.name == "jaeger-trace" for page in served):
        yield f"\nThe trace in the terminal: make stack-show TRACE={spans[0].trace_id}"
    if served:
        yield f"\n{_open(served, os.environ)}"
        yield from _screenshots(served, out)


def pages(first: ReceivedSpan, stack: Running) -> list[Page]:
    """Return the pages of a run and its service.

    Args:
        first: The span that `first_of` returns.
        stack: The servers.
    """
    found = _of_jaeger(first, stack)
    if stack.prometheus:
        url = f"{stack.prometheus}/graph?{urlencode({'g0.expr': _ENDED_RUNS, 'g0.tab': '1'})}"
        found.append(Page("prometheus", "Prometheus: ended runs", url, "The number of runs by target and result."))
    return found + (_of_grafana(first, stack.grafana) if stack.grafana else [])


def _of_jaeger(first: ReceivedSpan, stack: Running) -> list[Page]:
    needs = "" if stack.prometheus else " It needs Prometheus, which is not running."
    return [
        Page(
            "jaeger-trace",
            "Jaeger: the trace",
            f"{stack.jaeger}/trace/{first.trace_id}",
            "The tasks and waits as a tree over time. A span has Tags, Logs (exceptions, events) and References (inputs).",
        ),
        _search(first, stack.jaeger),
        Page(
            "jaeger-monitor",
            "Jaeger: the Monitor tab",
            f"{stack.jaeger}/monitor",
            f"Rates, errors and durations, less than a minute after a run. Choose the service {_service(first)}.{needs}",
        ),
    ]


def _search(first: ReceivedSpan, jaeger: str) -> Page:
    """Return the search for runs of the same target; for a part, the search for the traces of its run."""
    since = first.start_ns // 1_000 - _TWO_DAYS * 1_000_000  # without `start`, Jaeger searches the last two days
    query = {"service": _service(first), "lookback": "custom", "start": str(since), "limit": "20"}
    title, hint = "Jaeger: runs of this target", "The latest 20, active and ended, from two days before this run on."
    if a.RUN_TARGET in first.attributes or not _run_id(first):
        query["operation"] = first.name
    else:
        query |= {"tags": json.dumps({a.RUN_ID: _run_id(first)}), "limit": "200"}
        title, hint = "Jaeger: the traces of the run", "The trace of the run and those of its parts."
    url = f"{jaeger}/search?{urlencode(query)}"
    return Page("jaeger-search", title, url, f"{hint} A trace with errors has a red label.")


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
    """Return the reason why a URL has no page; None if it has one.

    All pages of the stack use scripts. A page without a script is the placeholder that a Jaeger without pages serves with
    the status 200.
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
        return "the server was built without its pages and serves a placeholder"
    return None


def first_of(spans: Spans, run_id: str = "") -> ReceivedSpan:
    """Return the marker of a run's start, by which Jaeger lists active and ended runs; else the span of the run.

    The run is the one with the given id (32 hex digits), else the latest run in the trace that was not started by a task.
    Without such a run, the span is the root of a part, else the span of the first run, else the first span.
    """
    runs = [span for span in spans if a.RUN_TARGET in span.attributes]
    named = [span for span in runs if _run_id(span).replace("-", "") == run_id]
    started = sorted((span for span in runs if a.RUN_STARTED in span.attributes), key=lambda span: span.start_ns)
    parts = [span for span in spans if a.PART_NUMBER in span.attributes]
    return min(
        named or started[-1:] or parts or runs or spans,
        key=lambda span: (span.start_ns, a.RUN_RESULT in span.attributes),
    )


def _service(span: ReceivedSpan) -> str:
    return str(span.resource[a.SERVICE_NAME])


def _run_id(span: ReceivedSpan) -> str:
    return str(span.attributes.get(a.RUN_ID, ""))


def _summary(spans: Spans, first: ReceivedSpan) -> str:
    errors = sum(span.status == "ERROR" for span in spans)
    return (
        f"{_subject(spans, first)}\n"
        f"Trace {first.trace_id}: {len(spans)} span{'s' * (len(spans) != 1)}, {errors} with an error"
    )


def _subject(spans: Spans, first: ReceivedSpan) -> str:
    if a.RUN_TARGET not in first.attributes:
        return f"{first.name} ({_service(first)})"
    ended = (span for span in spans if a.RUN_RESULT in span.attributes and _run_id(span) == _run_id(first))
    state = next((f"result {span.attributes[a.RUN_RESULT]}" for span in ended), "active, or its end was not exported")
    return f"Run of {first.attributes[a.RUN_TARGET]} ({_service(first)}): {state}"


def _open(served: Sequence[Page], environment: Mapping[str, str]) -> str:
    """Open pages in the browser; return a line about the result."""
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
