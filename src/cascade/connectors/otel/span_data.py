"""Converts a message to its spans: one pure function, for the live connector and for a replay."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from cascade.telemetry import attributes as a
from cascade.telemetry.identity import RUN_STARTED, span_id
from cascade.telemetry.limits import MAX_LINKS, MAX_VALUE_BYTES
from cascade.telemetry.parts import PART_EVENT
from cascade.telemetry.safe import text

Attributes = dict[str, Any]
CANCELLATION = "cancellation"


class Event(NamedTuple):
    name: str
    time_ns: int
    attributes: Attributes


class LinkData(NamedTuple):
    trace_id: str
    span_id: str
    tracestate: str = ""
    attributes: Attributes | None = None


class SpanData(NamedTuple):
    """A finished span. Ids are lower-case hex, `parent_id` is "" for none; `error` is the text of its ERROR status.

    `has_children`: the spans of a run, a map and a part are parents. `is_marker`: the span marks the start of a run, and
    is exported at once.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: Attributes
    flags: int = 1
    is_server: bool = False
    error: str | None = None
    events: tuple[Event, ...] = ()
    links: tuple[LinkData, ...] = ()
    has_children: bool = False
    tracestate: str = ""
    is_marker: bool = False


def spans_of(payload: Mapping[str, Any], *, detail: str = "full", cicd: bool = False) -> Iterator[SpanData]:
    """The spans that have ended with this message, none for most; `detail` is "run", "tasks" or "full"."""
    body = payload["body"]
    match body.get("type"), body.get("event") or body.get("state") or body.get("action"):
        case "LifecycleEvent", "ENGINE_STARTED" if detail != "run":
            yield _marker(payload, body)
        case "LifecycleEvent", "ENGINE_STOPPED":
            if detail == "run":  # the spans of its parts are not exported
                body = {**body, "metadata": {k: v for k, v in body["metadata"].items() if k != "parts"}}
            yield from _part_roots(payload, body)
            yield _run(payload, body, cicd=cicd)
        case "TaskStateEvent", "PENDING" if detail == "full" and "span_id" in body["metadata"]:
            yield _attempt(payload, body, {"result": "failure", **body["metadata"]})
        case "TaskStateEvent", "COMPLETED" | "FAILED" | "SKIPPED" if detail != "run":
            if detail == "full":
                yield from (_wait(payload, body, wait) for wait in body["metadata"].get("waits", ()))
                yield from (_attempt(payload, body, one) for one in body["metadata"].get("attempts", ()))
            yield from _part_roots(payload, body)
            yield _task(payload, body, cicd=cicd)
        case "ResourceEvent", "ACQUIRE" if detail == "full":
            yield _resource(payload, body, "setup")
        case "ResourceEvent", "RELEASE" if detail == "full":
            yield _resource(payload, body, "teardown")


def _marker(payload: Mapping[str, Any], body: Mapping[str, Any]) -> SpanData:
    metadata = body["metadata"]
    start_ns = metadata.get("start_ns", 0)
    # The part of a large map whose items start runs is the trace of these runs, and not of a run that is searched for.
    is_nested = metadata.get("outer_run_id") and payload["parent_span_id"]
    found = {
        a.RUN_ID: payload["run_id"],
        a.RUN_TARGET: metadata.get("target"),
        a.RUN_STARTED: None if is_nested else True,
    }
    own_id, run = span_id(payload["run_id"], RUN_STARTED), payload["span_id"]
    marker = _span(payload, f"{_run_name(metadata)} started", own_id, run, start_ns, start_ns, found)
    return marker._replace(is_marker=True)


def _run_name(metadata: Mapping[str, Any]) -> str:
    return f"run {metadata.get('target', '')}".rstrip()


def _run(payload: Mapping[str, Any], body: Mapping[str, Any], *, cicd: bool) -> SpanData:
    metadata = body["metadata"]
    counts = metadata.get("counts", {})
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
        **{f"cascade.run.tasks.{state}": count for state, count in counts.items()},
    }
    if cicd:
        found |= {
            a.CICD_PIPELINE_NAME: metadata.get("target"),
            a.CICD_PIPELINE_RUN_ID: payload["run_id"],
            a.CICD_PIPELINE_RESULT: metadata.get("result"),
        }
    name = _run_name(metadata)
    decisions = tuple(map(_decision, metadata.get("control", ())))
    own_id, parent = payload["span_id"], payload["parent_span_id"]
    run = _ended(payload, name, own_id, parent, metadata, found, body, is_server=True, events=decisions)
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
    metadata = body["metadata"]
    found = _of_task(payload, body)
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
    name, parent = body["task_name"], payload["parent_span_id"]
    if body["state"] == "SKIPPED":
        name = f"{name} skipped"
    held = tuple(_held(metadata)) if "waits" in metadata else ()
    ended = body
    if metadata.get("result") == CANCELLATION:
        ended = {}  # no error: the failure, if there is one, is another task's
        found[a.TASK_CANCELLATION_REASON] = body.get("error")
    return _ended(payload, name, payload["span_id"], parent, metadata, found, ended, events=held)


def _part_roots(payload: Mapping[str, Any], body: Mapping[str, Any]) -> Iterator[SpanData]:
    """The roots of parts: of those whose last child has ended with this message, and of a map's or run's other ones.

    The parts of a map or run that an earlier message has ended are only linked.
    """
    metadata = body["metadata"]
    if "ended_parts" in metadata:
        for part in metadata["ended_parts"]:
            yield _part_root(payload, part, part["name"], part.get("task_id"), part["parent"])
    if "parts" in metadata:
        name = _name_above_parts(body)
        for part in metadata["parts"]:
            if not part.get("ended"):
                yield _part_root(payload, part, name, body.get("task_id"), payload)


def _part_root(
    payload: Mapping[str, Any], part: Mapping[str, Any], name: str, map_id: str | None, parent: Mapping[str, Any]
) -> SpanData:
    found = {
        a.RUN_ID: payload["run_id"],
        a.TASK_ID: map_id,
        **_part_attributes(part),
        a.PART_PARENT_TRACE_ID: parent["trace_id"],
    }
    link = LinkData(parent["trace_id"], parent["span_id"], parent.get("tracestate", ""), _part_attributes(part, name))
    start_ns, end_ns = part.get("start_ns", 0), part.get("end_ns", 0)
    return SpanData(
        f"{name} part",
        part["trace_id"],
        part["span_id"],
        "",
        start_ns,
        _visible(start_ns, end_ns),
        _clean(found),
        payload.get("trace_flags", 1),
        links=(link,),
        has_children=True,
    )


def _name_above_parts(body: Mapping[str, Any]) -> str:
    return body.get("task_name") or _run_name(body["metadata"])


def _part_count(metadata: Mapping[str, Any]) -> int | None:
    return metadata.get("part_count") or len(metadata.get("parts", ())) or None


def _part_attributes(part: Mapping[str, Any], linked_name: str | None = None) -> Attributes:
    """The number and the range of a part; with the name of the span at the other end, for a link."""
    found = {
        a.PART_NUMBER: part.get("part"),
        a.PART_FIRST: part.get("first"),
        a.PART_LAST: part.get("last"),
        a.LINK_NAME: linked_name,
    }
    return _clean(found)


def _attempt(payload: Mapping[str, Any], body: Mapping[str, Any], attempt: Mapping[str, Any]) -> SpanData:
    found = {
        **_of_task(payload, body),
        a.TASK_ATTEMPT: attempt.get("attempt"),
        a.TASK_RESULT: attempt.get("result"),
    }
    name = f"{body['task_name']} attempt"
    failed = {"error": _text_of(attempt.get("exception"))} if attempt.get("exception") else {}
    return _ended(payload, name, attempt["span_id"], payload["span_id"], attempt, found, failed)


def _wait(payload: Mapping[str, Any], body: Mapping[str, Any], wait: Mapping[str, Any]) -> SpanData:
    found = {**_of_task(payload, body), a.WAIT_REASON: wait.get("reason"), **_constraint(wait.get("constraint", {}))}
    # A child of the task, although a wait before the start is earlier than its parent: viewers show it below its task, and
    # the critical path runs along the task.
    name, parent = f"{body['task_name']} wait", payload["span_id"]
    return _span(payload, name, wait["span_id"], parent, wait["start_ns"], wait["end_ns"], found)


def _resource(payload: Mapping[str, Any], body: Mapping[str, Any], step: str) -> SpanData:
    metadata = body["metadata"]
    found = {
        a.RUN_ID: payload["run_id"],
        a.RESOURCE_NAME: body["resource_name"],
        a.RESOURCE_RESULT: metadata.get("result"),
    }
    if (hold_start_ns := metadata.get("hold_start_ns")) is not None:
        found[a.RESOURCE_HOLD_SECONDS] = max(0, metadata.get("start_ns", 0) - hold_start_ns) / 1e9
    name = f"{body['resource_name']} {step}"
    failed = {"error": _text_of(metadata["exception"])} if metadata.get("exception") else {}
    return _ended(payload, name, payload["span_id"], payload["parent_span_id"], metadata, found, failed)


def error_type(body: Mapping[str, Any], metadata: Mapping[str, Any]) -> Any:
    """The type of the exception, else the first word of the error's text; None for a success and a cancelled task."""
    if metadata.get("result") == CANCELLATION:
        return None if body.get("type") != "LifecycleEvent" else CANCELLATION
    if exception := metadata.get("exception"):
        return exception.get("type")
    error = body.get("error")
    return None if error is None else error.partition(":")[0]


def _ended(
    payload: Mapping[str, Any],
    name: str,
    own_id: str,
    parent_id: str,
    metadata: Mapping[str, Any],
    found: Attributes,
    body: Mapping[str, Any],
    *,
    is_server: bool = False,
    events: tuple[Event, ...] = (),
) -> SpanData:
    """A span that may have failed: ERROR, `error.type`, and the exception as an event after the others."""
    exception, start_ns, end_ns = metadata.get("exception"), metadata.get("start_ns", 0), metadata.get("end_ns", 0)
    if (kind := error_type(body, metadata)) is not None:
        found = {**found, a.ERROR_TYPE: kind}
    if exception:
        events = (*events, _exception_event(exception, end_ns))
    parts, links = metadata.get("parts", ()), tuple[LinkData, ...]()
    if "links" in metadata or parts:
        dependencies = metadata.get("links", ())[: MAX_LINKS - len(parts)]
        links = tuple(_link(link, payload) for link in dependencies)
    if parts:
        above = f"{_name_above_parts(body or payload['body'])} part"
        links += tuple(_link(part, payload)._replace(attributes=_part_attributes(part, above)) for part in parts)
        events = (*events, *(_part_event(part, start_ns) for part in parts))
    return SpanData(
        name,
        payload["trace_id"],
        own_id,
        parent_id,
        start_ns,
        _visible(start_ns, end_ns),
        _clean(found),
        payload.get("trace_flags", 1),
        is_server,
        body.get("error"),
        events,
        links,
        is_server or metadata.get("kind") == "map",
        payload.get("tracestate", ""),
    )


def _part_event(part: Mapping[str, Any], start_ns: int) -> Event:
    found = {**_part_attributes(part), a.PART_TRACE_ID: part["trace_id"]}
    return Event(PART_EVENT, max(part.get("start_ns", 0), start_ns), found)


def _link(link: Mapping[str, Any], payload: Mapping[str, Any]) -> LinkData:
    """A link into the message's own trace has the message's tracestate."""
    own = payload.get("tracestate", "") if link["trace_id"] == payload["trace_id"] else ""
    return LinkData(link["trace_id"], link["span_id"], link.get("tracestate", own))


def _span(
    payload: Mapping[str, Any], name: str, own_id: str, parent_id: str, start_ns: int, end_ns: int, found: Attributes
) -> SpanData:
    flags, end_ns = payload.get("trace_flags", 1), _visible(start_ns, end_ns)
    tracestate = payload.get("tracestate", "")
    return SpanData(
        name, payload["trace_id"], own_id, parent_id, start_ns, end_ns, _clean(found), flags, tracestate=tracestate
    )


def _visible(start_ns: int, end_ns: int) -> int:
    """The end of a span. A moment lasts a nanosecond: Jaeger warns of a wrong clock at a span without length."""
    return end_ns + 1 if end_ns == start_ns else end_ns


def _of_task(payload: Mapping[str, Any], body: Mapping[str, Any]) -> Attributes:
    """The attributes of all spans of a task, with the index of a map's item and the label, if there are any."""
    found = {a.RUN_ID: payload["run_id"], a.TASK_ID: body["task_id"], a.TASK_NAME: body["task_name"]}
    if "map_index" in body["metadata"]:
        found[a.MAP_INDEX] = body["metadata"]["map_index"]
    if "label" in body["metadata"]:
        found[a.TASK_LABEL] = body["metadata"]["label"]
    return found


def _decision(decision: Mapping[str, Any]) -> Event:
    found = {
        a.CONTROL_ACTION: decision.get("action"),
        **_constraint(decision),
        a.CONTROL_REASON: decision.get("reason"),
        a.CONTROL_PARAMS: decision.get("params"),
    }
    return Event("cascade.control", decision.get("time_ns", 0), _clean(found))


def _held(metadata: Mapping[str, Any]) -> Iterator[Event]:
    """Events for the constraints that held the task back, not earlier than its span: viewers warn of a wrong clock."""
    for wait in metadata["waits"]:
        if constraint := wait.get("constraint"):
            found = {a.WAIT_REASON: wait.get("reason"), **_constraint(constraint)}
            time_ns = max(wait["start_ns"], metadata.get("start_ns", 0))
            yield Event("cascade.control.held", time_ns, _clean(found))


def _constraint(found: Mapping[str, Any]) -> Attributes:
    return {a.CONTROL_SCOPE: found.get("scope"), a.CONTROL_TYPE: found.get("type"), a.CONTROL_ID: found.get("id")}


def _exception_event(exception: Mapping[str, Any], time_ns: int) -> Event:
    found = {
        a.EXCEPTION_TYPE: exception.get("type"),
        a.EXCEPTION_MESSAGE: exception.get("message"),
        a.EXCEPTION_STACKTRACE: exception.get("stacktrace"),
    }
    return Event("exception", time_ns, {key: value for key, value in found.items() if value})


def _text_of(exception: Mapping[str, Any] | None) -> str:
    if exception is None:
        return ""
    return f"{str(exception.get('type', '')).rpartition('.')[2]}: {exception.get('message', '')}"


def _clean(found: Attributes) -> Attributes:
    """The attributes that have a value, in the types of OTLP. Texts are cut to `MAX_VALUE_BYTES`."""
    return {
        key: value if type(value) is int or (type(value) is str and len(value) < _SHORT) else _value(value)
        for key, value in found.items()
        if value is not None
    }


_SHORT = MAX_VALUE_BYTES // 4  # characters, of four bytes at the most


def _value(value: Any) -> Any:
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(text(item, MAX_VALUE_BYTES) for item in value)
    return text(value if isinstance(value, str) else json.dumps(value), MAX_VALUE_BYTES)
