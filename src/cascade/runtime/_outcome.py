"""Maps exceptions to result values, and attaches the task's name and later errors to an exception as notes."""

import asyncio
from collections.abc import Iterable
from signal import Signals
from types import TracebackType
from typing import Any, TypeGuard, TypeVar

from cascade.telemetry.safe import error_text

MAX_NOTES = 20
"""Notes on one exception: a run with thousands of tasks may have thousands of later errors."""

MAX_HISTORY = 128
"""Attempts and waits of one task that are kept: the first 64 and the last 64. A task may be retried for weeks."""

T = TypeVar("T")


def result_of(error: BaseException | None) -> str:
    """The result, as the CI/CD conventions name it, of an operation that ended with `error` or with None."""
    if error is None:
        return "success"
    if is_cancellation(error):
        return "cancellation"
    return "timeout" if issubclass(type(error), TimeoutError) else "failure"


def is_cancellation(error: BaseException) -> TypeGuard[asyncio.CancelledError]:
    """`isinstance`, which reads `error.__class__`: an exception may answer that with user code."""
    return issubclass(type(error), asyncio.CancelledError)


def status_of(result: str) -> str:
    """The status of events that have this result."""
    return _STATUS.get(result, "Failed")


_STATUS = {"success": "Succeeded", "cancellation": "Cancelled"}


def name_of(function: Any) -> str:
    """Module and qualified name of a task's function."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}".strip(".")


def cancellation_text(error: asyncio.CancelledError) -> str:
    """The reason of a cancellation: "cancelled", with the message that was given to `Task.cancel`, if any."""
    message = error.args[0] if error.args and isinstance(error.args[0], str) else ""
    if not message or message.startswith("cancelled"):
        return message or "cancelled"
    return f"cancelled: {message}"


def by_signal(name: str) -> str:
    """The message to cancel a run with, for a signal such as "SIGTERM"."""
    return f"{_BY_SIGNAL}{name}"


def is_by_signal(reason: str) -> bool:
    """Whether the reason of a cancellation is a signal."""
    return reason.startswith(_BY_SIGNAL) and reason.removeprefix(_BY_SIGNAL) in Signals.__members__


_BY_SIGNAL = "cancelled by "


def add_later_error(first: BaseException, later: BaseException, place: str) -> None:
    """Add a later error as a note to the first one, which is the error that the run raises.

    `place` is the subject of the note's sentence: "the teardown of resource 'db'". A cancellation is no error.
    """
    if later is not first and not is_cancellation(later):
        add_note(first, f"Later, {place} failed: {error_text(later)}")


class TaskNote(str):
    """The note that names a task whose attempt an exception ended. An exception has one for each run that it ended.

    Attributes:
        time_ns: The end of the attempt, in nanoseconds since the Unix epoch.
    """

    __slots__ = ("time_ns",)
    time_ns: int


def add_task_note(error: BaseException, text: str, *, attempt_start_ns: int, now_ns: int) -> None:
    """Add the note that names the task that `error` ended, once; a cancellation gets none.

    Notes from before the attempt are removed: the program raises one exception object again and again. Later notes are
    kept: they name the tasks of nested runs, where the exception comes from.
    """
    if is_cancellation(error):
        return
    note = TaskNote(text)
    note.time_ns = now_ns
    notes = _attributes_of(error).setdefault("__notes__", [])
    if not isinstance(notes, list):
        return
    notes[:] = [other for other in notes if not _is_task_note(other) or other.time_ns >= attempt_start_ns]
    if len(notes) < MAX_NOTES and not any(_is_task_note(other) and other == text for other in notes):
        notes.append(note)


def _is_task_note(note: Any) -> bool:
    return type(note) is TaskNote


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception of any class, once.

    `BaseException.add_note` assigns an attribute, which frozen dataclasses and other exceptions refuse. This function
    calls no code of the exception's class. Above `MAX_NOTES` notes, the note is dropped.
    """
    notes = _attributes_of(error).setdefault("__notes__", [])
    if isinstance(notes, list) and len(notes) < MAX_NOTES and not any(type(n) is str and n == note for n in notes):
        notes.append(note)


_attributes_of = BaseException.__dict__["__dict__"].__get__


def with_last(items: tuple[T, ...], item: T) -> tuple[T, ...]:
    """Append an item. Above `MAX_HISTORY` items, the oldest one of the second half is dropped."""
    if len(items) >= MAX_HISTORY:
        items = (*items[: MAX_HISTORY // 2], *items[MAX_HISTORY // 2 + 1 :])
    return (*items, item)


class Tracebacks:
    """Bounds the tracebacks of exception objects that the attempts of one task raise again and again.

    Each raise adds the frames of the attempt to the object's traceback. `restore` drops them after the attempt, except
    for those of the first attempt. It keeps no reference to an exception, which would keep the values of its frames.
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


def _chain_of(error: BaseException) -> Iterable[BaseException]:
    """The exception, its causes and contexts, and those of a group: `MAX_HISTORY` at most."""
    found: dict[int, BaseException] = {}
    open_ends = [error]
    while open_ends and len(found) < MAX_HISTORY:
        each = open_ends.pop()
        if id(each) in found:
            continue
        found[id(each)] = each
        members = _members_of(each) if issubclass(type(each), BaseExceptionGroup) else ()
        open_ends += [one for one in (_cause_of(each), _context_of(each), *members) if one is not None]
    return found.values()


def traceback_of(error: BaseException) -> TracebackType | None:
    """The traceback of an exception of any class."""
    trace: TracebackType | None = _traceback_of(error)
    return trace


# The class of an exception may define these names anew, or refuse to give them: read the fields themselves.
_traceback_of = BaseException.__dict__["__traceback__"].__get__
_cause_of = BaseException.__dict__["__cause__"].__get__
_context_of = BaseException.__dict__["__context__"].__get__
_members_of = BaseExceptionGroup.__dict__["exceptions"].__get__
