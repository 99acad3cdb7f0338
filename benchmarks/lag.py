"""Lateness of a 5 ms ticker in the event loop: of a traced run, against a burst of the bare SDK, and of a large graph."""

import asyncio
import gc
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from uuid import uuid4

import cascade as cs
from benchmarks import _graphs, _runs
from benchmarks._collector import PROTOCOLS, Collector
from benchmarks._measure import Figure, Goal, Row, absolute, amount, versus
from benchmarks._process import call
from benchmarks._scale import Scale
from cascade.telemetry import attributes as a

PERIOD = 0.005
COROUTINES = 256
"""Coroutines that emit spans in one turn of the loop, the number that the engine starts in one turn."""
GOAL = Goal(10, unit=" ms")


def ours(size: int, protocol: str = "", endpoint: str = "") -> list[float]:
    """Return the lateness of each tick in milliseconds during a run and its end; traced if there is an endpoint."""
    target, connector = _runs.workflow(size), None
    if endpoint:
        from cascade.connectors.otel import OtelConnector

        connector = OtelConnector(endpoint, protocol=protocol)
    _import_on_first_use(connector)
    return asyncio.run(_ticking(cs.run_async(target, connector=connector, log_level="ERROR")))


def bare(size: int, protocol: str, endpoint: str, sample: dict[str, Any]) -> list[float]:
    """Return the lateness with the bare SDK. Coroutines emit the spans, and a thread flushes them."""
    provider, tracer = _runs.sdk(protocol, endpoint, _runs.sufficient_queue(size))
    ids = iter([str(uuid4()) for _ in range(size)])

    async def worker() -> None:
        for task_id in ids:
            tracer.start_span("noop", attributes={**sample, a.TASK_ID: task_id}).end()
            await asyncio.sleep(0)

    async def burst() -> None:
        with tracer.start_as_current_span("run last"):
            await asyncio.gather(*[worker() for _ in range(COROUTINES)])
        await asyncio.to_thread(provider.force_flush, _runs.FLUSH_WAIT)

    late = asyncio.run(_ticking(burst()))
    provider.shutdown()
    return late


def planning(shape: str, size: int) -> list[float]:
    """Return the lateness of each tick in milliseconds from the start of an untraced run to the start of its first task."""
    started = asyncio.Event()

    @cs.task
    async def step(*_values: Any) -> None:
        started.set()

    _import_on_first_use()
    target = _graphs.workflow(_graphs.SHAPES[shape](size), step)
    gc.collect()

    async def until_started() -> None:
        run = asyncio.create_task(cs.run_async(target, log_level="ERROR"))
        await asyncio.wait([run, asyncio.create_task(started.wait())], return_when=asyncio.FIRST_COMPLETED)

    return asyncio.run(_ticking(until_started()))


def _import_on_first_use(connector: cs.Connector | None = None) -> None:
    """Run a small workflow, so that the measured run imports no modules."""
    cs.run(_runs.workflow(2), connector=connector, log_level="ERROR")


async def _ticking(work: Coroutine[Any, Any, Any]) -> list[float]:
    late: list[float] = []

    async def tick() -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + PERIOD
            await asyncio.sleep(PERIOD)
            late.append((loop.time() - due) * 1e3)

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(2 * PERIOD)
    await work
    await asyncio.sleep(2 * PERIOD)
    ticker.cancel()
    return late


def rows(scale: Scale) -> Iterator[Row]:
    size = scale.run
    with Collector() as collector:
        for label, protocol in PROTOCOLS.items():
            where: dict[str, Any] = {"size": size, "protocol": protocol, "endpoint": collector.endpoint(protocol)}
            found = []
            for _ in range(scale.traced_rounds):
                traced = call(ours, **where)
                sample = collector.command("spans")["samples"]["noop"]
                found.append((traced, call(bare, sample=sample, **where)))
            what = f"a 5 ms ticker is late by, {label}, {size:,}"
            p99 = [(_percentile_99(one), _percentile_99(other)) for one, other in found]
            late = [one for one, _ in p99]
            yield replace(
                versus(f"{what}, 99th percentile", p99, "ms"), goal=str(GOAL), reached=GOAL.holds(median(late))
            )
            yield versus(f"{what}, maximum", [(max(one), max(other)) for one, other in found], "ms")
    untraced = [call(ours, size=size) for _ in range(scale.traced_rounds)]
    shown = amount([_percentile_99(one) for one in untraced], "ms")
    yield Row(f"the same, untraced, {size:,}, 99th percentile", shown, "")
    if scale.largest:
        for shape in _graphs.SHAPES:
            late = call(planning, shape=shape, size=scale.largest)
            what = f"a 5 ms ticker is late by, {shape}, {scale.largest:,} nodes built and planned, once"
            yield absolute(f"{what}, 99th percentile", [_percentile_99(late)], "ms", GOAL)
            yield absolute(f"{what}, maximum", [max(late)], "ms")


def figures(scale: Scale, tree: Path | None) -> Iterator[Figure]:
    """Yield the lateness with the revision in `tree`."""
    size = scale.run
    with Collector() as collector:
        for label, protocol in PROTOCOLS.items():
            late = call(ours, tree=tree, size=size, protocol=protocol, endpoint=collector.endpoint(protocol))
            yield Figure(f"a 5 ms ticker is late by, {label}, {size:,}, 99th percentile", _percentile_99(late), "ms")


def _percentile_99(values: list[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[-1]
