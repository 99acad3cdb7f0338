"""Builds the values of `metadata` that are objects of their own: links, waits, attempts, exceptions and decisions."""

from cascade.runtime._run_state import RunState
from cascade.runtime.events import ErrorInfo, TaskExecutionFinished, Wait
from cascade.spec import metadata as m
from cascade.spec import telemetry as wire
from cascade.telemetry.identity import SpanRef, span_id, wait_id
from cascade.telemetry.limits import MAX_ERROR_BYTES, MAX_STACK_BYTES
from cascade.telemetry.safe import masked, masked_name
from cascade.telemetry.trace_budget import Child

MIN_WAIT_NS = 1_000_000
"""Nanoseconds of the shortest wait that a message has."""


def decision_of(body: wire.ControlEvent, time_ns: int) -> m.Decision:
    """Return a decision as the last message of the run lists it."""
    found: m.Decision = {"action": body.action, "scope": body.scope, "type": body.constraint_type, "time_ns": time_ns}
    if body.constraint_id is not None:
        found["id"] = body.constraint_id
    if body.reason is not None:
        found["reason"] = body.reason
    if body.params:
        found["params"] = body.params
    return found


def link_to(span: SpanRef, home: str) -> m.Link:
    """Return a link in a message about a span in the trace `home`: links into that trace have the message's tracestate."""
    link: m.Link = {"trace_id": span.trace_id, "span_id": span.span_id}
    if span.tracestate and span.trace_id != home:
        link["tracestate"] = span.tracestate
    return link


def waits_of(waits: tuple[Wait, ...], task_id: str, run: RunState) -> list[m.Wait]:
    """Return the waits of a task that are long enough for a span."""
    found: list[m.Wait] = []
    for number, wait in enumerate(waits, 1):
        if wait.end_ns - wait.start_ns >= MIN_WAIT_NS:
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


def attempts_of(event: TaskExecutionFinished, run: RunState, child: Child) -> list[m.Attempt]:
    """Return the attempts that have a span, with the exceptions of the messages about their retries."""
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
        if shortened is not _UNCHANGED:
            one["exception"] = shortened
        elif attempt.error is not None:
            one["exception"] = exception_of(attempt.error)
        found.append(one)
    return found


_UNCHANGED: m.ExceptionInfo = {"type": "", "message": ""}


def exception_of(error: ErrorInfo) -> m.ExceptionInfo:
    """Return an exception, with secrets masked and long texts cut."""
    return {
        "type": masked_name(error.type),
        "message": masked(error.message, MAX_ERROR_BYTES),
        "stacktrace": masked(error.stacktrace, MAX_STACK_BYTES),
    }


def error_text(error: str | None) -> str | None:
    """Return the text of an error, with secrets masked and cut to its limit."""
    return None if error is None else masked(error, MAX_ERROR_BYTES)
