"""FIFO wait queue of one key, a pair of run and task name. All its tasks wait for the same limiter."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from cascade.runtime.control.constraint import Constraint
from cascade.runtime.control.limiters import Key, Limiter

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
        if self.notified_of is None or not is_same(self.notified_of, constraint):
            self.notified_of = constraint
            self.blocked(constraint, now_ns)


class WaitQueue:
    """Waits for one limiter at a time. Its segments are common to all its waiters."""

    def __init__(self, key: Key, limiter: Limiter, now: Callable[[], int]) -> None:
        self.key = key
        self.limiter = limiter
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()
        self.notification: asyncio.TimerHandle | None = None
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
        if self.notification is not None:
            self.notification.cancel()

    def segments(self, waiter: Waiter) -> list[Segment]:
        """Return the segments of the wait of one waiter until now."""
        ends = [start_ns for _, start_ns in self._changes[1:]] + [self.now()]
        return [
            Segment(constraint, max(start_ns, waiter.since_ns), end_ns)
            for (constraint, start_ns), end_ns in zip(self._changes, ends, strict=True)
            if end_ns > waiter.since_ns
        ]


def is_same(one: Constraint, other: Constraint) -> bool:
    """Return True if messages describe both constraints alike."""
    return (one.scope, one.type, one.id) == (other.scope, other.type, other.id)
