"""What the engine says while it runs. Every field has a default, and events compare by value.

`timestamp` and `duration` are seconds; fields that end in `_ns` are nanoseconds since the Unix epoch, 0 for unknown.
The wire has a ResourceEvent of its own in `cascade.spec.telemetry`.
"""

import itertools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from cascade.graph.model import Edge

# Not the program's random numbers: it may be seeded, and what it draws must not depend on ours.
_process = os.urandom(8).hex()
_count = itertools.count()


def _new_process() -> None:
    global _process  # noqa: PLW0603 - a forked child must not count on in its parent's name
    _process = os.urandom(8).hex()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_process)


def _event_id() -> str:
    return f"{_process}{next(_count):016x}"  # unique, not secret, and ten times cheaper than uuid4


@dataclass(frozen=True)
class ErrorInfo:
    """An exception as data."""

    type: str
    message: str
    stacktrace: str = ""


@dataclass(frozen=True, slots=True)
class LaterError:
    """An error that came after the one that the run raises: a note on that one."""

    time_ns: int
    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of a task that has a retry policy; numbered from 1. `error` is None if it succeeded or was cancelled."""

    number: int
    start_ns: int
    end_ns: int
    error: ErrorInfo | None = None
    result: str = "success"


@dataclass(frozen=True, slots=True)
class Wait:
    """A time for which a task that could have run was held back; `constraint` has scope, type and id of what did it."""

    reason: str
    start_ns: int
    end_ns: int
    constraint: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class MapCounts:
    """How many items of a map have ended: `done` have a value, of which `cached` come from the cache."""

    done: int = 0
    failed: int = 0
    cached: int = 0


@dataclass(frozen=True)
class Event:
    event_id: str = field(default_factory=_event_id)
    timestamp: float = field(default_factory=time.time)
    run_id: str | None = None

    @classmethod
    def made(cls, fields: dict[str, Any]) -> Self:
        """What the constructor makes of these fields, at a third of its cost; the dict becomes the event's own.

        A field that is not given is read from the class, which has all defaults but those that a factory makes: of
        these, all but the event's id must be given.
        """
        event = object.__new__(cls)
        fields["event_id"] = _event_id()
        object.__setattr__(event, "__dict__", fields)
        return event


@dataclass(frozen=True)
class RunStarted(Event):
    """`task_counts`: tasks by name, maps as one; `inputs`: names of Params and Envs; `trace`: the run's `RunTrace`.

    `nested`: a task of a run of the same engine started it. `outer_run_id`: id of the run whose task started it in this
    process, with any engine; empty for none.
    """

    target_tasks: list[str] = field(default_factory=list)
    params: dict[str, Any] = field(default_factory=dict)
    task_counts: dict[str, int] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    start_ns: int = 0
    trace: Any = None
    nested: bool = False
    outer_run_id: str = ""


@dataclass(frozen=True)
class RunFinished(Event):
    status: str = "Unknown"
    duration: float = 0.0
    error: str | None = None
    start_ns: int = 0
    end_ns: int = 0
    exception: ErrorInfo | None = None
    result: str = ""
    later_errors: tuple["LaterError", ...] = ()


@dataclass(frozen=True)
class RunStillStopping(Event):
    """A run that a signal has cancelled waits for work that cannot be interrupted, or leaves it behind.

    `work`: names of tasks whose functions still run, and of setups and teardowns of resources.
    """

    work: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConnectorFailed(Event):
    """The run's connector could not connect; the run goes on."""

    error: str = ""


@dataclass(frozen=True)
class ControlDecision(Event):
    """What became of a constraint that came in; `action` is the wire's word. `params` are as they were understood."""

    action: str = ""
    scope: str = ""
    constraint_type: str = ""
    constraint_id: str | None = None
    reason: str | None = None
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskEvent(Event):
    """`map_id` and `map_index` place an item in its map; a map's own events have `kind` "map".

    `label` is the label of the call, which is masked and at most 256 bytes long.
    """

    task_id: str = ""
    task_name: str = ""
    kind: str = "task"
    map_id: str | None = None
    map_index: int | None = None
    label: str | None = None


@dataclass(frozen=True)
class TaskBlocked(TaskEvent):
    """A task that could run is held back; `reason` says by what, `constraint` by which one if it was one."""

    reason: str = ""
    start_ns: int = 0
    constraint: dict[str, str] | None = None


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
    """All that a span needs, without any earlier event. `dependencies`: ids of the tasks whose values it consumed."""

    start_ns: int = 0
    end_ns: int = 0
    function: str = ""
    dependencies: tuple[str, ...] = ()
    map_size: int | None = None
    waits: tuple[Wait, ...] = ()


@dataclass(frozen=True)
class TaskExecutionFinished(_TaskEnded):
    """`counts` are those of a map that has begun its items. `callable_obj` is the function that had the arguments.

    `edges` are those to the task, of an item those to its map.
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
    arguments: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    edges: Sequence[Edge] = field(default=(), compare=False, repr=False)
    callable_obj: Any = field(default=None, compare=False, repr=False)
    output: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class TaskSkipped(_TaskEnded):
    """`decided_by` has the task_id of the condition or the selector, then that of the skipped upstream between, if any.

    It is empty for a value from the cache. An input (a Param or an Env) is not a task, and has no task_id.
    """

    reason: str = "Unknown"
    decided_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskRetrying(TaskEvent):
    """The k-th retry is about to be waited for: attempt k failed with `error`; `delay` is in seconds."""

    attempt: int = 0
    max_attempts: int = 0
    delay: float = 0.0
    error: str | None = None
    start_ns: int = 0
    end_ns: int = 0
    exception: ErrorInfo | None = None
    result: str = ""


@dataclass(frozen=True)
class ResourceEvent(Event):
    """A setup or a teardown that has ended. `start_ns` and `end_ns` are its own.

    The wire's event of the same name is `cascade.spec.telemetry.ResourceEvent`.
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
