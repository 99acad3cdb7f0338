"""How fast a broker takes what it is sent, and whether more should be made for it."""

import math
import time
from collections import deque

from cascade.connectors.mqtt._outbox import Outbox

WINDOW = 0.25
"""Seconds, at least, over which is counted."""
REMEMBERED = 4
"""Windows of which the best counts: one in which our thread or the broker was held up says little."""
FLOOR = 1_000
"""Messages that may always wait: a run does not stop for a burst."""


class Rate:
    """Messages a second, counted only while there was always another waiting: an idle connection is not a slow one."""

    def __init__(self) -> None:
        self._windows: deque[float] = deque(maxlen=REMEMBERED)
        self._began: float | None = None
        self._done = 0

    def restart(self) -> None:
        """What is counted from now on has nothing to do with what was before."""
        self._began = None

    def look(self, done: int, *, is_saturated: bool) -> bool:
        """To be called again and again with how many are done by now; whether the rate is another."""
        if not is_saturated:
            self._began = None
            return False
        now = time.monotonic()
        if self._began is not None and now - self._began < WINDOW:
            return False
        is_new = self._began is not None
        if self._began is not None:
            self._windows.append((done - self._done) / (now - self._began))
        self._began, self._done = now, done
        return is_new

    @property
    def value(self) -> float:
        """Infinite until it is known."""
        return max(self._windows, default=math.inf)


class Gate:
    """Closes when more waits than there is memory for, or than the broker can have taken by the end of a flush.

    It asks for half of that only: the rate may fall. The session's thread measures, anyone asks.
    """

    def __init__(self, outbox: Outbox, flush_timeout: float) -> None:
        self._outbox = outbox
        self._seconds = flush_timeout / 2
        self._rate = Rate()
        self._most = math.inf

    def restart(self) -> None:
        self._rate.restart()

    def measure(self) -> None:
        if self._rate.look(self._outbox.sent + self._outbox.lost, is_saturated=self._outbox.is_waiting):
            self._most = max(FLOOR, self._rate.value * self._seconds)

    @property
    def is_full(self) -> bool:
        """Whether no more should be made."""
        return self._outbox.is_full or self._outbox.backlog > self._most

    @property
    def is_tight(self) -> bool:
        """Whether who has stopped because it was full should go on waiting."""
        return self._outbox.is_tight or self._outbox.backlog * 2 > self._most
