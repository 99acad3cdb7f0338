"""Calls of connectors: their errors do not end a run.

`KeyboardInterrupt`, `SystemExit` and a cancellation of the run are raised.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.telemetry.sanitize import error_text

logger = get_logger(__name__)

FAULTS = (Exception, asyncio.CancelledError, GeneratorExit)
"""Errors of a plain function of a connector. A cancellation of the run is raised only in an `await`."""


async def call_connector(call: Callable[[], Awaitable[Any]], timeout: float | None = None) -> None:  # noqa: ASYNC109 - as asyncio.wait_for
    """Call a method of a connector and await the result, for `timeout` seconds at most.

    Raises:
        TimeoutError: The call has not ended in time.
        CancelledError: The current asyncio task was cancelled.
        RuntimeError: The call raised a CancelledError or GeneratorExit of its own.
        Exception: An error of the call.
    """
    task = asyncio.current_task()
    try:
        await asyncio.wait_for(call(), timeout)
    except (asyncio.CancelledError, GeneratorExit) as error:
        if is_own_cancellation(error, task):
            raise
        raise RuntimeError("the connector has cancelled the call") from None


def is_own_cancellation(error: BaseException, task: asyncio.Task[Any] | None) -> bool:
    """Return True if `task` was cancelled or its coroutine is closed, and False if a connector has raised the error.

    `task` is the asyncio task that awaits the connector.
    """
    if isinstance(error, GeneratorExit):
        return task is None or task is not _running_task()
    return isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling() > 0)


def _running_task() -> asyncio.Task[Any] | None:
    """Return the current asyncio task. A coroutine is closed outside of its task, perhaps without an event loop."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def flush_timeout_of(connector: object) -> float:
    """Return the optional attribute `flush_timeout` of a connector in seconds; 0 if it cannot be read."""
    try:
        found = getattr(connector, "flush_timeout", 0.0)
    except FAULTS as error:
        raise_in_tests(error)
        logger.warning("%s.flush_timeout is ignored: %s", type(connector).__name__, error_text(error))
        return 0.0
    return float(found) if isinstance(found, (int, float)) and found > 0 else 0.0


def texts_of(connector: object, name: str) -> frozenset[str]:
    """Return the texts of the optional attribute `capture` or `ignored` of a connector; none if it cannot be read."""
    try:
        return frozenset(word for word in getattr(connector, name, ()) if isinstance(word, str))
    except FAULTS as error:
        raise_in_tests(error)
        logger.warning("%s.%s is ignored: %s", type(connector).__name__, name, error_text(error))
        return frozenset()
