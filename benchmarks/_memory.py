"""Memory of a large graph and of a large map, each in its own process: the growth of its resident memory in bytes."""

import gc
from typing import Any

import cascade as cs
from benchmarks import _graphs
from benchmarks._runs import current_rss, peak_rss
from cascade.adapters.solvers.native import NativeSolver
from cascade.graph.build import build_graph

BYTES = 1 << 20
_WARM = 10
"""Steps of a graph that runs first, so that imports do not count."""


def planned(count: int) -> list[float]:
    """Return the bytes of the lazy results of a layered graph, and those of its graph and plan."""
    steps = _graphs.layered(count)
    NativeSolver().resolve(build_graph(_graphs.workflow(_graphs.layered(_WARM))))
    before = _collected()
    target = _graphs.workflow(steps)
    called = _collected()
    plan = NativeSolver().resolve(build_graph(target))
    both = _collected()
    del plan
    return [called - before, both - called]


def run(count: int) -> float:
    """Return the bytes by which a run raises the peak. The lazy results of its layered graph exist before."""
    cs.run(_graphs.workflow(_graphs.layered(_WARM)), log_level="ERROR")
    target = _graphs.workflow(_graphs.layered(count))
    before = _collected()
    cs.run(target, log_level="ERROR")
    return peak_rss() * BYTES - before


def mapped(count: int) -> list[float]:
    """Return the bytes by which a map raises the memory until its first item runs, and those by which it raises the peak."""
    started: list[float] = []

    @cs.task
    async def item(x: int) -> int:
        if not x:
            started.append(current_rss() * BYTES)
        return x

    values: list[Any] = list(range(count))
    cs.run(item.map(x=[0]), log_level="ERROR")
    started.clear()
    target = item.map(x=values)
    before = _collected()
    cs.run(target, log_level="ERROR")
    return [started[0] - before, peak_rss() * BYTES - before]


def _collected() -> float:
    """Return the present memory in bytes, after a garbage collection."""
    gc.collect()
    return current_rss() * BYTES
