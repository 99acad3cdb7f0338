"""Tasks in this process: coroutines in the event loop, plain functions in worker threads."""

import asyncio
import inspect
import threading
from types import FunctionType, GeneratorType
from typing import Any

from cascade.adapters.executors._pool import Call, WorkerPool
from cascade.runtime.exceptions import StillRunning

MAX_WORKERS = 32
"""Plain functions mostly wait (for a disk, a server): more threads than processors. Python's own pools stop at 32 too:
each thread that computes delays the event loop by a turn of the interpreter's lock, 5 ms."""


class LocalExecutor:
    """Calls the functions of tasks.

    Args:
        threads: False runs plain functions in the event loop; `@cs.task(threaded=…)` decides for a single task.
        max_workers: How many plain functions run at once.
    """

    def __init__(self, *, threads: bool = True, max_workers: int = MAX_WORKERS) -> None:
        if max_workers < 1:
            raise ValueError(f"max_workers={max_workers!r}: at least one thread is needed")
        self._threads = threads
        self._max_workers = max_workers
        self._pool: WorkerPool | None = None
        self._lock = threading.Lock()

    async def execute(self, node: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call the node's function and return what it returns.

        Raises:
            TypeError: The node has no function.
            StillRunning: Cancelled, while a thread goes on.
        """
        function = node.callable_obj
        if inspect.iscoroutinefunction(function):
            return await function(*args, **kwargs)
        if not callable(function):
            raise TypeError(f"Task '{getattr(node, 'name', node)}' has no function to call, but {function!r}")
        if self._is_threaded(node):
            result = await self._in_thread(function, args, kwargs)
        else:
            result = _called(function, args, kwargs)
        return await result if _is_awaitable(result) else result

    def slots(self, node: Any) -> int | None:
        """As many threads as there are for a plain function; no bound for what runs in the event loop."""
        return self._max_workers if self._is_threaded(node) else None

    def close(self) -> None:
        """Let idle threads end; a thread that still runs ends with its function."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _is_threaded(self, node: Any) -> bool:
        wish = getattr(node, "threaded", None)
        return (self._threads if wish is None else wish) and not _makes_coroutines(node.callable_obj)

    async def _in_thread(self, function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        call, workers = Call(_called, function, args, kwargs), self._workers()
        workers.start(call)
        try:
            await call.future
        except asyncio.CancelledError:
            if call.is_over or workers.withdraw(call):
                raise
            raise StillRunning(call) from None
        return call.result()

    def _workers(self) -> WorkerPool:
        with self._lock:
            if self._pool is None:
                self._pool = WorkerPool(self._max_workers)
            return self._pool


def _called(function: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
    try:
        return function(*args, **kwargs)
    except StopIteration as error:
        # It would end the coroutine that awaits us as if it had returned; PEP 479 does the same for generators.
        raise RuntimeError("The task raised StopIteration") from error


def _is_awaitable(value: Any) -> bool:
    """`inspect.isawaitable`, which reads `value.__class__`: a proxy answers that with user code."""
    kind = type(value)
    if kind is GeneratorType:
        return bool(value.gi_code.co_flags & inspect.CO_ITERABLE_COROUTINE)
    return hasattr(kind, "__await__")


def _makes_coroutines(function: Any) -> bool:
    """Whether it is a coroutine function, a partial of one, or an object whose `__call__` is one."""
    if type(function) is FunctionType:
        return inspect.iscoroutinefunction(function)
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "func", None)):
        return True
    return inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
