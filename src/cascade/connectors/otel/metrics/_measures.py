"""From a message to measurements: which messages count, and as what."""

from collections.abc import Mapping
from typing import Any, Protocol

from cascade.connectors.otel._spans import error_type
from cascade.connectors.otel.metrics import _catalogue as m
from cascade.connectors.otel.metrics._census import Key
from cascade.connectors.otel.metrics._levels import Levels

CACHE_HIT = "CacheHit"


class Sink(Protocol):
    """Takes measurements, on the event loop's threads; quick, and never blocks.

    A key is a metric and the values of its attributes, in their order; None for one that has no value.
    """

    def observe(self, key: Key, seconds: float, end_ns: int, payload: Mapping[str, Any]) -> None:
        """Add a duration to a histogram; the payload's span is its example."""
        ...

    def count(self, key: Key) -> None:
        """Add one to a counter."""
        ...

    def touch(self) -> None:
        """Something that is not measured here, such as a level, has changed."""
        ...


def measure(payload: Mapping[str, Any], sink: Sink, levels: Levels) -> None:
    """Hand the sink all that this message says; nothing for most."""
    body = payload["body"]
    kind = body["type"]
    if kind == "TaskStateEvent":
        state = body["state"]
        if state in {"COMPLETED", "FAILED"}:
            _ended(payload, body, sink)
        elif state == "SKIPPED":
            _skipped(payload, body, sink)
        elif state == "PENDING" and body["metadata"].get("reason") == "retry":
            sink.count((m.TASK_RETRIES, body["task_name"]))
    elif kind == "LifecycleEvent":
        _lifecycle(payload, body, sink, levels)


def _ended(payload: Mapping[str, Any], body: Mapping[str, Any], sink: Sink) -> None:
    metadata = body["metadata"]
    end_ns = metadata["end_ns"]
    if metadata.get("kind") != "map":
        error = None if body["state"] == "COMPLETED" else error_type(body, metadata)
        key = (m.TASK_DURATION, body["task_name"], metadata["result"], error)
        sink.observe(key, _seconds(metadata["start_ns"], end_ns), end_ns, payload)
    if "waits" in metadata:
        _waited(payload, metadata, sink)


def _skipped(payload: Mapping[str, Any], body: Mapping[str, Any], sink: Sink) -> None:
    metadata = body["metadata"]
    reason = metadata.get("reason")
    sink.count((m.TASK_SKIPS, body["task_name"], reason))
    if reason == CACHE_HIT:
        sink.count((m.CACHE_HITS, body["task_name"]))
    _waited(payload, metadata, sink)


def _waited(payload: Mapping[str, Any], metadata: Mapping[str, Any], sink: Sink) -> None:
    for wait in metadata.get("waits", ()):
        seconds = _seconds(wait["start_ns"], wait["end_ns"])
        sink.observe((m.TASK_WAIT, wait["reason"]), seconds, wait["end_ns"], payload)


def _lifecycle(payload: Mapping[str, Any], body: Mapping[str, Any], sink: Sink, levels: Levels) -> None:
    metadata = body["metadata"]
    if body["event"] == "ENGINE_STARTED":
        levels.start_run(payload["run_id"])
    else:
        levels.end_run(payload["run_id"])
        key = (m.RUN_DURATION, metadata.get("target"), metadata.get("result"))
        end_ns = metadata["end_ns"]
        sink.observe(key, _seconds(metadata["start_ns"], end_ns), end_ns, payload)
    sink.touch()


def _seconds(start_ns: int, end_ns: int) -> float:
    # A clock that is set back makes no negative duration.
    return max(0.0, (end_ns - start_ns) / 1e9)
