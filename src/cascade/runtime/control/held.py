"""From which constraint to which a task waits, told as it changes."""

from collections.abc import Callable

from cascade.runtime.control.constraint import Constraint
from cascade.runtime.control.rules import REASONS


class Held:
    """One wait for one reason at a time; that of the same constraint, held again at once, is one wait.

    Args:
        blocked: Called with reason and constraint when a wait begins; gives its start in nanoseconds.
        waited: Called with reason, start and constraint when it is over.
    """

    def __init__(
        self,
        blocked: Callable[[str, dict[str, str]], int],
        waited: Callable[[str, int, dict[str, str]], None],
    ) -> None:
        self._blocked = blocked
        self._waited = waited
        self._constraint: Constraint | None = None
        self._start_ns = 0

    def by(self, constraint: Constraint) -> None:
        """The task is held back, or held back by another constraint."""
        if constraint != self._constraint:
            self.over()
            self._constraint = constraint
            self._start_ns = self._blocked(REASONS[type(constraint)], constraint.told)

    def over(self) -> None:
        if self._constraint is not None:
            self._waited(REASONS[type(self._constraint)], self._start_ns, self._constraint.told)
            self._constraint = None
