"""Graphs of tasks that do nothing, described once: for Cascade, for bare asyncio, for the peers.

A graph lists for each step the steps whose values it needs; its last step collects the values of others as a list.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import cascade as cs

Needs = list[tuple[int, ...]]

WIDTH = 100
"""Of each layer of the layered graph."""


def fan_out(size: int) -> Needs:
    """All at once, and one that collects."""
    return [*[()] * (size - 1), tuple(range(size - 1))]


def chain(size: int) -> Needs:
    """One after the other."""
    return [(), *((step,) for step in range(size - 1))]


def layered(size: int) -> Needs:
    """Layers of which each step consumes two of the layer before."""
    width = min(WIDTH, max(1, size // 3))
    needs: Needs = [()] * width
    for step in range(width, size - 1):
        start = step // width * width
        needs.append((step - width, start - width + (step - start + 1) % width))
    return [*needs, tuple(range(len(needs) - width, len(needs)))]


SHAPES: dict[str, Callable[[int], Needs]] = {"fan-out": fan_out, "chain": chain, "layered": layered}


async def noop(*_values: Any) -> None:
    pass


async def collect(values: list[Any]) -> int:
    return len(values)


_noop = cs.task(noop)
_collect = cs.task(collect)


def workflow(needs: Needs, step: Callable[..., Any] = _noop, last: Callable[..., Any] = _collect) -> Any:
    """The graph as a user of Cascade writes it."""
    lazy: list[Any] = []
    for wanted in needs[:-1]:
        lazy.append(step(*[lazy[one] for one in wanted]))
    return last([lazy[one] for one in needs[-1]])


async def bare(needs: Needs) -> Any:
    """The graph on bare asyncio: a coroutine is started as a task once all that it needs is there."""
    consumers: list[list[int]] = [[] for _ in needs]
    pending = [len(wanted) for wanted in needs]
    for step, wanted in enumerate(needs):
        for one in wanted:
            consumers[one].append(step)
    values: list[Any] = [None] * len(needs)
    loop, tasks, last = asyncio.get_running_loop(), set[asyncio.Task[None]](), len(needs) - 1
    done: asyncio.Future[Any] = loop.create_future()

    def start(step: int) -> None:
        task = loop.create_task(perform(step))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def perform(step: int) -> None:
        inputs = [values[one] for one in needs[step]]
        values[step] = await (collect(inputs) if step == last else noop(*inputs))
        for consumer in consumers[step]:
            pending[consumer] -= 1
            if not pending[consumer]:
                start(consumer)
        if step == last:
            done.set_result(values[step])

    for step, count in enumerate(pending):
        if not count:
            start(step)
    return await done
