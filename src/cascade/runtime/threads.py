"""Threads that outlive the main thread, or their run.

After the end of the main thread, no ThreadPoolExecutor starts a call, and `asyncio.to_thread` fails. The interpreter still
waits for all non-daemon threads, and threads can start until these have ended.
"""

import asyncio
import threading
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


def is_shutdown(error: RuntimeError) -> bool:
    """Whether Python raised the error because the main thread or the interpreter has ended."""
    return "shutdown" in str(error)


def start_thread(target: Callable[..., object], *args: Any, name: str) -> threading.Thread:
    """Start a non-daemon thread.

    Raises:
        RuntimeError: The interpreter can start no thread.
    """
    thread = threading.Thread(target=target, args=args, name=name, daemon=False)
    try:
        thread.start()
    except RuntimeError as error:
        if is_shutdown(error):
            raise RuntimeError(
                "A plain function cannot run in a thread any more, because the interpreter is shutting down. Join the "
                "threads that call cs.run before the main thread ends, or declare the tasks as `async def` or with "
                "`@cs.task(threaded=False)`"
            ) from error
        raise
    return thread


def start_daemon(target: Callable[[], object], *, name: str) -> threading.Thread | None:
    """Start a daemon thread. Returns None if the interpreter is shutting down."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return None
    return thread


_left_running: list[Callable[[], int]] = []


def leave_running(is_running: Callable[[], int]) -> None:
    """Register functions that outlive their run. `is_running` returns whether one of them still runs."""
    _left_running[:] = [*(other for other in _left_running if other()), is_running]


def is_left_running() -> bool:
    """Whether a function that has outlived its run still runs in this process."""
    return any(is_running() for is_running in _left_running)


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call a function like `asyncio.to_thread`. After the end of the main thread, call it in this thread."""
    context = copy_context()
    try:
        call = asyncio.get_running_loop().run_in_executor(None, partial(context.run, partial(function, *args)))
    except RuntimeError as error:
        if not is_shutdown(error):
            raise
        return function(*args)
    return await call
