"""The size of the spans of messages, shorter texts for a trace that is full, and parts as messages list them.

Sizes are estimates of the encoded spans, a little above the exported ones.
"""

import json
from collections.abc import Mapping
from typing import Any, cast

from cascade.runtime._run_state import RunState
from cascade.runtime.events import TaskEvent, TaskExecutionFinished, TaskRetrying, TaskSkipped
from cascade.spec import metadata as m
from cascade.telemetry.identity import RUN
from cascade.telemetry.limits import MAX_VALUE_BYTES
from cascade.telemetry.safe import encoded_size, shorter_stack, text
from cascade.telemetry.trace_budget import SPAN_BYTES, Child, Part

_LINK_BYTES = 50
_PART_BYTES = 600  # the link to a part, and the event
_EXCEPTION_BYTES = 150  # the event around it, with the names of its attributes
_LABEL_BYTES = 30  # the attribute of a label, without the label itself
_SHORTEST = 200
"""Bytes of a message and of a stack trace that are shortened as far as possible."""
_GROWING = frozenset(
    {"exception", "attempts", "waits", "links", "arguments", "output", "parts", "later_errors", "params", "control"}
)
_EXPENDABLE = ("output", "arguments", "params", "control", "waits", "links")


def child_of(event: TaskEvent, run: RunState) -> Child:
    """The child of a run or map that the event is about. One without a start, such as a skipped task, has it now."""
    found = run.parts.child(event.task_id)
    return found or run.parts.start(event.task_id, event.task_name, event.map_id, event.map_index)


def count_attempt(metadata: m.TaskHeldMetadata, event: TaskRetrying, run: RunState) -> None:
    """Count the span of a failed attempt. In a full trace its texts are shortened, or it has no span."""
    child = child_of(event, run)
    span, exception = _span_bytes(event), metadata.get("exception")
    spans_left, bytes_left = child.allowance_now(event.max_attempts - event.attempt)
    size = span + _exception_bytes(exception)
    if size > bytes_left and exception is not None:
        metadata["exception"] = exception = _shortened(exception, bytes_left - span)
        size = span + _exception_bytes(exception)
        child.shorten(event.attempt, exception)
    if spans_left < 1 or size > bytes_left:
        del metadata["span_id"]
        child.shorten(event.attempt, None)
    else:
        child.charge_attempt(event.attempt, size)


def count_last(
    metadata: m.TaskEndedMetadata, event: TaskExecutionFinished | TaskSkipped, run: RunState, child: Child
) -> None:
    """Count the spans of a child's last message, shortened to the room of its trace, and add the parts that have ended."""
    spans, size = 1, _span_bytes(event)
    if not _GROWING.isdisjoint(metadata):
        spans, size = _measured(metadata, size)
        spans_left, bytes_left = child.allowance()
        if size - child.attempt_bytes > bytes_left or spans - child.attempt_spans > spans_left:
            _fit(cast("dict[str, Any]", metadata), _span_bytes(event), bytes_left + child.attempt_bytes, child.attempt)
            spans, size = _measured(metadata, _span_bytes(event))
    start_ns, end_ns = metadata["start_ns"], metadata["end_ns"]
    ran = type(event) is TaskExecutionFinished
    if ended := run.parts.end(event.task_id, child, spans, size, start_ns, end_ns, ran=ran):
        metadata["ended_parts"] = [_ended_part(part, run) for part in ended]


def short_error(exception: m.ExceptionInfo) -> str:
    """The text of an error, with the message of the exception, which was shortened."""
    return f"{exception['type'].rpartition('.')[2]}: {exception['message']}"


def charge_own(metadata: m.RunEndedMetadata | m.ResourceMetadata, run: RunState) -> None:
    """Count a span in the run's own trace, such as a resource's, with its texts shortened to the room of the trace."""
    _, bytes_left = run.parts.run.allowance()
    spans, size = _measured(metadata, 2 * SPAN_BYTES)
    if size > bytes_left:
        _fit(cast("dict[str, Any]", metadata), 2 * SPAN_BYTES, max(bytes_left, 4 * SPAN_BYTES), 0)
        spans, size = _measured(metadata, 2 * SPAN_BYTES)
    run.parts.run.charge(spans, size)


def add_parts(metadata: m.TaskEndedMetadata | m.RunEndedMetadata, parent_id: str, run: RunState) -> None:
    """Add the parts of the children of a map or of the run to its last message. There are no further children."""
    parts, count = run.parts.close(parent_id)
    if count:
        metadata["parts"] = listed = [_listed_part(part, run) for part in parts]
        if count != len(listed):
            metadata["part_count"] = count


def _listed_part(part: Part, run: RunState) -> m.ListedPart:
    listed = cast("m.ListedPart", _part(part, run))
    if part.has_ended:
        listed["ended"] = True
    return listed


def _ended_part(part: Part, run: RunState) -> m.EndedPart:
    parent = part.parent
    span = run.trace.span_of(parent.id) if parent.id else run.trace.ref(run.trace.trace_id, run.trace.span_id)
    above: m.Link = {"trace_id": span.trace_id, "span_id": span.span_id}
    if span.tracestate:
        above["tracestate"] = span.tracestate
    ended = cast("m.EndedPart", _part(part, run))
    ended["name"], ended["parent"] = parent.name, above
    if parent.id != RUN:
        ended["task_id"] = parent.id
    return ended


def _part(part: Part, run: RunState) -> m.Part:
    root = run.trace.part_root(part.parent.id, part.number)
    return {
        "part": part.number,
        "trace_id": root.trace_id,
        "span_id": root.span_id,
        "first": part.first,
        "last": part.last,
        "start_ns": part.start_ns,
        "end_ns": part.end_ns,
    }


def _span_bytes(event: TaskEvent) -> int:
    size = SPAN_BYTES + len(event.task_id) + 2 * len(event.task_name)
    return size if event.label is None else size + _LABEL_BYTES + encoded_size(event.label)


def _measured(metadata: Mapping[str, Any], span: int) -> tuple[int, int]:
    """Spans and bytes of a message, where `span` is the size of a span without more than its ids and names."""
    spans, size = 1, span
    size += _exception_bytes(metadata.get("exception"))
    for attempt in metadata.get("attempts", ()):
        spans += 1
        size += span + _exception_bytes(attempt.get("exception"))
    for wait in metadata.get("waits", ()):
        spans += 1
        size += 2 * span if "constraint" in wait else span
    size += sum(_LINK_BYTES + len(link.get("tracestate", "")) for link in metadata.get("links", ()))
    size += sum(_exception_bytes(error) for error in metadata.get("later_errors", ()))
    size += len(metadata.get("parts", ())) * _PART_BYTES
    for key in ("arguments", "output", "params", "control"):
        if key in metadata:
            size += _value_bytes(metadata[key])
    return spans, size


def _value_bytes(value: Any) -> int:
    if isinstance(value, str):
        return min(MAX_VALUE_BYTES, len(value.encode("utf-8", "replace")))
    size = len(json.dumps(value)) if isinstance(value, (dict, list)) else 10
    return size if isinstance(value, list) else min(MAX_VALUE_BYTES, size)


def _exception_bytes(exception: m.ExceptionInfo | None) -> int:
    """Bytes of an exception's event and of the status: the type and the message are in both."""
    if exception is None:
        return 0
    message, stack = exception.get("message", ""), exception.get("stacktrace", "")
    return _EXCEPTION_BYTES + 3 * len(exception["type"]) + 2 * encoded_size(message) + encoded_size(stack)


def _fit(metadata: dict[str, Any], span: int, room: int, counted: int) -> None:
    """Shorten the message to `room` bytes: first its stack traces, then whole values.

    Attempts up to number `counted` stay as they are.
    """
    attempts = [attempt for attempt in metadata.get("attempts", ()) if attempt["attempt"] > counted]
    own = [holder for holder in (metadata, *attempts) if "exception" in holder]
    later = metadata.get("later_errors", [])
    shown = [holder["exception"] for holder in own] + later
    fixed = _measured(metadata, span)[1] - sum(map(_exception_bytes, shown))
    if shown:
        each = (room - fixed) // len(shown)
        for holder in own:
            holder["exception"] = _shortened(holder["exception"], each)
        later[:] = [_shortened(error, each) for error in later]
    for key in _EXPENDABLE:
        if key in metadata and _measured(metadata, span)[1] > room:
            del metadata[key]
            metadata["truncated"] = [*metadata.get("truncated", ()), key]


def _shortened(exception: m.ExceptionInfo, room: int) -> m.ExceptionInfo:
    """The exception with its stack trace and its message cut to about `room` bytes, but not to less than a line."""
    message, stack = exception.get("message", ""), exception.get("stacktrace", "")
    free = room - _exception_bytes({"type": exception["type"], "message": ""})
    message = text(message, max(_SHORTEST, free // 4))
    return {
        "type": exception["type"],
        "message": message,
        "stacktrace": shorter_stack(stack, max(_SHORTEST, free - 2 * encoded_size(message))),
    }
