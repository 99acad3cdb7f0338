"""Runs for the tests of the documented searches: `python -m tests.e2e.search_workflows ended|active|others`.

The runs use a fixed clock, so that their durations do not depend on the machine. The last line on stdout is JSON: the run id
and the trace id of each run by name.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import cascade as cs
from cascade.runtime.engine import run_nested
from cascade.runtime.subscribers import TelemetrySubscriber
from cascade.testing import FixedClock, MemoryConnector
from tests.lab.time_limits import raise_time_limits

PART_SIZE = 10
"""Children per trace of the large run."""

PARTS = 100
"""Further traces of the large run."""

LONG = 30.0
"""Duration in seconds of the slow run, and of a part of the large run."""

CALLER = "0af7651916cd43dd8448eb211c80319c"
"""The trace that one of the runs joins."""

clock = FixedClock(time.time_ns() - 600 * 10**9)


@cs.task
async def convert(x: int) -> int:
    return x


@cs.task(name="convert")
async def convert_with_a_retry(x: int) -> int:
    task = cs.current_task()
    if task is not None and task.attempt == 1:
        raise ConnectionError("the first attempt fails")
    return x


@cs.task(name="convert")
async def fail(x: int) -> int:
    raise ValueError(f"cannot convert {x}")


@cs.task(name="convert")
async def time_out(x: int) -> int:
    raise TimeoutError(f"no answer for {x}")


@cs.task(name="convert")
async def convert_slowly(x: int) -> int:
    if x % 500 == 0:
        clock.advance(LONG)
    return x


@cs.task(name="convert")
async def convert_without_an_end(x: int) -> int:
    print("running", flush=True)
    await asyncio.Event().wait()
    return x


@cs.task
async def report(items: list[int]) -> int:
    return len(items)


@cs.task
async def choose() -> str:
    return "short"


@cs.task
async def cleanup() -> None: ...


@cs.task
async def clean(x: int) -> int:
    await run_nested(cleanup())
    return x


@cs.task
async def recover(x: int) -> int:
    with suppress(ValueError):
        await run_nested(fail(x))
    return x


@cs.task
async def collect(items: list[int]) -> int:
    return len(items)


RUNS: Mapping[str, Callable[[], Any]] = {
    "retried": lambda: report(convert_with_a_retry.map(x=[0]).with_retry(1, delay=0.01)),
    "failed": lambda: report(fail.map(x=[0])),
    "timed out": lambda: report(time_out.map(x=[0])),
    "of another target": cleanup,
    "in a caller's trace": lambda: report(convert.map(x=[0])),
    "with nested runs in parts": lambda: collect(clean.map(x=range(4 * PART_SIZE))),
    "with a failed nested run": lambda: collect(recover.map(x=[0])),
    "with a skipped task": lambda: report([cs.Router(choose(), {"short": convert(1), "long": convert(2)})]),
    "slow": lambda: report(convert_slowly.map(x=[0])),
    "large": lambda: report(
        convert_slowly.map(x=range(1, PART_SIZE * (PARTS + 1) + 1)).with_label(lambda x: f"notes {x}.txt")
    ),
}
"""Runs in the order of their start."""

OTHERS: Mapping[str, Callable[[], Any]] = {
    "with failed nested runs in a part": lambda: collect(recover.map(x=range(2 * PART_SIZE)))
}
"""Runs with parts in the list of failed runs."""


TAGS: Mapping[str, list[str]] = {"of another target": ["finance", "eu"]}
"""Tags of runs, by their names."""


async def run(target: Any, tags: list[str] | None = None) -> dict[str, str]:
    """Run the target; return its run id and trace id."""
    bus, recorder = cs.MessageBus(), MemoryConnector()
    connector = cs.OtelConnector()
    TelemetrySubscriber(bus, connector)
    TelemetrySubscriber(bus, recorder)
    executor = cs.LocalExecutor()
    engine = cs.Engine(cs.NativeSolver(), executor, bus, connector=connector, clock=clock)
    try:
        await engine.run(target, tags=tags or ())
    except (ValueError, TimeoutError) as error:
        print(error)
    executor.close()
    return {key: recorder.payloads[0][key] for key in ("run_id", "trace_id")}


def main(which: str) -> None:
    raise_time_limits()
    found = dict[str, dict[str, str]]()
    os.environ["CASCADE_TRACE_PART_SIZE"] = str(PART_SIZE)
    if which == "active":
        asyncio.run(run(report(convert_without_an_end.map(x=[0]))))
    for name, target in (OTHERS if which == "others" else RUNS).items():
        if name == "in a caller's trace":
            os.environ["TRACEPARENT"] = f"00-{CALLER}-b7ad6b7169203331-01"
        found[name] = asyncio.run(run(target(), TAGS.get(name)))
        os.environ.pop("TRACEPARENT", None)
        clock.advance(1.0)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
