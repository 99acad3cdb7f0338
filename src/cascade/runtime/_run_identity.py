"""Id and name of a run: checks, and the ids of the runs in progress."""

import os
from collections.abc import Iterator

from cascade._context_managers import context_manager
from cascade.telemetry.topics import checked_level

_in_progress: dict[str, object] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_progress.clear)


def checked_run_id(run_id: str) -> str:
    """Return a run_id that a caller has chosen.

    Raises:
        TypeError: It is not a text.
        ValueError: It cannot be a level of a topic.
    """
    if not isinstance(run_id, str):
        raise TypeError(f"run_id must be a text, got a {type(run_id).__name__}; for a UUID, give str(…)")
    return checked_level(str.__str__(run_id), "run_id")


def checked_name(name: str | None) -> str:
    """Return the name of a run, or "" for None.

    Raises:
        TypeError: It is not a text.
        ValueError: It has no visible character.
    """
    if name is None:
        return ""
    if not isinstance(name, str):
        raise TypeError(f"name must be a text, got a {type(name).__name__}")
    if not (text := str.__str__(name)).strip():
        raise ValueError(f"name must have at least one visible character, got {text!r}; omit it for the target's name")
    return text


@context_manager
def in_progress(run_id: str, *, is_chosen: bool) -> Iterator[None]:
    """Hold the id of a run inside the block. `is_chosen` is true for an id that the caller of the run has chosen.

    Raises:
        ValueError: A chosen id is the id of another run in progress in this process.
    """
    run = object()
    if _in_progress.setdefault(run_id, run) is not run and is_chosen:
        raise ValueError(f"run_id={run_id!r} is the id of a run in progress; wait for its end or choose another id")
    try:
        yield
    finally:
        if _in_progress.get(run_id) is run:
            del _in_progress[run_id]
