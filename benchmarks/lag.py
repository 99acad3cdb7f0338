"""How late a user's 5 ms ticker is while a traced run goes on in its event loop, against the bare SDK's burst there."""

import asyncio
from collections.abc import Coroutine, Iterator
from statistics import quantiles
from typing import Any
from uuid import uuid4

import cascade as cs
from benchmarks import _runs
from benchmarks._collector import PROTOCOLS, Collector
from benchmarks._measure import Goal, Row, amount, versus
from benchmarks._process import call
from benchmarks._scale import Scale
from cascade.telemetry import attributes as a

PERIOD = 0.005
AT_ONCE = 256
"""Coroutines that emit in one turn of the loop: as many as the engine starts in one."""
GOAL = Goal(1.0)


def ours(size: int, protocol: str = "", endpoint: str = "") -> list[float]:
    """Milliseconds late of each tick of a run, traced if there is an endpoint; its end is part of it."""
    target, connector = _runs.workflow(size), None
    if endpoint:
        from cascade.connectors.otel import OtelConnector

        connector = OtelConnector(endpoint, protocol=protocol)
    return asyncio.run(_ticking(cs.run_async(target, connector=connector, log_level="ERROR")))


def bare(size: int, protocol: str, endpoint: str, sample: dict[str, Any]) -> list[float]:
    """The same of the bare SDK, whose spans are emitted by coroutines and flushed in a thread."""
    provider, tracer = _runs.sdk(protocol, endpoint, _runs.ample(size))
    ids = iter([str(uuid4()) for _ in range(size)])

    async def worker() -> None:
        for task_id in ids:
            tracer.start_span("noop", attributes={**sample, a.TASK_ID: task_id}).end()
            await asyncio.sleep(0)

    async def burst() -> None:
        with tracer.start_as_current_span("run last"):
            await asyncio.gather(*[worker() for _ in range(AT_ONCE)])
        await asyncio.to_thread(provider.force_flush, _runs.FLUSH_WAIT)

    late = asyncio.run(_ticking(burst()))
    provider.shutdown()
    return late


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
                sample = collector.say("spans")["samples"]["noop"]
                found.append((traced, call(bare, sample=sample, **where)))
            what = f"a 5 ms ticker is late by, {label}, {size:,}"
            p99 = [(_percentile_99(one), _percentile_99(other)) for one, other in found]
            yield versus(f"{what}, 99th percentile", p99, "ms", GOAL)
            yield versus(f"{what}, most", [(max(one), max(other)) for one, other in found], "ms")
    untraced = [call(ours, size=size) for _ in range(scale.traced_rounds)]
    late = amount([_percentile_99(one) for one in untraced], "ms")
    yield Row(f"the same, untraced, {size:,}, 99th percentile", late, "")


def _percentile_99(values: list[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[-1]
