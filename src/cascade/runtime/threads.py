"""Threads of the engine. They may outlive the main thread, or their run.

After the end of the main thread, no ThreadPoolExecutor starts a call, and `asyncio.to_thread` fails. The interpreter
still waits for all non-daemon threads, and threads can start until these have ended.
"""

import asyncio
import gc
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import Context, copy_context
from functools import partial
from typing import Any, TypeVar

from cascade._context_managers import context_manager
from cascade._loggers import get_logger
from cascade.telemetry.sanitize import error_text

logger = get_logger(__name__)

T = TypeVar("T")

CANCEL_GRACE = 5.0
"""Seconds that a cancelled run waits for the current step of its `SerialThread`: a thread cannot be interrupted."""

MANY_OBJECTS = 10_000
"""Number of new objects from which a collection of young objects takes milliseconds."""

SWITCH_INTERVAL = 5e-4
"""Seconds after which a thread that creates objects lets another thread run."""

POLL_INTERVAL = 1.0
"""Seconds after which an idle `SerialThread` checks whether the interpreter is about to exit."""


def is_shutdown_error(error: RuntimeError) -> bool:
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
        if is_shutdown_error(error):
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
    """Register functions that may outlive their run. `is_running` returns True while one of them runs."""
    _left_running[:] = [*(other for other in _left_running if other()), is_running]


def is_left_running() -> bool:
    """Return True if a function is still running after the end of its run, in this process."""
    return any(is_running() for is_running in _left_running)


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call a function like `asyncio.to_thread`. After the end of the main thread, call it in this thread."""
    call = _submit(function, *args)
    return function(*args) if call is None else await call


async def to_end_in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call a function as `in_thread` does. A cancellation does not withdraw the call."""
    call = _submit(function, *args)
    return function(*args) if call is None else await asyncio.shield(call)


def _submit(function: Callable[..., T], *args: Any) -> asyncio.Future[T] | None:
    """Call a function in a thread of the event loop. Returns None after the end of the main thread."""
    context = copy_context()
    try:
        return asyncio.get_running_loop().run_in_executor(None, partial(context.run, partial(function, *args)))
    except RuntimeError as error:
        if not is_shutdown_error(error):
            raise
        return None


@context_manager
def creating_objects() -> Iterator[None]:
    """Disable garbage collections in a block that creates objects which stay in use, and switch threads more often.

    Each collection would traverse the new objects, which takes longer than their creation. At the end, many new objects are
    moved to the oldest generation: as young objects, they would make the next collection block the event loop for as long.
    With the default interval of 5 ms, the event loop would wait so long each time that it needs the interpreter.
    """
    if not _is_creating.acquire(blocking=False):  # another block has changed the settings
        yield
        return
    try:
        _settings[:] = gc.isenabled(), sys.getswitchinterval()
        gc.disable()
        sys.setswitchinterval(min(SWITCH_INTERVAL, sys.getswitchinterval()))
        yield
    finally:
        if gc.get_count()[0] > MANY_OBJECTS and not gc.get_freeze_count():  # frozen objects stay frozen
            gc.freeze()
            gc.unfreeze()
        _restore_settings()


_is_creating = threading.Lock()
_settings: list[Any] = []


def _restore_settings() -> None:
    """Restore what a block has changed. In a forked child, the block ends in the parent only."""
    if _is_creating.locked():
        if _settings:  # empty after a fork or an interrupt at the start of the block
            has_gc, interval = _settings
            sys.setswitchinterval(interval)
            if has_gc:
                gc.enable()
            _settings.clear()
        _is_creating.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restore_settings)


class Step:
    """One call in a `SerialThread`. `cancelled` is the first cancellation of the wait for its end."""

    __slots__ = ("_context", "_done", "_function", "_is_abandoned", "_loop", "_name", "cancelled", "error", "value")

    def __init__(self, name: str, function: Callable[[], Any], context: Context) -> None:
        self._name = name
        self._function: Callable[[], Any] | None = function
        self._context = context
        self._loop = asyncio.get_running_loop()
        # The future holds no value: asyncio writes the `repr` of a future's result into its debug messages.
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._is_abandoned = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.cancelled: asyncio.CancelledError | None = None

    def run(self) -> None:
        """Call the function. Runs in the thread of the steps."""
        function, self._function = self._function, None
        assert function is not None  # noqa: S101 - for the type checker: a step runs once
        try:
            self.value = self._context.run(function)
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            self.error = error
        del function
        if self._is_abandoned and self.error is not None:
            logger.warning("After the run ended, the %s failed: %s", self._name, error_text(self.error))
            self.error = None
        try:
            self._loop.call_soon_threadsafe(self._done.set_result, None)
        except RuntimeError:  # the loop is closed: the run has ended without this step
            return

    async def wait(self, on_cancel: Callable[[BaseException], object]) -> bool:
        """Wait for the end of the step. Returns whether it has ended.

        After a cancellation, wait up to `CANCEL_GRACE` seconds more. `on_cancel` is called with each cancellation of the wait.
        """
        deadline: float | None = None
        while not self._done.done():
            timeout = None if deadline is None else deadline - self._loop.time()
            if timeout is not None and timeout <= 0:
                self.abandon()
                return False
            try:
                await asyncio.wait([self._done], timeout=timeout)
            except asyncio.CancelledError as cancelled:
                self.cancelled = self.cancelled or cancelled
                deadline = deadline or self._loop.time() + CANCEL_GRACE
                on_cancel(cancelled)
        return True

    def abandon(self) -> None:
        """Log an error of the step, because the caller no longer reads it."""
        self._is_abandoned = True

    def take(self) -> tuple[Any, BaseException | None, asyncio.CancelledError | None]:
        """Remove and return value, error and cancellation: the frames of an error refer to the step."""
        taken = self.value, self.error, self.cancelled
        self.value = self.error = self.cancelled = None
        return taken


class SerialThread:
    """Runs steps in one thread, in order and in one context. The thread starts with the first step."""

    def __init__(self, name: str, context: Context) -> None:
        self.context = context
        self._name = name
        self._steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._owner: threading.Thread | None = None

    def outlive_run(self) -> None:
        """Register the thread as one that outlives its run."""
        if self._thread is not None:
            leave_running(self._thread.is_alive)

    def submit(self, name: str, function: Callable[[], Any]) -> Step:
        """Queue a call, which runs even if the caller does not wait for it. `name` is for error texts."""
        if self._owner is None:
            self._thread = start_thread(self._run, name=self._name)
            self._owner = threading.current_thread()
        step = Step(name, function, self.context)
        self._steps.put(step)
        return step

    def close(self) -> None:
        """End the thread after the queued steps."""
        if self._owner is not None:
            self._steps.put(None)

    def _run(self) -> None:
        while True:
            try:
                step = self._steps.get(timeout=POLL_INTERVAL)
            except queue.Empty:
                if self._is_orphaned():
                    return
            else:
                if step is None:
                    return
                step.run()
                del step

    def _is_orphaned(self) -> bool:
        """Return True if the interpreter is about to exit while the run has not ended."""
        owner = self._owner
        return not threading.main_thread().is_alive() and (owner is None or owner.daemon or not owner.is_alive())
