"""The engine without a connector against bare asyncio, with graphs of no-op coroutines."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import cascade as cs
from benchmarks import _graphs
from benchmarks._measure import Figure, Goal, Pair, Row, interleaved, timed, versus
from benchmarks._process import call
from benchmarks._scale import Scale
from cascade.adapters.solvers.native import NativeSolver
from cascade.graph.build import build_graph
from cascade.runtime.flow import FlowManager, lazy_id

SMALL = 10_000
"""Graphs up to this size run several times per round, because a single short run is dominated by noise."""
SMALL_TURNS = 3

ENGINE_GOAL = Goal(3.0)
LINEAR_GOAL = Goal(1.3)


ALL_SHAPES = (*_graphs.SHAPES, "map")


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


def alone(shape: str, sizes: list[int]) -> list[dict[str, float]]:
    """Return for each size the seconds per task of the calls, of graph and plan, and of a run, without a baseline."""
    _alone(shape, min(sizes[0], 100))  # imports the modules that are imported on first use
    found = []
    for size in sizes:
        turns = [_alone(shape, size) for _ in range(SMALL_TURNS if size <= SMALL else 1)]
        found.append({part: median(turn[part] for turn in turns) for part in turns[0]})
    return found


def _alone(shape: str, size: int) -> dict[str, float]:
    target, calls = _called(_both(shape, size)[0])
    return {
        "calls": calls / size,
        "plan": _plan_seconds(target) / size,
        "run": timed(lambda: cs.run(target, log_level="ERROR")) / size,
    }


def _called(make: Callable[[], Any]) -> tuple[Any, float]:
    """Return a workflow, and the seconds for the calls of its tasks."""
    made: list[Any] = []
    seconds = timed(lambda: made.append(make()))
    return made[0], seconds


def _plan_seconds(target: Any) -> float:
    """Return the seconds for graph and plan, without garbage collections, as the engine builds large graphs."""

    def plan() -> None:
        gc.disable()
        try:
            graph = build_graph(target)
            NativeSolver().resolve(graph)
            FlowManager(graph, lazy_id(target))
        finally:
            gc.enable()

    return timed(plan)


def _one_round(
    shape: str,
    size: int,
    turns: int,
    runs: dict[int, list[Pair]],
    calls: dict[int, list[float]],
    plans: dict[int, list[float]],
) -> None:
    make, baseline = _both(shape, size)
    target, seconds = _called(make)
    calls.setdefault(size, []).append(seconds / size)
    plans.setdefault(size, []).append(_plan_seconds(target) / size)
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
    for shape in ALL_SHAPES:
        found = call(measure, shape=shape, sizes=sizes, rounds=scale.rounds)
        for size, pairs in zip(sizes, found["runs"], strict=True):
            yield versus(f"engine, {shape}, {size:,}, per task", pairs, "µs", ENGINE_GOAL, scale=1e6)
        grown = f"{sizes[-1]:,} against {sizes[0]:,}"
        ours = [[pair[0] for pair in pairs] for pairs in found["runs"]]
        yield _growth(f"engine, {shape}, cost per task at {grown}", ours)
        if shape != "map":  # a map of any size is one call and one node
            yield _growth(f"calling the tasks, {shape}, {grown}", found["calls"])
            yield _growth(f"graph and plan, {shape}, {grown}", found["plans"])
        if scale.largest:
            yield from _once(shape, sizes[0], scale.largest)


def figures(scale: Scale, tree: Path | None) -> Iterator[Figure]:
    """Yield the cost per task of the revision in `tree`."""
    for shape in ALL_SHAPES:
        for size, found in zip(scale.sizes, call(alone, tree=tree, shape=shape, sizes=scale.sizes), strict=True):
            yield Figure(f"engine, {shape}, {size:,}, per task", found["run"], "µs", 1e6)
            if shape != "map":
                yield Figure(f"graph and plan, {shape}, {size:,}, per task", found["plan"], "µs", 1e6)


def _once(shape: str, small: int, large: int) -> Iterator[Row]:
    """Yield the cost per task of a very large graph against a small one, measured once."""
    first, second = call(alone, shape=shape, sizes=[small, large])
    grown = f"{large:,} against {small:,}, once"
    yield versus(f"engine, {shape}, cost per task at {grown}", [(second["run"], first["run"])], "µs", scale=1e6)
    if shape != "map":
        pair = second["plan"], first["plan"]
        yield versus(f"graph and plan, {shape}, {grown}", [pair], "µs", LINEAR_GOAL, scale=1e6)


def _growth(what: str, by_size: list[list[float]]) -> Row:
    """Return the cost per task of the largest graph against the smallest, by rounds."""
    small, large = by_size[0], by_size[-1]
    turns = max(1, len(small) // len(large))
    return versus(what, list(zip(large, small[::turns], strict=False)), "µs", LINEAR_GOAL, scale=1e6)
