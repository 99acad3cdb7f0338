"""Amounts of system resources that a task holds while it runs: `cpu=2`, `gpu=1`."""

from dataclasses import dataclass, field
from typing import Any, SupportsFloat


@dataclass
class ResourceConstraint:
    """Amounts by system resource. An amount may be a LazyResult, whose value is known during the run."""

    requirements: dict[str, Any] = field(default_factory=dict)

    def is_empty(self) -> bool:
        return not self.requirements

    def __bool__(self) -> bool:
        return bool(self.requirements)


def with_constraints(**requirements: SupportsFloat) -> ResourceConstraint:
    """Make a constraint from amounts by name: `with_constraints(cpu=2, memory_gb=0.5)`."""
    return ResourceConstraint(requirements)
