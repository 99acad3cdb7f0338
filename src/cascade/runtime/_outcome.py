"""Maps exceptions to result values, and attaches the task's name and later errors to an exception as notes."""

import asyncio
from typing import Any

from cascade.telemetry.safe import error_text

MAX_NOTES = 20
"""Notes on one exception: a run with thousands of tasks may have thousands of later errors."""


def result_of(error: BaseException | None) -> str:
    """The result, as the CI/CD conventions name it, of an operation that ended with `error` or with None."""
    match error:
        case None:
            return "success"
        case asyncio.CancelledError():
            return "cancellation"
        case TimeoutError():
            return "timeout"
        case _:
            return "failure"


def status_of(result: str) -> str:
    """The status of events that have this result."""
    return _STATUS.get(result, "Failed")


_STATUS = {"success": "Succeeded", "cancellation": "Cancelled"}


def name_of(function: Any) -> str:
    """Module and qualified name of a task's function."""
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}".strip(".")


def add_later_error(first: BaseException, later: BaseException, place: str) -> None:
    """Add a later error as a note to the first one, which is the error that the run raises.

    `place` is the subject of the note's sentence: "the teardown of resource 'db'". A cancellation is no error.
    """
    if later is not first and not isinstance(later, asyncio.CancelledError):
        add_note(first, f"Later, {place} failed: {error_text(later)}")


class TaskNote(str):
    """The note that names the task that raised an exception. An exception has one at most.

    Attributes:
        time_ns: The end of the attempt that raised it, in nanoseconds since the Unix epoch.
    """

    __slots__ = ("time_ns",)
    time_ns: int


def add_task_note(error: BaseException, text: str, *, attempt_start_ns: int, now_ns: int) -> None:
    """Add the note that names the task that raised `error`; a cancellation gets none.

    A note from before the attempt is replaced: the program raises one exception object again and again. A later note
    is kept: it names the task of a nested run, where the exception comes from.
    """
    if isinstance(error, asyncio.CancelledError):
        return
    note = TaskNote(text)
    note.time_ns = now_ns
    notes = _attributes_of(error).setdefault("__notes__", [])
    if not isinstance(notes, list):
        return
    earlier = next((index for index, other in enumerate(notes) if isinstance(other, TaskNote)), None)
    if earlier is None:
        notes.append(note)
    elif notes[earlier].time_ns < attempt_start_ns:
        notes[earlier] = note


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception of any class, once.

    `BaseException.add_note` assigns an attribute, which frozen dataclasses and other exceptions refuse. This function
    calls no code of the exception's class. Above `MAX_NOTES` notes, the note is dropped.
    """
    notes = _attributes_of(error).setdefault("__notes__", [])
    if isinstance(notes, list) and len(notes) < MAX_NOTES and not any(type(n) is str and n == note for n in notes):
        notes.append(note)


_attributes_of = BaseException.__dict__["__dict__"].__get__
