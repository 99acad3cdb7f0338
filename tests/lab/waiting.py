"""Time limits of tests, and functions that wait for a condition."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

HANG = 120.0
"""Seconds after which a wait of a test fails. No loaded machine is so slow."""
NEVER = 3600.0
"""Seconds that exceed the time limit of a test. Code that waits for the whole time makes its test fail."""
_INTERVAL = 0.01


async def with_timeout(work: Awaitable[T]) -> T:
    """Await the work for `HANG` seconds at most and return its result."""
    return await asyncio.wait_for(work, HANG)


async def until(condition: Callable[[], object]) -> None:
    """Return once the condition is true. For state of other threads and processes without an event to wait for."""
    async with asyncio.timeout(HANG):
        while not condition():  # noqa: ASYNC110 - another thread makes it true
            await asyncio.sleep(_INTERVAL)


def until_blocking(condition: Callable[[], object]) -> None:
    """Return once the condition is true, without an event loop."""
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, "the condition is not true in time"
        time.sleep(_INTERVAL)
