"""Task group. The first failure cancels the other tasks and is re-raised unchanged."""

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from types import coroutine
from typing import Any, Protocol

BURST = 64
"""Coroutines started in one turn of the event loop: with 100,000 that are ready at once, short ones end before others
begin, their data stays in the processor's cache, and other tasks of the event loop get a turn."""


class GroupOwner(Protocol):
    """The run that a group's coroutines belong to. Both methods may be called again; the first call decides."""

    def fail(self, error: BaseException) -> str:
        """A coroutine of the group failed. Returns the reason that the others are cancelled with."""
        ...

    def cancel(self, error: BaseException) -> str:
        """The group is cancelled from outside. Returns the reason that its coroutines are cancelled with."""
        ...


class TaskGroup:
    """Task group for many short coroutines. No coroutine outlives `run`.

    Unlike `asyncio.TaskGroup` it raises the first failure unwrapped, ends on `finish`, and costs two thirds as much per
    coroutine, because it schedules no callback through the event loop.

    Args:
        owner: Is called when the group stops; returns the reason that the other coroutines are cancelled with.
        new_context: Returns the context for one coroutine, whatever context calls `spawn`.
    """

    def __init__(self, owner: GroupOwner, new_context: Callable[[], Context]) -> None:
        self._owner = owner
        self._new_context = new_context
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._members: dict[int, asyncio.Task[None]] = {}
        self._count = 0
        self._failure: BaseException | None = None
        self._reason: str | None = None  # set once the group cancels its coroutines

    @property
    def over(self) -> bool:
        return self._over.done()

    @property
    def is_busy(self) -> bool:
        """Whether any coroutine is running."""
        return bool(self._members)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._count = number = self._count + 1
        guarded = self._guarded(work, number)
        guarded.send(None)  # to its first pause: a task that is cancelled before it starts ends in there too
        task = self._loop.create_task(guarded, context=self._new_context())
        if not task.done():
            self._members[number] = task

    def fail(self, error: BaseException) -> None:
        """Cancel all coroutines. `run` raises the first error given."""
        if self._failure is None and not self.over:
            self._failure = error
            self._owner.fail(error)
        self.finish()

    def finish(self) -> None:
        if not self.over:
            self._over.set_result(None)

    async def run(self, start: Callable[[], None]) -> None:
        """Call `start`, which spawns the first coroutines. Returns after `finish`, once all coroutines have ended.

        Raises:
            BaseException: The first failure, unchanged: of a coroutine, of `start`, or the cancellation of this call.
        """
        error: BaseException | None = None
        try:
            start()
            await self._over
        except BaseException as caught:  # noqa: BLE001 - raised below, once all coroutines have ended
            error = caught
            self.finish()
        if error is not None:
            self._stop(self._owner.cancel(error))
        elif self._failure is not None:
            self._stop(self._owner.fail(self._failure))
        later = await self._all_gone()
        errors = [one for one in (self._failure, error, later) if one is not None]
        self._failure = error = later = None  # the traceback refers to this frame
        if errors:
            raise errors.pop(0)

    def _stop(self, reason: str) -> None:
        self._reason = reason
        for task in tuple(self._members.values()):
            task.cancel(reason)

    async def _all_gone(self) -> asyncio.CancelledError | None:
        """Wait until all coroutines have ended. If this wait is cancelled, they are cancelled too."""
        cancelled: asyncio.CancelledError | None = None
        while self._members:
            try:
                await asyncio.wait(tuple(self._members.values()))
            except asyncio.CancelledError as error:
                cancelled = error if cancelled is None else cancelled
                self._stop(self._owner.cancel(error))
        return cancelled

    async def _guarded(self, work: Coroutine[Any, Any, None], number: int) -> None:
        # Even SystemExit must not escape from here: asyncio would let it end the loop, and with it the telemetry.
        try:
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
