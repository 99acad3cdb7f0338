"""Stops the start of tasks while the telemetry queues are full."""

from collections.abc import Callable

from cascade.runtime._task_group import TaskGroup
from cascade.runtime.gates import Gates


class Hold:
    """Backpressure of the telemetry queues on one starter of tasks. It calls `go_on` once there is room again.

    While no task of the group runs, it is off: the next tasks start, and each publishes that it waits for telemetry.
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
