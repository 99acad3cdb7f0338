"""Timer that ends constraints at their `expires_at`."""

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from cascade.runtime._task_group import BURST

Place = tuple[str, str]
"""Scope and type: at most one constraint applies there."""
LONGEST_TIMER = 10.0
"""Seconds after which the wall clock, which may have been set, is read again."""
_SLACK = 64


class ExpiryTimer:
    """Calls `expire` for each place whose time has come, with one timer for all places.

    Args:
        clock: Returns Unix seconds.
        expire: Called in the event loop, with a place. At most `BURST` calls are made in one turn of the loop.
    """

    def __init__(self, clock: Callable[[], float], expire: Callable[[Place], None]) -> None:
        self._clock = clock
        self._expire = expire
        self._ends: dict[Place, float] = {}
        self._queue: list[tuple[float, Place]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0.0

    def set(self, place: Place, expires_at: float | None) -> None:
        """Replace the time of a place, in Unix seconds; None removes it."""
        if expires_at is None:
            self._ends.pop(place, None)
            return
        self._ends[place] = expires_at
        heappush(self._queue, (expires_at, place))
        if len(self._queue) > 2 * len(self._ends) + _SLACK:  # of entries that were replaced or removed
            self._queue = [(end, place) for place, end in self._ends.items()]
            heapify(self._queue)
        if self._timer is None or expires_at < self._next:
            self._start()

    def clear(self) -> None:
        """Remove all places."""
        self._ends.clear()
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._next = self._queue[0][0]
        delay = min(LONGEST_TIMER, max(0.0, self._next - self._clock()))
        self._timer = asyncio.get_running_loop().call_later(delay, self._expire_some)

    def _expire_some(self) -> None:
        self._timer = None
        now = self._clock()
        for _ in range(BURST):
            if not self._queue or self._queue[0][0] > now:
                break
            end, place = heappop(self._queue)
            if self._ends.get(place) == end:
                del self._ends[place]
                self._expire(place)
        if not self._ends:
            self.clear()
        elif self._timer is None:
            self._start()
