"""The value of a task that failed and whose failure does not stop the run."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Failure:
    """Value of a failed task, or of a failed item of a map, with `allow_failure()`. It is false in a condition.

    Attributes:
        error: The exception of the last attempt.
        task_name: The name of the task.
        task_id: The id of the task in the run.
        map_index: The position of an item in its map, from 0; None for a task and for a map that has no items.
        attempts: The number of calls of the function; 0 if the task failed before its first call.
    """

    error: Exception
    task_name: str
    task_id: str
    map_index: int | None = None
    attempts: int = 0

    def __bool__(self) -> bool:
        return False
