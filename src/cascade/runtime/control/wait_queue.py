"""FIFO wait queue of one key, a pair of run and task name. All its tasks wait for the same limiter."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from cascade.runtime._task_group import BURST
from cascade.runtime.control.constraint import Constraint
from cascade.runtime.control.limiters import Key, Limiter

RENOTIFY = 0.5
"""Seconds for which another constraint must hold tasks back before they publish it."""
RENOTIFY_PAUSE = 0.05
"""Seconds between two bursts of these messages: those of ten thousand tasks must not delay all others."""

MAX_SEGMENTS = 64
"""Segments that a queue keeps. Later ones of a constraint that comes and goes all the time are merged."""


class Segment(NamedTuple):
    """A part of a wait: its constraint, start and end, in nanoseconds since the Unix epoch."""

    constraint: Constraint
    start_ns: int
    end_ns: int


Blocked = Callable[[Constraint, int], None]
"""Called with the constraint that holds a task back, and with the start of the wait in nanoseconds."""


class Waiter:
    """One task in a queue. `notified_of` is the constraint of the last call of `blocked`."""

    __slots__ = ("blocked", "granted", "notified_of", "since_ns")

    def __init__(self, blocked: Blocked, granted: asyncio.Future[None], since_ns: int) -> None:
        self.blocked = blocked
        self.granted = granted
        self.since_ns = since_ns
        self.notified_of: Constraint | None = None

    def notify(self, constraint: Constraint, now_ns: int) -> None:
        """Call `blocked`, unless it was last called with the same constraint."""
        if not self.is_notified_of(constraint):
            self.notified_of = constraint
            self.blocked(constraint, now_ns)

    def is_notified_of(self, constraint: Constraint) -> bool:
        """Return True if `blocked` was last called with the same constraint."""
        return self.notified_of is not None and is_same(self.notified_of, constraint)


class WaitQueue:
    """Waits for one limiter at a time. Its segments are common to all its waiters."""

    def __init__(self, key: Key, limiter: Limiter, now: Callable[[], int]) -> None:
        self.key = key
        self.limiter = limiter
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()
        self.now = now
        self._changes: list[tuple[Constraint, int]] = []
        self.move_to(limiter)

    @property
    def constraint(self) -> Constraint:
        return self.limiter.constraint

    def move_to(self, limiter: Limiter) -> None:
        """Wait for another limiter, behind the queues that wait for it already."""
        self.limiter.queues.pop(self, None)
        self.limiter = limiter
        limiter.queues[self] = None
        if not self._changes or not is_same(self._changes[-1][0], limiter.constraint):
            self._changes.append((limiter.constraint, self.now()))
            if len(self._changes) > MAX_SEGMENTS:
                del self._changes[1]

    def end(self) -> None:
        """Leave the limiter, after the last waiter."""
        self.limiter.queues.pop(self, None)

    def segments(self, waiter: Waiter) -> list[Segment]:
        """Return the segments of the wait of one waiter until now."""
        ends = [start_ns for _, start_ns in self._changes[1:]] + [self.now()]
        return [
            Segment(constraint, max(start_ns, waiter.since_ns), end_ns)
            for (constraint, start_ns), end_ns in zip(self._changes, ends, strict=True)
            if end_ns > waiter.since_ns
        ]


class Renotifier:
    """Notifies the waiters of queues of their new constraint, `RENOTIFY` seconds after the queue has moved.

    One timer serves all queues. In a turn of the event loop, it notifies one burst of waiters.
    """

    def __init__(self) -> None:
        self._due: OrderedDict[WaitQueue, float] = OrderedDict()
        self._pending: Iterator[tuple[WaitQueue, Waiter]] = iter(())
        self._timer: asyncio.TimerHandle | None = None

    def add(self, queue: WaitQueue) -> None:
        """Notify the waiters of a queue later, unless the queue is added already."""
        if queue not in self._due:
            loop = asyncio.get_running_loop()
            self._due[queue] = loop.time() + RENOTIFY
            if self._timer is None:
                self._timer = loop.call_later(RENOTIFY, self._notify_burst)

    def discard(self, queue: WaitQueue) -> None:
        """Remove a queue, after its last waiter."""
        self._due.pop(queue, None)

    def close(self) -> None:
        """Remove all queues, after the last run."""
        self._due.clear()
        self._pending = iter(())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _notify_burst(self) -> None:
        loop = asyncio.get_running_loop()
        burst = list(islice(self._pending, BURST))
        if len(burst) < BURST:
            self._pending = self._due_at(loop.time())
            burst += islice(self._pending, BURST - len(burst))
        for queue, waiter in burst:
            waiter.notify(queue.constraint, queue.now())
        if len(burst) == BURST:
            self._timer = loop.call_later(RENOTIFY_PAUSE, self._notify_burst)
        elif self._due:
            self._timer = loop.call_at(next(iter(self._due.values())), self._notify_burst)
        else:
            self._timer = None

    def _due_at(self, time: float) -> "Iterator[tuple[WaitQueue, Waiter]]":
        """Remove the queues whose time has come, and return their waiters that have not been notified yet."""
        while self._due and next(iter(self._due.values())) <= time:
            queue, _ = self._due.popitem(last=False)
            for waiter in list(queue.waiters):
                if waiter in queue.waiters and not waiter.is_notified_of(queue.constraint):
                    yield queue, waiter


def is_same(one: Constraint, other: Constraint) -> bool:
    """Return True if messages describe both constraints alike."""
    return (one.scope, one.type, one.id) == (other.scope, other.type, other.id)
