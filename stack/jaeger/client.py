"""A client for the query APIs of Jaeger 2."""

import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any

from cascade.telemetry.attributes import RUN_STARTED, RUN_TARGET
from cascade.testing import Spans
from stack.jaeger.otlp_json import spans_of_json

_TIMEOUT = 120.0
"""Seconds that `wait_for` waits at most, for loaded machines in CI."""

_INTERVAL = 0.05
"""Seconds between two requests: Jaeger sends no notification when a trace grows."""

_STARTED = json.dumps({RUN_STARTED: "true"})

_LATEST_DAYS = 30
"""Days in which the latest run is searched for. Without a start of the range, Jaeger searches two days."""

_MONITOR_PAGE = {"step": "60000", "lookback": "3600000", "ratePer": "600000"}
"""Times in milliseconds that the Monitor tab of Jaeger 2.13 requests."""


class Jaeger:
    """Reads traces from a Jaeger 2.

    Args:
        url: The URL of its pages.
        timeout: Seconds for a response.
    """

    def __init__(self, url: str = "http://127.0.0.1:16686", *, timeout: float = 30.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url={url!r}: must begin with http:// or https://")
        self._url = url.rstrip("/")
        self._timeout = timeout

    def trace(self, trace_id: str, *, raw: bool = False) -> Spans:
        """Return the stored spans of a trace.

        Args:
            trace_id: 32 hex digits.
            raw: Keep duplicates of spans that were delivered twice.
        """
        answer = self._get(f"/api/v3/traces/{trace_id}", {"raw_traces": "true"} if raw else {})
        return Spans(spans_of_json(answer["result"]) if answer else ())

    def wait_for(self, trace_id: str, predicate: Callable[[Spans], bool], timeout: float = _TIMEOUT) -> Spans:
        """Return the spans of a trace once the predicate is true for them.

        Raises:
            AssertionError: The predicate is false after `timeout` seconds. The text lists the spans.
        """
        deadline = time.monotonic() + timeout
        while not predicate(spans := self.trace(trace_id)):
            if time.monotonic() > deadline:
                raise AssertionError(f"not in Jaeger within {timeout:g} s; trace {trace_id} has {spans.summary()}")
            time.sleep(_INTERVAL)
        return spans

    def find(
        self,
        service: str,
        *,
        operation: str | None = None,
        tags: Mapping[str, str] | None = None,
        min_duration: str | None = None,
        limit: int = 100,
    ) -> set[str]:
        """Return the ids of the traces that the search page lists.

        Args:
            service: `service.name`.
            operation: The name of a span.
            tags: Attributes as text: `{"cascade.run.result": "failure"}`. With Badger, several spans of a trace may have them
                together.
            min_duration: Least duration of a span, such as `"1.5s"` or `"100ms"`.
            limit: The maximum number of traces, the latest first.
        """
        query = {"service": service, "limit": str(limit)}
        if operation is not None:
            query["operation"] = operation
        if min_duration is not None:
            query["minDuration"] = min_duration
        if tags:
            query["tags"] = json.dumps(dict(tags))
        return {trace["traceID"] for trace in self._data("/api/traces", query)}

    def latest_run(self) -> str | None:
        """Return the trace id of the run that started last, of any service; None without a run in 30 days.

        A run without an end is found by its marker span.
        """
        starts = (start for service in self.services() for start in self._latest_starts(service))
        return max(starts, default=(0, None))[1]

    def _latest_starts(self, service: str) -> Iterator[tuple[int, str]]:
        """Yield start and trace id of the latest run with a marker, and of the latest run of each name without one.

        With `detail="run"` a run has no marker. The marker of a run in the trace of another run lacks the tag.
        """
        marked = self._latest_trace(service, tags=_STARTED)
        yield from ((span["startTime"], span["traceID"]) for span in marked if _has(span, RUN_STARTED))
        for name in self.operations(service):
            if not name.startswith("run ") or name.endswith(" started"):
                continue
            spans = self._latest_trace(service, operation=name)
            if all(span["operationName"] != f"{name} started" for span in spans):
                runs = (span for span in spans if span["operationName"] == name and _has(span, RUN_TARGET))
                yield from ((span["startTime"], span["traceID"]) for span in runs)

    def _latest_trace(self, service: str, **query: str) -> list[dict[str, Any]]:
        """Return the spans of the latest trace that a search finds."""
        start = str(int((time.time() - _LATEST_DAYS * 86_400) * 1_000_000))
        found = self._data("/api/traces", {"service": service, **query, "start": start, "limit": "1"})
        return [span for trace in found for span in trace["spans"]]

    def services(self) -> set[str]:
        return set(self._data("/api/services"))

    def operations(self, service: str) -> set[str]:
        return {operation["name"] for operation in self._data("/api/operations", {"service": service})}

    def page(self, trace_id: str) -> dict[str, Any]:
        """Return the data of a trace's page in Jaeger's own format, with references, logs and warnings."""
        found: list[dict[str, Any]] = self._data(f"/api/traces/{trace_id}")
        if not found:
            raise AssertionError(f"Jaeger has no trace {trace_id}")
        return found[0]

    def monitor(
        self,
        kind: str,
        service: str,
        *,
        operation: str | None = None,
        span_kind: str = "server",
        quantile: float = 0.95,
    ) -> list[float]:
        """Return a curve of the Monitor tab: a value per minute of the last hour, each for the ten minutes before it.

        Minutes without calls have no value.

        Args:
            kind: `"calls"` per second, `"errors"` as a share from 0 to 1, or `"latencies"` in milliseconds.
            service: `service.name`.
            operation: The name of a span; None for all operations together.
            span_kind: `"server"` for runs, `"internal"` for tasks.
            quantile: For latencies.
        """
        query = {"service": service, "spanKind": span_kind, **_MONITOR_PAGE}
        if kind == "latencies":
            query["quantile"] = str(quantile)
        if operation is not None:
            query["groupByOperation"] = "true"
        answer = self._get(f"/api/metrics/{kind}", query) or {}
        label = {"name": "operation", "value": operation}
        metrics = [one for one in answer.get("metrics", ()) if operation is None or label in one["labels"]]
        values = [float(point["gaugeValue"]["doubleValue"]) for one in metrics for point in one["metricPoints"]]
        return [value for value in values if not math.isnan(value)]

    def _data(self, path: str, query: Mapping[str, str] | None = None) -> list[Any]:
        answer = self._get(path, query or {})
        return (answer or {}).get("data") or []

    def _get(self, path: str, query: Mapping[str, str]) -> dict[str, Any] | None:
        url = f"{self._url}{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=self._timeout) as answer:
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == HTTPStatus.NOT_FOUND:
                    return None
                raise RuntimeError(f"{url}: {error.code} {error.read(500).decode(errors='replace')}") from None
        return found


def _has(span: Mapping[str, Any], key: str) -> bool:
    return any(tag["key"] == key for tag in span["tags"])
