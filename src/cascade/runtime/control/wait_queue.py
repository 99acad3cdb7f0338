"""FIFO wait queues. All waiting tasks of one key are in one queue, which waits for one limiter at a time."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice

from cascade.runtime._task_group import BURST
from cascade.runtime.control.limiters import AdmissionKey, Limiter, WaitCause
from cascade.runtime.events import Wait
from cascade.runtime.protocols import Slot

RENOTIFY = 0.5
"""Seconds for which another limiter must block tasks before they publish it."""
RENOTIFY_PAUSE = 0.05
"""Seconds between two bursts of these messages, so that ten thousand of them do not delay other messages."""
MAX_CHANGES = 64
"""Number of stored changes of a queue's limiter. Older ones are merged, because constraints may change without end."""

OnBlocked = Callable[..., None]
"""Called with the fields `reason`, `constraint` and `start_ns` of a `TaskBlocked`."""


class Waiter:
    """One waiting task. The result of the future `granted` is its slot."""

    __slots__ = ("_cause", "_on_blocked", "granted", "since_ns")

    def __init__(self, on_blocked: OnBlocked, since_ns: int) -> None:
        self._on_blocked = on_blocked
        self._cause: WaitCause | None = None
        self.granted: asyncio.Future[Slot | None] = asyncio.get_running_loop().create_future()
        self.since_ns = since_ns

    def notify(self, cause: WaitCause, now_ns: int) -> None:
        """Call `on_blocked`, unless it was last called with the same cause."""
        if not self.is_notified_of(cause):
            self._cause = cause
            self._on_blocked(reason=cause.reason, constraint=cause.constraint, start_ns=now_ns)

    def is_notified_of(self, cause: WaitCause) -> bool:
        return self._cause == cause


class WaitQueue:
    """FIFO queue of the waiting tasks of one key.

    Attributes:
        limiter: The limiter that the queue waits for.
        now: Returns nanoseconds since the Unix epoch.
    """

    def __init__(self, key: AdmissionKey, limiter: Limiter, now: Callable[[], int]) -> None:
        self.key = key
        self.limiter = limiter
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()
        self.now = now
        self._changes: list[tuple[WaitCause, int]] = []
        self.move_to(limiter)

    def add(self, on_blocked: OnBlocked) -> Waiter:
        """Append a task, and notify it of the cause of its wait."""
        waiter = Waiter(on_blocked, self.now())
        self.waiters[waiter] = None
        waiter.notify(self.limiter.cause, waiter.since_ns)
        return waiter

    def move_to(self, limiter: Limiter) -> None:
        """Wait for another limiter, behind the queues that already wait for it."""
        self.limiter.queues.pop(self, None)
        self.limiter = limiter
        limiter.queues[self] = None
        if not self._changes or self._changes[-1][0] != limiter.cause:
            self._changes.append((limiter.cause, self.now()))
            if len(self._changes) > MAX_CHANGES:
                del self._changes[1]

    def waits(self, waiter: Waiter) -> tuple[Wait, ...]:
        """Return the waits of one task until now, one for each cause."""
        ends = [start_ns for _, start_ns in self._changes[1:]] + [self.now()]
        return tuple(
            Wait(cause.reason, max(start_ns, waiter.since_ns), end_ns, cause.constraint)
            for (cause, start_ns), end_ns in zip(self._changes, ends, strict=True)
            if end_ns > waiter.since_ns
        )


class Renotifier:
    """Notifies the waiters of a queue of its new limiter, `RENOTIFY` seconds after the change.

    One timer serves all queues. In one turn of the event loop, it notifies one burst of waiters.
    """

    def __init__(self) -> None:
        self._due: OrderedDict[WaitQueue, float] = OrderedDict()
        self._pending: Iterator[tuple[WaitQueue, Waiter]] = iter(())
        self._timer: asyncio.TimerHandle | None = None

    def add(self, queue: WaitQueue) -> None:
        """Notify the waiters of a queue later. Does nothing if the queue is already added."""
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
            waiter.notify(queue.limiter.cause, queue.now())
        if len(burst) == BURST:
            self._timer = loop.call_later(RENOTIFY_PAUSE, self._notify_burst)
        elif self._due:
            self._timer = loop.call_at(next(iter(self._due.values())), self._notify_burst)
        else:
            self._timer = None

    def _due_at(self, time: float) -> "Iterator[tuple[WaitQueue, Waiter]]":
        """Remove the queues that are due, and yield their waiters that have not been notified of the limiter yet."""
        while self._due and next(iter(self._due.values())) <= time:
            queue, _ = self._due.popitem(last=False)
            for waiter in list(queue.waiters):
                if waiter in queue.waiters and not waiter.is_notified_of(queue.limiter.cause):
                    yield queue, waiter
