"""Admission control: evaluates limits and grants permits."""

import asyncio
import time
from collections.abc import Callable, Iterator

from cascade._context_managers import context_manager
from cascade.runtime._task_group import BURST
from cascade.runtime.bus import CombinedBackpressure
from cascade.runtime.control.constraint import Constraint
from cascade.runtime.control.limiter_index import LimiterIndex
from cascade.runtime.control.limiters import AdmissionKey, ConstraintLimiter, Limiter, SlotLimiter, limiter_of
from cascade.runtime.control.wait_queue import OnBlocked, Renotifier, WaitQueue
from cascade.runtime.events import Wait
from cascade.runtime.protocols import Slot

Grant = tuple[Slot | None]
"""The slot of an admitted task, or None if it needs no slot. A tuple, because each start creates one."""
_WITHOUT_SLOT: Grant = (None,)


class Admission:
    """Counts the running tasks, and blocks a task while one of its limiters has no room.

    All calls are made in one event loop. Without a constraint, a start only counts the task. The waiting tasks of a key are
    in one queue, which waits for one limiter at a time: a change is evaluated once per queue, not once per task. Queues
    that wait for the same limiter take turns. The event loop serves one burst of tasks in a turn.

    Args:
        backpressure: While it is full, no waiting task starts, so that no telemetry is lost.
        clock: Returns seconds that do not decrease.
    """

    def __init__(
        self, backpressure: CombinedBackpressure | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._backpressure = backpressure or CombinedBackpressure()
        self._delayed: dict[Limiter, None] = {}
        self._backpressure_wait: asyncio.Task[None] | None = None
        self._clock = clock
        self._limiters = LimiterIndex(self._limiter_of)
        self._queues: dict[AdmissionKey, WaitQueue] = {}
        self._renotifier = Renotifier()
        self._running: dict[AdmissionKey, int] = {}

    def try_acquire(self, key: AdmissionKey) -> Grant | None:
        """Count a task as running until `release`. Returns None if it must wait."""
        if self._limiters.is_empty and key.slots is None:
            self._running[key] = self._running.get(key, 0) + 1
            return _WITHOUT_SLOT
        return (self._count(key),) if self._blocking(key) is None else None

    async def acquire(
        self, key: AdmissionKey, on_blocked: OnBlocked, now: Callable[[], int]
    ) -> tuple[Slot | None, tuple[Wait, ...]]:
        """Wait until a task may start, count it as running, and return its slot and its waits.

        Args:
            key: The key of the task.
            on_blocked: Called at once if the task must wait, and again when another limiter has blocked it for a while.
            now: Returns nanoseconds since the Unix epoch.
        """
        limiter = self._blocking(key)
        if limiter is None:
            return self._count(key), ()
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = WaitQueue(key, limiter, now)
            self._schedule(limiter)
        waiter = queue.add(on_blocked)
        try:
            slot = await waiter.granted
        except asyncio.CancelledError:
            if waiter in queue.waiters:
                del queue.waiters[waiter]
                if not queue.waiters:
                    self._end(queue)
            elif not waiter.granted.cancelled():
                self.release(key, unused=True)
                if (granted := waiter.granted.result()) is not None:
                    granted.release()
            raise
        return slot, queue.waits(waiter)

    def release(self, key: AdmissionKey, *, unused: bool = False) -> None:
        """Stop counting a task as running. With `unused`, it did not start, and its token of a rate limit is returned."""
        count = self._running[key] - 1
        if count:
            self._running[key] = count
        else:
            del self._running[key]
        if not self._limiters.is_empty or key.slots is not None:
            for limiter in self._limiters.find(key):
                limiter.release(unused=unused)
                if limiter.queues and not isinstance(limiter, SlotLimiter):  # the slot is released later
                    self._serve(limiter)

    def reacquire(self, key: AdmissionKey) -> None:
        """Count a suspended task as running again, even above a limit."""
        self._running[key] = self._running.get(key, 0) + 1
        if not self._limiters.is_empty:
            for limiter in self._limiters.find(key):
                limiter.reacquire()

    def put(self, constraint: Constraint) -> None:
        """Apply a constraint, which replaces the constraint of the same scope and type.

        Raises:
            RefusedError: The pattern is invalid.
        """
        replaced = self._limiters.get(constraint)
        if replaced is None:
            self._limiters.put(constraint)
        else:
            limiter = self._limiter_of(constraint, replaced)
            self._limiters.put(constraint, limiter)
            self._stop(replaced)
            for queue in list(replaced.queues):
                self._move(queue, limiter)
            self._serve(limiter)

    def remove(self, constraint: Constraint) -> None:
        """End the constraint of the same scope and type."""
        if limiter := self._limiters.pop(constraint):
            self._stop(limiter)
            self._serve(limiter)

    def forget(self, run_id: str) -> None:
        """Drop the state of a run that has ended."""
        self._limiters.forget(run_id, self._running)

    def close(self) -> None:
        """End all constraints, after the last run."""
        for limiter in self._limiters.clear():
            self._stop(limiter)
            self._serve(limiter)
        self._renotifier.close()
        self._delayed.clear()
        if self._backpressure_wait is not None:
            self._backpressure_wait.cancel()
            self._backpressure_wait = None

    def _limiter_of(self, constraint: Constraint, replaced: Limiter | None = None) -> ConstraintLimiter:
        return limiter_of(constraint, self._running, replaced, self._clock)

    def _stop(self, limiter: Limiter) -> None:
        limiter.is_removed = True
        self._cancel_timer(limiter)

    def _cancel_timer(self, limiter: Limiter) -> None:
        if limiter.timer is not None:
            limiter.timer.cancel()
            limiter.timer = None

    def _blocking(self, key: AdmissionKey) -> Limiter | None:
        """Return the limiter that blocks a new task: the one of its queue, else the first one that is full or has queues."""
        queue = self._queues.get(key)
        if queue is not None:
            return queue.limiter
        for limiter in self._limiters.find(key):
            if limiter.queues or not limiter.has_room():
                return limiter
        return None

    def _count(self, key: AdmissionKey) -> Slot | None:
        self._running[key] = self._running.get(key, 0) + 1
        slot = None
        for limiter in self._limiters.find(key):
            slot = limiter.acquire()
        return slot  # of the last limiter

    def _serve(self, limiter: Limiter) -> None:
        """Start tasks that wait for a limiter, in the next turn of the event loop, while it has room."""
        if limiter.queues and not limiter.is_scheduled:
            limiter.is_scheduled = True
            asyncio.get_running_loop().call_soon(self._serve_now, limiter)

    def _serve_unscheduled(self, limiter: Limiter) -> None:
        if not limiter.is_scheduled:
            self._serve_now(limiter)

    def _serve_now(self, limiter: Limiter) -> None:
        limiter.is_scheduled = False
        self._cancel_timer(limiter)
        self._grant_burst(limiter)
        limiter.drop_reservation()

    def _grant_burst(self, limiter: Limiter) -> None:
        for _ in range(BURST):
            if not limiter.queues:
                return
            if not limiter.has_room():
                self._schedule(limiter)
                return
            if self._backpressure.is_full():
                self._serve_after_backpressure(limiter)
                return
            self._grant_next(next(iter(limiter.queues)))
        self._serve(limiter)

    def _serve_after_backpressure(self, limiter: Limiter) -> None:
        self._delayed[limiter] = None
        if self._backpressure_wait is None:
            self._backpressure_wait = asyncio.get_running_loop().create_task(
                self._wait_for_backpressure(), name="cascade-control-backpressure"
            )

    async def _wait_for_backpressure(self) -> None:
        while self._backpressure.is_full():
            await self._backpressure.room()
        self._backpressure_wait = None
        delayed, self._delayed = self._delayed, {}
        for limiter in delayed:
            self._serve(limiter)

    def _schedule(self, limiter: Limiter) -> None:
        """Serve a limiter when time gives it room. Other room comes from `release` or from a changed constraint."""
        if isinstance(limiter, SlotLimiter):
            limiter.request(self._serve_unscheduled)
        elif limiter.timer is None and not limiter.is_scheduled and (delay := limiter.delay()) is not None:
            limiter.timer = asyncio.get_running_loop().call_later(delay, self._serve_now, limiter)

    def _grant_next(self, queue: WaitQueue) -> None:
        """Start the first task of a queue whose limiter has room, or move the queue to another limiter that has no room."""
        for limiter in self._limiters.find(queue.key):
            if not limiter.has_room():
                self._move(queue, limiter)
                return
        waiter, _ = queue.waiters.popitem(last=False)
        if not waiter.granted.done():  # otherwise it is being cancelled
            waiter.granted.set_result(self._count(queue.key))
        if queue.waiters:
            queue.limiter.queues.move_to_end(queue)
        else:
            self._end(queue)

    def _move(self, queue: WaitQueue, limiter: Limiter) -> None:
        previous = queue.limiter
        queue.move_to(limiter)
        if not previous.queues:
            previous.drop_reservation()
        self._schedule(limiter)
        self._renotifier.add(queue)

    def _end(self, queue: WaitQueue) -> None:
        limiter = queue.limiter
        limiter.queues.pop(queue, None)
        self._renotifier.discard(queue)
        if not limiter.queues:
            limiter.drop_reservation()
        if self._queues.get(queue.key) is queue:
            del self._queues[queue.key]


class Permit:
    """Permission for one task to run, with a slot of the executor if the task needs one.

    `is_held` is true while the task runs. `slot` is the slot that it holds.
    """

    __slots__ = ("_admission", "_key", "_nested", "is_held", "slot")

    def __init__(self, admission: Admission, key: AdmissionKey) -> None:
        self._admission = admission
        self._key = key
        self._nested: set[object] | None = None
        self.is_held = False
        self.slot: Slot | None = None

    def renewed(self) -> "Permit":
        """Return another permit for the task, which is not held."""
        return Permit(self._admission, self._key)

    def take_slot(self) -> Slot | None:
        """Return the slot, which the permit does not hold any more. The caller releases it."""
        slot, self.slot = self.slot, None
        return slot

    def try_acquire(self) -> bool:
        """Acquire the permit without waiting. Returns False if a limiter blocks the task."""
        grant = self._admission.try_acquire(self._key)
        if grant is None:
            return False
        (self.slot,) = grant
        self.is_held = True
        return True

    async def acquire(self, on_blocked: OnBlocked, now: Callable[[], int]) -> tuple[Wait, ...]:
        """Wait until no limiter blocks the task, acquire the permit and return the waits.

        `on_blocked` is called with the fields of a `TaskBlocked` each time the cause of the wait changes.
        """
        self.slot, waits = await self._admission.acquire(self._key, on_blocked, now)
        self.is_held = True
        return waits

    def release(self, *, unused: bool = False) -> None:
        """Release the permit if it is held. `unused`: the task did not start."""
        self._nested = None
        if self.is_held:
            self.is_held = False
            self._admission.release(self._key, unused=unused)
        slot, self.slot = self.slot, None
        if slot is not None:  # last, because this may start another task, which needs the released permit
            slot.release()

    @context_manager
    def suspended(self) -> Iterator[None]:
        """Release the permit while the task waits for a nested run, and acquire it again afterwards.

        The task keeps its slot, which the nested run may use. A task may wait for several nested runs at once. A nested run
        may outlive the task or the attempt that started it.
        """
        if self.is_held:
            self.is_held = False
            self._nested = set()
            self._admission.release(self._key)
        nested = self._nested
        if nested is None:
            yield
            return
        nested.add(run := object())
        try:
            yield
        finally:
            nested.discard(run)
            if nested is self._nested and not nested:
                self._nested = None
                self._admission.reacquire(self._key)
                self.is_held = True
