"""Converts the events of the engine to messages, with one function for each kind of event."""

from collections.abc import Callable
from dataclasses import asdict
from functools import singledispatch
from typing import Any, cast, get_args

from cascade.runtime._metadata import (
    RunTelemetry,
    UnstampedMessage,
    add_parts,
    attempts_of,
    child_of,
    count_attempt,
    count_last,
    count_own,
    decision_of,
    error_of,
    exception_of,
    failure_of,
    link_to,
    masked_error,
    waits_of,
)
from cascade.runtime.events import (
    ControlDecision,
    Event,
    ResourceAcquired,
    ResourceEvent,
    ResourceReleased,
    ResourceSetupFailed,
    RunFinished,
    RunStarted,
    TaskBlocked,
    TaskEvent,
    TaskExecutionFinished,
    TaskExecutionStarted,
    TaskRetrying,
    TaskSkipped,
)
from cascade.runtime.resolvers import hidden_secrets
from cascade.runtime.run_counts import count_finished, count_skipped
from cascade.spec import metadata as m
from cascade.spec import telemetry as wire
from cascade.spec.value_types import StarvedThreads
from cascade.telemetry.identity import RUN, SpanLocation, setup_id, span_id, teardown_id
from cascade.telemetry.limits import MAX_CONTROL_EVENTS, MAX_LINKS
from cascade.telemetry.redact import MASK, is_masked, redact_value
from cascade.telemetry.sanitize import captured, masked_name, masked_tags
from cascade.telemetry.trace_budget import Child
from cascade.telemetry.wire import encode_body, task_body

EVENTS: dict[str, tuple[type[Event], ...]] = {
    "STARTED": (RunStarted,),
    "STOPPED": (RunFinished,),
    "RUNNING": (TaskExecutionStarted,),
    "PENDING": (TaskBlocked, TaskRetrying),
    "ENDED": (TaskExecutionFinished, TaskSkipped),
    "ACQUIRE": (ResourceAcquired, ResourceSetupFailed),
    "RELEASE": (ResourceReleased,),
    "CONTROL": (ControlDecision,),
}
"""The events that become messages, by the kind of the message. A connector may ignore some kinds."""


@singledispatch
def message_for(event: Event, run: RunTelemetry) -> UnstampedMessage | None:  # noqa: ARG001 - the default of the functions below
    """Return the message of an event, or None for an event without a message."""
    return None


class Converters(dict[type[Event], Callable[[Event, RunTelemetry], UnstampedMessage | None]]):
    """The function of `message_for` for each type of event. `singledispatch` itself takes a microsecond to find it."""

    def __missing__(self, kind: type[Event]) -> Callable[[Event, RunTelemetry], UnstampedMessage | None]:
        found = self[kind] = message_for.dispatch(kind)
        return found


@message_for.register
def _run_started(event: RunStarted, run: RunTelemetry) -> UnstampedMessage:
    run.target = masked_name(event.name or ", ".join(event.target_tasks))
    run.inputs, run.tags = [masked_name(name) for name in event.inputs], masked_tags(event.tags)
    run.params = captured(event.params) if "params" in run.capture and event.params else None
    run.parts.expect(RUN, f"run {run.target}".rstrip(), sum(event.task_counts.values()))
    tasks = {masked_name(name): count for name, count in event.task_counts.items()}
    metadata: m.RunStartedMetadata = {"target": run.target, "start_ns": _start(event), "tasks": tasks}
    _add_run(metadata, run)
    if event.outer_run_id:
        metadata["outer_run_id"] = event.outer_run_id
    body = encode_body(wire.LifecycleEvent("ENGINE_STARTED", metadata=metadata))
    return UnstampedMessage(body, RUN, run.location)


@message_for.register
def _run_finished(event: RunFinished, run: RunTelemetry) -> UnstampedMessage:
    start_ns, end_ns = _times(event)
    metadata: m.RunEndedMetadata = {
        "target": run.target,
        "start_ns": start_ns,
        "end_ns": end_ns,
        "result": event.result,
        "counts": dict(run.counts),
        "dropped": run.lost,
    }
    _add_run(metadata, run)
    if event.exception is not None:
        metadata["exception"] = exception_of(event.exception)
    if run.parts.run.left_out:
        metadata["left_out"] = run.parts.run.left_out
    add_parts(metadata, RUN, run)
    if run.control:
        metadata["control"], metadata["control_count"] = run.control, run.control_count
    if event.starved is not None:
        metadata["starved"] = cast("StarvedThreads", asdict(event.starved))
    if event.later_errors:
        metadata["later_errors"] = [{**exception_of(e.error), "time_ns": e.time_ns} for e in event.later_errors]
    if event.failed_tasks:
        metadata["failures"] = [failure_of(failed) for failed in event.failed_tasks]
    count_own(metadata, run)
    status: Any = event.status if event.status in {"Succeeded", "Failed", "Cancelled"} else None
    body = wire.LifecycleEvent("ENGINE_STOPPED", status, (end_ns - start_ns) / 1e6, masked_error(event.error), metadata)
    return UnstampedMessage(encode_body(body), RUN, run.location)


def _add_run(metadata: m.RunStartedMetadata | m.RunEndedMetadata, run: RunTelemetry) -> None:
    if run.inputs:
        metadata["inputs"] = run.inputs
    if run.tags:
        metadata["tags"] = run.tags
    if run.trace.links:
        metadata["links"] = [link_to(link, run.trace.trace_id) for link in run.trace.links]
    if run.params is not None:
        metadata["params"] = run.params


@message_for.register
def _task_started(event: TaskExecutionStarted, run: RunTelemetry) -> UnstampedMessage:
    child = child_of(event, run)
    metadata: m.TaskStartedMetadata = {"kind": event.kind, "start_ns": _start(event)}
    _add_task(metadata, event)
    if event.attempt:
        metadata["attempt"] = event.attempt
    if event.map_size is not None:
        metadata["map_size"] = event.map_size
    return _task(event, run, "RUNNING", metadata, child=child)


@message_for.register
def _task_blocked(event: TaskBlocked, run: RunTelemetry) -> UnstampedMessage:
    run.counts["held_back"] += 1
    metadata: m.TaskBlockedMetadata = {"kind": event.kind, "reason": event.reason, "start_ns": event.start_ns}
    _add_task(metadata, event)
    if event.constraint is not None:
        metadata["constraint"] = event.constraint
    return _task(event, run, "PENDING", metadata)


@message_for.register
def _task_retrying(event: TaskRetrying, run: RunTelemetry) -> UnstampedMessage:
    run.counts["retried"] += 1
    metadata: m.TaskBlockedMetadata = {
        "kind": event.kind,
        "reason": "retry",
        "attempt": event.attempt,
        "max_attempts": event.max_attempts,
        "delay_ms": event.delay * 1000,
        "span_id": span_id(run.run_id, event.task_id, event.attempt),
        "start_ns": event.start_ns,
        "end_ns": event.end_ns,
        "result": event.result or "failure",
    }
    _add_task(metadata, event)
    if event.exception is not None:
        metadata["exception"] = exception_of(event.exception)
    if event.cpu_seconds is not None:
        metadata["cpu_seconds"] = event.cpu_seconds
    count_attempt(metadata, event, run)
    return _task(event, run, "PENDING", metadata, error=event.error)


@message_for.register
def _task_finished(event: TaskExecutionFinished, run: RunTelemetry) -> UnstampedMessage:
    succeeded = event.status == "Succeeded"
    count_finished(event, run.counts)
    start_ns, end_ns = _times(event)
    child, error = child_of(event, run), event.error
    metadata = _ended(event, run, start_ns, end_ns, event.result or ("success" if succeeded else "failure"))
    exception = None
    if event.exception is not None:
        metadata["exception"] = exception = exception_of(event.exception)
    if event.attempts:
        metadata["attempts"] = attempts_of(event, run, child)
    if event.attempt_count and event.attempt_count > len(metadata.get("attempts", ())):
        metadata["attempt_count"] = event.attempt_count
    if event.max_attempts:
        metadata["max_attempts"] = event.max_attempts
    if event.queue_seconds is not None:
        metadata["queue_seconds"] = event.queue_seconds
    if event.cpu_seconds is not None:
        metadata["cpu_seconds"] = event.cpu_seconds
    if "arguments" in run.capture and event.arguments:
        metadata["arguments"] = captured(hidden_secrets(event.arguments, event.callable_obj, event.edges))
    if "results" in run.capture and succeeded:
        metadata["output"] = MASK if is_masked(event.task_name, event.output) else captured(event.output)
    count_last(metadata, event, run, child)
    if exception is not None and (kept := metadata.get("exception", exception)) is not exception:
        error = error_of(kept)  # shortened, because the trace is full
    state: wire.TaskState = "COMPLETED" if succeeded else "FAILED"
    return _task(event, run, state, metadata, (end_ns - start_ns) / 1e6, error, child)


@message_for.register
def _task_skipped(event: TaskSkipped, run: RunTelemetry) -> UnstampedMessage:
    count_skipped(event, run.counts)
    start_ns, child = _start(event), child_of(event, run)
    metadata = _ended(event, run, start_ns, event.end_ns or start_ns, "skip")
    metadata["reason"] = event.reason
    if event.decided_by:
        trace_id = _trace_id_of(event, run)
        metadata["links"] = [link_to(run.trace.span_of(id_), trace_id) for id_ in event.decided_by]
    count_last(metadata, event, run, child)
    return _task(event, run, "SKIPPED", metadata, child=child)


@message_for.register(ResourceAcquired)
@message_for.register(ResourceSetupFailed)
def _resource_acquired(event: ResourceAcquired | ResourceSetupFailed, run: RunTelemetry) -> UnstampedMessage:
    return _resource(event, run, "ACQUIRE", setup_id)


@message_for.register
def _resource_released(event: ResourceReleased, run: RunTelemetry) -> UnstampedMessage:
    return _resource(event, run, "RELEASE", teardown_id, event.hold_start_ns)


@message_for.register
def _control_decision(event: ControlDecision, run: RunTelemetry) -> UnstampedMessage:
    body = wire.ControlEvent(
        _CONTROL_ACTIONS[event.action],
        masked_name(event.scope),
        masked_name(event.constraint_type),
        None if event.constraint_id is None else masked_name(event.constraint_id),
        masked_error(event.reason),
        redact_value(event.params),
    )
    run.control_count += 1
    if len(run.control) < MAX_CONTROL_EVENTS:
        run.control.append(decision_of(body, round(event.timestamp * 1e9)))
    return UnstampedMessage(encode_body(body), RUN, run.location)


_CONTROL_ACTIONS: dict[str, m.ControlAction] = {action: action for action in get_args(m.ControlAction)}


def _task(
    event: TaskEvent,
    run: RunTelemetry,
    state: wire.TaskState,
    metadata: m.TaskMetadata,
    duration_ms: float | None = None,
    error: str | None = None,
    child: Child | None = None,
) -> UnstampedMessage:
    if error is not None:
        error = masked_error(error)
    body = task_body(event.task_id, masked_name(event.task_name), state, duration_ms, error, metadata)
    location = (
        run.trace.location_of(event.task_id, event.map_id) if child is None else run.trace.location_in(child.part)
    )
    return UnstampedMessage(body, event.task_id, location, int(state in wire.TERMINAL_STATES))


def _resource(
    event: ResourceEvent,
    run: RunTelemetry,
    action: wire.ResourceAction,
    id_of: Callable[[str], str],
    hold_start_ns: int = 0,
) -> UnstampedMessage:
    name, start_ns = masked_name(event.resource_name), _start(event)
    metadata: m.ResourceMetadata = {
        "start_ns": start_ns,
        "end_ns": event.end_ns or start_ns,
        "result": event.result or ("success" if event.exception is None else "failure"),
    }
    if event.exception is not None:
        metadata["exception"] = exception_of(event.exception)
    if hold_start_ns:
        metadata["hold_start_ns"] = hold_start_ns
    count_own(metadata, run)
    usage = {masked_name(key): used for key, used in event.current_usage.items()}
    body = encode_body(wire.ResourceEvent(name, action, usage, metadata))
    return UnstampedMessage(body, id_of(name), SpanLocation(run.trace.trace_id, run.trace.span_id))


def _add_task(metadata: m.TaskMetadata, event: TaskEvent) -> None:
    if event.map_id is not None:
        metadata["map_id"], metadata["map_index"] = event.map_id, event.map_index or 0
    if event.label is not None:
        metadata["label"] = event.label
    if event.tags:
        metadata["tags"] = list(event.tags)


def _ended(
    event: TaskSkipped | TaskExecutionFinished, run: RunTelemetry, start_ns: int, end_ns: int, result: m.Result
) -> m.TaskEndedMetadata:
    """Return the metadata of a task that has ended. Keys without a value are not added: this is a hot path."""
    metadata: m.TaskEndedMetadata = {"kind": event.kind, "start_ns": start_ns, "end_ns": end_ns, "result": result}
    _add_task(metadata, event)
    if event.function:
        metadata["function"] = masked_name(event.function)
    if event.dependencies:
        trace_id = _trace_id_of(event, run) if run.trace.tracestate else ""
        metadata["links"] = [link_to(run.trace.span_of(id_), trace_id) for id_ in event.dependencies[:MAX_LINKS]]
        metadata["link_count"] = len(event.dependencies)
    if event.map_size is not None:
        metadata["map_size"] = event.map_size
    if event.kind == "map":
        add_parts(metadata, event.task_id, run)
    if event.waits and (waits := waits_of(event.waits, event.task_id, run)):
        metadata["waits"] = waits
    return metadata


def _trace_id_of(event: TaskEvent, run: RunTelemetry) -> str:
    return run.trace.location_of(event.task_id, event.map_id).trace_id


def _start(event: TaskExecutionStarted | TaskSkipped | RunStarted | ResourceEvent) -> int:
    return event.start_ns or round(event.timestamp * 1e9)


def _times(event: RunFinished | TaskExecutionFinished) -> tuple[int, int]:
    """Return the start and the end in nanoseconds. The end of an event without times is its timestamp."""
    end_ns = event.end_ns or round(event.timestamp * 1e9)
    return event.start_ns or end_ns - round(event.duration * 1e9), end_ns
