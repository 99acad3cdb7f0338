"""Levels and values of the messages about tasks."""

from typing import Any

from cascade.runtime.events import TaskEvent


def level_of(event: TaskEvent) -> str:
    """Return INFO, or DEBUG for the items of a map: a map may have a million items."""
    return "info" if event.map_id is None else "debug"


def task_values(event: TaskEvent) -> dict[str, Any]:
    """Return the values that identify a task in a message. A label takes precedence over the index."""
    found: dict[str, Any] = {"task_name": event.task_name}
    if event.label is not None:
        found["label"] = event.label
    if event.map_index is not None:
        found["map_index"] = event.map_index
    return found
