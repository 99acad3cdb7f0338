"""CPU time of the live view on a pseudo-terminal: of a busy run, against the same run without it, and of a paused run."""

import asyncio
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import cascade as cs
from benchmarks._measure import Goal, Row, absolute
from benchmarks._process import call
from benchmarks._scale import Scale
from cascade.telemetry.topics import control_topic

CHAINS = 200
"""Tasks that run at the same time."""
CHANGES = 1_000
"""Starts and ends of tasks per second."""
COLUMNS, LINES = 120, 50
GOAL = Goal(10, unit="%")
PAUSE_GOAL = Goal(1, unit="%")


def busy(seconds: float, *, is_shown: bool) -> float:
    """Return the CPU seconds per second of a run of `CHAINS` chains. With `is_shown`, it has the view."""
    pause = 2 * CHAINS / CHANGES

    @cs.task
    async def step(_value: object) -> None:
        await asyncio.sleep(pause)

    @cs.task
    def collect(*_values: object) -> None:
        pass

    def target() -> cs.LazyResult[None]:
        ends: list[object] = [None] * CHAINS
        for _ in range(max(1, round(seconds / pause))):
            ends = [step(end) for end in ends]
        return collect(*ends)

    with _terminal():
        cs.run(step(None), connector=cs.ConsoleConnector(), log_level="OFF")  # imports the modules
        workflow = target()
        cpu, start = time.process_time(), time.perf_counter()
        cs.run(workflow, connector=cs.ConsoleConnector(tree=False) if is_shown else None, log_level="OFF")
        return (time.process_time() - cpu) / (time.perf_counter() - start)


def paused(seconds: float) -> float:
    """Return the CPU seconds per second of a paused run with the view, while `CHAINS` tasks wait."""

    @cs.task
    async def step(number: int) -> int:
        return number

    @cs.task
    def collect(*_values: object) -> None:
        pass

    async def measure() -> float:
        control = cs.MemoryConnector()
        topic = control_topic("local", "default", "global", "pause")
        await control.deliver(topic, {"type": "pause"}, retain=True)
        target = collect(*map(step, range(CHAINS)))
        run = asyncio.create_task(cs.run_async(target, connector=[control, cs.ConsoleConnector()], log_level="OFF"))
        await asyncio.sleep(1)  # until the last frame
        assert sum(payload["body"].get("state") == "PENDING" for payload in control.payloads) == CHAINS  # noqa: S101
        cpu = time.process_time()
        await asyncio.sleep(seconds)
        used = (time.process_time() - cpu) / seconds
        run.cancel()
        await asyncio.wait({run})
        return used

    with _terminal():
        return asyncio.run(measure())


@contextmanager
def _terminal() -> Iterator[None]:
    """Make stderr a terminal, whose output another process reads."""
    ours, theirs = pty.openpty()
    os.environ |= {"TERM": "xterm-256color", "CI": ""}
    previous = sys.stderr
    with subprocess.Popen(["cat"], stdin=ours, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as reader:  # noqa: S607 - of the PATH
        os.close(ours)
        with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
            sys.stderr = terminal
            subprocess.run(["stty", "cols", str(COLUMNS), "rows", str(LINES)], stdin=theirs, check=True)  # noqa: S603, S607
            try:
                yield
            finally:
                reader.kill()
                sys.stderr = previous


def rows(scale: Scale) -> Iterator[Row]:
    what = f"the live view of {CHAINS} tasks, {CHANGES:,} changes a second: CPU of a core"
    yield absolute(what, [_view(scale) for _ in range(scale.rounds)], "%", GOAL, scale=100)
    what = f"the live view of a paused run, {CHAINS} tasks waiting: CPU of a core"
    yield absolute(what, [call(paused, seconds=scale.pause)], "%", PAUSE_GOAL, scale=100)


def _view(scale: Scale) -> float:
    shown, hidden = (call(busy, seconds=scale.pause / 4, is_shown=is_shown) for is_shown in (True, False))
    return float(shown - hidden)
