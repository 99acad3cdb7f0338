"""The wire's messages, version 1.0, as frozen dataclasses: one `Header` and one body each.

The values for a short view are fields; all others are in `metadata`, whose keys are listed here because they
are part of the wire. Times are nanoseconds since the Unix epoch, ids are lower-case hex. A key without a value is left
out of `metadata`.

`TaskStateEvent.metadata`, always: `kind` ("task" or "map"), `map_id` and `map_index` for an item of a map, `label` of a
    call that has one (secrets are masked; at most 256 bytes).
    PENDING: `reason` (resource, paused, concurrency, rate_limit, telemetry, executor, retry); for a retry also
    `attempt` (the attempt that failed), `max_attempts`, `delay_ms`, `start_ns`, `end_ns` and `result` (failure or
    timeout) of that attempt, `span_id` (the attempt's span), `exception`; held back by control also `constraint`.
    RUNNING: `start_ns`, `attempt` (1, 2, …, with a retry policy), `map_size` for a map. An attempt after the first has
    one only if the task was held back again after the delay of the retry; otherwise it starts at `end_ns` + `delay_ms`.
    COMPLETED, FAILED, SKIPPED stand alone: `start_ns`, `end_ns`, `result` (success, failure, timeout, cancellation,
    skip), `reason` of a skip, `function` (module and qualified name), `links` (a list of `{"trace_id", "span_id"}` and
    `tracestate`, at most 128; a link into the message's own trace has the message's tracestate) to the tasks that it
    consumed; of a skip, to the condition or the selector that decided, then to the skipped task that it depends on;
    `link_count` (how many tasks it consumed), `map_size`, `exception`, `waits`, and with a retry policy `attempts` (the
    first 64 and the last 64), `attempt_count` (how many there really were, if more) and `max_attempts`; `arguments` and
    `output` where they are captured; `parts` for a map with more items than one trace takes, and `ended_parts` with the
    last message of a part. PENDING for a retry has no `span_id` if the trace is full and the attempt has no span;
    `attempts` has no such attempt.
`LifecycleEvent.metadata`: `target`, `start_ns`, `tasks` (how many by name), `inputs` (names of Params and Envs),
    `links`, `params` where captured; at the start `outer_run_id` (the run whose task started it in this process); and
    at the end `end_ns`, `result`, `counts` (of tasks by state), `exception`, `dropped` (messages lost so far), `left_out`
    (spans of the program for which a trace had no room), `parts`, `part_count`, `control` (what became of constraints,
    the first 64) and `control_count` (how many there really were).
    `later_errors` lists errors after the one that the run raises, such as those of teardowns (the first 20): each is an
    `exception` with `time_ns`.
`ResourceEvent.metadata`: `start_ns`, `end_ns`, `result` and `exception` of the setup on ACQUIRE, of the teardown on
    RELEASE. RELEASE also has `hold_start_ns`, the end of the setup. A setup that failed has no RELEASE.

`exception` is `{"type", "message", "stacktrace"}`. An item of `waits` is `{"reason", "span_id", "start_ns", "end_ns"}`
and `constraint` if control was the reason. A `constraint` is `{"scope", "type", "id"}`; an item of `control` is
`{"action", "scope", "type", "id", "reason", "params", "time_ns"}`. One of `attempts` is `{"attempt", "span_id",
"start_ns", "end_ns", "result"}` and `exception` if it failed. One of `parts` is a trace of its own, for children with
numbers from `first` to `last`: `{"part", "trace_id", "span_id", "first", "last", "start_ns", "end_ns"}`, where the ids
are those of its root. `ended` is true if an earlier message has the root: that of the part's last child, in its
`ended_parts`. These also have the `name` of the map or run, its span as `parent` (`{"trace_id", "span_id",
"tracestate"}`) and the `task_id` of a map. `parts` has at most 64 of them and all that have not `ended`; `part_count`
is how many there really are, if more.

`RetainedRunState` is a message by itself, on a topic of its own. It summarizes the messages of a run so far.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

LifecycleName = Literal["ENGINE_STARTED", "ENGINE_STOPPED"]
RunStatus = Literal["Succeeded", "Failed", "Cancelled"]
RunStateStatus = Literal["running", "success", "failure", "error", "timeout", "cancellation"]
TaskState = Literal["PENDING", "RUNNING", "COMPLETED", "FAILED", "SKIPPED"]
ResourceAction = Literal["ACQUIRE", "RELEASE"]
ControlAction = Literal["APPLIED", "REFUSED", "EXPIRED", "CLEARED"]


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
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskStateEvent:
    """A task, or a map as a whole, enters a state. `duration_ms` runs from the first RUNNING to a terminal state."""

    task_id: str
    task_name: str
    state: TaskState
    duration_ms: float | None = None
    error: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ResourceEvent:
    """A resource was set up, or its setup failed (ACQUIRE), or it was torn down (RELEASE).

    `current_usage` has the amounts of system resources in use at that moment.

    The runtime's event of the same name is `cascade.runtime.events.ResourceEvent`.
    """

    resource_name: str
    action: ResourceAction
    current_usage: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


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
    metadata: dict[str, Any] = field(default_factory=dict)


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
