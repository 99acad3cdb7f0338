"""Runs with `DiskCache`: the second run against the first one, and both against a run without a cache."""

import tempfile
import time
from collections.abc import Iterator
from typing import Any

import cascade as cs
from benchmarks._measure import Goal, Pair, Row, timed, versus
from benchmarks._process import call
from benchmarks._scale import Scale

GOAL = Goal(0.3)
PAUSE = 0.001
STEPS = 12_000
"""Additions that take about 1 ms."""


def sleep(x: int) -> int:
    time.sleep(PAUSE)
    return x


def compute(x: int) -> int:
    for step in range(STEPS):
        x += step
    return x


WORK = {"sleep": sleep, "compute": compute}


def measure(work: str, size: int, rounds: int) -> list[tuple[float, float, float]]:
    """Return the seconds per task of a run without a cache, of a first and of a second run with a cache."""
    task: Any = cs.task(WORK[work])
    target = task.map(x=list(range(size)))
    found = []
    cs.run(task(0), log_level="ERROR")
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as directory:
            caches = None, cs.DiskCache(directory), cs.DiskCache(directory)
            none, first, second = (_seconds(target, cache, size) for cache in caches)
            found.append((none, first, second))
    return found


def _seconds(target: Any, cache: cs.DiskCache | None, size: int) -> float:
    return timed(lambda: cs.run(target, cache=cache, log_level="ERROR")) / size


def rows(scale: Scale) -> Iterator[Row]:
    size = scale.sizes[:2][-1]
    for work in WORK:
        found = call(measure, work=work, size=size, rounds=scale.rounds)
        what = f"cached 1 ms tasks, {work}, {size:,}"
        hits, stores, without = list[Pair](), list[Pair](), list[Pair]()
        for none, first, second in found:
            hits.append((second, first))
            stores.append((first, none))
            without.append((second, none))
        yield versus(f"{what}, second run against the first, per task", hits, "µs", GOAL, scale=1e6)
        yield versus(f"{what}, second run against one without a cache, per task", without, "µs", scale=1e6)
        yield versus(f"{what}, first run against one without a cache, per task", stores, "µs", scale=1e6)
