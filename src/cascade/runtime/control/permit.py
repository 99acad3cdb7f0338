"""Permit of one task to run: acquired from admission control, suspended, released."""

from collections.abc import Callable, Iterator
from typing import Any

from cascade._context_managers import context_manager
from cascade.runtime.control.admission import Admission
from cascade.runtime.control.constraint import Constraint
from cascade.runtime.control.limiters import REASONS, Key, NoPlace
from cascade.runtime.events import Wait
from cascade.runtime.protocols import Place
from cascade.spec.metadata import ConstraintRef

Blocked = Callable[..., None]
"""Called with the fields of a `TaskBlocked`."""


class Permit:
    """Permission for one task to run, with a place of the executor if the task needs one.

    `is_held` is true while the task runs. `place` is the place that it holds.
    """

    __slots__ = ("_admission", "_key", "_suspension", "is_held", "place")

    def __init__(self, admission: Admission, key: Key) -> None:
        self._admission = admission
        self._key = key
        self.is_held = False
        self.place: Place | None = None
        self._suspension: _Suspension | None = None

    def try_acquire(self) -> bool:
        """Acquire the permit without waiting. Returns False if a constraint holds the task back."""
        self.is_held = self._admission.enter(self._key)
        if self.is_held:
            self.place = self._admission.place(self._key)
        return self.is_held

    async def acquire(self, blocked: Blocked, now: Callable[[], int]) -> tuple[Wait, ...]:
        """Wait until no constraint holds the task back, acquire the permit and return the waits.

        `blocked` is called with the reason and the event's other fields each time the reason changes.
        """
        segments = await self._admission.wait(self._key, lambda *wait: blocked(**_fields_of(*wait)), now)
        self.is_held = True
        self.place = self._admission.place(self._key)
        return tuple(
            Wait(REASONS[type(constraint)], start_ns, end_ns, _description(constraint))
            for constraint, start_ns, end_ns in segments
        )

    def release(self, *, unused: bool = False) -> None:
        """Release the permit if it is held. `unused`: the task did not start."""
        self._suspension = None
        if self.is_held:
            self.is_held = False
            self._admission.leave(self._key, unused=unused)
        place, self.place = self.place, None
        if place is not None:  # last: this may start another task, which no limit should hold back
            place.release()

    @context_manager
    def suspended(self) -> Iterator[None]:
        """Release the permit while the task waits for a nested run, and take it back afterwards.

        The task keeps its place, which the nested run may use. A task may wait for several nested runs at once. A nested run
        may outlive the task or the attempt that started it.
        """
        if self.is_held:
            self.is_held = False
            self._suspension = _Suspension()
            self._admission.leave(self._key)
        suspension = self._suspension
        if suspension is None:
            yield
            return
        suspension.count += 1
        try:
            yield
        finally:
            suspension.count -= 1
            if suspension is self._suspension and not suspension.count:
                self._suspension = None
                self._admission.rejoin(self._key)
                self.is_held = True


class _Suspension:
    """Number of nested runs that one suspension waits for."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0


def _fields_of(constraint: Constraint, start_ns: int) -> dict[str, Any]:
    return {"reason": REASONS[type(constraint)], "start_ns": start_ns, "constraint": _description(constraint)}


def _description(constraint: Constraint) -> ConstraintRef | None:
    return None if isinstance(constraint, NoPlace) else constraint.description
