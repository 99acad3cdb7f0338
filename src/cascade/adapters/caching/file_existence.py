"""Cache policy for tasks that write a file."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from cascade.runtime.threads import in_thread
from cascade.spec.caching import CacheHit, TaskCall


class FileExistenceCache:
    """Skips a task whose file exists, and returns the path of the file as its value.

    Args:
        target_path: The path, or a function that returns it for the inputs of the task.
    """

    def __init__(self, target_path: str | Callable[[dict[str, Any]], str]) -> None:
        self._target_path = target_path

    def look_up(self, call: TaskCall) -> Awaitable[CacheHit | None]:
        """Call `check` in a thread, because a disk may be slow."""
        return in_thread(self._look_up, call)

    def store(self, call: TaskCall, value: Any) -> None:
        """Do nothing: the task itself writes its file."""

    def _look_up(self, call: TaskCall) -> CacheHit | None:
        path = self.check(call.task_id, call.inputs)
        return None if path is None else CacheHit(path)

    def check(self, task_id: str, inputs: dict[str, Any]) -> str | None:  # noqa: ARG002 - the protocol's
        path = self._target_path(inputs) if callable(self._target_path) else self._target_path
        return path if Path(path).exists() else None

    def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None:
        """Do nothing: the task itself writes its file."""
