"""The engine without a connector against bare asyncio, with graphs of no-op coroutines."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import cascade as cs
from benchmarks import _graphs
from benchmarks._measure import Goal, Pair, Row, interleaved, timed, versus
from benchmarks._process import call
from benchmarks._scale import Scale
from cascade.adapters.solvers.native import NativeSolver
from cascade.graph.build import build_graph

SMALL = 10_000
"""Graphs up to this size run several times per round, because a single short run is dominated by noise."""
SMALL_TURNS = 3

ENGINE_GOAL = Goal(4.0)
LINEAR_GOAL = Goal(1.5)


@cs.task
async def item(x: int) -> int:
    return x


async def bare_item(x: int) -> int:
    return x


async def bare_map(size: int) -> list[int]:
    return await asyncio.gather(*[bare_item(x) for x in range(size)])


def measure(shape: str, sizes: list[int], rounds: int) -> dict[str, Any]:
    """Return the seconds per task and size: of runs and their baselines, of the calls, and of graph and plan."""
    _one_round(shape, min(sizes[0], 100), 1, {}, {}, {})  # imports the modules that are imported on first use
    runs: dict[int, list[Pair]] = {}
    calls: dict[int, list[float]] = {}
    plans: dict[int, list[float]] = {}
    for _ in range(rounds):
        for size in sizes:
            _one_round(shape, size, SMALL_TURNS if size <= SMALL else 1, runs, calls, plans)
    return {"runs": list(runs.values()), "calls": list(calls.values()), "plans": list(plans.values())}


def _one_round(
    shape: str,
    size: int,
    turns: int,
    runs: dict[int, list[Pair]],
    calls: dict[int, list[float]],
    plans: dict[int, list[float]],
) -> None:
    make, baseline = _both(shape, size)
    target: Any = None

    def call_tasks() -> None:
        nonlocal target
        target = make()

    calls.setdefault(size, []).append(timed(call_tasks) / size)
    plans.setdefault(size, []).append(timed(lambda: NativeSolver().resolve(build_graph(target))) / size)
    runs.setdefault(size, []).extend(
        interleaved(
            lambda: timed(lambda: cs.run(target, log_level="ERROR")) / size, lambda: timed(baseline) / size, turns
        )
    )


def _both(shape: str, size: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return a function that makes the workflow, and one that runs the same graph on bare asyncio."""
    if shape == "map":
        return lambda: item.map(x=list(range(size))), lambda: asyncio.run(bare_map(size))
    graph = _graphs.SHAPES[shape](size)
    return lambda: _graphs.workflow(graph), lambda: asyncio.run(_graphs.bare(graph))


def rows(scale: Scale) -> Iterator[Row]:
    """Yield for each shape: each size against asyncio, and the cost per task of the largest against the smallest."""
    sizes = scale.sizes
    for shape in (*_graphs.SHAPES, "map"):
        found = call(measure, shape=shape, sizes=sizes, rounds=scale.rounds)
        for size, pairs in zip(sizes, found["runs"], strict=True):
            yield versus(f"engine, {shape}, {size:,}, per task", pairs, "µs", ENGINE_GOAL, scale=1e6)
        grown = f"{sizes[-1]:,} against {sizes[0]:,}"
        ours = [[pair[0] for pair in pairs] for pairs in found["runs"]]
        yield _growth(f"engine, {shape}, cost per task at {grown}", ours)
        if shape != "map":  # a map of any size is one call and one node
            yield _growth(f"calling the tasks, {shape}, {grown}", found["calls"])
            yield _growth(f"graph and plan, {shape}, {grown}", found["plans"])


def _growth(what: str, by_size: list[list[float]]) -> Row:
    """Return the cost per task of the largest graph against the smallest, by rounds."""
    small, large = by_size[0], by_size[-1]
    turns = max(1, len(small) // len(large))
    return versus(what, list(zip(large, small[::turns], strict=False)), "µs", LINEAR_GOAL, scale=1e6)
