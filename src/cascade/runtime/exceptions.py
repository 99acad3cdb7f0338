"""What the engine itself raises.

    CascadeRuntimeError
    ├── DependencyMissingError
    ├── MissingEnvError
    ├── MissingParamError
    ├── UnknownParamError
    └── TelemetryLostError

`StillRunning` is apart: it is a cancellation. A task's own exception is never wrapped: it comes through as it was raised.
"""

import asyncio
from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Any, Protocol


class CascadeRuntimeError(Exception):
    """Root of the engine's own errors."""


class DependencyMissingError(CascadeRuntimeError):
    """Raised when a value is missing because the task that makes it was skipped.

    Attributes:
        task_id: The task that has no value, or the target's name.
        arg_name: The argument that needs the value; "<Target Output>" for the target of a run.
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
    """Raised when a run is given no value for a parameter that has no default."""

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
    """Raised when a run is given a value for a name that is no Param of the workflow."""

    def __init__(self, name: str, known: Collection[str]) -> None:
        self.name = name
        self.known = tuple(known)
        super().__init__(
            f"params: '{name}' is no Param of this workflow{suggestion(name, known) or '.'} Its Params: {', '.join(known)}"
        )


def suggestion(name: str, known: Collection[str], cutoff: float = 0.6) -> str:
    """The question `; did you mean 'x'?` for the known name that is most similar; "" without a similar one."""
    close = get_close_matches(name, known, 1, cutoff)
    return f"; did you mean '{close[0]}'?" if close else ""


class TelemetryLostError(CascadeRuntimeError):
    """Raised by a connector with `strict=True`, at a run's end, when not all of its telemetry arrived.

    Attributes:
        lost: The number of items that were lost.
        pending: The number of items that were not yet delivered; they stay queued.
    """

    def __init__(self, message: str, *, lost: int, pending: int = 0) -> None:
        self.lost = lost
        self.pending = pending
        super().__init__(message)


class Ending(Protocol):
    """Work that will end some time."""

    def add_done_callback(self, callback: Callable[[Any], object], /) -> None:
        """Call `callback` with the work once it has ended, in whatever thread, or now if it has."""
        ...


class StillRunning(asyncio.CancelledError):
    """Raised by an executor that is cancelled but cannot interrupt what it runs, such as a thread.

    A run that has failed waits for `work` to end, such as a `concurrent.futures.Future`; one that is cancelled does not.
    """

    def __init__(self, work: Ending) -> None:
        self.work = work
        super().__init__()
