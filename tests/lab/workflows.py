"""Workflows of the tests: one with tasks of all kinds, and one with one task."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import cascade as cs
from cascade.testing import MemoryConnector


@cs.resource
def plain() -> Iterator[int]:
    yield 10


@cs.resource
async def asynchronous() -> AsyncIterator[int]:
    yield 20


@cs.task
def in_thread(x: int) -> int:
    return x


@cs.task(threaded=False)
def in_loop(x: int) -> int:
    return x


@cs.task
async def coroutine(x: int) -> int:
    return x


@cs.task
def outer(x: int) -> int:
    return cs.run(in_thread(x), log_level="OFF")


@cs.task
def total(*values: int, items: list[int], a: int = cs.inject(plain), b: int = cs.inject(asynchronous)) -> int:
    return sum(values) + sum(items) + a + b


class FailsOnce:
    """A task that raises in the first attempt."""

    def __init__(self) -> None:
        self.attempts = 0

    def __call__(self) -> int:
        self.attempts += 1
        if self.attempts == 1:
            raise ConnectionError("once")
        return self.attempts


TOTAL = 56


def all_task_kinds() -> Any:
    """Return a workflow with tasks of all kinds. Its value is TOTAL."""
    retried = cs.task(FailsOnce(), name="retried")().with_retry(max_attempts=1, delay=0)
    return total(in_thread(1), in_loop(2), coroutine(3), outer(4), retried, items=in_thread.map(x=[5, 4, 5]))


@cs.task
async def load() -> int:
    return 1


def recorded() -> list[Any]:
    """Return the messages of a run of one task: started, RUNNING, COMPLETED, stopped."""
    connector = MemoryConnector()
    cs.run(load(), connector=connector, log_level="OFF")
    return connector.messages
