"""Places of functions that still run after the end of their attempt, because they cannot be interrupted."""

import asyncio
from collections.abc import Callable

from cascade.runtime.control.admission import Permit
from cascade.runtime.exceptions import AnyFuture
from cascade.runtime.protocols import Slot
from cascade.runtime.resource_manager import ResourceManager


class LeftPlace:
    """Place of a function that still runs after the end of its attempt: a slot of the executor, a permit, and resources.

    It is released when the function ends. All but the slot is released at the end of the run at the latest. `at_end` has the
    functions that the end of the run calls.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        at_end: set[Callable[[], None]],
        capacity: ResourceManager,
        slot: Slot | None,
        permit: Permit | None,
        amounts: dict[str, float] | None,
    ) -> None:
        self._loop = loop
        self._at_end = at_end
        self._capacity = capacity
        self._slot = slot
        self._permit = permit
        self._amounts = amounts
        self._at_end.add(self.release_shared)

    def release_after(self, work: AnyFuture) -> None:
        """Release the place when the work has ended."""
        work.add_done_callback(lambda _: self._release_soon())

    def _release_soon(self) -> None:
        """Release the place in the event loop. Called in any thread."""
        try:
            self._loop.call_soon_threadsafe(self._release)
        except RuntimeError:  # the loop is closed: the run has ended
            self._release_slot()

    def _release(self) -> None:
        self.release_shared()
        self._release_slot()

    def _release_slot(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            slot.release()

    def release_shared(self) -> None:
        """Release all but the slot, once. Called at the end of the run, too."""
        self._at_end.discard(self.release_shared)
        permit, self._permit = self._permit, None
        amounts, self._amounts = self._amounts, None
        if permit is not None:
            permit.release()
        if amounts:
            self._capacity.release_nowait(amounts)
