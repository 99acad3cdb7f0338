"""Holding back the start of tasks while telemetry is behind."""

from collections.abc import Callable

from cascade.runtime._crew import Crew
from cascade.runtime.gates import Gates


class Hold:
    """Tells who starts tasks to stop, and calls it when it may go on.

    With nobody at work it does not: the next tasks are started then, and wait by themselves, for all to see.
    """

    def __init__(self, gates: Gates, crew: Crew, go_on: Callable[[], None]) -> None:
        self._gates = gates
        self._crew = crew
        self._go_on = go_on
        self._is_waiting = False

    def is_on(self) -> bool:
        """Whether to stop; `go_on` is called afterwards."""
        if not self._crew.is_busy or not self._gates.is_full():
            return False
        if not self._is_waiting:
            self._is_waiting = True
            self._crew.spawn(self._wait())
        return True

    async def _wait(self) -> None:
        while self._gates.is_full() and not self._crew.over:
            await self._gates.room()
        self._is_waiting = False
        self._go_on()
