"""Runs plain functions in the worker threads of this process, for event loops that await many of them.

The threads belong to a ThreadPoolExecutor, which ends them at the exit of the interpreter. With its own `submit`, each call
costs a future with a lock, a callback through the event loop, and a write to the wake-up pipe. Here, one callback and one
write serve all calls that have ended since the last iteration of the event loop. The module `slots` limits the number of calls.
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

from cascade.adapters.executors.slots import Share, SlotPool
from cascade.runtime.threads import is_shutdown_error, start_thread

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

DoneCallback = Callable[["Call"], object]

IDLE_TIMEOUT = 0.01
"""Seconds that a thread waits for its next call before it returns to the ThreadPoolExecutor, whose wake-up costs ten
times as much. The exit of the interpreter may take that much longer."""
_UNLIMITED = 1_000_000


class Call:
    """One call of a function. The caller awaits `future`, then calls `result`.

    A worker thread may keep a call longer than the caller. A call therefore drops the arguments when the function ends,
    and the value or the exception in `result`. The future holds neither: asyncio writes the `repr` of a future's result
    into its debug messages.
    """

    __slots__ = ("_callbacks", "_claims", "_error", "_is_abandoned", "_value", "_work", "future", "is_over")

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        context: Context = copy_context()
        self._work: Callable[[], Any] | None = partial(context.run, function, *args, **kwargs)
        self._callbacks: list[DoneCallback] = []
        self._claims = [None]
        self._value: Any = None
        self._error: BaseException | None = None
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_over = False
        self._is_abandoned = False

    def claim(self) -> bool:
        """Claim the call, to run or to withdraw it. Returns True only for the first caller. Thread-safe."""
        try:
            self._claims.pop()
        except IndexError:
            return False
        return True

    def run(self) -> None:
        """Call the function in the current thread and in the context of the caller."""
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
        while self._callbacks:
            self._callbacks.pop()(self)

    def add_done_callback(self, callback: DoneCallback) -> None:
        """Call `callback` when the function has ended, in any thread; at once if it has already ended."""
        self._callbacks.append(callback)
        # The function may have ended meanwhile. The thread that removes the callback calls it.
        if self.is_over:
            while self._callbacks:
                self._callbacks.pop()(self)

    def complete(self) -> None:
        """Wake the caller, in the event loop's thread."""
        if not self.future.done():
            self.future.set_result(None)

    def abandon(self) -> None:
        """Drop the value and the exception, now or when the function ends, because the caller was cancelled.

        The exception refers to this object through the frame of `run`.
        """
        self._is_abandoned = True
        if self.is_over:  # else the thread drops them at the end of the function
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
    """Worker threads of a process. A call without an idle thread starts a new one."""

    def __init__(self) -> None:
        self.slots = SlotPool()
        self._lock = threading.Lock()
        self._thread_pool: ThreadPoolExecutor | None = None
        self._calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._idle = 0  # waiting threads, less the calls in the queue
        self._ended: dict[asyncio.AbstractEventLoop, deque[Call]] = {}

    def close(self, share: Share) -> None:
        """Close a share and end the idle threads. A busy thread ends with its function."""
        with self._lock:
            thread_pool, self._thread_pool = self._thread_pool, None
            if self.slots.close(share):
                idle, self._idle = self._idle, 0
                for _ in range(idle):
                    self._calls.put(None)
        if thread_pool is not None:
            thread_pool.shutdown(wait=False)

    def start(self, call: Call) -> None:
        """Run a call in a thread. Called in the event loop that awaits it."""
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
            if is_shutdown_error(error):
                start_thread(self._work, [call], name="cascade-task")
            else:
                call.claim()  # it is in the queue of the ThreadPoolExecutor, which could not start a thread
                raise

    def _executor(self) -> "ThreadPoolExecutor":
        if self._thread_pool is None:
            from concurrent.futures import ThreadPoolExecutor

            self._thread_pool = ThreadPoolExecutor(_UNLIMITED, thread_name_prefix="cascade-task")
        return self._thread_pool

    def _work(self, first: list[Call]) -> None:
        call: Call | None = first.pop()  # no reference keeps a call and its value after its end
        while call is not None:
            if call.claim():
                call.run()
            if self is not _pool:  # the event loop that awaits the call is in the parent process
                _exit_child_of(call)
            is_needed = self._deliver(call)
            del call
            call = self._next() if is_needed else None

    def _next(self) -> Call | None:
        try:
            return self._calls.get(timeout=IDLE_TIMEOUT)
        except queue.Empty:
            with self._lock:
                if self._idle:
                    self._idle -= 1
                    return None
            return self._calls.get()  # a call has been put there for a thread like this one

    def _deliver(self, call: Call) -> bool:
        """Schedule the completion of the call in its event loop. Returns whether this thread waits for the next call.

        Without an open share there is none. The wait could also last forever: `SimpleQueue.get` of Python 3.11 ignores its
        timeout if another thread takes the item that has woken it.
        """
        loop = call.future.get_loop()
        with self._lock:
            is_needed = self.slots.is_open
            self._idle += is_needed
            ended = self._ended.get(loop)
            if ended is not None:  # `_complete_all` is scheduled already
                ended.append(call)
                return is_needed
            self._ended[loop] = deque([call])
        try:
            loop.call_soon_threadsafe(self._complete_all, loop)
        except RuntimeError:  # the loop is closed
            with self._lock:
                self._ended.pop(loop, None)
        return is_needed

    def _complete_all(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            ended = self._ended.pop(loop)
        for call in ended:
            call.complete()


_pool = WorkerPool()


def worker_pool() -> WorkerPool:
    """Return the pool of this process."""
    return _pool


def _exit_child_of(call: Call) -> NoReturn:
    try:
        call.result()
    except BaseException as error:  # noqa: BLE001 - the process ends
        exit_child(error)
    exit_child()


def exit_child(error: BaseException | None = None) -> NoReturn:
    """Exit a child process that the function of a task has forked, as the interpreter does after this exception."""
    code: object = 0
    if isinstance(error, SystemExit):
        code = error.code or 0
    elif error is not None:
        traceback.print_exception(error)
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
        # At its exit, the child process of a worker thread would join that thread, which is its main thread, and fail
        # (fixed in later versions of Python).
        getattr(module, "_threads_queues", {}).pop(threading.current_thread(), None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_new_pool)
