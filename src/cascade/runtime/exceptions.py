"""What the engine itself raises.

    CascadeRuntimeError
    └── DependencyMissingError

A task's own exception is never wrapped: it comes through as it was raised.
"""


class CascadeRuntimeError(Exception):
    """Root of the engine's own errors."""


class DependencyMissingError(CascadeRuntimeError):
    """Raised when a value is needed that no run can give any more, because the task that makes it was skipped."""

    def __init__(self, task_id: str, arg_name: str, dependency_id: str) -> None:
        self.task_id = task_id
        self.arg_name = arg_name
        self.dependency_id = dependency_id
        super().__init__(
            f"Task '{task_id}' has no value for '{arg_name}': it comes from '{dependency_id}', which was skipped"
        )
