"""Limits of time for tests: one that only a hang reaches, and helpers that wait for a condition."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

HANG = 120.0
"""Seconds after which a test takes what it waits for to hang. No loaded machine is that slow."""
NEVER = 3600.0
"""Seconds, more than a test may take: code that waits for all of them makes its test fail by the test's own limit."""
_LOOK = 0.01


async def soon(work: Awaitable[T]) -> T:
    """The result of work that must not hang."""
    return await asyncio.wait_for(work, HANG)


async def until(condition: Callable[[], object]) -> None:
    """Return once the condition holds. For state of other threads and processes, which has no event to wait for."""
    async with asyncio.timeout(HANG):
        while not condition():  # noqa: ASYNC110 - another thread makes it true
            await asyncio.sleep(_LOOK)


def until_blocking(condition: Callable[[], object]) -> None:
    """The same without an event loop."""
    deadline = time.monotonic() + HANG
    while not condition():
        assert time.monotonic() < deadline, "hangs"
        time.sleep(_LOOK)
