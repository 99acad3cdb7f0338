"""Maps exceptions to result values, and attaches later errors to the first one."""

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


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an exception of any class, once.

    `BaseException.add_note` assigns an attribute, which frozen dataclasses and other exceptions refuse. This function
    calls no code of the exception's class. Above `MAX_NOTES` notes, the note is dropped.
    """
    notes = _attributes_of(error).setdefault("__notes__", [])
    if isinstance(notes, list) and len(notes) < MAX_NOTES and not any(type(n) is str and n == note for n in notes):
        notes.append(note)


_attributes_of = BaseException.__dict__["__dict__"].__get__
