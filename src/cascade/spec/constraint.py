"""Amounts of system resources that a task holds while it runs: `cpu=2`, `gpu=1`."""

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
