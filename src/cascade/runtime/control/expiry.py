"""Timer that ends constraints at their `expires_at`."""

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from cascade.runtime._task_group import BURST
from cascade.runtime.control.constraint import ConstraintKey

LONGEST_TIMER = 10.0
"""Seconds after which a timer reads the wall clock again, which may have been set."""
_STALE_ENTRIES = 64
"""Number of replaced and removed entries above which the queue is rebuilt."""


class ExpiryTimer:
    """Timer that calls `expire` for each key at its time.

    Args:
        clock: Returns Unix seconds.
        expire: Called in the event loop, with a key. At most `BURST` calls are made in one turn of the loop.
    """

    def __init__(self, clock: Callable[[], float], expire: Callable[[ConstraintKey], None]) -> None:
        self._clock = clock
        self._expire = expire
        self._ends: dict[ConstraintKey, float] = {}
        self._queue: list[tuple[float, ConstraintKey]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0.0

    def set(self, key: ConstraintKey, expires_at: float | None) -> None:
        """Set the time of a key, in Unix seconds; None removes it."""
        if expires_at is None:
            self._ends.pop(key, None)
            return
        self._ends[key] = expires_at
        heappush(self._queue, (expires_at, key))
        if len(self._queue) > 2 * len(self._ends) + _STALE_ENTRIES:  # replaced or removed
            self._queue = [(end, key) for key, end in self._ends.items()]
            heapify(self._queue)
        if self._timer is None or expires_at < self._next:
            self._start()

    def clear(self) -> None:
        """Remove all keys."""
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
            end, key = heappop(self._queue)
            if self._ends.get(key) == end:
                del self._ends[key]
                self._expire(key)
        if not self._ends:
            self.clear()
        elif self._timer is None:
            self._start()
