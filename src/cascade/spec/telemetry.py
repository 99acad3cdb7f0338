"""Telemetry messages, version 1.0, as frozen dataclasses. Each message has a `Header` and a body.

The fields of a body are the values for a short view. All other values are in `metadata` (`cascade.spec.metadata`). Times are
nanoseconds since the Unix epoch, ids are lower-case hexadecimal.

`RetainedRunState` is a separate message on another topic. It summarizes the messages of a run so far.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cascade.spec.metadata import ControlAction

LifecycleName = Literal["ENGINE_STARTED", "ENGINE_STOPPED"]
RunStatus = Literal["Succeeded", "Failed", "Cancelled"]
RunStateStatus = Literal["running", "success", "failure", "error", "timeout", "cancellation"]
TaskState = Literal["PENDING", "RUNNING", "COMPLETED", "FAILED", "SKIPPED"]
ResourceAction = Literal["ACQUIRE", "RELEASE"]


@dataclass(frozen=True, slots=True)
class Header:
    """Identity of a message: its run, the time of its event, its span, and its number in the run.

    `tracestate` (W3C Trace Context) belongs to the spans of the message. If it is empty, the encoded message does not have it.
    """

    run_id: str
    ts: str
    seq: int
    org_id: str = "local"
    project_id: str = "default"
    source: str = ""
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str = ""
    trace_flags: int = 1
    tracestate: str = ""
    v: str = "1.0"


@dataclass(frozen=True, slots=True)
class LifecycleEvent:
    """Start or end of a run. Only the end has `duration_ms` and `error`."""

    event: LifecycleName
    status: RunStatus | None = None
    duration_ms: float | None = None
    error: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskStateEvent:
    """New state of a task, or of a map as a whole. `duration_ms` is the time from the first RUNNING to a terminal state."""

    task_id: str
    task_name: str
    state: TaskState
    duration_ms: float | None = None
    error: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResourceEvent:
    """End of the setup (ACQUIRE) or of the teardown (RELEASE) of a resource.

    `current_usage` has the amounts of system resources in use.

    The runtime event with the same name is `cascade.runtime.events.ResourceEvent`.
    """

    resource_name: str
    action: ResourceAction
    current_usage: dict[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ControlEvent:
    """Decision about a received constraint: applied, refused with a reason, expired or cleared.

    `scope` is `global`, `run/{run_id}` or `task/{name or pattern}`. The scope of a refused constraint may be incomplete.
    """

    action: ControlAction
    scope: str = ""
    constraint_type: str = ""
    constraint_id: str | None = None
    reason: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveTask:
    """A task, a map as a whole, or an item of a map in a `RetainedRunState`. Fields that are None are not encoded.

    `start_time` is the start of the task, attempt or wait. A waiting task has the `reason` of PENDING, and the `constraint`
    that holds it: `{"scope", "type", "id"}`. `attempt` is the running or failed attempt. `end_time` is the end of the delay
    of a retry.
    """

    task_id: str
    task_name: str
    kind: Literal["task", "map"] = "task"
    start_time: str
    reason: str | None = None
    constraint: dict[str, str] | None = None
    attempt: int | None = None
    end_time: str | None = None
    map_id: str | None = None
    map_index: int | None = None
    map_size: int | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LastError:
    """The last error of an attempt, a resource, or the run. Fields that are None are not encoded.

    `type` is the type of the exception. A cancelled run has the type `cancellation`, and the reason as `message`.
    """

    type: str
    message: str
    time: str
    task_id: str | None = None
    task_name: str | None = None
    map_index: int | None = None
    label: str | None = None
    resource_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetainedRunState:
    """State of a run after its message `seq`. All times have the format of `ts`, the time of that message.

    `tasks` is the number of known tasks, with the items of started maps. `counts` has the numbers of tasks by state: the
    current `pending` and `running` ones, and the `completed`, `failed`, `cancelled` and `skipped` ones since the start.
    `running` and `waiting` list the first running and pending tasks. Items of maps are at the end of the lists. `status` is
    `running`, and at the end the result of the run. `target` is the name of the run, or else the names of its targets.
    """

    run_id: str
    ts: str
    seq: int
    org_id: str
    project_id: str
    source: str
    trace_id: str
    target: str
    status: RunStateStatus
    start_time: str
    end_time: str | None = None
    duration_ms: float | None = None
    tasks: int
    counts: dict[str, int]
    running: tuple[ActiveTask, ...] = ()
    waiting: tuple[ActiveTask, ...] = ()
    tags: tuple[str, ...] = ()
    last_error: LastError | None = None
    v: str = "1.0"


Body = LifecycleEvent | TaskStateEvent | ResourceEvent | ControlEvent
TERMINAL_STATES = frozenset({"COMPLETED", "FAILED", "SKIPPED"})
