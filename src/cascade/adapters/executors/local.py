"""Executor in this process: coroutine functions in the event loop, plain functions in worker threads."""

import asyncio
import inspect
import threading
import time
import weakref
from operator import index
from types import FrameType, FunctionType, GeneratorType
from typing import Any

from cascade.adapters.executors.slots import Share, ThreadSlot, ThreadSlots
from cascade.adapters.executors.worker_pool import Call, exit_child, worker_pool
from cascade.runtime.exceptions import StillRunning
from cascade.runtime.task_context import CURRENT_TASK, CallUsage, current_slot, current_usage

_COROUTINE = inspect.CO_COROUTINE
_now_ns, _thread_cpu_ns = time.perf_counter_ns, time.thread_time_ns


class LocalExecutor:
    """Runs the functions of tasks in this process. All executors share the worker threads of the process.

    Args:
        threads: False runs plain functions in the event loop. `@cs.task(threaded=…)` overrides it for one task.
        max_workers: Largest number of plain functions that run at once for this executor, an integer from 1.
            None is the default of `concurrent.futures`: the number of processors plus 4, at most 32.

    Raises:
        ValueError: `max_workers` is not such an integer.
    """

    def __init__(self, *, threads: bool = True, max_workers: int | None = None) -> None:
        self._threads = threads
        self._max_workers = _checked_workers(max_workers)
        self._share: Share | None = None
        self._finalizer: weakref.finalize[Any, LocalExecutor] | None = None
        self._lock = threading.Lock()

    async def execute(self, node: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call the function of the node and return its value.

        Raises:
            TypeError: The node has no function.
            StillRunning: The call was cancelled, but its thread continues.
        """
        function = node.callable_obj
        if _is_coroutine_function(function):
            return await function(*args, **kwargs)
        if not callable(function):
            raise TypeError(f"Task '{getattr(node, 'name', node)}' has no function to call, but {function!r}")
        if self._is_threaded(node):
            result = await self._in_thread(function, args, kwargs)
        else:
            result = _call_in_loop(function, args, kwargs)
        if not _is_awaitable(result):
            return result
        if (usage := current_usage()) is not None:
            usage.cpu_ns = None  # the function has only returned an awaitable
        return await result

    def slots(self, node: Any) -> ThreadSlots | None:
        """Return the slots for a plain function; None for a function that runs in the event loop."""
        return _slots_of(self._open_share(), current_slot()) if self._is_threaded(node) else None

    def close(self) -> None:
        """End the idle threads. A busy thread ends with its function."""
        with self._lock:
            share, finalizer = self._share, self._finalizer
            self._share = self._finalizer = None
        if share is not None and finalizer is not None and finalizer.detach() and _is_of_this_process(share):
            worker_pool().close(share)

    def _is_threaded(self, node: Any) -> bool:
        function, threaded = node.callable_obj, getattr(node, "threaded", None)
        if _is_coroutine_function(function) or not (self._threads if threaded is None else threaded):
            return False
        return type(function) is FunctionType or not _wraps_coroutine_function(function)

    async def _in_thread(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        share, execution = self._open_share(), CURRENT_TASK.get()
        held, usage = (None, None) if execution is None else (execution.held_slot, execution.usage)
        if usage is not None:
            usage.threads = max(1, share.used)  # a borrowed slot does not count
            function, args, kwargs = _call_measured, [usage, function, args, kwargs], {}
        if isinstance(held, ThreadSlot) and held.share is share:
            return await _call(function, args, kwargs)
        slot = await _slots_of(share, held).acquire()
        try:
            value = await _call(function, args, kwargs)
        except StillRunning as cancelled:
            cancelled.work.add_done_callback(lambda _: slot.release())
            raise
        except BaseException:
            slot.release()
            raise
        slot.release()
        return value

    def _open_share(self) -> Share:
        share = self._share
        if share is not None and _is_of_this_process(share):
            return share
        with self._lock:
            if self._share is None or not _is_of_this_process(self._share):
                self._share = worker_pool().slots.open(self._max_workers)
                self._finalizer = weakref.finalize(self, _close_share, self._share)
                self._finalizer.atexit = False
            return self._share


def _close_share(share: Share) -> None:
    if _is_of_this_process(share):
        share.pool.close(share)


def _is_of_this_process(share: Share) -> bool:
    """Return True if the share belongs to the pool of this process. A forked child has its own pool."""
    return share.pool is worker_pool().slots


def _slots_of(share: Share, held: object) -> ThreadSlots:
    """Return the slots of a share, and the held slot of the task that has started the run."""
    return held.lend(share) if isinstance(held, ThreadSlot) and held.share.pool is share.pool else share.slots


async def _call(function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    call = Call(_call_function, function, args, kwargs)
    worker_pool().start(call)
    try:
        await call.future
    except asyncio.CancelledError:
        call.abandon()
        if call.is_over or call.claim():
            raise
        raise StillRunning(call) from None
    return call.result()


def _call_in_loop(function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Call a plain function.

    A child process that the function forks exits at the function's end, because the run belongs to the parent.

    From Python 3.14 on, asyncio does not continue the event loop in a forked child.
    """
    pool = worker_pool()
    if (usage := current_usage()) is not None:
        function, args, kwargs = _call_measured, [usage, function, args, kwargs], {}
    try:
        value = _call_function(function, args, kwargs)
    except BaseException as error:
        if worker_pool() is not pool:
            exit_child(error)
        raise
    if worker_pool() is not pool:
        exit_child()
    return value


def _checked_workers(max_workers: Any) -> int | None:
    if max_workers is None:
        return None
    number = index(max_workers) if hasattr(type(max_workers), "__index__") and type(max_workers) is not bool else 0
    if number < 1:
        raise ValueError(
            f"max_workers must be an integer from 1 up, got {max_workers!r}; leave it out for the default, "
            "the number of processors plus 4"
        )
    return number


def runs_task_function(frame: FrameType | None) -> bool:
    """Whether the frame belongs to a plain function of a task, or to a function that it calls."""
    while frame is not None and frame.f_code is not _call_function.__code__:
        frame = frame.f_back
    return frame is not None


def _call_function(function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    try:
        return function(*args, **kwargs)
    except StopIteration as error:
        # A StopIteration would end the awaiting coroutine as if it had returned (PEP 479).
        raise RuntimeError("The task raised StopIteration") from error


def _call_measured(usage: CallUsage, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    start_ns, cpu_ns = _now_ns(), _thread_cpu_ns()
    try:
        return function(*args, **kwargs)
    finally:
        usage.cpu_ns, usage.ended_ns = _thread_cpu_ns() - cpu_ns, _now_ns()
        usage.wall_ns = usage.ended_ns - start_ns


def _is_awaitable(value: Any) -> bool:
    """`inspect.isawaitable` without `value.__class__`, which may run the code of a proxy."""
    kind = type(value)
    if kind is GeneratorType:
        return bool(value.gi_code.co_flags & inspect.CO_ITERABLE_COROUTINE)
    return hasattr(kind, "__await__")


def _is_coroutine_function(function: Any) -> bool:
    """`inspect.iscoroutinefunction` at a third of its cost for most functions."""
    if type(function) is FunctionType:
        if function.__code__.co_flags & _COROUTINE:
            return True
        if not function.__dict__:
            return False
    return inspect.iscoroutinefunction(function)


def _wraps_coroutine_function(function: Any) -> bool:
    """Whether `function` is a partial of a coroutine function, or an object whose `__call__` is one."""
    if inspect.iscoroutinefunction(getattr(function, "func", None)):
        return True
    return inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
