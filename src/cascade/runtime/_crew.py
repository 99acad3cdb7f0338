"""Coroutines side by side, of which the first failure stops the others and is raised as it was raised."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class _Stop(Exception):  # noqa: N818 - ends the group, is no error
    pass


class Crew:
    """A TaskGroup that is not wrapped in exception groups, and that ends when it is told to."""

    def __init__(self, on_failure: Callable[[], None]) -> None:
        self._on_failure = on_failure
        self._group = asyncio.TaskGroup()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failure: BaseException | None = None

    @property
    def over(self) -> bool:
        return self._over.done()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._group.create_task(self._guarded(work))

    def fail(self, error: BaseException) -> None:
        """Stop everybody; the first error given is the one that `run` raises."""
        if self._failure is None and not self.over:
            self._failure = error
            self._on_failure()
        self.finish()

    def finish(self) -> None:
        if not self.over:
            self._over.set_result(None)

    async def run(self, start: Callable[[], None]) -> None:
        """Call `start`, which spawns the first ones, and return after `finish`, when everybody has stopped."""
        try:
            async with self._group:
                start()
                await self._over
                if self._failure is not None:
                    raise _Stop  # noqa: TRY301 - the group stops its tasks when its body raises
        except* _Stop:
            pass
        if self._failure is not None:
            raise self._failure

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        # Even SystemExit must not escape from here: asyncio would let it end the loop, and with it the telemetry.
        try:
            await work
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            self.fail(error)
        except BaseException as error:  # noqa: BLE001 - raised again by run
            self.fail(error)
