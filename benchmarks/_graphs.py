"""Graphs of no-op tasks, in one form for Cascade, bare asyncio and other engines.

A graph is a list with the inputs of each step. The last step collects the values of its inputs as a list.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import cascade as cs

Graph = list[tuple[int, ...]]

WIDTH = 100
"""Steps in each layer of the layered graph."""


def fan_out(size: int) -> Graph:
    """Independent steps, and one step that collects their values."""
    return [*[()] * (size - 1), tuple(range(size - 1))]


def chain(size: int) -> Graph:
    """Steps in sequence."""
    return [(), *((step,) for step in range(size - 1))]


def layered(size: int) -> Graph:
    """Layers of steps. Each step has two inputs from the previous layer."""
    width = min(WIDTH, max(1, size // 3))
    graph: Graph = [()] * width
    for step in range(width, size - 1):
        start = step // width * width
        graph.append((step - width, start - width + (step - start + 1) % width))
    return [*graph, tuple(range(len(graph) - width, len(graph)))]


SHAPES: dict[str, Callable[[int], Graph]] = {"fan-out": fan_out, "chain": chain, "layered": layered}


async def noop(*_values: Any) -> None:
    pass


async def collect(values: list[Any]) -> int:
    return len(values)


_noop = cs.task(noop)
_collect = cs.task(collect)


def workflow(graph: Graph, step: Callable[..., Any] = _noop, last: Callable[..., Any] = _collect) -> Any:
    """Return the graph as a lazy result."""
    lazy: list[Any] = []
    for inputs in graph[:-1]:
        lazy.append(step(*[lazy[one] for one in inputs]))
    return last([lazy[one] for one in graph[-1]])


async def bare(graph: Graph) -> Any:
    """Run the graph on bare asyncio. A step starts as an asyncio task when all its inputs are available."""
    consumers: list[list[int]] = [[] for _ in graph]
    pending = [len(inputs) for inputs in graph]
    for step, inputs in enumerate(graph):
        for one in inputs:
            consumers[one].append(step)
    values: list[Any] = [None] * len(graph)
    loop, tasks, last = asyncio.get_running_loop(), set[asyncio.Task[None]](), len(graph) - 1
    done: asyncio.Future[Any] = loop.create_future()

    def start(step: int) -> None:
        task = loop.create_task(perform(step))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def perform(step: int) -> None:
        inputs = [values[one] for one in graph[step]]
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
