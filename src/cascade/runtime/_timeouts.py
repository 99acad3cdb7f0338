"""Timeouts of attempts and of runs.

A timeout cancels a coroutine once. What the coroutine does afterwards does not change the result: a late value is ignored, and
a late error is the cause of the `TimeoutError`. A function in a thread cannot be stopped: its attempt ends without it.
"""

import asyncio
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any, Self

from cascade._loggers import get_logger
from cascade.graph.model import Graph, Node
from cascade.runtime._retried_execution import RetriedExecution
from cascade.runtime._run_context import RunContext
from cascade.runtime._task_execution import TaskExecution
from cascade.runtime.exceptions import AnyFuture, StillRunning, add_note
from cascade.runtime.task_context import TaskContext
from cascade.telemetry.limits import MAX_NAME_BYTES, truncate
from cascade.telemetry.sanitize import error_text

logger = get_logger(__name__)


class Deadline:
    """Cancels the current asyncio task if the `with` block takes longer than a number of seconds.

    A run starts its coroutines in shared asyncio tasks, but each coroutine that suspends has one for itself. The timer needs
    no further asyncio task.

    Attributes:
        has_expired: Whether the time is over.
        is_cause: After the block: whether this deadline, and nothing else, has cancelled the task.
    """

    def __init__(self, seconds: float, reason: str | None = None) -> None:
        self._seconds = seconds
        self._reason = reason
        self.has_expired = self.is_cause = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker: the caller is a coroutine of a run
        self._task = task
        self._cancelling = task.cancelling()
        self._loop = task.get_loop()
        self._timer: asyncio.Handle = self._loop.call_later(self._seconds, self._expire_soon)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self.has_expired:
            self.is_cause = self._task.uncancel() <= self._cancelling
        del self._task

    def _expire_soon(self) -> None:
        """Expire in the next turn of the event loop.

        After a blocked turn, the loop learns at once that the time is over and that the function has ended in time.
        """
        self._timer = self._loop.call_soon(self._expire)

    def _expire(self) -> None:
        self.has_expired = True
        self._task.cancel(self._reason)


_ATTEMPT: ContextVar[tuple[TaskExecution, int] | None] = ContextVar("cascade_attempt", default=None)
"""The execution and the number of the attempt that the code belongs to."""


class TimedExecution(TaskExecution):
    """Execution of a task with a timeout, which limits each attempt.

    Attributes:
        deadline: The deadline of the current attempt.
        left: The identities of the attempts whose functions still run, by number.
    """

    deadline: Deadline | None = None
    left: dict[int, TaskContext] | None = None

    @property
    def task(self) -> TaskContext:
        """Identity of the attempt that the caller belongs to: that of a function which still runs is not the current one."""
        if self.left is not None and (attempt := _ATTEMPT.get()) is not None and attempt[0] is self:
            return self.left.get(attempt[1]) or super().task
        return super().task

    async def _call(self, number: int, start_ns: int) -> Any:
        token = _ATTEMPT.set((self, number))
        try:
            return await self._call_in_time(number, start_ns)
        finally:
            _ATTEMPT.reset(token)

    async def _call_in_time(self, number: int, start_ns: int) -> Any:
        limit = self.node.timeout
        assert limit is not None  # noqa: S101 - for the type checker: only such tasks have this class
        deadline = self.deadline = Deadline(limit)
        late: Exception | None = None
        try:
            try:
                with deadline:
                    value = await super()._call(number, start_ns)
            except asyncio.CancelledError:
                if not deadline.is_cause:
                    raise
            except Exception as error:
                if not deadline.is_cause:
                    raise
                late = error
            else:
                if not deadline.is_cause:
                    return value
                del value
            raise TimeoutError(f"{self.describe()} exceeded its timeout of {limit:g} s") from late
        finally:
            del late  # it refers to this frame

    async def _leave_running(self, cancelled: StillRunning) -> None:
        run, deadline = self.run, self.deadline
        if deadline is None or not deadline.has_expired or run.failure is not None or run.is_cancelled:
            await super()._leave_running(cancelled)
            return
        run.add_left_running(cancelled.work, self.node.name)
        if not run.has_left_function:
            run.has_left_function = True
            logger.warning(
                "%s exceeded its timeout of %g s, but its function runs in a thread, which cannot be stopped. The run "
                "continues without it and ignores its result. Its place among the functions of max_workers stays taken "
                "until it ends, and so long the process does not exit. Further such tasks of this run are not logged",
                self.describe(),
                self.node.timeout,
            )
        self._leave_place(cancelled.work)

    def _leave_place(self, work: AnyFuture) -> None:
        """Leave the permit and the resources to the function that still runs. A retry acquires others."""
        run, permit, amounts = self.run, self.permit, self.amounts
        self.amounts = None
        self.left = {**(self.left or {}), self.attempt: self.task}
        if permit is not None:
            self.permit = permit.renewed()
        if permit is not None or amounts:
            self.has_left_place = True
            slot = None if permit is None else permit.take_slot()
            run.leave_place(work, slot, permit, amounts)


class TimedRetriedExecution(TimedExecution, RetriedExecution):
    """Execution of a task with a timeout and a retry policy."""


def execution_type(node: Node) -> type[TaskExecution]:
    """Return the class of the executions of a node: with or without a retry policy, and a timeout."""
    if node.timeout is not None:
        return TimedExecution if node.retry_policy is None else TimedRetriedExecution
    return TaskExecution if node.retry_policy is None else RetriedExecution


async def within_timeout(run: RunContext, graph: Graph, limit: float, work: Coroutine[Any, Any, Any]) -> Any:
    """Await the tasks of a run for at most its timeout.

    Raises:
        TimeoutError: The time was over. The text has the name of the run, the limit, and the tasks that were running.
    """
    name = f"the run of {truncate(', '.join(graph.target_names()), MAX_NAME_BYTES)!r}"
    deadline = Deadline(limit, f"cancelled because {name} exceeded its timeout of {limit:g} s")
    try:
        with deadline:
            return await work
    except asyncio.CancelledError:
        if not deadline.is_cause:
            raise
    error = TimeoutError(f"{name} exceeded its timeout of {limit:g} s; {_interrupted(run)}")
    try:
        if run.first_error is not None:
            add_note(error, f"Before that, a task failed: {error_text(run.first_error)}")
        raise error
    finally:
        del error  # it refers to this frame


def _interrupted(run: RunContext) -> str:
    more = run.interrupted_count - len(run.interrupted)
    others = f" and {more:,} more" if more else ""
    text = f"running tasks: {', '.join(run.interrupted)}{others}" if run.interrupted else "no task was running"
    if run.left_running:
        names = ", ".join(map(repr, dict.fromkeys(run.left_running.values())))
        text += f". Functions in threads cannot be stopped and still run: {names}"
    return text
