"""Amounts of system resources that a task holds while it runs: `cpu=2`, `gpu=1`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, SupportsFloat


@dataclass
class ResourceConstraint:
    """Amounts by resource name. An amount may be a lazy result, whose value the run computes."""

    requirements: dict[str, Any] = field(default_factory=dict)

    def is_empty(self) -> bool:
        return not self.requirements

    def __bool__(self) -> bool:
        return bool(self.requirements)


def with_constraints(**requirements: SupportsFloat) -> ResourceConstraint:
    """Return a constraint of amounts by resource name, as in `with_constraints(cpu=2, memory_gb=0.5)`."""
    return ResourceConstraint(requirements)


def checked_constraints(constraints: Any, owner: str) -> ResourceConstraint:
    """Return the constraint of a mapping of amounts by resource name, or of `with_constraints`.

    Raises:
        TypeError: The object is neither. The text begins with `owner`.
    """
    if isinstance(constraints, ResourceConstraint):
        return constraints
    if isinstance(constraints, Mapping) and all(isinstance(name, str) for name in constraints):
        return ResourceConstraint(dict(constraints))
    raise TypeError(
        f"{owner}: constraints must be amounts by resource name, such as {{'cpu': 2}}, got a {type(constraints).__name__}"
        + ("" if not isinstance(constraints, Mapping) else " with a name that is not a text")
    )
