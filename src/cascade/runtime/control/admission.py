"""Admission control: evaluates limits and grants permits."""

import asyncio
import time
from collections.abc import Callable

from cascade.runtime._task_group import BURST
from cascade.runtime.backpressure import CombinedBackpressure
from cascade.runtime.control._index import LimiterIndex
from cascade.runtime.control.constraint import Constraint
from cascade.runtime.control.limiters import Key, Limiter, PlaceLimiter, limiter_of
from cascade.runtime.control.wait_queue import Blocked, Renotifier, Segment, Waiter, WaitQueue
from cascade.runtime.protocols import Place


class Admission:
    """Counts the running tasks, and holds back a task while one of its limiters has no room.

    All calls are made in one event loop. Without a constraint, a start costs one count. The waiting tasks of a key are in
    one queue, which waits for one limiter at a time: a change is evaluated once for a queue, not once for each task.
    Queues that wait for the same limiter take turns. The event loop serves one burst of tasks in a turn.

    Args:
        backpressure: While it is full, no waiting task starts: telemetry is behind and would lose messages.
        clock: Returns seconds that never run backwards.
    """

    def __init__(
        self, backpressure: CombinedBackpressure | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._backpressure = backpressure or CombinedBackpressure()
        self._crowded: dict[Limiter, None] = {}
        self._room: asyncio.Task[None] | None = None
        self._clock = clock
        self._limiters = LimiterIndex(self._limiter_of)
        self._queues: dict[Key, WaitQueue] = {}
        self._renotifier = Renotifier()
        self._at_work: dict[Key, int] = {}

    def enter(self, key: Key) -> bool:
        """Count a task as running until `leave`, and return True, if it may start now.

        If it needs a place, `place` returns that.
        """
        if not self._limiters.is_empty or key.places is not None:
            if self._holding(key) is not None:
                return False
            self._count(key)
        else:
            self._at_work[key] = self._at_work.get(key, 0) + 1
        return True

    async def wait(self, key: Key, blocked: Blocked, now: Callable[[], int]) -> list[Segment]:
        """Wait until a task may start, count it as running, and return the segments of the wait.

        Args:
            key: The key of the task.
            blocked: Called at once if the task must wait, and again when another constraint has held it back for a while.
            now: Returns nanoseconds since the Unix epoch.
        """
        limiter = self._holding(key)
        if limiter is None:
            self._count(key)
            return []
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = WaitQueue(key, limiter, now)
            self._serve_later(limiter)
        waiter = Waiter(blocked, asyncio.get_running_loop().create_future(), now())
        queue.waiters[waiter] = None
        waiter.notify(queue.constraint, waiter.since_ns)
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter in queue.waiters:
                self._withdraw(queue, waiter)
            elif not waiter.granted.cancelled():
                self.leave(key, unused=True)
                if (place := self.place(key)) is not None:
                    place.release()
            raise
        return queue.segments(waiter)

    def place(self, key: Key) -> Place | None:
        """Return the place that a successful `enter` or `wait` has taken; None if the key needs none."""
        return None if key.places is None else self._limiters.place_limiter(key.places).taken.popleft()

    def leave(self, key: Key, *, unused: bool = False) -> None:
        """Stop counting a task as running. `unused`: it did not start, and gives a token of a rate back."""
        count = self._at_work[key] - 1
        if count:
            self._at_work[key] = count
        else:
            del self._at_work[key]
        if not self._limiters.is_empty or key.places is not None:
            for limiter in self._limiters.of(key):
                limiter.give_back(unused=unused)
                if limiter.queues and not isinstance(limiter, PlaceLimiter):  # a place has still to be released
                    self._serve(limiter)

    def rejoin(self, key: Key) -> None:
        """Count a suspended task as running again, with or without room."""
        self._at_work[key] = self._at_work.get(key, 0) + 1
        for limiter in () if self._limiters.is_empty else self._limiters.of(key):
            limiter.take_again()

    def put(self, constraint: Constraint) -> None:
        """Apply a constraint, in place of the constraint of the same scope and type.

        Raises:
            RefusedError: The pattern cannot be used.
        """
        before = self._limiters.get(constraint)
        if before is None:
            self._limiters.put(constraint)
        else:
            limiter = self._limiter_of(constraint, before)
            self._limiters.put(constraint, limiter)
            self._retire(before)
            for queue in list(before.queues):
                self._move(queue, limiter)
            self._serve(limiter)

    def remove(self, constraint: Constraint) -> None:
        """End the constraint of the same scope and type."""
        if limiter := self._limiters.pop(constraint):
            self._retire(limiter)
            self._serve(limiter)

    def forget(self, run_id: str) -> None:
        """Drop the state of a run that has ended."""
        self._limiters.forget(run_id, self._at_work)

    def close(self) -> None:
        """End all constraints, after the last run."""
        for limiter in self._limiters.clear():
            self._retire(limiter)
            self._serve(limiter)
        self._renotifier.close()
        room, self._room = self._room, None
        self._crowded.clear()
        if room is not None:
            room.cancel()

    def _limiter_of(self, constraint: Constraint, before: Limiter | None = None) -> Limiter:
        return limiter_of(constraint, self._at_work, before, self._clock)

    def _retire(self, limiter: Limiter) -> None:
        limiter.is_retired = True
        if limiter.timer is not None:
            limiter.timer.cancel()
            limiter.timer = None

    def _holding(self, key: Key) -> Limiter | None:
        """Return the limiter that holds back a task that comes now: that of its queue, or one without room or with queues."""
        queue = self._queues.get(key)
        if queue is not None:
            return queue.limiter
        for limiter in self._limiters.of(key):
            if limiter.queues or not limiter.has_room():
                return limiter
        return None

    def _count(self, key: Key) -> None:
        self._at_work[key] = self._at_work.get(key, 0) + 1
        for limiter in self._limiters.of(key):
            limiter.take()

    def _serve(self, limiter: Limiter) -> None:
        """Start tasks that wait for a limiter, in the next turn of the event loop, while it has room."""
        if limiter.queues and not limiter.is_booked:
            limiter.is_booked = True
            asyncio.get_running_loop().call_soon(self._serve_some, limiter)

    def _serve_at_once(self, limiter: Limiter) -> None:
        if not limiter.is_booked:
            self._serve_some(limiter)

    def _serve_some(self, limiter: Limiter) -> None:
        limiter.is_booked = False
        if limiter.timer is not None:
            limiter.timer.cancel()
            limiter.timer = None
        self._advance_some(limiter)
        limiter.rest()

    def _advance_some(self, limiter: Limiter) -> None:
        for _ in range(BURST):
            if not limiter.queues:
                return
            if not limiter.has_room():
                self._serve_later(limiter)
                return
            if self._backpressure.is_full():
                self._serve_after_backpressure(limiter)
                return
            self._advance(next(iter(limiter.queues)))
        self._serve(limiter)

    def _serve_after_backpressure(self, limiter: Limiter) -> None:
        self._crowded[limiter] = None
        if self._room is None:
            self._room = asyncio.get_running_loop().create_task(self._await_room(), name="cascade-control-room")

    async def _await_room(self) -> None:
        while self._backpressure.is_full():
            await self._backpressure.room()
        self._room = None
        crowded, self._crowded = self._crowded, {}
        for limiter in crowded:
            self._serve(limiter)

    def _serve_later(self, limiter: Limiter) -> None:
        """Serve a limiter once it has room, if neither `leave` nor another constraint makes that room."""
        if isinstance(limiter, PlaceLimiter):
            limiter.wait(self._serve_at_once)
        elif limiter.timer is None and not limiter.is_booked and (delay := limiter.delay()) is not None:
            limiter.timer = asyncio.get_running_loop().call_later(delay, self._serve_some, limiter)

    def _advance(self, queue: WaitQueue) -> None:
        """Start the first task of a queue whose limiter has room, unless another of its limiters has none."""
        for limiter in self._limiters.of(queue.key):
            if not limiter.has_room():
                self._move(queue, limiter)
                return
        waiter, _ = queue.waiters.popitem(last=False)
        if not waiter.granted.done():  # otherwise it is being cancelled
            self._count(queue.key)
            waiter.granted.set_result(None)
        if queue.waiters:
            queue.limiter.queues.move_to_end(queue)
        else:
            self._end(queue)

    def _move(self, queue: WaitQueue, limiter: Limiter) -> None:
        before = queue.limiter
        queue.move_to(limiter)
        if not before.queues:
            before.rest()
        self._serve_later(limiter)
        self._renotifier.add(queue)

    def _withdraw(self, queue: WaitQueue, waiter: Waiter) -> None:
        del queue.waiters[waiter]
        if not queue.waiters:
            self._end(queue)

    def _end(self, queue: WaitQueue) -> None:
        queue.end()
        self._renotifier.discard(queue)
        if not queue.limiter.queues:
            queue.limiter.rest()
        if self._queues.get(queue.key) is queue:
            del self._queues[queue.key]
