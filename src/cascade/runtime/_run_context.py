"""State of one run: id, clock, parameters, bus, executor, results."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from cascade.runtime._clock import RunClock
from cascade.runtime._outcome import add_later_error
from cascade.runtime.bus import MessageBus
from cascade.runtime.control.admission import Admission
from cascade.runtime.control.permit import Permit
from cascade.runtime.control.rules import Key
from cascade.runtime.events import ErrorInfo, Event, LaterError
from cascade.runtime.protocols import Executor, Tracing
from cascade.runtime.resource_manager import ResourceManager
from cascade.runtime.state import InMemoryStateBackend
from cascade.runtime.task_context import TaskContext
from cascade.spec.protocols import StateBackend
from cascade.telemetry.identity import RunTrace
from cascade.telemetry.limits import MAX_LATER_ERRORS
from cascade.telemetry.safe import error_message, stack_text

logger = logging.getLogger(__name__)

_HARNESS = ("/cascade/runtime/", "/cascade/adapters/", "/concurrent/futures/", "/asyncio/", "/contextlib.py")


@dataclass(eq=False, slots=True)
class RunContext:
    """One run: who it is, what it was given, what it has so far, and how it talks to the outside.

    `new_context` returns a copy of the context variables of the caller of `run`. Each task and each attempt runs in
    its own copy, the resources in copies of theirs. `admission` says which of its tasks may start; None where nobody can steer it. `run_ids` are its own and those
    of the runs that it is nested in.
    """

    run_id: str
    start_ns: int
    params: dict[str, Any]
    trace: RunTrace
    bus: MessageBus
    executor: Executor
    state: StateBackend
    capacity: ResourceManager
    new_context: Callable[[], Context]
    tracing: Tracing | None = None
    admission: Admission | None = None
    run_ids: tuple[str, ...] = ()
    _keys: dict[str, Key] = field(default_factory=dict)
    clock: RunClock = field(default_factory=RunClock)
    resources: dict[str, Any] = field(default_factory=dict)
    failing: bool = False
    later_errors: list[LaterError] = field(default_factory=list)

    def release(self) -> None:
        """Drop the values of a run that has ended: exceptions and background tasks of its tasks may refer to the run."""
        self.state = InMemoryStateBackend(self.run_id)
        self.params = {}
        self.resources = {}

    def fail(self) -> None:
        """Something has failed: what is cancelled from now on is waited for."""
        self.failing = True

    def add_later_error(self, first: BaseException, later: BaseException, place: str) -> None:
        """Add an error to `first`, which the run raises: as a note, and for an event on the run's span.

        `place` is the subject of the note's sentence: "the teardown of resource 'db'". A cancellation is no error.
        """
        if later is first or isinstance(later, asyncio.CancelledError):
            return
        add_later_error(first, later, place)
        if len(self.later_errors) < MAX_LATER_ERRORS:
            self.later_errors.append(LaterError(self.clock.now_ns(), error_info(later)))

    def permit(self, name: str) -> Permit | None:
        """A place for one task of that name among those that run; None where nobody can steer."""
        if self.admission is None:
            return None
        key = self._keys.get(name)
        if key is None:  # made once: a map's items, and most tasks of a fan-out, share theirs
            key = self._keys[name] = Key(self.run_ids, name)
        return Permit(self.admission, key)

    def emit(self, event_type: type[Event], **fields: Any) -> None:
        """Publish an event of this run, unless nobody listens."""
        if self.bus.handlers(event_type):
            fields["timestamp"] = self.clock.now_ns() / 1e9
            self.publish(event_type, fields)

    def publish(self, event_type: type[Event], fields: dict[str, Any]) -> None:
        """Publish an event of this run, made of these fields and its run_id."""
        fields["run_id"] = self.run_id
        self.bus.publish(event_type.made(fields))

    def enter_span(self, task: TaskContext) -> AbstractContextManager[None] | None:
        """Make the task's span current, where a connector offers that; to be given to `leave_span`."""
        if self.tracing is None:
            return None
        try:
            span = self.tracing.activate(task)
            span.__enter__()
        except Exception:  # noqa: BLE001 - telemetry never breaks a run
            self._give_up_tracing()
            return None
        return span

    def leave_span(self, span: AbstractContextManager[None] | None) -> None:
        try:
            if span is not None:
                span.__exit__(None, None, None)
        except Exception:  # noqa: BLE001 - telemetry never breaks a run
            self._give_up_tracing()

    def _give_up_tracing(self) -> None:
        if self.tracing is not None:
            logger.exception(  # noqa: LOG004 - called from exception handlers
                "%s failed to activate a span; the run goes on without", type(self.tracing).__name__
            )
        self.tracing = None


def seconds(start_ns: int, end_ns: int) -> float:
    return (end_ns - start_ns) / 1e9


def error_info(error: BaseException) -> ErrorInfo:
    """An exception as data, its stack trace starting at the user's own code."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return ErrorInfo(name, error_message(error), stack_text(_without_harness(error)))


def _without_harness(error: BaseException) -> BaseException:
    trace = error.__traceback__
    while trace is not None and any(part in trace.tb_frame.f_code.co_filename for part in _HARNESS):
        trace = trace.tb_next
    return error.with_traceback(trace) if trace is not None else error
