"""Mapping of a message to its spans: their names, attributes, events and links.

The mapping is a pure function: a replay of recorded messages produces the same spans as the run.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

from cascade.spec.metadata import (
    Attempt,
    ConstraintRef,
    Decision,
    Link,
    ResourceMetadata,
    RunEndedMetadata,
    RunStartedMetadata,
    TaskEndedMetadata,
    Wait,
)
from cascade.telemetry import attributes as a
from cascade.telemetry.identity import RUN_STARTED, span_id
from cascade.telemetry.limits import MAX_LINKS
from cascade.telemetry.span_data import (
    Attributes,
    SpanData,
    SpanEvent,
    SpanLink,
    attributes_of,
    exception_event,
    failure_event,
    part_event,
    part_link,
    part_root,
)

Message = Mapping[str, Any]
"""A message with its header and its `body`, or only the body."""

CANCELLATION = "cancellation"


def spans_of(payload: Message, *, detail: str = "full", cicd: bool = False) -> list[SpanData]:
    """Return the spans that a message completes. Most messages complete none. `detail` is "run", "tasks" or "full"."""
    body = payload["body"]
    match body.get("state") or body.get("event") or body.get("action"):
        case "COMPLETED" | "FAILED" | "SKIPPED" if detail != "run":
            metadata, task = body["metadata"], _task(payload, body, cicd)
            if not ("waits" in metadata or "attempts" in metadata or "parts" in metadata or "ended_parts" in metadata):
                return [task]  # most tasks have no other spans
            children = _waits_and_attempts(payload, body) if detail == "full" else []
            return [*children, *_part_roots(payload, body), task]
        case "PENDING" if detail == "full" and "span_id" in body["metadata"]:
            return [_attempt(payload, body, cast("Attempt", {"result": "failure", **body["metadata"]}))]
        case "ACQUIRE" if detail == "full":
            return [_resource(payload, body, "setup")]
        case "RELEASE" if detail == "full":
            return [_resource(payload, body, "teardown")]
        case "ENGINE_STARTED" if detail != "run":
            return [_start_marker(payload, body["metadata"])]
        case "ENGINE_STOPPED":
            if detail == "run":  # the spans of its parts are not exported
                body = {**body, "metadata": {k: v for k, v in body["metadata"].items() if k != "parts"}}
            return [*_part_roots(payload, body), _run(payload, body, cicd=cicd)]
    return []


def _waits_and_attempts(payload: Message, body: Message) -> list[SpanData]:
    metadata: TaskEndedMetadata = body["metadata"]
    waits = [_wait(payload, body, wait) for wait in metadata.get("waits", ())]
    return waits + [_attempt(payload, body, one) for one in metadata.get("attempts", ())]


def _start_marker(payload: Message, metadata: RunStartedMetadata) -> SpanData:
    start_ns = metadata.get("start_ns", 0)
    # The trace of a part contains runs that items of a large map have started. A search for started runs must not find them.
    is_nested = metadata.get("outer_run_id") and payload["parent_span_id"]
    attributes = {
        a.RUN_ID: payload["run_id"],
        a.RUN_TARGET: metadata.get("target"),
        a.RUN_TAGS: metadata.get("tags"),
        a.RUN_STARTED: None if is_nested else True,
    }
    own_id, name = span_id(payload["run_id"], RUN_STARTED), f"{_run_name(metadata)} started"
    times = {"start_ns": start_ns, "end_ns": start_ns}
    return _span(payload, name, own_id, payload["span_id"], times, attributes)._replace(is_marker=True)


def _run_name(metadata: Mapping[str, Any]) -> str:
    return f"run {metadata.get('target', '')}".rstrip()


def _run(payload: Message, body: Message, *, cicd: bool) -> SpanData:
    metadata: RunEndedMetadata = body["metadata"]
    attributes = {
        a.RUN_ID: payload["run_id"],
        a.ORG_ID: payload.get("org_id"),
        a.PROJECT_ID: payload.get("project_id"),
        a.RUN_TARGET: metadata.get("target"),
        a.RUN_TAGS: metadata.get("tags"),
        a.RUN_RESULT: metadata.get("result"),
        a.RUN_INPUTS: metadata.get("inputs"),
        a.RUN_PARAMS: metadata.get("params"),
        a.RUN_MESSAGES_DROPPED: metadata.get("dropped") or None,
        a.RUN_SPANS_LEFT_OUT: metadata.get("left_out"),
        a.PARTS: _part_count(metadata),
        a.RUN_CONTROL_DECISIONS: metadata.get("control_count"),
        **{f"cascade.run.tasks.{state}": count for state, count in metadata.get("counts", {}).items()},
        **{f"cascade.run.starved.{key}": value for key, value in metadata.get("starved", {}).items()},
    }
    if cicd:
        attributes |= {
            a.CICD_PIPELINE_NAME: metadata.get("target"),
            a.CICD_PIPELINE_RUN_ID: payload["run_id"],
            a.CICD_PIPELINE_RESULT: metadata.get("result"),
        }
    decisions = tuple(map(_decision_event, metadata.get("control", ())))
    name, own_id, parent_id = _run_name(metadata), payload["span_id"], payload["parent_span_id"]
    run = _span(payload, name, own_id, parent_id, metadata, attributes, body.get("error"), decisions, is_run=True)
    more = [exception_event(error, error.get("time_ns", 0)) for error in metadata.get("later_errors", ())]
    more += map(failure_event, metadata.get("failures", ()))
    return run._replace(events=(*run.events, *more)) if more else run


_ATTRIBUTE_OF_KEY = {
    "result": a.TASK_RESULT,
    "max_attempts": a.TASK_MAX_ATTEMPTS,
    "link_count": a.TASK_DEPENDENCIES,
    "reason": a.TASK_SKIP_REASON,
    "tags": a.TASK_TAGS,
    "arguments": a.TASK_ARGUMENTS,
    "output": a.TASK_OUTPUT,
    "map_size": a.MAP_SIZE,
    "function": a.CODE_FUNCTION_NAME,
    "cpu_seconds": a.TASK_CPU_SECONDS,
    "queue_seconds": a.TASK_QUEUE_SECONDS,
}
"""Attributes of a task's span that have the value of a key of the metadata."""


def _task(payload: Message, body: Message, cicd: bool) -> SpanData:
    metadata: TaskEndedMetadata = body["metadata"]
    attributes = _task_attributes(payload, body)
    for key, value in metadata.items():
        if key in _ATTRIBUTE_OF_KEY:
            attributes[_ATTRIBUTE_OF_KEY[key]] = value
    if "attempts" in metadata:
        attributes[a.TASK_ATTEMPTS] = metadata.get("attempt_count", len(metadata["attempts"])) or None
    if "parts" in metadata:
        attributes[a.PARTS] = _part_count(metadata)
    name, error = body["task_name"], body.get("error")
    if cicd:
        attributes |= {
            a.CICD_TASK_NAME: name,
            a.CICD_TASK_RUN_ID: body["task_id"],
            a.CICD_TASK_RUN_RESULT: metadata.get("result"),
        }
    if metadata.get("result") == CANCELLATION:
        # The status is not ERROR: a failure that caused the cancellation is the failure of another task.
        error, attributes[a.TASK_CANCELLATION_REASON] = None, error
    if body["state"] == "SKIPPED":
        name = f"{name} skipped"
    held = tuple(_held_events(metadata["waits"], metadata.get("start_ns", 0))) if "waits" in metadata else ()
    return _span(payload, name, payload["span_id"], payload["parent_span_id"], metadata, attributes, error, held)


def _attempt(payload: Message, body: Message, attempt: Attempt) -> SpanData:
    attributes = {
        **_task_attributes(payload, body),
        a.TASK_ATTEMPT: attempt.get("attempt"),
        a.TASK_RESULT: attempt.get("result"),
        a.TASK_CPU_SECONDS: attempt.get("cpu_seconds"),
    }
    name = f"{body['task_name']} attempt"
    return _span(payload, name, attempt["span_id"], payload["span_id"], attempt, attributes, _error_of(attempt))


def _wait(payload: Message, body: Message, wait: Wait) -> SpanData:
    attributes = {
        **_task_attributes(payload, body),
        a.WAIT_REASON: wait.get("reason"),
        **_constraint(wait.get("constraint")),
    }
    # A wait before the start of its task is a child of the task although it is earlier. Viewers then show it below the
    # task, and the critical path follows the task.
    return _span(payload, f"{body['task_name']} wait", wait["span_id"], payload["span_id"], wait, attributes)


def _resource(payload: Message, body: Message, step: str) -> SpanData:
    metadata: ResourceMetadata = body["metadata"]
    attributes = {
        a.RUN_ID: payload["run_id"],
        a.RESOURCE_NAME: body["resource_name"],
        a.RESOURCE_RESULT: metadata.get("result"),
    }
    if (hold_start_ns := metadata.get("hold_start_ns")) is not None:
        attributes[a.RESOURCE_HOLD_SECONDS] = max(0, metadata.get("start_ns", 0) - hold_start_ns) / 1e9
    name, error = f"{body['resource_name']} {step}", _error_of(metadata)
    return _span(payload, name, payload["span_id"], payload["parent_span_id"], metadata, attributes, error)


def _part_roots(payload: Message, body: Message) -> list[SpanData]:
    """Return the root spans of the parts that a message completes.

    `ended_parts` lists the parts whose last child is the task of the message. `parts` lists all parts of the map or run that
    has ended. A part in it with `ended` is skipped, because an earlier message has completed its root span.
    """
    metadata = body["metadata"]
    spans = []
    if "ended_parts" in metadata:
        for part in metadata["ended_parts"]:
            ids = attributes_of({a.RUN_ID: payload["run_id"], a.TASK_ID: part.get("task_id")})
            spans.append(part_root(payload, part, part["name"], ids, part["parent"]))
    if "parts" in metadata:
        ids = attributes_of({a.RUN_ID: payload["run_id"], a.TASK_ID: body.get("task_id")})
        name = body.get("task_name") or _run_name(metadata)
        spans += [part_root(payload, part, name, ids, payload) for part in metadata["parts"] if not part.get("ended")]
    return spans


def _part_count(metadata: Mapping[str, Any]) -> int | None:
    return metadata.get("part_count") or len(metadata.get("parts", ())) or None


def error_type(metadata: Mapping[str, Any], error: str | None, *, is_run: bool = False) -> str | None:
    """Return the type of the exception in the metadata, else the text of `error` before its first colon.

    Return None for a success and for a cancelled task, and "cancellation" for a cancelled run.
    """
    if metadata.get("result") == CANCELLATION:
        return CANCELLATION if is_run else None
    if exception := metadata.get("exception"):
        kind: str | None = exception.get("type")
        return kind
    return None if error is None else error.partition(":")[0]


def _span(
    payload: Message,
    name: str,
    own_id: str,
    parent_id: str,
    metadata: Mapping[str, Any],
    attributes: Attributes,
    error: str | None = None,
    events: tuple[SpanEvent, ...] = (),
    *,
    is_run: bool = False,
) -> SpanData:
    """Return a span with the times, the exception, the links and the parts in `metadata`."""
    start_ns, end_ns = metadata.get("start_ns", 0), metadata.get("end_ns", 0)
    links: tuple[SpanLink, ...] = ()
    if is_run or error is not None or "exception" in metadata:
        if (kind := error_type(metadata, error, is_run=is_run)) is not None:
            attributes[a.ERROR_TYPE] = kind
        if exception := metadata.get("exception"):
            events = (*events, exception_event(exception, end_ns))
    if "links" in metadata or "parts" in metadata:
        parts = metadata.get("parts", ())
        links = tuple([_link(link, payload) for link in metadata.get("links", ())[: MAX_LINKS - len(parts)]])
        parent = payload["body"].get("task_name") or _run_name(payload["body"]["metadata"])
        links += tuple(part_link(part, parent) for part in parts)
        events += tuple(part_event(part, start_ns) for part in parts)
    return SpanData(
        name,
        payload["trace_id"],
        own_id,
        parent_id,
        start_ns,
        end_ns + (end_ns == start_ns),  # Jaeger warns of clock skew if the duration is zero
        attributes_of(attributes),
        payload.get("trace_flags", 1),
        is_run,
        error,
        events,
        links,
        is_run or metadata.get("kind") == "map",
        payload.get("tracestate", ""),
    )


def _link(link: Link, payload: Message) -> SpanLink:
    """Return a link to a span. A span in the trace of the message has the tracestate of the message."""
    tracestate = payload.get("tracestate", "") if link["trace_id"] == payload["trace_id"] else ""
    return SpanLink(link["trace_id"], link["span_id"], link.get("tracestate", tracestate))


def _task_attributes(payload: Message, body: Message) -> Attributes:
    """Return the attributes of all spans of a task. Items of a map have an index, and may have a label."""
    attributes = {a.RUN_ID: payload["run_id"], a.TASK_ID: body["task_id"], a.TASK_NAME: body["task_name"]}
    if "map_index" in body["metadata"]:
        attributes[a.MAP_INDEX] = body["metadata"]["map_index"]
    if "label" in body["metadata"]:
        attributes[a.TASK_LABEL] = body["metadata"]["label"]
    return attributes


def _decision_event(decision: Decision) -> SpanEvent:
    attributes = {
        a.CONTROL_ACTION: decision.get("action"),
        **_constraint(decision),
        a.CONTROL_REASON: decision.get("reason"),
        a.CONTROL_PARAMS: decision.get("params"),
    }
    return SpanEvent("cascade.control", decision.get("time_ns", 0), attributes_of(attributes))


def _held_events(waits: Iterable[Wait], start_ns: int) -> Iterator[SpanEvent]:
    """Yield an event for each constraint that delayed the task.

    The time of an event is at least the start of the span, because viewers warn of clock skew for an earlier event.
    """
    for wait in waits:
        if constraint := wait.get("constraint"):
            attributes = {a.WAIT_REASON: wait.get("reason"), **_constraint(constraint)}
            yield SpanEvent("cascade.control.held", max(wait["start_ns"], start_ns), attributes_of(attributes))


def _constraint(found: ConstraintRef | Decision | None) -> Attributes:
    if found is None:
        return {}
    return {a.CONTROL_SCOPE: found.get("scope"), a.CONTROL_TYPE: found.get("type"), a.CONTROL_ID: found.get("id")}


def _error_of(metadata: Attempt | ResourceMetadata) -> str | None:
    exception = metadata.get("exception")
    if not exception:
        return None
    return f"{str(exception.get('type', '')).rpartition('.')[2]}: {exception.get('message', '')}"
