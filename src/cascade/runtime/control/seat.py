"""One task's place among those that run: taken, waited for, left for a while."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cascade.runtime.control.admission import Admission
from cascade.runtime.control.constraint import Constraint
from cascade.runtime.control.rules import REASONS, Key
from cascade.runtime.events import Wait

Blocked = Callable[..., None]
"""Called with the fields of a `TaskBlocked`."""


class Seat:
    """`is_taken` while its task is at work."""

    __slots__ = ("_admission", "_key", "_loan", "is_taken")

    def __init__(self, admission: Admission, key: Key) -> None:
        self._admission = admission
        self._key = key
        self.is_taken = False
        self._loan: _Loan | None = None

    def take(self) -> bool:
        """Take it if nothing holds the task back; whether it did."""
        self.is_taken = self._admission.enter(self._key)
        return self.is_taken

    async def wait(self, blocked: Blocked, now: Callable[[], int]) -> tuple[Wait, ...]:
        """Take it as soon as nothing holds the task back, and say for what it has waited.

        `blocked` is called with the reason and the event's further fields whenever there is another reason.
        """
        segments = await self._admission.wait(self._key, lambda *what: blocked(**_told(*what)), now)
        self.is_taken = True
        return tuple(
            Wait(REASONS[type(constraint)], start_ns, end_ns, constraint.told)
            for constraint, start_ns, end_ns in segments
        )

    def leave(self, *, unused: bool = False) -> None:
        """Leave it, if it is taken. `unused`: the task has not started after all."""
        self._loan = None
        if self.is_taken:
            self.is_taken = False
            self._admission.leave(self._key, unused=unused)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The task only waits, for a run that it has started: others may have the place meanwhile.

        It may wait for several at once, and one of them may outlive the task, or the attempt, that has started it.
        """
        if self.is_taken:
            self.is_taken = False
            self._loan = _Loan()
            self._admission.leave(self._key)
        loan = self._loan
        if loan is None:
            yield
            return
        loan.count += 1
        try:
            yield
        finally:
            loan.count -= 1
            if loan is self._loan and not loan.count:
                self._loan = None
                self._admission.rejoin(self._key)
                self.is_taken = True


class _Loan:
    """How many runs are waited for in the same absence."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


def _told(constraint: Constraint, start_ns: int) -> dict[str, Any]:
    return {"reason": REASONS[type(constraint)], "start_ns": start_ns, "constraint": constraint.told}
