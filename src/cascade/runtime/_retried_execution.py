"""Executes a task with a retry policy."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from cascade.runtime._task_execution import TaskExecution
from cascade.runtime.events import Attempt, ErrorInfo, TaskExecutionStarted, TaskRetrying
from cascade.runtime.exceptions import Tracebacks, add_later_error, append_bounded, result_of
from cascade.runtime.task_context import in_context
from cascade.spec.retry import RetryPolicy, checked_seconds


class RetriedExecution(TaskExecution):
    """Execution of a task with a retry policy: calls the function until an attempt succeeds or the policy ends.

    `sleep` waits for the delay of a retry; by default `asyncio.sleep`.

    Attributes:
        attempts: The ended attempts; at most `MAX_HISTORY`.
        attempt_count: The number of ended attempts.
        is_in_attempt: False before the first attempt and between two attempts.
        has_left_place: Whether a function of an earlier attempt still runs in the place of the task.
    """

    attempts: tuple[Attempt, ...] = ()
    attempt_count = 0
    is_in_attempt = False
    has_left_place = False

    def __init__(self, *args: Any, sleep: Callable[[float], Awaitable[None]] | None = None) -> None:
        super().__init__(*args)
        self._sleep = sleep or asyncio.sleep

    @property
    def policy(self) -> RetryPolicy:
        policy = self.node.retry_policy
        assert policy is not None  # noqa: S101 - for the type checker: only such tasks have this class
        return policy

    async def _attempts(self) -> Any:
        number, start_ns, tracebacks = 1, self.start_ns, Tracebacks()
        while True:
            self.is_in_attempt = True
            try:
                if number == 1:
                    return await self._call(1, start_ns)
                # A new context is without the context variables that an earlier attempt has set.
                return await in_context(self.run.new_context(), self._call(number, start_ns))
            except Exception as error:
                delay = self._delay_after(number, error)
                if delay is None:
                    raise
                end_ns = self._publish_retrying(error, delay)
                tracebacks.restore(error)
            await self._wait_for_retry(end_ns, delay)
            number += 1
            start_ns = self.run.clock.now_ns()

    def _delay_after(self, number: int, error: Exception) -> float | None:
        """Return the seconds until the next attempt; None for no attempt.

        There is none after the last one, for an error that is not retried, or if the retry policy raises an error.
        """
        if number > self.policy.max_attempts:
            return None
        try:
            if not self.policy.retries(error):
                return None
            return checked_seconds("delay_before", self.policy.delay_before(number))
        except Exception as broken:  # noqa: BLE001 - the task raises its own error
            add_later_error(error, broken, f"the retry policy of {self.describe()}")
            return None

    def _publish_retrying(self, error: Exception, delay: float) -> int:
        """Publish the end of an attempt that a retry follows. Returns the time of the end."""
        end_ns, fields, result = self.run.clock.now_ns(), self.run.error_fields(error), result_of(error)
        self._add_attempt(end_ns, result, fields["exception"])
        fields["cpu_seconds"] = self._attempt_cpu_seconds()
        fields |= {"attempt": self.attempt, "max_attempts": self.policy.max_attempts, "delay": delay, "result": result}
        self._emit(TaskRetrying, start_ns=self.attempt_start_ns, end_ns=end_ns, **fields)
        return end_ns

    async def _wait_for_retry(self, start_ns: int, delay: float) -> None:
        if self.permit is not None:
            self.permit.release()
        try:
            await self._sleep(delay)
        finally:
            self._add_wait("retry", start_ns)
        if self.has_left_place or (self.permit is not None and not self.permit.try_acquire()):
            self.has_left_place = False
            self._release_resources()  # a blocked task holds no resources
            await self._acquire()
            self._emit(TaskExecutionStarted, start_ns=self.run.clock.now_ns(), attempt=self.attempt + 1)

    def _attempt_cpu_seconds(self) -> float | None:
        usage = self.usage
        return None if usage is None or usage.cpu_ns is None else usage.cpu_ns / 1e9

    def _add_attempt(self, end_ns: int, result: str, exception: ErrorInfo | None) -> None:
        self.is_in_attempt = False
        cpu_seconds = self._attempt_cpu_seconds()
        attempt = Attempt(self.attempt, self.attempt_start_ns, end_ns, exception, result, cpu_seconds)
        self.attempts = append_bounded(self.attempts, attempt)
        self.attempt_count += 1

    def _attempt_fields(self, end_ns: int, result: str, exception: ErrorInfo | None) -> dict[str, Any]:
        if self.is_in_attempt:
            self._add_attempt(end_ns, result, exception)
        return {
            "attempts": self.attempts,
            "attempt_count": self.attempt_count,
            "max_attempts": self.policy.max_attempts,
        }
