"""Data of finished spans, and the spans, links and events of the parts of a large trace."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from cascade.spec.metadata import ExceptionInfo, TaskError
from cascade.spec.value_types import Part
from cascade.telemetry import attributes as a
from cascade.telemetry.limits import MAX_VALUE_BYTES, truncate
from cascade.telemetry.trace_shards import PART_EVENT

Attributes = dict[str, Any]


class SpanEvent(NamedTuple):
    name: str
    time_ns: int
    attributes: Attributes


class SpanLink(NamedTuple):
    trace_id: str
    span_id: str
    tracestate: str = ""
    attributes: Attributes | None = None


class SpanData(NamedTuple):
    """A finished span. Ids are lower-case hexadecimal.

    `parent_id` is empty for a root span. `is_run` is True for the span of a run, whose kind is SERVER. `error` is the
    description of the status ERROR, or None. `has_children` is True for the spans of runs, maps and parts. `is_marker` is
    True for the span that marks the start of a run, which is sent immediately.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: Attributes
    flags: int = 1
    is_run: bool = False
    error: str | None = None
    events: tuple[SpanEvent, ...] = ()
    links: tuple[SpanLink, ...] = ()
    has_children: bool = False
    tracestate: str = ""
    is_marker: bool = False


def attributes_of(attributes: Attributes) -> Attributes:
    """Return the attributes that are not None, with values of the types of OTLP. Texts are cut to `MAX_VALUE_BYTES`."""
    return {
        key: value if type(value) is int or (type(value) is str and len(value) < _SHORT) else _value(value)
        for key, value in attributes.items()
        if value is not None
    }


_SHORT = MAX_VALUE_BYTES // 4  # characters; the UTF-8 encoding of a character has at most four bytes


def _value(value: Any) -> Any:
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(truncate(item, MAX_VALUE_BYTES) for item in value)
    return truncate(value if isinstance(value, str) else json.dumps(value), MAX_VALUE_BYTES)


def part_root(
    payload: Mapping[str, Any], part: Part, name: str, ids: Attributes, parent: Mapping[str, Any]
) -> SpanData:
    """Return the root span of a part. It has a link to the span of its run or map, which `parent` identifies."""
    attributes = _part_attributes(part)
    link_attributes = {**attributes, a.LINK_NAME: name}
    start_ns, end_ns = part.get("start_ns", 0), part.get("end_ns", 0)
    return SpanData(
        f"{name} part",
        part["trace_id"],
        part["span_id"],
        "",
        start_ns,
        end_ns + (end_ns == start_ns),
        {**ids, **attributes, a.PART_PARENT_TRACE_ID: parent["trace_id"]},
        payload.get("trace_flags", 1),
        links=(SpanLink(parent["trace_id"], parent["span_id"], parent.get("tracestate", ""), link_attributes),),
        has_children=True,
    )


def part_link(part: Part, name: str) -> SpanLink:
    """Return the link of a run or map called `name` to one of its parts."""
    return SpanLink(part["trace_id"], part["span_id"], "", {**_part_attributes(part), a.LINK_NAME: f"{name} part"})


def part_event(part: Part, start_ns: int) -> SpanEvent:
    """Return the event of a run or map for one of its parts, not earlier than the start of the run or map."""
    attributes = {**_part_attributes(part), a.PART_TRACE_ID: part["trace_id"]}
    return SpanEvent(PART_EVENT, max(part.get("start_ns", 0), start_ns), attributes)


def _part_attributes(part: Part) -> Attributes:
    attributes = {a.PART_NUMBER: part.get("part"), a.PART_FIRST: part.get("first"), a.PART_LAST: part.get("last")}
    return {key: value for key, value in attributes.items() if value is not None}


def exception_event(exception: ExceptionInfo, time_ns: int) -> SpanEvent:
    attributes = {
        a.EXCEPTION_TYPE: exception.get("type"),
        a.EXCEPTION_MESSAGE: exception.get("message"),
        a.EXCEPTION_STACKTRACE: exception.get("stacktrace"),
    }
    return SpanEvent("exception", time_ns, {key: value for key, value in attributes.items() if value})


def failure_event(failure: TaskError) -> SpanEvent:
    """Return the event of a failure after which the run continued."""
    attributes = {
        a.TASK_NAME: failure.get("task_name"),
        a.TASK_ID: failure.get("task_id"),
        a.TASK_LABEL: failure.get("label"),
        a.MAP_INDEX: failure.get("map_index"),
        a.ERROR_TYPE: failure.get("type"),
        a.EXCEPTION_MESSAGE: failure.get("message"),
    }
    values = {key: value for key, value in attributes.items() if value is not None}
    return SpanEvent("cascade.task.failed", failure.get("time_ns", 0), values)
