"""Task group for many short coroutines."""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from types import coroutine
from typing import Any, Protocol

from cascade.runtime.bus import MessageBus
from cascade.runtime.task_context import rest_in_context

BURST = 32
"""Coroutines started in one turn of the event loop. If 100,000 are ready at once, the first ones end before the others
begin: their data stays in the processor's cache, and other tasks of the event loop get a turn."""

_SUCCESSORS = 8
"""Number of members that are added when a coroutine suspends. If most coroutines suspend, the number of starts in one turn of
the event loop grows to `BURST` in two turns."""


class GroupOwner(Protocol):
    """The run of a group. `fail` and `cancel` may be called several times; the first call sets the reason."""

    @property
    def new_context(self) -> Callable[[], Context]:
        """Returns the context for one coroutine."""
        ...

    @property
    def bus(self) -> MessageBus:
        """While its backpressure is full and coroutines of the group run, no other coroutine starts."""
        ...

    def fail(self, error: BaseException) -> str:
        """Called when a coroutine of the group has failed. Returns the reason for the cancellation of the others."""
        ...

    def cancel(self, error: BaseException) -> str:
        """Called when the group is cancelled from outside.

        Returns the reason for the cancellation of its coroutines.
        """
        ...


class Source(Protocol):
    """Supply of coroutines. An error of either method is a failure of the group."""

    def ready(self) -> int:
        """Return the number of coroutines that may start now."""
        ...

    def take(self) -> Coroutine[Any, Any, None] | None:
        """Return the next coroutine; None if none may start now."""
        ...


class TaskGroup:
    """Task group. The first failure cancels the other coroutines and is re-raised unchanged.

    No coroutine outlives `run`. A coroutine that suspends has an asyncio task for itself. Coroutines that do not suspend share
    one: they cost neither a task nor a turn of the event loop. Each coroutine runs in its own context.
    """

    def __init__(self, owner: GroupOwner) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._members: dict[int, asyncio.Task[None]] = {}
        self._idle: set[int] = set()  # the members that have no coroutine
        self._count = 0
        self._failure: BaseException | None = None
        self._reason: str | None = None  # set when the group cancels its coroutines

    def start(self) -> None:
        """Start the coroutines of the source, in the next turn of the event loop."""
        if not self._idle and not self._over.done():
            self._add_member()

    def fail(self, error: BaseException) -> None:
        """Cancel all coroutines. `run` raises the error of the first call."""
        if self._failure is None and not self._over.done():
            self._failure = error
            self._owner.fail(error)
        self.finish()

    def finish(self) -> None:
        """Start no other coroutine. `run` returns when the present ones have ended."""
        if not self._over.done():
            self._over.set_result(None)

    async def run(self, source: Source) -> None:
        """Run the coroutines of the source. Returns after `finish`, when all coroutines have ended.

        Raises:
            BaseException: The first failure, unchanged: of a coroutine, of the source, or the cancellation of this call.
        """
        self._source = source
        error: BaseException | None = None
        try:
            self.start()
            await self._over
        except BaseException as caught:  # noqa: BLE001 - raised below, when all coroutines have ended
            error = caught
            self.finish()
        if error is not None:
            self._cancel_all(self._owner.cancel(error))
        elif self._failure is not None:
            self._cancel_all(self._owner.fail(self._failure))
        later = await self._wait_for_all()
        del self._source  # it refers to this object
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

    def _add_member(self) -> None:
        self._count = number = self._count + 1
        self._idle.add(number)
        work = self._work(number)
        work.send(None)  # into its `try`: a task that is cancelled before its start ends there, too
        self._members[number] = self._loop.create_task(work, context=self._owner.new_context())

    async def _work(self, number: int) -> None:
        """Run coroutines of the source one after another, until one has suspended and ended."""
        members, idle, take, new_context = self._members, self._idle, self._source.take, self._owner.new_context
        try:
            await self._first_turn()
            left = burst = BURST // len(idle)
            while not self._over.done():
                if not left:
                    if len(idle) > 1:
                        break
                    await _pause()
                    left = burst
                elif len(members) > len(idle) and self._is_throttled():
                    await self._owner.bus.backpressure.room()
                elif (work := take()) is not None:
                    left -= 1
                    context = new_context()
                    try:
                        awaited = context.run(work.send, None)
                    except StopIteration:
                        if not getattr(members[number], "_must_cancel", False):
                            continue
                        # The coroutine has requested a cancellation and withdrawn it. Before Python 3.13, it would reach the
                        # next coroutine of this asyncio task.
                        self._replace(number)
                        break
                    self._replace(number)
                    await rest_in_context(context, work, awaited)
                    break
                else:
                    break
        except BaseException as error:  # noqa: BLE001 - raised again by run
            if self._reason is None or not isinstance(error, asyncio.CancelledError):  # not cancelled by this group
                self.fail(error)
        finally:
            idle.discard(number)
            del members[number]

    async def _first_turn(self) -> None:
        await _pause()
        if self._loop.get_task_factory() is not None:
            await _pause()  # an eager factory has started the task before `_members` contains it

    def _is_throttled(self) -> bool:
        """Return True if telemetry delays the next start. Not called while no coroutine runs: the next one publishes its wait."""
        return self._owner.bus.backpressure.is_full() and self._source.ready() > 0

    def _replace(self, number: int) -> None:
        """Add idle members in place of this one, whose coroutine has suspended."""
        self._idle.discard(number)
        for _ in range(min(_SUCCESSORS, min(BURST, self._source.ready()) - len(self._idle))):
            self._add_member()


@coroutine
def _pause() -> Generator[None, None, None]:
    yield


class WindowLimiter:
    """Source of numbered coroutines, in order. Limits their number in flight.

    Args:
        work: Returns the coroutine of a number.
        count: The number of coroutines.
        window: Returns the largest number in flight. Coroutines that wait for the delay of a retry do not count.
        max_in_flight: Largest number in flight, delays of retries included.
    """

    def __init__(
        self,
        owner: GroupOwner,
        work: Callable[[int], Coroutine[Any, Any, None]],
        count: int,
        window: Callable[[], int],
        max_in_flight: int,
    ) -> None:
        self._group = TaskGroup(owner)
        self._work = work
        self._count = self._open = count
        self._window = window
        self._max_in_flight = max_in_flight
        self._next = self._in_flight = self._backing_off = 0

    async def run(self) -> None:
        """Run all coroutines. Raises the first failure."""
        await self._group.run(self)

    def ready(self) -> int:
        free = min(self._window() + self._backing_off, self._max_in_flight) - self._in_flight
        return max(0, min(free, self._count - self._next))

    def take(self) -> Coroutine[Any, Any, None] | None:
        if not self.ready():
            return None
        self._in_flight += 1
        self._next += 1
        return self._run_one(self._next - 1)

    async def sleep(self, delay: float) -> None:
        """Wait for the delay of a retry, in one of the coroutines."""
        self._backing_off += 1
        self._start()
        try:
            await asyncio.sleep(delay)
        finally:
            self._backing_off -= 1

    def _start(self) -> None:
        if self._next < self._count:
            self._group.start()

    async def _run_one(self, index: int) -> None:
        await self._work(index)
        self._in_flight -= 1
        self._open -= 1
        if self._open:
            self._start()
        else:
            self._group.finish()
