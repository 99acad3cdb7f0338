"""Calls of plain functions in worker threads, for an event loop that awaits very many of them.

The threads are a ThreadPoolExecutor's. What it would do for each single call (a future with a lock of its own, a
callback through the event loop, a write to its wake-up pipe) is done here for all that have ended at once.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from functools import partial
from typing import Any

Watcher = Callable[["Call"], object]


class Call:
    """One call of a function. Its caller awaits `future`, then takes the value with `result`.

    A worker thread may hold a call for longer than its caller does. A call therefore holds the arguments until the
    function has ended, and the value or the exception until `result`. The future holds neither: asyncio writes the
    `repr` of a future's result into its debug messages.
    """

    __slots__ = ("_error", "_value", "_watchers", "_work", "future", "is_over")

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        context: Context = copy_context()
        self._work: Callable[[], Any] | None = partial(context.run, function, *args, **kwargs)
        self._watchers: list[Watcher] = []
        self._value: Any = None
        self._error: BaseException | None = None
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_over = False

    def run(self) -> None:
        """Call the function, in the worker's thread and the caller's context."""
        work, self._work = self._work, None
        assert work is not None  # noqa: S101 - for the type checker: a call runs once
        try:
            self._value = work()
        except BaseException as error:  # noqa: BLE001 - raised again by result
            self._error = error
        del work
        self.is_over = True
        while self._watchers:
            self._watchers.pop()(self)

    def add_done_callback(self, watcher: Watcher) -> None:
        """Call `watcher` once the function has ended, in whatever thread, and at once if it has ended already."""
        self._watchers.append(watcher)
        # It may have ended in between; whichever of the two threads takes the watcher out is the one that calls it.
        if self.is_over:
            while self._watchers:
                self._watchers.pop()(self)

    def settle(self) -> None:
        """Wake the caller, in the event loop's thread. If it was cancelled meanwhile, drop the value."""
        if self.future.done():
            self._value = self._error = None
        else:
            self.future.set_result(None)

    def result(self) -> Any:
        """Return the function's value, or raise its exception, once."""
        value, error = self._value, self._error
        self._value = self._error = None
        if error is None:
            return value
        try:
            raise error
        finally:
            del error  # the exception refers to this frame


class WorkerPool:
    """Runs calls in at most `max_workers` threads, in the order in which they come."""

    def __init__(self, max_workers: int) -> None:
        self._max_workers = max_workers
        self._pool = ThreadPoolExecutor(max_workers, thread_name_prefix="cascade-task")
        self._lock = threading.Lock()
        self._waiting: deque[Call] = deque()
        self._working = 0
        self._ended: dict[asyncio.AbstractEventLoop, deque[Call]] = {}

    def start(self, call: Call) -> None:
        """Run a call as soon as a thread is free. To be called in the event loop that awaits it."""
        with self._lock:
            self._waiting.append(call)
            is_needed = self._working < self._max_workers
            self._working += is_needed
        if is_needed:
            self._pool.submit(self._work)

    def withdraw(self, call: Call) -> bool:
        """Take back a call that has not begun; False if it has."""
        with self._lock:
            try:
                self._waiting.remove(call)
            except ValueError:
                return False
        return True

    def close(self) -> None:
        """Let idle threads end; a thread that still runs ends with its function, and begins nothing more."""
        with self._lock:
            self._waiting.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _work(self) -> None:
        while (call := self._next()) is not None:
            call.run()
            self._deliver(call)

    def _next(self) -> Call | None:
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._working -= 1
            return None

    def _deliver(self, call: Call) -> None:
        loop = call.future.get_loop()
        with self._lock:
            ended = self._ended.get(loop)
            if ended is not None:  # the loop has been called, and will find this one too
                ended.append(call)
                return
            self._ended[loop] = deque([call])
        try:
            loop.call_soon_threadsafe(self._settle, loop)
        except RuntimeError:  # the loop is closed: nobody awaits it any more
            with self._lock:
                self._ended.pop(loop, None)

    def _settle(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            ended = self._ended.pop(loop)
        for call in ended:
            call.settle()
