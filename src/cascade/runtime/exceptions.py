"""Errors that the engine raises, and functions that classify an exception and attach notes to it.

    CascadeRuntimeError
    ├── DependencyMissingError
    ├── MissingEnvError
    ├── MissingParamError
    ├── UnknownParamError
    └── TelemetryLostError

`StillRunning` is a cancellation. The exception of a task is raised unchanged, not wrapped.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from signal import Signals
from types import TracebackType
from typing import Any, Protocol, TypeGuard, TypeVar

from cascade.telemetry.sanitize import error_text

MAX_NOTES = 20
"""Maximum number of notes on one exception: a run with thousands of tasks may have thousands of later errors."""

MAX_HISTORY = 128
"""Maximum number of stored attempts, and of stored waits, of one task: the first and the last 64. Retries may last weeks."""

T = TypeVar("T")


class CascadeRuntimeError(Exception):
    """Base class of the errors of the engine."""


class DependencyMissingError(CascadeRuntimeError):
    """Raised when a value is missing because the task that makes it was skipped.

    Attributes:
        task_id: The task that has no value, or the target's name.
        arg_name: The argument without a value; "<Target Output>" for the target of a run.
        dependency_id: The id of the task that was skipped.
    """

    def __init__(self, task_id: str, arg_name: str, dependency_id: str, *, cause: str | None = None) -> None:
        self.task_id = task_id
        self.arg_name = arg_name
        self.dependency_id = dependency_id
        super().__init__(
            cause
            or f"Task '{task_id}' has no value for '{arg_name}': it comes from '{dependency_id}', which was skipped"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), str(self), self.task_id, self.arg_name, self.dependency_id)


def _restored(kind: type[DependencyMissingError], text: str, *fields: str) -> DependencyMissingError:
    return kind(*fields, cause=text)


class MissingParamError(CascadeRuntimeError, ValueError):
    """Raised when a parameter without a default has no value in `params`."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"Parameter '{name}' has no value and no default: pass params={{'{name}': …}}")


class MissingEnvError(CascadeRuntimeError, ValueError):
    """Raised when an environment variable is not set and its `Env` has no default."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"Environment variable '{name}' is not set and has no default: set it, or pass cs.Env('{name}', default=…)"
        )


class UnknownParamError(CascadeRuntimeError, ValueError):
    """Raised when the workflow has no Param with a name in `params`."""

    def __init__(self, name: str, known: Collection[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(
            f"params: '{name}' is not a Param of this workflow{suggestion(name, known) or '.'} Its Params: {', '.join(known)}"
        )


def suggestion(name: str, known: Collection[str], cutoff: float = 0.6) -> str:
    """Return `; did you mean 'x'?` for the most similar known name, or "" without a similar one."""
    close = get_close_matches(name, known, 1, cutoff)
    return f"; did you mean '{close[0]}'?" if close else ""


class TelemetryLostError(CascadeRuntimeError):
    """Raised by a connector with `strict=True`, at a run's end, when not all of its telemetry arrived.

    Attributes:
        lost: The number of items that were lost.
        pending: The number of items that were not yet delivered; they stay queued.
        value: The value of the run, which succeeded. The engine sets it.
    """

    value: Any = None

    def __init__(self, message: str, *, lost: int, pending: int = 0) -> None:
        self.lost = lost
        self.pending = pending
        super().__init__(message)


class AnyFuture(Protocol):
    """A future: `asyncio.Future` or `concurrent.futures.Future`."""

    def add_done_callback(self, callback: Callable[[Any], object], /) -> None:
        """Call `callback` with the future when it has ended, in any thread; at once if it has already ended."""
        ...


class StillRunning(asyncio.CancelledError):
    """Raised by an executor that is cancelled but cannot interrupt the function, such as one in a thread.

    `work` is the future of the function, such as a `concurrent.futures.Future`. A failed run waits until it ends. A cancelled
    run does not wait.
    """

    def __init__(self, work: AnyFuture) -> None:
        self.work = work
        super().__init__()


def result_of(error: BaseException | None) -> str:
    """Return the result of an operation, in the terms of the CI/CD semantic conventions. `error` is None if it succeeded."""
    if error is None:
        return "success"
    if is_cancellation(error):
        return "cancellation"
    return "timeout" if issubclass(type(error), TimeoutError) else "failure"


def is_cancellation(error: BaseException) -> TypeGuard[asyncio.CancelledError]:
    """Whether the error is a cancellation. `isinstance` would read `error.__class__`, which may call user code."""
    return issubclass(type(error), asyncio.CancelledError)


def cancellation_text(error: asyncio.CancelledError) -> str:
    """Return the reason of a cancellation: "cancelled", with the message that was given to `Task.cancel`, if any."""
    message = error.args[0] if error.args and isinstance(error.args[0], str) else ""
    if not message or message.startswith("cancelled"):
        return message or "cancelled"
    return f"cancelled: {message}"


def by_signal(name: str) -> str:
    """Return the cancellation message for a signal such as "SIGTERM"."""
    return f"{_BY_SIGNAL}{name}"


def is_by_signal(reason: str) -> bool:
    """Whether the reason of a cancellation is a signal."""
    return reason.startswith(_BY_SIGNAL) and reason.removeprefix(_BY_SIGNAL) in Signals.__members__


_BY_SIGNAL = "cancelled by "


def add_later_error(first: BaseException, later: BaseException, operation: str) -> None:
    """Add a later error as a note to the first error, which the run raises.

    `operation` is the subject of the note's sentence: "the teardown of resource 'db'". A cancellation is no error.
    """
    if later is not first and not is_cancellation(later):
        add_note(first, f"Later, {operation} failed: {error_text(later)}")


class TaskNote(str):
    """A note that names the task that an exception ended. An exception has one such note for each run that it ended.

    Attributes:
        time_ns: The end of the attempt, in nanoseconds since the Unix epoch.
    """

    __slots__ = ("time_ns",)
    time_ns: int


def add_task_note(error: BaseException, text: str, *, attempt_start_ns: int, now_ns: int) -> None:
    """Add the note that names the task that `error` ended, once; a cancellation gets none.

    Notes from before the attempt are removed, because a program may raise one exception object several times. Later notes are
    kept: they name the tasks of nested runs, where the exception comes from.
    """
    if is_cancellation(error):
        return
    note = TaskNote(text)
    note.time_ns = now_ns
    notes = _attributes_of(error).setdefault("__notes__", [])
    if not isinstance(notes, list):
        return
    notes[:] = [other for other in notes if type(other) is not TaskNote or other.time_ns >= attempt_start_ns]
    if len(notes) < MAX_NOTES and not any(type(other) is TaskNote and other == text for other in notes):
        notes.append(note)


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception of any class, once.

    `BaseException.add_note` assigns an attribute, which frozen dataclasses and other exceptions refuse. This function
    calls no code of the exception's class. Above `MAX_NOTES` notes, the note is dropped.
    """
    notes = _attributes_of(error).setdefault("__notes__", [])
    if isinstance(notes, list) and len(notes) < MAX_NOTES and not any(type(n) is str and n == note for n in notes):
        notes.append(note)


_attributes_of = BaseException.__dict__["__dict__"].__get__


def append_bounded(items: tuple[T, ...], item: T) -> tuple[T, ...]:
    """Append an item. Above `MAX_HISTORY` items, the oldest one of the second half is dropped."""
    if len(items) >= MAX_HISTORY:
        items = (*items[: MAX_HISTORY // 2], *items[MAX_HISTORY // 2 + 1 :])
    return (*items, item)


class Tracebacks:
    """Bounds the tracebacks of exception objects that several attempts of one task raise.

    Each raise adds the frames of the attempt to the object's traceback. `restore` drops them after the attempt, except
    for those of the first attempt. It stores ids only: a reference to an exception would keep the values of its frames.
    """

    def __init__(self) -> None:
        self._first: dict[int, int] = {}  # id of the head of the first traceback, by id of the exception

    def restore(self, error: BaseException) -> None:
        """Restore the first traceback of the exception and of its causes and contexts."""
        for each in _chain_of(error):
            head = trace = traceback_of(each)
            wanted = self._first.get(id(each))
            while trace is not None and id(trace) != wanted:
                trace = trace.tb_next
            if trace is not None:
                BaseException.with_traceback(each, trace)
                continue
            self._first.pop(id(each), None)
            self._first[id(each)] = id(head)
            if len(self._first) > MAX_HISTORY:
                del self._first[next(iter(self._first))]


def remove_tracebacks(error: BaseException) -> None:
    """Remove the tracebacks of the exception and of its causes and contexts, which refer to the values of their frames."""
    for each in _chain_of(error):
        BaseException.with_traceback(each, None)


def _chain_of(error: BaseException) -> Iterable[BaseException]:
    """Return the exception, its causes and contexts, and the exceptions of a group: at most `MAX_HISTORY`."""
    found: dict[int, BaseException] = {}
    pending = [error]
    while pending and len(found) < MAX_HISTORY:
        each = pending.pop()
        if id(each) in found:
            continue
        found[id(each)] = each
        members = _members_of(each) if issubclass(type(each), BaseExceptionGroup) else ()
        pending += [one for one in (_cause_of(each), _context_of(each), *members) if one is not None]
    return found.values()


def traceback_of(error: BaseException) -> TracebackType | None:
    """Return the traceback of an exception of any class."""
    trace: TracebackType | None = _traceback_of(error)
    return trace


# The class of an exception may override these attributes. These getters read the fields of `BaseException`.
_traceback_of = BaseException.__dict__["__traceback__"].__get__
_cause_of = BaseException.__dict__["__cause__"].__get__
_context_of = BaseException.__dict__["__context__"].__get__
_members_of = BaseExceptionGroup.__dict__["exceptions"].__get__
