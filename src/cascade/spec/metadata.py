"""Keys of `metadata` in each kind of message, for the encoder, the JSON Schemas and the documentation.

A key without a value is not encoded. Times are nanoseconds since the Unix epoch, ids are lower-case hexadecimal. A terminal
message (`COMPLETED`, `FAILED`, `SKIPPED`, `ENGINE_STOPPED`, `ACQUIRE`, `RELEASE`) has all values of its span. Changes within
version 1.x are additive, and consumers ignore unknown keys.
"""

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from cascade.spec.value_types import (
    Count,
    Keywords,
    ListedPart,
    Milliseconds,
    Nanoseconds,
    NonEmpty,
    Ordinal,
    Part,
    Seconds,
    SpanId,
    StarvedThreads,
    TraceId,
    TraceState,
)

Kind = Annotated[str, Keywords(enum=["task", "map"])]
Result = Annotated[str, Keywords(enum=["success", "failure", "error", "timeout", "cancellation", "skip"])]
WaitReason = Annotated[
    str, Keywords(enum=["resource", "paused", "concurrency", "rate_limit", "telemetry", "executor", "retry"])
]
ControlAction = Literal["APPLIED", "REFUSED", "EXPIRED", "CLEARED"]


class ExceptionInfo(TypedDict):
    """An exception, with secrets masked."""

    type: str
    """Module and qualified name of the class."""
    message: str
    """Text of the exception, at most 2,000 bytes."""
    stacktrace: NotRequired[str]
    """Stack trace, at most 16 KiB. The middle of a longer one is removed."""


class LaterError(ExceptionInfo):
    """A further error of a run. The run raises its first error."""

    time_ns: Nanoseconds
    """Time of the error."""


class TaskError(LaterError):
    """A failed task, or item of a map, after which the run continued. Its text has at most 500 bytes."""

    task_id: str
    """Id of the task."""
    task_name: str
    """Name of the task."""
    map_index: NotRequired[Count]
    """Position of the item in its map, from 0, for an item of a map."""
    label: NotRequired[NonEmpty]
    """Label of the call."""


class Link(TypedDict):
    """A reference to a span."""

    trace_id: TraceId
    """Trace of the span."""
    span_id: SpanId
    """Id of the span."""
    tracestate: NotRequired[TraceState]
    """W3C tracestate of a span in another trace. A span in the trace of the message has the tracestate of the message."""


class ConstraintRef(TypedDict):
    """A constraint that blocks a task."""

    scope: str
    """`global`, `run/{run_id}` or `task/{name or pattern}`."""
    type: str
    """`pause`, `concurrency`, `rate_limit` or `resource`."""
    id: str
    """Id of the constraint."""


class Wait(TypedDict):
    """A wait of a task: before its start, or between two attempts."""

    reason: WaitReason
    """Reason of the wait, as in `PENDING`."""
    span_id: SpanId
    """Span of the wait."""
    start_ns: Nanoseconds
    """Start of the wait."""
    end_ns: Nanoseconds
    """End of the wait."""
    constraint: NotRequired[ConstraintRef]
    """The constraint, if a constraint was the reason."""


class Attempt(TypedDict):
    """An attempt of a task with a retry policy."""

    attempt: Ordinal
    """Number of the attempt."""
    span_id: SpanId
    """Span of the attempt."""
    start_ns: Nanoseconds
    """Start of the attempt."""
    end_ns: Nanoseconds
    """End of the attempt."""
    result: NotRequired[Result]
    """Result of the attempt."""
    exception: NotRequired[ExceptionInfo]
    """The exception of a failed attempt."""
    cpu_seconds: NotRequired[Seconds]
    """CPU time of the thread while the function ran. Absent for an `async def`."""


class EndedPart(Part):
    """A part whose last child is the task of the message."""

    name: str
    """Name of the span of the run or map."""
    parent: Link
    """Span of the run or map."""
    task_id: NotRequired[str]
    """Id of the map."""


class Decision(TypedDict):
    """A decision about a constraint."""

    action: ControlAction
    """The decision."""
    scope: str
    """Scope of the constraint."""
    type: str
    """Type of the constraint."""
    time_ns: Nanoseconds
    """Time of the decision."""
    id: NotRequired[str]
    """Id of the constraint."""
    reason: NotRequired[str]
    """Reason of a refusal."""
    params: NotRequired[dict[str, Any]]
    """Parameters of the constraint."""


class _Truncated(TypedDict):
    truncated: NotRequired[list[str]]
    """Keys that were removed because the message or the trace reached its size limit."""


class TaskMetadata(_Truncated):
    """Keys of all messages of a task or map."""

    kind: Kind
    """`map` for a map as a whole, `task` for a task or an item of a map."""
    map_id: NotRequired[str]
    """Task id of the map, for an item of a map."""
    map_index: NotRequired[Count]
    """Position of the item in its map, from 0."""
    label: NotRequired[NonEmpty]
    """Label of the call, at most 256 bytes."""
    tags: NotRequired[list[NonEmpty]]
    """Tags of the task, or of a map and its items: at most 32, each of at most 256 bytes."""


class TaskBlockedMetadata(TaskMetadata):
    """`PENDING`: a task waits, before its start or before a retry."""

    reason: WaitReason
    """Reason of the wait."""
    start_ns: Nanoseconds
    """Start of the wait; for a retry, start of the failed attempt."""
    constraint: NotRequired[ConstraintRef]
    """The constraint, if a constraint is the reason."""
    attempt: NotRequired[Ordinal]
    """For a retry: number of the failed attempt."""
    max_attempts: NotRequired[Ordinal]
    """For a retry: number of retries that the policy allows."""
    delay_ms: NotRequired[Milliseconds]
    """For a retry: delay before the next attempt, in milliseconds."""
    end_ns: NotRequired[Nanoseconds]
    """For a retry: end of the failed attempt."""
    result: NotRequired[Result]
    """For a retry: result of the failed attempt, `failure` or `timeout`."""
    span_id: NotRequired[SpanId]
    """For a retry: span of the failed attempt. Absent for an attempt that the trace has no room for."""
    exception: NotRequired[ExceptionInfo]
    """For a retry: exception of the failed attempt."""
    cpu_seconds: NotRequired[Seconds]
    """For a retry: CPU time of the failed attempt. Absent for an `async def`."""


class TaskStartedMetadata(TaskMetadata):
    """`RUNNING`: a task, a map or an attempt starts."""

    start_ns: Nanoseconds
    """Start of the function."""
    attempt: NotRequired[Ordinal]
    """Number of the attempt, with a retry policy. A later attempt has this message only if it waited again after its delay."""
    map_size: NotRequired[Count]
    """Number of items of a map."""


class TaskEndedMetadata(TaskMetadata):
    """`COMPLETED`, `FAILED` and `SKIPPED`: all values of the task's spans."""

    start_ns: Nanoseconds
    """Start of the task."""
    end_ns: Nanoseconds
    """End of the task."""
    result: Result
    """Result of the task."""
    reason: NotRequired[str]
    """Reason of a skip: `CacheHit`, `ConditionFalse`, `Pruned`, `UpstreamFailed` or `UpstreamSkipped…`."""
    function: NotRequired[str]
    """Module and qualified name of the function."""
    links: NotRequired[list[Link]]
    """At most 128 tasks whose values the task consumed. For a skip: the condition or selector, and the skipped upstream task."""
    link_count: NotRequired[Count]
    """Number of tasks whose values the task consumed."""
    map_size: NotRequired[Count]
    """Number of items of a map."""
    exception: NotRequired[ExceptionInfo]
    """Exception of a failed task."""
    waits: NotRequired[list[Wait]]
    """Waits of at least a millisecond."""
    attempts: NotRequired[list[Attempt]]
    """With a retry policy: the first 64 and the last 64 attempts, except attempts without a span."""
    attempt_count: NotRequired[Count]
    """Number of all attempts, if `attempts` is not complete."""
    max_attempts: NotRequired[Ordinal]
    """Number of retries that the policy allows, with a retry policy."""
    cpu_seconds: NotRequired[Seconds]
    """CPU time of the thread while the function ran, in all attempts. Absent for an `async def`."""
    queue_seconds: NotRequired[Seconds]
    """Time from the moment when all inputs were available to the start of the task, waits included."""
    arguments: NotRequired[dict[str, Any] | str]
    """Captured arguments by name, or their type if they are too large."""
    output: NotRequired[Any]
    """Captured value."""
    parts: NotRequired[list[ListedPart]]
    """Parts of a map: at most 64 that have ended, and all others."""
    part_count: NotRequired[Count]
    """Number of all parts, if `parts` is not complete."""
    ended_parts: NotRequired[list[EndedPart]]
    """Parts whose last child is this task."""


class _RunMetadata(_Truncated):
    target: str
    """Name of the run, or else the names of its targets."""
    tags: NotRequired[list[NonEmpty]]
    """Tags of the run."""
    start_ns: Nanoseconds
    """Start of the run."""
    inputs: NotRequired[list[str]]
    """Names of Params and Envs."""
    links: NotRequired[list[Link]]
    """Spans that the run links to."""
    params: NotRequired[dict[str, Any] | str]
    """Captured Params by name, or their type if they are too large."""


class RunStartedMetadata(_RunMetadata):
    """`ENGINE_STARTED`: a run starts."""

    tasks: NotRequired[dict[str, Count]]
    """Number of tasks by name."""
    outer_run_id: NotRequired[str]
    """The run whose task has started this run, in the same process."""


class RunEndedMetadata(_RunMetadata):
    """`ENGINE_STOPPED`: all values of the run's span."""

    end_ns: Nanoseconds
    """End of the run."""
    result: Result
    """Result of the run."""
    counts: dict[str, Count]
    """Number of tasks by state."""
    dropped: Count
    """Number of messages of the run that were lost."""
    left_out: NotRequired[Ordinal]
    """Number of spans of your own that were left out, because their trace had no room."""
    exception: NotRequired[ExceptionInfo]
    """The exception that the run raises."""
    later_errors: NotRequired[list[LaterError]]
    """The first 20 further errors, such as those of teardowns. The run raises its first error."""
    failures: NotRequired[list[TaskError]]
    """The first 64 failures after which the run continued."""
    starved: NotRequired[StarvedThreads]
    """Measures of the worker threads, if they waited for a processor most of the time."""
    parts: NotRequired[list[ListedPart]]
    """Parts of the run: at most 64 that have ended, and all others."""
    part_count: NotRequired[Count]
    """Number of all parts, if `parts` is not complete."""
    control: NotRequired[list[Decision]]
    """The first 64 decisions about constraints."""
    control_count: NotRequired[Count]
    """Number of decisions about constraints."""


class ResourceMetadata(_Truncated):
    """`ACQUIRE`: the setup of a resource. A setup that failed has no `RELEASE`. `RELEASE`: the teardown."""

    start_ns: Nanoseconds
    """Start of the setup or teardown."""
    end_ns: Nanoseconds
    """End of the setup or teardown."""
    result: Result
    """Result of the setup or teardown."""
    exception: NotRequired[ExceptionInfo]
    """Exception of the setup or teardown."""
    hold_start_ns: NotRequired[Nanoseconds]
    """For `RELEASE`: end of the setup."""


BY_VALUE: dict[str, type[Any]] = {
    "ENGINE_STARTED": RunStartedMetadata,
    "ENGINE_STOPPED": RunEndedMetadata,
    "PENDING": TaskBlockedMetadata,
    "RUNNING": TaskStartedMetadata,
    **dict.fromkeys(("COMPLETED", "FAILED", "SKIPPED"), TaskEndedMetadata),
    "ACQUIRE": ResourceMetadata,
    "RELEASE": ResourceMetadata,
}
"""The type of the metadata, by the `event`, `state` or `action` of the message."""
