"""Notifications from a thread to the coroutines of several event loops."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable


class LoopNotifier:
    """Wakes coroutines that wait for a change. Each event loop has one future, for any number of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.AbstractEventLoop, asyncio.Future[None]] = {}

    def notify(self) -> None:
        """Wake all waiting coroutines. Any thread may call it; without waiting coroutines it costs next to nothing."""
        if not self._waiting:
            return
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for loop, change in waiting.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_settle, change)

    def next(self) -> asyncio.Future[None]:
        """Return a future that is done at the next change. It is shared: do not cancel it."""
        loop = asyncio.get_running_loop()
        with self._lock:
            change = self._waiting.get(loop)
            if change is None:
                change = self._waiting[loop] = loop.create_future()
            return change

    async def until(self, condition: Callable[[], bool], timeout: float) -> bool:  # noqa: ASYNC109 - its purpose
        """Wait until the condition holds, at most `timeout` seconds; return whether it holds."""
        deadline = time.monotonic() + timeout
        while True:
            # Before the condition, so that no change is missed between the check and the wait.
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
