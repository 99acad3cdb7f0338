"""Builds the values of `metadata`, and counts the spans of messages in the budget of their trace.

The sizes of spans are estimates, slightly larger than the exported spans. In a full trace, texts and values are
shortened.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from cascade.runtime.events import (
    ErrorInfo,
    FailedTask,
    TaskEvent,
    TaskExecutionFinished,
    TaskRetrying,
    TaskSkipped,
    Wait,
)
from cascade.spec import metadata as m
from cascade.spec import telemetry as wire
from cascade.spec.value_types import ListedPart
from cascade.spec.value_types import Part as PartInfo
from cascade.telemetry import limits
from cascade.telemetry.identity import RUN, RunTrace, SpanLocation, SpanRef, span_id, wait_id
from cascade.telemetry.limits import (
    MAX_ERROR_BYTES,
    MAX_FAILURE_BYTES,
    MAX_STACK_BYTES,
    exception_size,
    shrink_spans,
    spans_size,
    truncate_exception,
    utf8_size,
)
from cascade.telemetry.sanitize import masked, masked_name
from cascade.telemetry.trace_budget import SPAN_BYTES, Child, Part
from cascade.telemetry.trace_shards import TraceShards

_LABEL_BYTES = 30  # the attribute of a label, without its value
_TAG_BYTES = 30  # the attribute of one tag, without its value
_GROWING = frozenset({"exception", "attempts", "waits", "links", "arguments", "output", "parts"})
"""Keys that add to the size of the spans of a task. Most messages have none of them and are not measured."""
_UNCHANGED: m.ExceptionInfo = {"type": "", "message": ""}


@dataclass(slots=True)
class RunTelemetry:
    """State of the telemetry of one run.

    Attributes:
        capture: The values that messages contain, of `params`, `arguments`, `results`.
        topic: The topic of the messages.
        target: The masked name of the run, or else of its targets.
        inputs: The masked names of the inputs.
        tags: The masked tags of the run.
        params: The captured parameters.
        counts: The numbers of tasks for the last message, by outcome.
        header: The encoded header. `ts` and `seq` are replaced in each message.
        seq: The sequence number of the next message.
        last_ns: The time of the latest message, in nanoseconds.
        lost: The number of lost messages.
        control: The first decisions about constraints.
        control_count: The number of all decisions.
    """

    trace: RunTrace
    capture: frozenset[str] = frozenset()
    topic: str = ""
    target: str = ""
    inputs: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    params: Any = None
    counts: Counter[str] = field(default_factory=Counter)
    header: dict[str, Any] = field(default_factory=dict)
    seq: int = 0
    last_ns: int = 0
    lost: int = 0
    control: list[m.Decision] = field(default_factory=list)
    control_count: int = 0

    def __post_init__(self) -> None:
        self.trace.parts.activate()

    @property
    def parts(self) -> TraceShards:
        """The parts of the run's trace."""
        return self.trace.parts

    @property
    def run_id(self) -> str:
        return self.trace.run_id

    @property
    def location(self) -> SpanLocation:
        """Trace and parent of the run's span."""
        return SpanLocation(self.trace.trace_id, self.trace.parent_span_id)


class UnstampedMessage(NamedTuple):
    """A message without its header. `task_id` identifies its span, and `location` the trace and the parent of this span.

    `qos` is 0 for the messages of tasks that have not ended, which are dropped first, and 1 for all others.
    """

    body: dict[str, Any]
    task_id: str
    location: SpanLocation
    qos: int = 1


def decision_of(body: wire.ControlEvent, time_ns: int) -> m.Decision:
    """Return a decision about a constraint, for the last message of the run."""
    found: m.Decision = {"action": body.action, "scope": body.scope, "type": body.constraint_type, "time_ns": time_ns}
    if body.constraint_id is not None:
        found["id"] = body.constraint_id
    if body.reason is not None:
        found["reason"] = body.reason
    if body.params:
        found["params"] = body.params
    return found


def link_to(span: SpanRef, trace_id: str = "") -> m.Link:
    """Return a link to a span.

    A link within the trace of the message, `trace_id`, has the tracestate of the message.
    """
    link: m.Link = {"trace_id": span.trace_id, "span_id": span.span_id}
    if span.tracestate and span.trace_id != trace_id:
        link["tracestate"] = span.tracestate
    return link


def waits_of(waits: tuple[Wait, ...], task_id: str, run: RunTelemetry) -> list[m.Wait]:
    """Return the waits of a task that are long enough for a span."""
    found: list[m.Wait] = []
    for number, wait in enumerate(waits, 1):
        if wait.end_ns - wait.start_ns >= limits.MIN_WAIT_NS:
            one: m.Wait = {
                "reason": wait.reason,
                "span_id": span_id(run.run_id, wait_id(task_id), number),
                "start_ns": wait.start_ns,
                "end_ns": wait.end_ns,
            }
            if wait.constraint:
                one["constraint"] = wait.constraint
            found.append(one)
    return found


def attempts_of(event: TaskExecutionFinished, run: RunTelemetry, child: Child) -> list[m.Attempt]:
    """Return the attempts with a span. Their exceptions are the same as in the messages about their retries."""
    found: list[m.Attempt] = []
    for attempt in event.attempts:
        shortened = child.shortened.get(attempt.number, _UNCHANGED)
        if shortened is None:
            continue
        one: m.Attempt = {
            "attempt": attempt.number,
            "span_id": span_id(run.run_id, event.task_id, attempt.number),
            "start_ns": attempt.start_ns,
            "end_ns": attempt.end_ns,
            "result": attempt.result,
        }
        if attempt.cpu_seconds is not None:
            one["cpu_seconds"] = attempt.cpu_seconds
        if shortened is not _UNCHANGED:
            one["exception"] = shortened
        elif attempt.error is not None:
            one["exception"] = exception_of(attempt.error)
        found.append(one)
    return found


def exception_of(error: ErrorInfo) -> m.ExceptionInfo:
    """Return an exception, with secrets masked and long texts truncated."""
    return {
        "type": masked_name(error.type),
        "message": masked(error.message, MAX_ERROR_BYTES),
        "stacktrace": masked(error.stacktrace, MAX_STACK_BYTES),
    }


def failure_of(failed: FailedTask) -> m.TaskError:
    """Return a failure after which the run continued, for the last message of the run."""
    failure = failed.failure
    found: m.TaskError = {
        "task_id": failure.task_id,
        "task_name": masked_name(failure.task_name),
        "type": masked_name(failed.error.type),
        "message": masked(failed.error.message, MAX_FAILURE_BYTES),
        "time_ns": failed.time_ns,
    }
    if failure.map_index is not None:
        found["map_index"] = failure.map_index
    if failed.label is not None:
        found["label"] = failed.label
    return found


def masked_error(error: str | None) -> str | None:
    """Return the text of an error, with secrets masked and truncated."""
    return None if error is None else masked(error, MAX_ERROR_BYTES)


def child_of(event: TaskEvent, run: RunTelemetry) -> Child:
    """Return the child of an event. A child that has not started, such as a skipped task, is started."""
    child = run.parts.child(event.task_id)
    return child or run.parts.start(event.task_id, event.task_name, event.map_id, event.map_index)


def count_attempt(metadata: m.TaskBlockedMetadata, event: TaskRetrying, run: RunTelemetry) -> None:
    """Count the span of a failed attempt. In a full trace, its texts are shortened or the span is dropped."""
    child = child_of(event, run)
    span, exception = _span_size(event), metadata.get("exception")
    spans_left, bytes_left = child.allowance_of_attempt(event.max_attempts - event.attempt)
    size = span + exception_size(exception)
    if size > bytes_left and exception is not None:
        metadata["exception"] = exception = truncate_exception(exception, bytes_left - span)
        size = span + exception_size(exception)
        child.shorten(event.attempt, exception)
    if spans_left < 1 or size > bytes_left:
        del metadata["span_id"]
        child.shorten(event.attempt, None)
    else:
        child.charge_attempt(event.attempt, size)


def count_last(
    metadata: m.TaskEndedMetadata, event: TaskExecutionFinished | TaskSkipped, run: RunTelemetry, child: Child
) -> None:
    """Count the spans of a child's last message, and add the ended parts to the message.

    The message is shortened if its trace is full.
    """
    spans, size = 1, _span_size(event)
    if not _GROWING.isdisjoint(metadata):
        spans, size = spans_size(metadata, size)
        spans_left, bytes_left = child.allowance()
        if size - child.attempt_bytes > bytes_left or spans - child.attempt_spans > spans_left:
            room = bytes_left + child.attempt_bytes
            shrink_spans(cast("dict[str, Any]", metadata), _span_size(event), room, child.attempt)
            spans, size = spans_size(metadata, _span_size(event))
    start_ns, end_ns = metadata["start_ns"], metadata["end_ns"]
    ran = type(event) is TaskExecutionFinished
    if ended := run.parts.end(event.task_id, child, spans, size, start_ns, end_ns, ran=ran):
        metadata["ended_parts"] = [_ended_part(part, run) for part in ended]


def error_of(exception: m.ExceptionInfo) -> str:
    """Return an exception as the text of an error."""
    return f"{exception['type'].rpartition('.')[2]}: {exception['message']}"


def count_own(metadata: m.RunEndedMetadata | m.ResourceMetadata, run: RunTelemetry) -> None:
    """Count the span of the run or of a resource. Its metadata is shortened if the trace is full."""
    _, bytes_left = run.parts.run.allowance()
    tags: list[str] = cast("dict[str, Any]", metadata).get("tags", [])
    own = 2 * (SPAN_BYTES + sum(map(utf8_size, tags)))
    spans, size = spans_size(metadata, own)
    if size > bytes_left:
        shrink_spans(cast("dict[str, Any]", metadata), own, max(bytes_left, 4 * SPAN_BYTES))
        spans, size = spans_size(metadata, own)
    run.parts.run.charge(spans, size)


def add_parts(metadata: m.TaskEndedMetadata | m.RunEndedMetadata, parent_id: str, run: RunTelemetry) -> None:
    """Add the parts of a map or of the run to its last message."""
    parts, count = run.parts.close(parent_id)
    if count:
        metadata["parts"] = listed = [_listed_part(part, run) for part in parts]
        if count != len(listed):
            metadata["part_count"] = count


def _listed_part(part: Part, run: RunTelemetry) -> ListedPart:
    listed = cast("ListedPart", _part(part, run))
    if part.has_ended:
        listed["ended"] = True
    return listed


def _ended_part(part: Part, run: RunTelemetry) -> m.EndedPart:
    parent = part.parent
    span = run.trace.span_of(parent.id) if parent.id else run.trace.ref(run.trace.trace_id, run.trace.span_id)
    ended = cast("m.EndedPart", _part(part, run))
    ended["name"], ended["parent"] = parent.name, link_to(span)
    if parent.id != RUN:
        ended["task_id"] = parent.id
    return ended


def _part(part: Part, run: RunTelemetry) -> PartInfo:
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


def _span_size(event: TaskEvent) -> int:
    size = SPAN_BYTES + len(event.task_id) + 2 * len(event.task_name)
    if event.tags:
        size += sum(_TAG_BYTES + utf8_size(tag) for tag in event.tags)
    return size if event.label is None else size + _LABEL_BYTES + utf8_size(event.label)
