"""Thread in which the plain generators of one run are set up and torn down."""

import asyncio
import queue
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any

from cascade._loggers import get_logger
from cascade.runtime.threads import leave_running, start_thread
from cascade.telemetry.safe import error_text

logger = get_logger(__name__)

GRACE = 5.0
"""Seconds that a cancelled run waits for the step that the thread is in: a thread cannot be interrupted."""

LOOK = 1.0
"""Seconds after which an idle thread looks whether the interpreter is about to exit."""


class Step:
    """One call in the thread. `cancelled` is the first cancellation of the wait for it."""

    __slots__ = (
        "_context",
        "_done",
        "_is_abandoned",
        "_loop",
        "_name",
        "_work",
        "cancelled",
        "error",
        "is_over",
        "value",
    )

    def __init__(self, name: str, work: Callable[[], Any], context: Context) -> None:
        self._name = name
        self._work: Callable[[], Any] | None = work
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
        work, self._work = self._work, None
        assert work is not None  # noqa: S101 - for the type checker: a step runs once
        try:
            self.value = self._context.run(work)
        except BaseException as error:  # noqa: BLE001 - raised again by the caller
            self.error = error
        del work
        self.is_over = True
        if self._is_abandoned and self.error is not None:
            logger.warning("After the run ended, the %s failed: %s", self._name, error_text(self.error))
            self.error = None
        try:
            self._loop.call_soon_threadsafe(self._done.set_result, None)
        except RuntimeError:  # the loop is closed: the run has ended without this step
            return

    async def wait(self, on_cancel: Callable[[BaseException], object]) -> bool:
        """Wait until the step is over. After a cancellation, wait at most `GRACE` seconds more: False if it is not over.

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
        """Log an error of the step, which no caller will see."""
        self._is_abandoned = True

    def take(self) -> tuple[Any, BaseException | None, asyncio.CancelledError | None]:
        """Value, error and cancellation, once: an error refers to frames that refer to the step."""
        taken = self.value, self.error, self.cancelled
        self.value = self.error = self.cancelled = None
        return taken


class ResourceThread:
    """Runs steps in one thread, in their order and in one context.

    A resource can use another one that is bound to its thread, such as a connection of sqlite3, and teardown finds
    the context variables that setup has set. The thread is none of the executor's: tasks that occupy all of those
    cannot delay a teardown. It starts with the first step.
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

    def submit(self, name: str, work: Callable[[], Any]) -> Step:
        """Queue a call, which runs even if the caller does not wait for it. `name` is for error texts."""
        if self._owner is None:
            self._thread = start_thread(self._run, name="cascade-resource")
            self._owner = threading.current_thread()
        step = Step(name, work, self.context)
        self._steps.put(step)
        return step

    def close(self) -> None:
        """End the thread after the steps that are queued."""
        if self._owner is not None:
            self._steps.put(None)

    def _run(self) -> None:
        while True:
            try:
                step = self._steps.get(timeout=LOOK)
            except queue.Empty:
                if self._is_orphaned():
                    return
            else:
                if step is None:
                    return
                step.run()
                del step

    def _is_orphaned(self) -> bool:
        """Whether the interpreter is about to exit, and the run cannot end any more."""
        owner = self._owner
        return not threading.main_thread().is_alive() and (owner is None or owner.daemon or not owner.is_alive())
