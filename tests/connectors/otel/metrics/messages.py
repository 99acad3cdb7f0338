"""Messages of runs in the wire format, with the fields that metrics use."""

from typing import Any

from cascade.spec.telemetry import Header, LifecycleEvent, TaskStateEvent
from cascade.telemetry import wire

TRACE, SPAN = "0a" * 16, "0b" * 8
START = 1_700_000_000_000_000_000  # nanoseconds

Payload = dict[str, Any]


def task(
    name: str = "work",
    *,
    seconds: float = 0.003,
    state: Any = "COMPLETED",
    span_id: str = SPAN,
    flags: int = 1,
    error: str | None = None,
    **metadata: Any,
) -> Payload:
    more = {"kind": "task", **_window(seconds), "result": "success", **metadata}
    return _message(TaskStateEvent("id", name, state, seconds * 1000, error, more), span_id, flags)


def failed(name: str = "work", error: str = "ValueError") -> Payload:
    return task(name, state="FAILED", error=f"{error}: no", result="failure", exception={"type": error})


def skipped(name: str = "work", reason: str = "CacheHit", **metadata: Any) -> Payload:
    return task(name, seconds=0, state="SKIPPED", result="skip", reason=reason, **metadata)


def pending(name: str = "work", reason: str = "retry") -> Payload:
    return task(name, state="PENDING", reason=reason)


def wait(reason: str, seconds: float) -> dict[str, Any]:
    return {"reason": reason, "span_id": "0c" * 8, **_window(seconds)}


def started(run_id: str = "run") -> Payload:
    return _message(LifecycleEvent("ENGINE_STARTED", metadata={"target": "it", "start_ns": START}), run_id=run_id)


def stopped(run_id: str = "run", *, target: str = "it", result: str = "success", seconds: float = 2) -> Payload:
    metadata = {"target": target, **_window(seconds), "result": result}
    return _message(LifecycleEvent("ENGINE_STOPPED", "Succeeded", metadata=metadata), run_id=run_id)


def _window(seconds: float) -> dict[str, int]:
    return {"start_ns": START, "end_ns": START + round(seconds * 1e9)}


def _message(body: Any, span_id: str = SPAN, flags: int = 1, run_id: str = "run") -> Payload:
    header = Header(run_id, wire.timestamp(START), 0, trace_id=TRACE, span_id=span_id, trace_flags=flags)
    return wire.encode(header, body)
