"""One task's place among those that run: taken, waited for, left for a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cascade.runtime.control.admission import Admission
from cascade.runtime.control.constraint import Constraint
from cascade.runtime.control.rules import REASONS, Key

Blocked = Callable[[str, dict[str, str]], int]
"""Called with reason and constraint when a wait begins; gives its start in nanoseconds."""
Waited = Callable[[str, int, dict[str, str]], None]
"""Called with reason, start and constraint when a wait is over."""


class Seat:
    """`is_taken` while its task is at work."""

    __slots__ = ("_admission", "_key", "is_taken")

    def __init__(self, admission: Admission, key: Key) -> None:
        self._admission = admission
        self._key = key
        self.is_taken = False

    def take(self) -> bool:
        """Take it if nothing holds the task back; whether it did."""
        self.is_taken = self._admission.enter(self._key)
        return self.is_taken

    async def wait(self, blocked: Blocked, waited: Waited) -> None:
        """Take it as soon as nothing holds the task back."""
        held = _Held(blocked, waited)
        await self._admission.wait(self._key, held.by)
        self.is_taken = True
        held.over()

    def leave(self, *, unused: bool = False) -> None:
        """Leave it, if it is taken. `unused`: the task has not started after all."""
        if self.is_taken:
            self.is_taken = False
            self._admission.leave(self._key, unused=unused)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The task only waits, for a run that it has started: others may have the place meanwhile."""
        was_taken = self.is_taken
        self.leave()
        try:
            yield
        finally:
            if was_taken:
                self._admission.rejoin(self._key)
                self.is_taken = True


class _Held:
    """A wait for one constraint after another, each told; held again by the same one at once, it goes on waiting."""

    def __init__(self, blocked: Blocked, waited: Waited) -> None:
        self._blocked = blocked
        self._waited = waited
        self._constraint: Constraint | None = None
        self._start_ns = 0

    def by(self, constraint: Constraint) -> None:
        if constraint != self._constraint:
            self.over()
            self._constraint = constraint
            self._start_ns = self._blocked(REASONS[type(constraint)], constraint.told)

    def over(self) -> None:
        if self._constraint is not None:
            self._waited(REASONS[type(self._constraint)], self._start_ns, self._constraint.told)
            self._constraint = None
