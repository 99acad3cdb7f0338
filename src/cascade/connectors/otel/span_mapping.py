"""Mapping of a message to its spans, and the choice of their names and attributes.

The mapping is a pure function: a replay of recorded messages produces the same spans as the run.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from cascade.connectors.otel.span_data import (
    Attributes,
    Event,
    LinkData,
    SpanData,
    part_events,
    part_link,
    part_root,
)
from cascade.spec.metadata import (
    Attempt,
    ConstraintRef,
    Decision,
    ExceptionInfo,
    Link,
    ResourceMetadata,
    RunEndedMetadata,
    RunStartedMetadata,
    TaskEndedMetadata,
    Wait,
)
from cascade.telemetry import attributes as a
from cascade.telemetry.identity import RUN_STARTED, span_id
from cascade.telemetry.limits import MAX_LINKS, MAX_VALUE_BYTES
from cascade.telemetry.safe import text

CANCELLATION = "cancellation"


def spans_of(payload: Mapping[str, Any], *, detail: str = "full", cicd: bool = False) -> list[SpanData]:
    """Return the spans that have ended with a message; most messages end none. `detail` is "run", "tasks" or "full"."""
    body = payload["body"]
    match body.get("type"), body.get("event") or body.get("state") or body.get("action"):
        case "TaskStateEvent", "COMPLETED" | "FAILED" | "SKIPPED" if detail != "run":
            spans = _steps(payload, body) if detail == "full" else []
            return [*spans, *_part_roots(payload, body), _task(payload, body, cicd=cicd)]
        case "TaskStateEvent", "PENDING" if detail == "full" and "span_id" in body["metadata"]:
            return [_attempt(payload, body, cast("Attempt", {"result": "failure", **body["metadata"]}))]
        case "ResourceEvent", "ACQUIRE" if detail == "full":
            return [_resource(payload, body, "setup")]
        case "ResourceEvent", "RELEASE" if detail == "full":
            return [_resource(payload, body, "teardown")]
        case "LifecycleEvent", "ENGINE_STARTED" if detail != "run":
            return [_start_marker(payload, body["metadata"])]
        case "LifecycleEvent", "ENGINE_STOPPED":
            if detail == "run":  # the spans of its parts are not exported
                body = {**body, "metadata": {k: v for k, v in body["metadata"].items() if k != "parts"}}
            return [*_part_roots(payload, body), _run(payload, body, cicd=cicd)]
    return []


def _steps(payload: Mapping[str, Any], body: Mapping[str, Any]) -> list[SpanData]:
    """Return the spans of the waits and the attempts of a task."""
    metadata: TaskEndedMetadata = body["metadata"]
    waits = [_wait(payload, body, wait) for wait in metadata["waits"]] if "waits" in metadata else []
    attempts = [_attempt(payload, body, one) for one in metadata["attempts"]] if "attempts" in metadata else []
    return waits + attempts


def _start_marker(payload: Mapping[str, Any], metadata: RunStartedMetadata) -> SpanData:
    moment = metadata.get("start_ns", 0)
    # Runs that items of a large map have started are in the trace of a part. A search for started runs must not find it.
    is_nested = metadata.get("outer_run_id") and payload["parent_span_id"]
    found = {
        a.RUN_ID: payload["run_id"],
        a.RUN_TARGET: metadata.get("target"),
        a.RUN_STARTED: None if is_nested else True,
    }
    own_id, name = span_id(payload["run_id"], RUN_STARTED), f"{_run_name(metadata)} started"
    window = {"start_ns": moment, "end_ns": moment}
    return _span(payload, name, own_id, payload["span_id"], window, found)._replace(is_marker=True)


def _run_name(metadata: Mapping[str, Any]) -> str:
    return f"run {metadata.get('target', '')}".rstrip()


def _run(payload: Mapping[str, Any], body: Mapping[str, Any], *, cicd: bool) -> SpanData:
    metadata: RunEndedMetadata = body["metadata"]
    found = {
        a.RUN_ID: payload["run_id"],
        a.ORG_ID: payload.get("org_id"),
        a.PROJECT_ID: payload.get("project_id"),
        a.RUN_TARGET: metadata.get("target"),
        a.RUN_RESULT: metadata.get("result"),
        a.RUN_INPUTS: metadata.get("inputs"),
        a.RUN_PARAMS: metadata.get("params"),
        a.RUN_MESSAGES_DROPPED: metadata.get("dropped") or None,
        a.RUN_SPANS_LEFT_OUT: metadata.get("left_out"),
        a.PARTS: _part_count(metadata),
        a.RUN_CONTROL_DECISIONS: metadata.get("control_count"),
        **{f"cascade.run.tasks.{state}": count for state, count in metadata.get("counts", {}).items()},
    }
    if cicd:
        found |= {
            a.CICD_PIPELINE_NAME: metadata.get("target"),
            a.CICD_PIPELINE_RUN_ID: payload["run_id"],
            a.CICD_PIPELINE_RESULT: metadata.get("result"),
        }
    name, decisions = _run_name(metadata), tuple(map(_decision, metadata.get("control", ())))
    own_id, parent_id = payload["span_id"], payload["parent_span_id"]
    run = _span(payload, name, own_id, parent_id, metadata, found, body, events=decisions, is_server=True)
    later = tuple(_exception_event(error, error.get("time_ns", 0)) for error in metadata.get("later_errors", ()))
    return run._replace(events=(*run.events, *later)) if later else run


_OF_METADATA = {
    "result": a.TASK_RESULT,
    "max_attempts": a.TASK_MAX_ATTEMPTS,
    "link_count": a.TASK_DEPENDENCIES,
    "reason": a.TASK_SKIP_REASON,
    "arguments": a.TASK_ARGUMENTS,
    "output": a.TASK_OUTPUT,
    "map_size": a.MAP_SIZE,
    "function": a.CODE_FUNCTION_NAME,
}


def _task(payload: Mapping[str, Any], body: Mapping[str, Any], *, cicd: bool) -> SpanData:
    metadata: TaskEndedMetadata = body["metadata"]
    found = _task_attributes(payload, body)
    for key, value in metadata.items():
        if key in _OF_METADATA:
            found[_OF_METADATA[key]] = value
    if attempts := metadata.get("attempts"):
        found[a.TASK_ATTEMPTS] = metadata.get("attempt_count", len(attempts))
    if "parts" in metadata:
        found[a.PARTS] = _part_count(metadata)
    if cicd:
        found |= {
            a.CICD_TASK_NAME: body["task_name"],
            a.CICD_TASK_RUN_ID: body["task_id"],
            a.CICD_TASK_RUN_RESULT: metadata.get("result"),
        }
    name = f"{body['task_name']} skipped" if body["state"] == "SKIPPED" else body["task_name"]
    held = tuple(_held_events(metadata["waits"], metadata.get("start_ns", 0))) if "waits" in metadata else ()
    failed = body
    if metadata.get("result") == CANCELLATION:
        failed = {}  # no error: the failure that caused it, if any, is that of another task
        found[a.TASK_CANCELLATION_REASON] = body.get("error")
    return _span(payload, name, payload["span_id"], payload["parent_span_id"], metadata, found, failed, events=held)


def _attempt(payload: Mapping[str, Any], body: Mapping[str, Any], attempt: Attempt) -> SpanData:
    found = {
        **_task_attributes(payload, body),
        a.TASK_ATTEMPT: attempt.get("attempt"),
        a.TASK_RESULT: attempt.get("result"),
    }
    name = f"{body['task_name']} attempt"
    return _span(payload, name, attempt["span_id"], payload["span_id"], attempt, found, _failure(attempt))


def _wait(payload: Mapping[str, Any], body: Mapping[str, Any], wait: Wait) -> SpanData:
    found = {
        **_task_attributes(payload, body),
        a.WAIT_REASON: wait.get("reason"),
        **_constraint(wait.get("constraint")),
    }
    # A wait before the start of its task is a child of the task although it is earlier. Viewers then show it below the
    # task, and the critical path follows the task.
    return _span(payload, f"{body['task_name']} wait", wait["span_id"], payload["span_id"], wait, found)


def _resource(payload: Mapping[str, Any], body: Mapping[str, Any], step: str) -> SpanData:
    metadata: ResourceMetadata = body["metadata"]
    found = {
        a.RUN_ID: payload["run_id"],
        a.RESOURCE_NAME: body["resource_name"],
        a.RESOURCE_RESULT: metadata.get("result"),
    }
    if (hold_start_ns := metadata.get("hold_start_ns")) is not None:
        found[a.RESOURCE_HOLD_SECONDS] = max(0, metadata.get("start_ns", 0) - hold_start_ns) / 1e9
    name, failed = f"{body['resource_name']} {step}", _failure(metadata)
    return _span(payload, name, payload["span_id"], payload["parent_span_id"], metadata, found, failed)


def _part_roots(payload: Mapping[str, Any], body: Mapping[str, Any]) -> list[SpanData]:
    """Return the roots of the parts whose last child has ended with this message, and of the other parts of a map or run.

    A part whose root an earlier message had is listed only for its link.
    """
    metadata = body["metadata"]
    spans = []
    if "ended_parts" in metadata:
        for part in metadata["ended_parts"]:
            ids = _attributes({a.RUN_ID: payload["run_id"], a.TASK_ID: part.get("task_id")})
            spans.append(part_root(payload, part, part["name"], ids, part["parent"]))
    if "parts" in metadata:
        ids = _attributes({a.RUN_ID: payload["run_id"], a.TASK_ID: body.get("task_id")})
        name = body.get("task_name") or _run_name(metadata)
        spans += [part_root(payload, part, name, ids, payload) for part in metadata["parts"] if not part.get("ended")]
    return spans


def _part_count(metadata: Mapping[str, Any]) -> int | None:
    return metadata.get("part_count") or len(metadata.get("parts", ())) or None


def error_type(body: Mapping[str, Any], metadata: Mapping[str, Any]) -> Any:
    """Return the type of the exception, else the first word of the error; None for a success and a cancelled task."""
    if metadata.get("result") == CANCELLATION:
        return None if body.get("type") != "LifecycleEvent" else CANCELLATION
    if exception := metadata.get("exception"):
        return exception.get("type")
    error = body.get("error")
    return None if error is None else error.partition(":")[0]


_SUCCESS: Mapping[str, Any] = {}


def _span(
    payload: Mapping[str, Any],
    name: str,
    own_id: str,
    parent_id: str,
    metadata: Mapping[str, Any],
    attributes: Attributes,
    failed: Mapping[str, Any] = _SUCCESS,
    *,
    events: tuple[Event, ...] = (),
    is_server: bool = False,
) -> SpanData:
    """Return a span with the times, the exception, the links and the parts in `metadata`.

    `failed` has the `error` of a failed span, and the type of its message.
    """
    exception, start_ns, end_ns = metadata.get("exception"), metadata.get("start_ns", 0), metadata.get("end_ns", 0)
    if (kind := error_type(failed, metadata)) is not None:
        attributes[a.ERROR_TYPE] = kind
    if exception:
        events = (*events, _exception_event(exception, end_ns))
    parts, links = metadata.get("parts", ()), tuple[LinkData, ...]()
    if "links" in metadata or parts:
        dependencies = metadata.get("links", ())[: MAX_LINKS - len(parts)]
        links = tuple(_link(link, payload) for link in dependencies)
    if parts:
        above = payload["body"].get("task_name") or _run_name(payload["body"]["metadata"])
        links += tuple(part_link(part, above) for part in parts)
        events = (*events, *part_events(parts, start_ns))
    return SpanData(
        name,
        payload["trace_id"],
        own_id,
        parent_id,
        start_ns,
        end_ns + (end_ns == start_ns),  # Jaeger warns of clock skew for a span without length
        _attributes(attributes),
        payload.get("trace_flags", 1),
        is_server,
        failed.get("error"),
        events,
        links,
        is_server or metadata.get("kind") == "map",
        payload.get("tracestate", ""),
    )


def _link(link: Link, payload: Mapping[str, Any]) -> LinkData:
    """Return a link to a span. A span in the trace of the message has the tracestate of the message."""
    own = payload.get("tracestate", "") if link["trace_id"] == payload["trace_id"] else ""
    return LinkData(link["trace_id"], link["span_id"], link.get("tracestate", own))


def _task_attributes(payload: Mapping[str, Any], body: Mapping[str, Any]) -> Attributes:
    """Return the attributes of all spans of a task. Items have an index, and may have a label."""
    found = {a.RUN_ID: payload["run_id"], a.TASK_ID: body["task_id"], a.TASK_NAME: body["task_name"]}
    if "map_index" in body["metadata"]:
        found[a.MAP_INDEX] = body["metadata"]["map_index"]
    if "label" in body["metadata"]:
        found[a.TASK_LABEL] = body["metadata"]["label"]
    return found


def _decision(decision: Decision) -> Event:
    found = {
        a.CONTROL_ACTION: decision.get("action"),
        **_constraint(decision),
        a.CONTROL_REASON: decision.get("reason"),
        a.CONTROL_PARAMS: decision.get("params"),
    }
    return Event("cascade.control", decision.get("time_ns", 0), _attributes(found))


def _held_events(waits: Iterable[Wait], start_ns: int) -> Iterator[Event]:
    """Return an event for each constraint that held the task back, not earlier than the start of its span.

    Viewers warn of clock skew for an earlier event.
    """
    for wait in waits:
        if constraint := wait.get("constraint"):
            found = {a.WAIT_REASON: wait.get("reason"), **_constraint(constraint)}
            yield Event("cascade.control.held", max(wait["start_ns"], start_ns), _attributes(found))


def _constraint(found: ConstraintRef | Decision | None) -> Attributes:
    if found is None:
        return {}
    return {a.CONTROL_SCOPE: found.get("scope"), a.CONTROL_TYPE: found.get("type"), a.CONTROL_ID: found.get("id")}


def _failure(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    exception = metadata.get("exception")
    if not exception:
        return _SUCCESS
    return {"error": f"{str(exception.get('type', '')).rpartition('.')[2]}: {exception.get('message', '')}"}


def _exception_event(exception: ExceptionInfo, time_ns: int) -> Event:
    found = {
        a.EXCEPTION_TYPE: exception.get("type"),
        a.EXCEPTION_MESSAGE: exception.get("message"),
        a.EXCEPTION_STACKTRACE: exception.get("stacktrace"),
    }
    return Event("exception", time_ns, {key: value for key, value in found.items() if value})


def _attributes(found: Attributes) -> Attributes:
    """Return the attributes that have a value, with the types of OTLP. Texts are cut to `MAX_VALUE_BYTES`."""
    return {
        key: value if type(value) is int or (type(value) is str and len(value) < _SHORT) else _value(value)
        for key, value in found.items()
        if value is not None
    }


_SHORT = MAX_VALUE_BYTES // 4  # characters of at most four bytes


def _value(value: Any) -> Any:
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(text(item, MAX_VALUE_BYTES) for item in value)
    return text(value if isinstance(value, str) else json.dumps(value), MAX_VALUE_BYTES)
