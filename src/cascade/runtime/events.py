"""Events that the engine publishes. Every field has a default, and events compare by value.

`timestamp` and `duration` are seconds; fields that end in `_ns` are nanoseconds since the Unix epoch, 0 for unknown.
`cascade.spec.telemetry` has another ResourceEvent, for messages.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from cascade._unique_ids import unique_id
from cascade.graph.model import Edge
from cascade.spec.failure import Failure
from cascade.spec.metadata import ConstraintRef


@dataclass(frozen=True)
class ErrorInfo:
    """An exception as data."""

    type: str
    message: str
    stacktrace: str = ""


@dataclass(frozen=True, slots=True)
class LaterError:
    """An error after the first error of a run. The run raises the first error, with a note for each later one."""

    time_ns: int
    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class FailedTask:
    """A failed task, or item of a map, after which the run continued. `time_ns` is the time of its end."""

    time_ns: int
    failure: Failure
    error: ErrorInfo
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of a task that has a retry policy; numbered from 1. `error` is None if it succeeded or was cancelled.

    `cpu_seconds` is its CPU time, as in `TaskExecutionFinished`.
    """

    number: int
    start_ns: int
    end_ns: int
    error: ErrorInfo | None = None
    result: str = "success"
    cpu_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """A period in which a ready task waited. `constraint` has scope, type and id of the constraint that blocked it."""

    reason: str
    start_ns: int
    end_ns: int
    constraint: ConstraintRef | None = None


@dataclass(frozen=True, slots=True)
class MapCounts:
    """Numbers of ended items of a map. `done` items have a value; `cached` of these come from the cache."""

    done: int = 0
    failed: int = 0
    cached: int = 0


@dataclass(frozen=True, slots=True)
class StarvedThreads:
    """Worker threads that computed, but waited for the interpreter or for a processor most of the time.

    Attributes:
        slowdown: The duration of the tasks in relation to their CPU time.
        threads: The largest number of threads that ran tasks at once.
        cores: The mean number of processors that the process used meanwhile.
        max_workers: A number of threads that is sufficient for the same work.
    """

    slowdown: float
    threads: int
    cores: float
    max_workers: int


@dataclass(frozen=True)
class Event:
    event_id: str = field(default_factory=unique_id)
    timestamp: float = field(default_factory=time.time)
    run_id: str | None = None

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """Create an event from its fields, at a third of the constructor's cost. The dict becomes the event's `__dict__`.

        Missing fields have the default of the class. Fields with a default factory, except the event's id, must be
        given.
        """
        event = object.__new__(cls)
        fields["event_id"] = unique_id()
        object.__setattr__(event, "__dict__", fields)
        return event


@dataclass(frozen=True)
class RunStarted(Event):
    """A run starts.

    Attributes:
        target_tasks: The names of the targets, each once: the first five, and then a text such as "and 2 more".
        task_counts: The number of tasks by name. A map counts once.
        inputs: The names of Params and Envs.
        trace: The `RunTrace` of the run.
        nested: Whether a task of a run of the same engine has started it.
        outer_run_id: The id of the run whose task has started it in this process, with any engine; empty for none.
        name: The name that the caller has given the run; empty for none.
        tags: The tags of the run.
    """

    target_tasks: list[str] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    task_counts: dict[str, int] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    start_ns: int = 0
    trace: Any = None
    nested: bool = False
    outer_run_id: str = ""
    name: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunFinished(Event):
    """A run has ended.

    Attributes:
        later_errors: The first errors after `error`, such as those of teardowns.
        failures: The failures after which the run continued, in the order of their ends.
        failed_tasks: The first of these failures, as data.
        starved: None if the threads were not starved, or if no subscriber uses it (`MessageBus.measure`).
    """

    status: str = "Unknown"
    duration: float = 0.0
    error: str | None = None
    start_ns: int = 0
    end_ns: int = 0
    exception: ErrorInfo | None = None
    result: str = ""
    later_errors: tuple["LaterError", ...] = ()
    failures: tuple[Failure, ...] = field(default=(), compare=False, repr=False)
    failed_tasks: tuple[FailedTask, ...] = field(default=(), compare=False, repr=False)
    starved: StarvedThreads | None = None


@dataclass(frozen=True)
class RunStillStopping(Event):
    """A run that a signal has cancelled waits for work that cannot be interrupted, or ends before this work.

    `work`: names of tasks whose functions still run, and of setups and teardowns of resources.
    """

    work: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConnectorFailed(Event):
    """The run's connector could not connect. The run continues."""

    error: str = ""


@dataclass(frozen=True)
class ControlDecision(Event):
    """A decision about a constraint. `action` is "APPLIED", "CLEARED", "EXPIRED" or "REFUSED"; `params` are the parsed ones."""

    action: str = ""
    scope: str = ""
    constraint_type: str = ""
    constraint_id: str | None = None
    reason: str | None = None
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskEvent(Event):
    """An event of a task. `map_id` and `map_index` identify an item of a map; the events of a map have `kind` "map".

    `label` is the label of the call, and `tags` are the tags of the task or map. Each is masked and at most 256 bytes long.
    """

    task_id: str = ""
    task_name: str = ""
    kind: str = "task"
    map_id: str | None = None
    map_index: int | None = None
    label: str | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskBlocked(TaskEvent):
    """A ready task waits. `reason` is the cause; `constraint` identifies the constraint that blocks it, if any."""

    reason: str = ""
    start_ns: int = 0
    constraint: ConstraintRef | None = None


@dataclass(frozen=True)
class TaskExecutionStarted(TaskEvent):
    start_ns: int = 0
    attempt: int = 0
    map_size: int | None = None


@dataclass(frozen=True)
class MapProgressed(TaskEvent):
    """Progress of a map that runs, at most once a second. `map_size` is the number of its items."""

    map_size: int = 0
    counts: MapCounts = MapCounts()


@dataclass(frozen=True)
class _TaskEnded(TaskEvent):
    """A task has ended. The event has all data of its span. `dependencies`: ids of the tasks whose values the task used."""

    start_ns: int = 0
    end_ns: int = 0
    function: str = ""
    dependencies: tuple[str, ...] = ()
    map_size: int | None = None
    waits: tuple[Wait, ...] = ()


@dataclass(frozen=True)
class TaskExecutionFinished(_TaskEnded):
    """An executed task has ended.

    `counts`: numbers of ended items, for a map that has started items. `callable_obj`: the called function.

    `edges`: the edges to the task; for an item, those to its map.

    `is_allowed`: whether the task failed and has `allow_failure()`.

    `cpu_seconds`: CPU time of the thread while the function ran, in all attempts. None if it is unknown, as for an `async def`,
    or if no subscriber uses it (`MessageBus.measure`).

    `queue_seconds`: time from the moment when all inputs were available to the first start; None as for `cpu_seconds`.
    """

    status: str = "Unknown"
    duration: float = 0.0
    result_preview: str | None = None
    error: str | None = None
    exception: ErrorInfo | None = None
    result: str = ""
    attempts: tuple[Attempt, ...] = ()
    max_attempts: int = 0
    counts: MapCounts | None = None
    attempt_count: int = 0
    cpu_seconds: float | None = None
    queue_seconds: float | None = None
    arguments: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    edges: Sequence[Edge] = field(default=(), compare=False, repr=False)
    callable_obj: Any = field(default=None, compare=False, repr=False)
    output: Any = field(default=None, compare=False, repr=False)
    is_allowed: bool = False


@dataclass(frozen=True)
class TaskSkipped(_TaskEnded):
    """A task was skipped.

    `decided_by`: the task_id of the condition or the selector, then that of a skipped upstream task, if any. Inputs (a Param
    or an Env) are excluded, because they have no task_id. It is empty for a value from the cache.
    """

    reason: str = "Unknown"
    decided_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskRetrying(TaskEvent):
    """Attempt `attempt` failed with `error`. The next attempt starts after `delay` seconds."""

    attempt: int = 0
    max_attempts: int = 0
    delay: float = 0.0
    error: str | None = None
    start_ns: int = 0
    end_ns: int = 0
    exception: ErrorInfo | None = None
    result: str = ""
    cpu_seconds: float | None = None


@dataclass(frozen=True)
class ResourceEvent(Event):
    """A setup or a teardown has ended. `start_ns` and `end_ns` are its times.

    `cascade.spec.telemetry.ResourceEvent` is the message of the same name.
    """

    resource_name: str = ""
    start_ns: int = 0
    end_ns: int = 0
    current_usage: dict[str, float] = field(default_factory=dict)
    exception: ErrorInfo | None = None
    result: str = ""


@dataclass(frozen=True)
class ResourceAcquired(ResourceEvent):
    """A resource was set up."""


@dataclass(frozen=True)
class ResourceSetupFailed(ResourceEvent):
    """A setup failed or was cancelled. There is no `ResourceReleased` for it."""


@dataclass(frozen=True)
class ResourceReleased(ResourceEvent):
    """A resource was torn down. `hold_start_ns` is the end of its setup; `exception` is the error of the teardown."""

    hold_start_ns: int = 0
