"""Task groups for many short coroutines, and the throttles that decide how many of them start."""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from types import coroutine
from typing import Any, Protocol

from cascade.runtime.bus import CombinedBackpressure

BURST = 64
"""Coroutines started in one turn of the event loop. If 100,000 are ready at once, the first ones end before the others
begin: their data stays in the processor's cache, and other tasks of the event loop get a turn."""

_EAGER_START: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
"""A coroutine that does not suspend ends in `asyncio.Task(...)`: it costs no turn of the event loop."""


class GroupOwner(Protocol):
    """The run of a group. Both methods may be called several times; the first call sets the reason."""

    def fail(self, error: BaseException) -> str:
        """Called when a coroutine of the group has failed. Returns the reason for the cancellation of the others."""
        ...

    def cancel(self, error: BaseException) -> str:
        """Called when the group is cancelled from outside.

        Returns the reason for the cancellation of its coroutines.
        """
        ...


class TaskGroup:
    """Task group. The first failure cancels the other coroutines and is re-raised unchanged.

    No coroutine outlives `run`. Unlike `asyncio.TaskGroup`, it ends on `finish`, and it costs a third less per
    coroutine: it schedules no callback through the event loop.

    Args:
        owner: Called when the group stops.
        new_context: Returns the context for one coroutine, independent of the context that calls `spawn`.
    """

    def __init__(self, owner: GroupOwner, new_context: Callable[[], Context]) -> None:
        self._owner = owner
        self._new_context = new_context
        self._loop = asyncio.get_running_loop()
        self._is_eager = bool(_EAGER_START) and self._loop.get_task_factory() is None
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._members: dict[int, asyncio.Task[None]] = {}
        self._count = 0
        self._failure: BaseException | None = None
        self._reason: str | None = None  # set when the group cancels its coroutines

    @property
    def over(self) -> bool:
        return self._over.done()

    @property
    def is_busy(self) -> bool:
        """Whether any coroutine is running."""
        return bool(self._members)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a coroutine: on Python 3.12 and later before the return, else in the next turn of the event loop."""
        self._count = number = self._count + 1
        guarded = self._guarded(work, number)
        context = self._new_context()
        if self._is_eager:
            task = asyncio.Task(guarded, loop=self._loop, context=context, **_EAGER_START)
        else:
            # Runs to the first yield: a task that is cancelled before its start ends inside `_guarded`, too.
            guarded.send(None)
            task = self._loop.create_task(guarded, context=context)
        if not task.done():
            self._members[number] = task

    def fail(self, error: BaseException) -> None:
        """Cancel all coroutines. `run` raises the error of the first call."""
        if self._failure is None and not self.over:
            self._failure = error
            self._owner.fail(error)
        self.finish()

    def finish(self) -> None:
        """Cancel all coroutines that still run. `run` returns."""
        if not self.over:
            self._over.set_result(None)

    async def run(self, start: Callable[[], None]) -> None:
        """Call `start`, which spawns the first coroutines. Returns after `finish`, when all coroutines have ended.

        Raises:
            BaseException: The first failure, unchanged: of a coroutine, of `start`, or the cancellation of this call.
        """
        error: BaseException | None = None
        try:
            start()
            await self._over
        except BaseException as caught:  # noqa: BLE001 - raised below, when all coroutines have ended
            error = caught
            self.finish()
        if error is not None:
            self._cancel_all(self._owner.cancel(error))
        elif self._failure is not None:
            self._cancel_all(self._owner.fail(self._failure))
        later = await self._wait_for_all()
        errors = [one for one in (self._failure, error, later) if one is not None]
        self._failure = error = later = None  # the traceback refers to this frame
        if errors:
            raise errors.pop(0)

    def _cancel_all(self, reason: str) -> None:
        self._reason = reason
        for task in tuple(self._members.values()):
            task.cancel(reason)

    async def _wait_for_all(self) -> asyncio.CancelledError | None:
        """Wait until all coroutines have ended. A cancellation of this wait cancels them and is returned."""
        cancelled: asyncio.CancelledError | None = None
        while self._members:
            try:
                await asyncio.wait(tuple(self._members.values()))
            except asyncio.CancelledError as error:
                cancelled = error if cancelled is None else cancelled
                self._cancel_all(self._owner.cancel(error))
        return cancelled

    async def _guarded(self, work: Coroutine[Any, Any, None], number: int) -> None:
        try:
            if not self._is_eager:
                await _pause()
            await work
        except asyncio.CancelledError as error:
            work.close()
            if self._reason is None:  # cancelled by other code than this group
                self.fail(error)
        except BaseException as error:  # noqa: BLE001 - raised again by run
            self.fail(error)
        finally:
            self._members.pop(number, None)


@coroutine
def _pause() -> Generator[None, None, None]:
    yield


class StartThrottle:
    """Delays the start of a group's tasks while the telemetry queues are full. Calls `resume` when they have room.

    While no task of the group runs, the throttle is off. The next tasks then start, wait for telemetry and publish this wait.
    """

    def __init__(self, backpressure: CombinedBackpressure, group: TaskGroup, resume: Callable[[], None]) -> None:
        self._backpressure = backpressure
        self._group = group
        self._resume: Callable[[], None] | None = resume
        self._is_waiting = False

    def is_on(self) -> bool:
        """Return True if no task may start now; `resume` is then called later."""
        if not self._group.is_busy or not self._backpressure.is_full():
            return False
        if not self._is_waiting:
            self._is_waiting = True
            self._group.spawn(self._wait())
        return True

    def close(self) -> None:
        """Drop `resume`: it refers to the owner of this object, and the cycle would keep the values of an ended run."""
        self._resume = None

    async def _wait(self) -> None:
        while self._backpressure.is_full() and not self._group.over:
            await self._backpressure.room()
        self._is_waiting = False
        if self._resume is not None:
            self._resume()


class WindowLimiter:
    """Starts numbered coroutines in order, at most `BURST` per turn of the event loop, and limits their number in flight.

    Args:
        window: Returns the largest number in flight. Coroutines that wait for the delay of a retry do not count.
        max_in_flight: Largest number in flight, delays of retries included.
    """

    def __init__(
        self, group: TaskGroup, window: Callable[[], int], max_in_flight: int, backpressure: CombinedBackpressure
    ) -> None:
        self._group = group
        self._window = window
        self._max_in_flight = max_in_flight
        self._in_flight = self._backing_off = 0
        self._throttle = StartThrottle(backpressure, group, self._schedule)
        self._is_scheduled = False

    async def run(self, work: Callable[[int], Coroutine[Any, Any, None]], count: int) -> None:
        """Run `work(0)` to `work(count - 1)`. Raises the first failure."""
        self._work = work
        self._next, self._count, self._open = 0, count, count
        try:
            await self._group.run(self._start_some)
        finally:
            self._throttle.close()
            del self._work

    def back_off(self, change: int) -> None:
        """Add `change` to the number of coroutines that wait for the delay of a retry."""
        self._backing_off += change
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled and self._next < self._count:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._start_some)

    def _start_some(self) -> None:
        self._is_scheduled = True  # with an eager start, a coroutine may end inside this call
        group = self._group
        burst = 0
        if not group.over and not self._throttle.is_on():
            free = min(self._window() + self._backing_off, self._max_in_flight) - self._in_flight
            burst = max(0, min(BURST, free, self._count - self._next))
        start = self._next
        self._next += burst
        self._in_flight += burst
        for index in range(start, start + burst):
            if not group.over:
                group.spawn(self._run_one(index))
        self._is_scheduled = False
        if burst:  # more may be free: with an eager start, some have ended already
            self._schedule()

    async def _run_one(self, index: int) -> None:
        await self._work(index)
        self._in_flight -= 1
        self._open -= 1
        if self._open:
            self._schedule()
        else:
            self._group.finish()
