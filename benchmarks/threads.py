"""Plain functions in threads against a bare thread pool with the same number of workers."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cascade as cs
from benchmarks import _graphs
from benchmarks._measure import Figure, Goal, Pair, Row, interleaved, timed, versus
from benchmarks._process import call
from benchmarks._scale import Scale

GOAL = Goal(1.3)
PAUSE = 0.001


def nothing() -> None:
    pass


def millisecond() -> None:
    time.sleep(PAUSE)


WORK = {"no-op": nothing, "1 ms": millisecond}


def measure(work: str, size: int, rounds: int) -> list[Pair]:
    """Return the seconds per task of a fan-out of plain functions, and of a thread pool with the same functions."""
    from cascade.adapters.executors.slots import DEFAULT_SLOTS  # here, because other revisions have another name

    function = WORK[work]
    target = _graphs.workflow(_graphs.fan_out(size), cs.task(function))

    async def bare() -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(DEFAULT_SLOTS) as pool:
            await asyncio.gather(*[loop.run_in_executor(pool, function) for _ in range(size - 1)])

    def subject() -> float:
        return timed(lambda: cs.run(target, log_level="ERROR")) / size

    def baseline() -> float:
        return timed(lambda: asyncio.run(bare())) / size

    interleaved(subject, baseline, 1)
    return interleaved(subject, baseline, rounds)


def alone(work: str, size: int) -> float:
    """Return the seconds per task of a fan-out of plain functions. A run before it is not counted."""
    target = _graphs.workflow(_graphs.fan_out(size), cs.task(WORK[work]))
    cs.run(target, log_level="ERROR")
    return timed(lambda: cs.run(target, log_level="ERROR")) / size


def figures(scale: Scale, tree: Path | None) -> Iterator[Figure]:
    """Yield the cost per task of the revision in `tree`."""
    for work in WORK:
        for size in scale.sizes[:2]:
            seconds = call(alone, tree=tree, work=work, size=size)
            yield Figure(f"thread tasks, {work}, {size:,}, per task", seconds, "µs", 1e6)


def rows(scale: Scale) -> Iterator[Row]:
    for work in WORK:
        for size in scale.sizes[:2]:
            pairs = [(ours, theirs) for ours, theirs in call(measure, work=work, size=size, rounds=scale.rounds)]
            yield versus(f"thread tasks, {work}, {size:,}, per task", pairs, "µs", GOAL, scale=1e6)
