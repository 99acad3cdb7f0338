"""Holding back the start of tasks while telemetry is behind."""

from collections.abc import Callable

from cascade.runtime._task_group import TaskGroup
from cascade.runtime.gates import Gates


class Hold:
    """Tells who starts tasks to stop, and calls it when it may go on.

    With nobody at work it does not: the next tasks are started then, and wait by themselves, for all to see.
    """

    def __init__(self, gates: Gates, group: TaskGroup, go_on: Callable[[], None]) -> None:
        self._gates = gates
        self._group = group
        self._go_on: Callable[[], None] | None = go_on
        self._is_waiting = False

    def is_on(self) -> bool:
        """Whether to stop; `go_on` is called afterwards."""
        if not self._group.is_busy or not self._gates.is_full():
            return False
        if not self._is_waiting:
            self._is_waiting = True
            self._group.spawn(self._wait())
        return True

    def close(self) -> None:
        """Forget `go_on`: its owner holds this object, and such a cycle would hold the values of a run after its end."""
        self._go_on = None

    async def _wait(self) -> None:
        while self._gates.is_full() and not self._group.over:
            await self._gates.room()
        self._is_waiting = False
        if self._go_on is not None:
            self._go_on()
