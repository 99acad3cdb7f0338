"""Telemetry messages, version 1.0, as frozen dataclasses: one `Header` and one body for each message.

The values for a short view are fields of the body. All others are in `metadata`, whose keys `cascade.spec.metadata` defines.
Times are nanoseconds since the Unix epoch, ids are lower-case hexadecimal.

`RetainedRunState` is a message by itself, on a topic of its own. It summarizes the messages of a run so far.
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
    """The run of a message, the time of its event, its span, and its number in the run's order.

    `tracestate` (W3C Trace Context) is that of the message's spans. A message without one has no such key.
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
    """A run starts or stops. `duration_ms` and `error` belong to the stop."""

    event: LifecycleName
    status: RunStatus | None = None
    duration_ms: float | None = None
    error: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskStateEvent:
    """A task, or a map as a whole, enters a state. `duration_ms` runs from the first RUNNING to a terminal state."""

    task_id: str
    task_name: str
    state: TaskState
    duration_ms: float | None = None
    error: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResourceEvent:
    """A resource was set up, or its setup failed (ACQUIRE), or it was torn down (RELEASE).

    `current_usage` has the amounts of system resources in use at that moment.

    The runtime's event of the same name is `cascade.runtime.events.ResourceEvent`.
    """

    resource_name: str
    action: ResourceAction
    current_usage: dict[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ControlEvent:
    """What became of a constraint that came in: applied, refused (and why), expired or cleared.

    `scope` is `global`, `run/{run_id}` or `task/{name or pattern}`; of a refused one perhaps less than that.
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
    """A task, a map as a whole, or an item of a map, in a `RetainedRunState`. A field that is None is left out.

    `start_time` is the start of the task or attempt, or of the wait. A waiting task has a `reason`, as PENDING has, and
    the `constraint` that holds it back: `{"scope", "type", "id"}`. `attempt` is the attempt that runs, or that failed.
    `end_time` is the end of the delay of a retry.
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
    """The last error of a run: of an attempt of a task, of a resource, or of the run. A field that is None is left out.

    `type` is that of the exception. A cancelled run has `cancellation`, and the reason as `message`.
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
    """The state of a run after its message `seq`. Times are in the form of `ts`, the time of that message.

    `tasks` is the number of tasks that are known so far, items of started maps included. `counts` are numbers of tasks by
    state: `pending` and `running` at this time; `completed`, `failed`, `cancelled` and `skipped` since the start.
    `running` and `waiting` list the first tasks of `running` and `pending`; items of maps are last. `status` is
    `running`, and at the end the result of the run.
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
    last_error: LastError | None = None
    v: str = "1.0"


Body = LifecycleEvent | TaskStateEvent | ResourceEvent | ControlEvent
TERMINAL_STATES = frozenset({"COMPLETED", "FAILED", "SKIPPED"})
