"""Very many constraints for other tasks, which a connector hands over before the first task of a run."""

import asyncio
import time

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.telemetry.topics import control_topic


def delay(count: int) -> float:
    """Return the seconds by which each of `count` constraints delays the first task of a run."""
    return asyncio.run(_delay(count))


async def _delay(count: int) -> float:
    connector = MemoryConnector()
    await _seconds_to_first_task(connector)
    without = await _seconds_to_first_task(connector)
    for number in range(count):
        topic = control_topic("local", "default", f"task/other-{number}", "pause")
        await connector.deliver(topic, b'{"type": "pause"}', retain=True)
    return max(0.0, await _seconds_to_first_task(connector) - without) / count


async def _seconds_to_first_task(connector: MemoryConnector) -> float:
    before = time.perf_counter()
    return await cs.run_async(_now(), connector=connector, log_level="OFF") - before


@cs.task
async def _now() -> float:
    return time.perf_counter()
