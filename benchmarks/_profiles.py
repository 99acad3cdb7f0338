"""Profiles of a run: CPU time by function, the longest callbacks of the event loop, and memory by line."""

import asyncio
import cProfile
import gc
import pstats
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tracemalloc import Snapshot
from typing import Any, cast

from benchmarks._measure import number

Run = Callable[[], object]
Key = tuple[str, int, str]
"""File, line and name of a function in `pstats`."""
Statistics = dict[Key, tuple[int, int, float, float, dict[Key, tuple[int, int, float, float]]]]
"""Primitive calls, calls, own time, cumulative time, and the same of each caller."""
RUNS = 3
"""Runs without the profiler, of which the fastest counts."""


@dataclass(slots=True)
class Function:
    """CPU seconds and calls of one function in one thread, and the calls that it makes."""

    thread: str
    name: str
    own: float
    calls: int
    made: int = 0


@dataclass(frozen=True, slots=True)
class Profile:
    """A table and its total."""

    total: str
    titles: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        return f"{self.total}\n\n{table(self.titles, self.rows)}"


def cpu(run: Run, size: int, top: int) -> Profile:
    """Return the functions with the most own CPU time. Other runs measure the time without the profiler."""
    whole, loop, collections = min(_seconds(run) for _ in range(RUNS))
    with _profiled() as profiles:
        run()
    functions = list(_functions(profiles))
    calls = sum(one.calls for one in functions)
    overhead = (sum(one.own for one in functions) - whole) / calls
    for one in functions:
        one.own -= overhead * (one.calls + one.made) / 2
    functions.sort(key=lambda one: one.own, reverse=True)
    rows = [
        (number(one.own / size * 1e6), f"{one.own / whole:.1%}", number(one.calls / size), one.thread, one.name)
        for one in functions[:top]
    ]
    all_threads, own_thread, collecting = (number(one / size * 1e6) for one in (whole, loop, collections))
    total = (
        f"{all_threads} µs of CPU time per task ({own_thread} µs in the thread of the event loop, {collecting} µs "
        f"garbage collection), {number(calls / size)} calls per task"
    )
    titles = ("own µs per task", "share", "calls per task", "thread", "function")
    return Profile(total, titles, rows)


def _seconds(run: Run) -> tuple[float, float, float]:
    """Return the CPU seconds of a run: of all threads, of this thread, and of the garbage collections."""
    with _collections() as collections:
        whole, loop = time.process_time(), time.thread_time()
        run()
        loop, whole = time.thread_time() - loop, time.process_time() - whole
    return whole, loop, sum(seconds for seconds, _ in collections)


@contextmanager
def _collections() -> Iterator[list[tuple[float, int]]]:
    """Record the CPU seconds and the generation of each garbage collection."""
    found: list[tuple[float, int]] = []
    start = 0.0

    def collected(phase: str, details: dict[str, int]) -> None:
        nonlocal start
        if phase == "start":
            start = time.thread_time()
        else:
            found.append((time.thread_time() - start, details["generation"]))

    gc.callbacks.append(collected)
    try:
        yield found
    finally:
        gc.callbacks.remove(collected)


@contextmanager
def _profiled() -> Iterator[list[tuple[str, cProfile.Profile]]]:
    """Profile this thread and all threads that start meanwhile. The unit is CPU time of a thread, without waiting."""
    profiles: list[tuple[str, cProfile.Profile]] = []

    def start(*_event: Any) -> None:
        profile = cProfile.Profile(time.thread_time)
        profiles.append((threading.current_thread().name, profile))
        profile.enable()

    threading.setprofile(start)
    start()
    try:
        yield profiles
    finally:
        profiles[0][1].disable()
        threading.setprofile(None)


def _functions(profiles: Sequence[tuple[str, cProfile.Profile]]) -> Iterator[Function]:
    for thread, profile in profiles:
        profile.create_stats()
        statistics = cast("Statistics", vars(pstats.Stats(profile))["stats"])
        found = {key: Function(thread, _name(*key), own, calls) for key, (_, calls, own, _, _) in statistics.items()}
        for *_, callers in statistics.values():
            for caller, counts in callers.items():
                if caller in found:
                    found[caller].made += counts[0]
        yield from found.values()


def callbacks(run: Run, top: int) -> Profile:
    """Return the callbacks of the event loop and the garbage collections with the most CPU time."""
    found: list[tuple[float, str]] = []
    handles: Any = asyncio.Handle
    run_handle = handles._run  # noqa: SLF001 - asyncio has no hook around a callback

    def timed(handle: Any) -> None:
        start = time.thread_time()
        run_handle(handle)
        found.append((time.thread_time() - start, _callback(handle)))

    handles._run = timed  # noqa: SLF001
    try:
        with _collections() as collections:
            run()
    finally:
        handles._run = run_handle  # noqa: SLF001
    found += [(seconds, f"garbage collection of generation {generation}") for seconds, generation in collections]
    rows = [(number(seconds * 1e3), name) for seconds, name in sorted(found, reverse=True)[:top]]
    return Profile(f"{len(found):,} callbacks and garbage collections", ("ms of CPU time", "callback"), rows)


def _callback(handle: Any) -> str:
    """Return the name of a callback: of its coroutine, if it is a step of a task."""
    callback = handle._callback  # noqa: SLF001
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return f"task {getattr(owner.get_coro(), '__qualname__', owner)}"
    return str(getattr(callback, "__qualname__", callback))


@contextmanager
def memory() -> Iterator[Callable[[], Snapshot]]:
    """Record allocations. The yielded function returns those that exist, after a garbage collection."""

    def snapshot() -> Snapshot:
        gc.collect()
        return tracemalloc.take_snapshot()

    tracemalloc.start()
    try:
        yield snapshot
    finally:
        tracemalloc.stop()


def by_line(snapshot: Snapshot, size: int, top: int) -> Profile:
    """Return the lines that have allocated the most memory."""
    lines = snapshot.statistics("lineno")
    whole = sum(line.size for line in lines)
    rows = [
        (number(line.size / size), f"{line.size / whole:.1%}", number(line.count / size), _place(line.traceback[0]))
        for line in lines[:top]
    ]
    titles = ("bytes per task", "share", "blocks per task", "line")
    return Profile(f"{number(whole / size)} bytes per task", titles, rows)


def _place(frame: tracemalloc.Frame) -> str:
    return _name(frame.filename, frame.lineno, "")


def _name(file: str, line: int, name: str) -> str:
    return f"{'/'.join(Path(file).parts[-2:])}:{line} {name}".rstrip() if line else name


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [titles, ["---"] * len(titles), *rows])
