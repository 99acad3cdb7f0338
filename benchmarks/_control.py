"""Measurements of control that run in their own processes: latencies, a paused run, a flood, and many constraints."""

import asyncio
import json
import time
from collections.abc import Awaitable
from statistics import quantiles
from typing import Any

import cascade as cs
from benchmarks._process import background
from benchmarks._publisher import ControlPublisher
from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.mqtt import MqttConnector
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine
from cascade.runtime.events import ControlDecision, TaskBlocked, TaskExecutionStarted
from cascade.runtime.subscribers import TelemetrySubscriber
from cascade.telemetry.topics import control_filter, control_topic

PAUSE_TOPIC = control_topic("local", "default", "global", "pause")
PAUSE = json.dumps({"id": "bench", "type": "pause"}).encode()
LIMIT_TOPIC = control_topic("local", "default", "global", "concurrency")
CONCURRENCY = 16
"""Small, so that most tasks are still waiting at the last measurement."""
LIMIT = json.dumps({"id": "bench", "type": "concurrency", "params": {"limit": CONCURRENCY}}).encode()
_TASK_SECONDS = 0.005
_BETWEEN = 0.03
"""Seconds from the effect of a clear to the next pause."""
_STARTS_BETWEEN = CONCURRENCY * (2 + round(2 * _BETWEEN / _TASK_SECONDS))
"""Tasks that start between two pauses, at most."""
_POLL = 0.001
_IDLE = 0.005
"""CPU seconds in one second of a paused run that sends no messages, at most."""


@cs.task
async def work() -> None:
    await asyncio.sleep(_TASK_SECONDS)


@cs.task
async def last(values: list[Any]) -> int:
    return len(values)


class ControlledRun:
    """A run whose tasks are blocked by a pause, and the times at which tasks start."""

    def __init__(self, port: int, publisher: ControlPublisher) -> None:
        self.starts: list[float] = []
        self._blocked = self._pauses = 0
        self._publisher = publisher
        bus = MessageBus()
        bus.subscribe(TaskExecutionStarted, lambda _: self.starts.append(time.time()))
        bus.subscribe(TaskBlocked, self._count_blocked)
        bus.subscribe(ControlDecision, self._count_pauses)
        connector = MqttConnector("127.0.0.1", port)
        TelemetrySubscriber(bus, connector)
        self._executor = LocalExecutor()
        self._engine = Engine(NativeSolver(), self._executor, bus, connector=connector)

    async def start(self, size: int) -> Awaitable[Any]:
        """Start a run of `size` tasks, and return it when all of them are blocked."""
        for topic, payload in ((PAUSE_TOPIC, PAUSE), (LIMIT_TOPIC, LIMIT)):
            self._publisher.publish(topic, payload)
            self._publisher.published_at()
        run = self._run = asyncio.create_task(self._engine.run(last([work() for _ in range(size)])))
        while self._blocked < size:  # noqa: ASYNC110 - polling costs less than an event for each task
            await asyncio.sleep(_BETWEEN)
        await asyncio.sleep(1)  # the messages of the blocked tasks are sent
        return run

    async def clear(self) -> float:
        """Clear the pause, and return the seconds from the message to the first start."""
        before = len(self.starts)
        self._publisher.publish(PAUSE_TOPIC, b"")
        while len(self.starts) == before:  # noqa: ASYNC110 - as above
            await asyncio.sleep(_POLL)
        await asyncio.sleep(_BETWEEN)
        return self.starts[before] - self._publisher.published_at()

    async def pause(self) -> float:
        """Pause the run, and return the seconds from the message to the last start before the pause or the run's end."""
        pauses = self._pauses
        self._publisher.publish(PAUSE_TOPIC, PAUSE)
        while self._pauses == pauses and not self._run.done():  # noqa: ASYNC110 - as above
            await asyncio.sleep(_BETWEEN)
        return max(0.0, self.starts[-1] - self._publisher.published_at())

    async def finish(self, run: Awaitable[Any]) -> None:
        """Clear all constraints and wait for the end of the run."""
        self._publisher.publish(LIMIT_TOPIC, b"")
        self._publisher.publish(PAUSE_TOPIC, b"")
        await run
        self._executor.close()

    def _count_blocked(self, _: TaskBlocked) -> None:
        self._blocked += 1

    def _count_pauses(self, decision: ControlDecision) -> None:
        self._pauses += (decision.action, decision.constraint_type) == ("APPLIED", "pause")


def latencies(port: int, waiting: int, times: int) -> dict[str, float]:
    """99th percentiles of the seconds to the effect of a clear and of a pause, with at least `waiting` blocked tasks."""
    return asyncio.run(_latencies(port, waiting, times))


async def _latencies(port: int, waiting: int, times: int) -> dict[str, float]:
    """Starts another run when fewer than `waiting` tasks are left: a late pause leaves fewer tasks."""
    clears, pauses = list[float](), list[float]()
    with ControlPublisher(port) as publisher:
        while len(pauses) < times:
            controlled, size = ControlledRun(port, publisher), waiting + (times - len(pauses)) * _STARTS_BETWEEN
            run = await controlled.start(size)
            while len(pauses) < times and size - len(controlled.starts) >= waiting:
                clears.append(await controlled.clear())
                pauses.append(await controlled.pause())
            await controlled.finish(run)
    return {"clear": _p99(clears), "pause": _p99(pauses)}


def paused_cpu(port: int, waiting: int, seconds: float) -> float:
    """CPU seconds per minute of the process of a paused run, all threads included."""
    return asyncio.run(_paused_cpu(port, waiting, seconds))


async def _paused_cpu(port: int, waiting: int, seconds: float) -> float:
    with ControlPublisher(port) as publisher:
        controlled = ControlledRun(port, publisher)
        run = await controlled.start(waiting)
        for _ in range(10):  # until the last messages of the start are sent
            before = time.process_time()
            await asyncio.sleep(1)
            if time.process_time() - before < _IDLE:
                break
        before = time.process_time()
        await asyncio.sleep(seconds)
        used = time.process_time() - before
        await controlled.finish(run)
        return used * 60 / seconds


def longest_block(port: int, count: int) -> float:
    """Longest time in seconds for which a flood of `count` control messages blocks the event loop."""
    return asyncio.run(_longest_block(port, count))


async def _longest_block(port: int, count: int) -> float:
    connector, latest, longest = MqttConnector("127.0.0.1", port), [-1], 0.0

    async def keep(_: str, payload: dict[str, Any]) -> None:
        latest[0] = payload["n"]

    await connector.connect()
    await connector.subscribe(control_filter("local", "default"), keep)
    with background(publish_flood, port=port, count=count) as published:
        before = time.perf_counter()
        while latest[0] < count - 1:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, before = max(longest, now - before), now
        await asyncio.to_thread(published)
    await connector.disconnect()
    return longest


def publish_flood(port: int, count: int) -> int:
    """Publish numbered messages at the full speed of bare paho."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()
    for number in range(count):
        client.publish(PAUSE_TOPIC, json.dumps({"n": number}), 1 if number == count - 1 else 0).wait_for_publish()
    client.disconnect()
    client.loop_stop()
    return count


def constraint_delay(count: int) -> float:
    """Seconds by which each of `count` retained constraints for other tasks delays the first task of a run."""
    return asyncio.run(_constraint_delay(count))


async def _constraint_delay(count: int) -> float:
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


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else values[0]
