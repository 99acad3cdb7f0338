"""Setup and teardown of the generators of resources. Plain generators run in one thread per run."""

import asyncio
import inspect
import queue
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any

from cascade._loggers import get_logger
from cascade.runtime.threads import leave_running, start_thread
from cascade.spec.nested import require_values
from cascade.telemetry.safe import error_text

logger = get_logger(__name__)

GRACE = 5.0
"""Seconds that a cancelled run waits for the current step of the thread: a thread cannot be interrupted."""

POLL_INTERVAL = 1.0
"""Seconds after which an idle thread checks whether the interpreter is about to exit."""


def set_up(name: str, generator: Any) -> Any:
    """Run a plain generator to its `yield`, and return the resource. Raises RuntimeError if it does not yield."""
    try:
        value = next(generator)
    except StopIteration:
        raise _no_yield(name) from None
    try:
        require_values(value, f"Resource '{name}' is")
    except TypeError:
        generator.close()
        raise
    return value


async def set_up_async(name: str, generator: Any) -> Any:
    """Run an async generator to its `yield`, and return the resource. Raises RuntimeError if it does not yield."""
    try:
        value = await anext(generator)
    except StopAsyncIteration:
        raise _no_yield(name) from None
    try:
        require_values(value, f"Resource '{name}' is")
    except TypeError:
        await generator.aclose()
        raise
    return value


def tear_down(name: str, generator: Any) -> None:
    """Run a plain generator from its `yield` to its end. Raises RuntimeError if it yields again."""
    try:
        next(generator)
    except StopIteration:
        return
    generator.close()
    raise _second_yield(name)


async def tear_down_async(name: str, generator: Any) -> None:
    """Run an async generator from its `yield` to its end. Raises RuntimeError if it yields again."""
    try:
        await anext(generator)
    except StopAsyncIteration:
        return
    await generator.aclose()
    raise _second_yield(name)


def tear_down_if_set_up(name: str, generator: Any) -> None:
    """Run the teardown of a plain generator, if its setup has succeeded."""
    if inspect.getgeneratorstate(generator) == inspect.GEN_SUSPENDED:
        tear_down(name, generator)


def _no_yield(name: str) -> RuntimeError:
    return RuntimeError(f"Resource '{name}' did not yield: yield the resource exactly once")


def _second_yield(name: str) -> RuntimeError:
    return RuntimeError(f"Resource '{name}' yielded twice: yield the resource exactly once")


class Step:
    """One call in the thread. `cancelled` is the first cancellation of the wait for its end."""

    __slots__ = (
        "_context",
        "_done",
        "_function",
        "_is_abandoned",
        "_loop",
        "_name",
        "cancelled",
        "error",
        "is_over",
        "value",
    )

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
        self.is_over = False

    def run(self) -> None:
        """Call the function, in the thread."""
        function, self._function = self._function, None
        assert function is not None  # noqa: S101 - for the type checker: a step runs once
        try:
            self.value = self._context.run(function)
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            self.error = error
        del function
        self.is_over = True
        if self._is_abandoned and self.error is not None:
            logger.warning("After the run ended, the %s failed: %s", self._name, error_text(self.error))
            self.error = None
        try:
            self._loop.call_soon_threadsafe(self._done.set_result, None)
        except RuntimeError:  # the loop is closed: the run has ended without this step
            return

    async def wait(self, on_cancel: Callable[[BaseException], object]) -> bool:
        """Wait for the end of the step. After a cancellation, wait up to `GRACE` seconds more. Returns whether it has ended.

        `on_cancel` is called with each cancellation of the wait.
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
                deadline = deadline or self._loop.time() + GRACE
                on_cancel(cancelled)
        return True

    def abandon(self) -> None:
        """Log an error of the step, because no caller takes it."""
        self._is_abandoned = True

    def take(self) -> tuple[Any, BaseException | None, asyncio.CancelledError | None]:
        """Remove and return value, error and cancellation: the frames of an error refer to the step."""
        taken = self.value, self.error, self.cancelled
        self.value = self.error = self.cancelled = None
        return taken


class ResourceThread:
    """Runs steps in one thread, in order and in one context.

    A resource can use another resource that is bound to its thread, such as a connection of sqlite3. A teardown sees the
    context variables that the setup has set. The thread is separate from the threads of the executor, so that long tasks
    do not delay a teardown. It starts with the first step.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
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
            self._thread = start_thread(self._run, name="cascade-resource")
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
        """Whether the interpreter is about to exit before the run could end."""
        owner = self._owner
        return not threading.main_thread().is_alive() and (owner is None or owner.daemon or not owner.is_alive())
