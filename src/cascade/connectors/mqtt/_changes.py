"""How coroutines of several event loops wait for what a thread does."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable


class Changes:
    """Something that changes. One future for each event loop, however many wait in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.AbstractEventLoop, asyncio.Future[None]] = {}

    def tell(self) -> None:
        """Wake all who wait; from any thread, and for next to nothing while nobody does."""
        if not self._waiting:
            return
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for loop, change in waiting.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_settle, change)

    def next(self) -> asyncio.Future[None]:
        """Done at the next change. It is others' too: wait for it, do not cancel it."""
        loop = asyncio.get_running_loop()
        with self._lock:
            change = self._waiting.get(loop)
            if change is None:
                change = self._waiting[loop] = loop.create_future()
            return change

    async def until(self, condition: Callable[[], bool], timeout: float) -> bool:  # noqa: ASYNC109 - its purpose
        """Wait until the condition holds, at most so many seconds; whether it does."""
        deadline = time.monotonic() + timeout
        while True:
            # First of all, so that no change is missed between the question and the wait.
            change = self.next()
            if condition():
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            await asyncio.wait({change}, timeout=left)


def _settle(change: asyncio.Future[None]) -> None:
    if not change.done():
        change.set_result(None)
