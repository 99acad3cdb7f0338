"""Calls of plain functions in the worker threads of this process, for event loops that await very many of them.

The threads are a ThreadPoolExecutor's, which ends them at the exit of the interpreter. The work that it would do for each
single call (a future with a lock of its own, a callback through the event loop, a write to its wake-up pipe) is done here
for all calls that have ended at once. The number of calls is limited by places, not here.
"""

import asyncio
import atexit
import contextlib
import os
import queue
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from cascade.adapters.executors._places import PlacePool, Share
from cascade.runtime.threads import is_shutdown, start_thread

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Watcher = Callable[["Call"], object]

LINGER = 0.01
"""Seconds for which a thread waits for its next call before it returns to the ThreadPoolExecutor, whose wake-up costs ten
times as much. The exit of the interpreter may take that much longer."""
_UNLIMITED = 1_000_000


class Call:
    """One call of a function. Its caller awaits `future`, then takes the value with `result`.

    A worker thread may hold a call for longer than its caller does. A call therefore holds the arguments until the
    function has ended, and the value or the exception until `result`. The future holds neither: asyncio writes the
    `repr` of a future's result into its debug messages.
    """

    __slots__ = ("_claims", "_error", "_is_abandoned", "_value", "_watchers", "_work", "future", "is_over")

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        context: Context = copy_context()
        self._work: Callable[[], Any] | None = partial(context.run, function, *args, **kwargs)
        self._watchers: list[Watcher] = []
        self._claims = [None]
        self._value: Any = None
        self._error: BaseException | None = None
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_over = False
        self._is_abandoned = False

    def claim(self) -> bool:
        """Decide about the call: to run it, or to withdraw it. True for the first caller only, in whatever thread."""
        try:
            self._claims.pop()
        except IndexError:
            return False
        return True

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
        if self._is_abandoned:
            self._drop()
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
        """Wake the caller, in the event loop's thread."""
        if not self.future.done():
            self.future.set_result(None)

    def abandon(self) -> None:
        """Drop the value and the exception, at once or when the function ends: the caller was cancelled.

        The exception refers to this object, by the frame of `run`.
        """
        self._is_abandoned = True
        if self.is_over:  # whichever of the two threads comes second drops them
            self._drop()

    def _drop(self) -> None:
        self._value = self._error = None

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
    """The worker threads of a process. A call that finds no idle thread gets a new one."""

    def __init__(self) -> None:
        self.places = PlacePool()
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._idle = 0  # threads that wait for a call, without those whose call is in the queue
        self._ended: dict[asyncio.AbstractEventLoop, deque[Call]] = {}

    def close(self, share: Share) -> None:
        """Give up a share, and let idle threads end. A thread that runs a function ends with it."""
        with self._lock:
            threads, self._threads = self._threads, None
            if self.places.close(share):
                idle, self._idle = self._idle, 0
                for _ in range(idle):
                    self._calls.put(None)
        if threads is not None:
            threads.shutdown(wait=False)

    def start(self, call: Call) -> None:
        """Run a call in a thread. To be called in the event loop that awaits it."""
        with self._lock:
            if self._idle:
                self._idle -= 1
                self._calls.put(call)
            else:
                self._start_thread(call)

    def _start_thread(self, call: Call) -> None:
        try:
            self._executor().submit(self._work, [call])
        except RuntimeError as error:
            if is_shutdown(error):
                start_thread(self._work, [call], name="cascade-task")
            else:
                call.claim()  # ThreadPoolExecutor has it in its queue, although it could not start a thread
                raise

    def _executor(self) -> "ThreadPoolExecutor":
        if self._threads is None:
            from concurrent.futures import ThreadPoolExecutor

            self._threads = ThreadPoolExecutor(_UNLIMITED, thread_name_prefix="cascade-task")
        return self._threads

    def _work(self, first: list[Call]) -> None:
        call: Call | None = first.pop()  # nothing keeps a call, and its value, after its end
        while call is not None:
            if call.claim():
                call.run()
            if self is not _pool:
                _exit_child(call)
            self._deliver(call)
            del call
            call = self._next()

    def _next(self) -> Call | None:
        try:
            return self._calls.get(timeout=LINGER)
        except queue.Empty:
            with self._lock:
                if self._idle:
                    self._idle -= 1
                    return None
            return self._calls.get()  # a call has been put there for a thread like this one

    def _deliver(self, call: Call) -> None:
        """Complete the call's future, and wait for the next call."""
        loop = call.future.get_loop()
        with self._lock:
            self._idle += 1
            ended = self._ended.get(loop)
            if ended is not None:  # the loop has been called, and will find this one too
                ended.append(call)
                return
            self._ended[loop] = deque([call])
        try:
            loop.call_soon_threadsafe(self._settle, loop)
        except RuntimeError:  # the loop is closed, and its tasks with it
            with self._lock:
                self._ended.pop(loop, None)

    def _settle(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            ended = self._ended.pop(loop)
        for call in ended:
            call.settle()


_pool = WorkerPool()


def worker_pool() -> WorkerPool:
    """Return the pool of this process."""
    return _pool


def _exit_child(call: Call) -> NoReturn:
    """End a child that the call has forked, as a program ends: the event loop that awaits the call is in the parent."""
    code: object = 0
    try:
        call.result()
    except SystemExit as error:
        code = error.code or 0
    except BaseException:  # noqa: BLE001 - the interpreter's own last resort does the same
        traceback.print_exc()
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)  # noqa: T201 - as the interpreter prints it
        code = 1
    atexit._run_exitfuncs()  # noqa: SLF001 - as multiprocessing does; the interpreter does not finalize in this thread
    for stream in filter(None, (sys.stdout, sys.stderr)):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _new_pool() -> None:
    global _pool  # noqa: PLW0603 - a forked child has none of its parent's threads
    _pool = WorkerPool()
    if module := sys.modules.get("concurrent.futures.thread"):
        # The child of a worker thread would join that thread, itself, when it exits, and exit with an error (repaired
        # in later versions of Python).
        getattr(module, "_threads_queues", {}).pop(threading.current_thread(), None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_pool)
