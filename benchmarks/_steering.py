"""What is run in a process of its own: a run with many tasks that wait, steered through the broker."""

import asyncio
import json
import time
from collections.abc import Awaitable
from statistics import quantiles
from typing import Any

import cascade as cs
from benchmarks._gardener import Gardener
from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.connectors.mqtt import MqttConnector
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine
from cascade.runtime.events import ControlDecision, TaskBlocked, TaskExecutionStarted
from cascade.runtime.subscribers import TelemetrySubscriber
from cascade.telemetry.topics import control_topic

TOPIC = control_topic("local", "default", "global", "pause")
PAUSE = json.dumps({"id": "bench", "type": "pause"}).encode()
AT_ONCE = 16
LIMIT_TOPIC = control_topic("local", "default", "global", "concurrency")
LIMIT = json.dumps({"id": "bench", "type": "concurrency", "params": {"limit": AT_ONCE}}).encode()
"""So that hardly any of the tasks that wait has run when the last time is measured."""
_WORK = 0.005
_BETWEEN = 0.03
"""Seconds that a task takes; and that the run goes on between a clear and the next pause."""
_EACH = AT_ONCE * (2 + round(2 * _BETWEEN / _WORK))
"""Tasks that start between two pauses."""
_LOOK = 0.001


@cs.task
async def work() -> None:
    await asyncio.sleep(_WORK)


@cs.task
async def last(values: list[Any]) -> int:
    return len(values)


class Steered:
    """A run whose tasks wait for a pause to be cleared."""

    def __init__(self, port: int, gardener: Gardener) -> None:
        self.starts: list[float] = []
        self.blocked = self._pauses = 0
        self._gardener = gardener
        self._bus = MessageBus()
        self._bus.subscribe(TaskExecutionStarted, lambda _: self.starts.append(time.time()))
        self._bus.subscribe(TaskBlocked, self._count)
        self._bus.subscribe(ControlDecision, self._note)
        connector = MqttConnector("127.0.0.1", port)
        TelemetrySubscriber(self._bus, connector)
        self._executor = LocalExecutor()
        self._engine = Engine(NativeSolver(), self._executor, self._bus, connector=connector)

    async def held(self, size: int) -> Awaitable[Any]:
        """The run, once all its tasks wait."""
        for topic, payload in ((TOPIC, PAUSE), (LIMIT_TOPIC, LIMIT)):
            self._gardener.publish(topic, payload)
            self._gardener.published_at()
        run = self._run = asyncio.create_task(self._engine.run(last([work() for _ in range(size)])))
        while self.blocked < size:  # noqa: ASYNC110 - a look now and then disturbs less than an event for each
            await asyncio.sleep(_BETWEEN)
        await asyncio.sleep(1)  # what is still to be sent
        return run

    async def effect(self, payload: bytes) -> float:
        """Seconds from a message to its effect: to the first start, or to the last one before the pause or the run's end."""
        before, pauses = len(self.starts), self._pauses
        self._gardener.publish(TOPIC, payload)
        if payload != PAUSE:
            while len(self.starts) == before:  # noqa: ASYNC110 - as above
                await asyncio.sleep(_LOOK)
            await asyncio.sleep(_BETWEEN)
            return self.starts[before] - self._gardener.published_at()
        while self._pauses == pauses and not self._run.done():  # noqa: ASYNC110 - as above
            await asyncio.sleep(_BETWEEN)
        return max(0.0, self.starts[-1] - self._gardener.published_at())

    async def end(self, run: Awaitable[Any]) -> None:
        self._gardener.publish(LIMIT_TOPIC, b"")
        self._gardener.publish(TOPIC, b"")
        await run
        self._executor.close()

    def _count(self, _: TaskBlocked) -> None:
        self.blocked += 1

    def _note(self, decision: ControlDecision) -> None:
        self._pauses += (decision.action, decision.constraint_type) == ("APPLIED", "pause")


def latency(port: int, waiting: int, times: int) -> dict[str, float]:
    """Seconds until a clear and a pause have their effect, at least `waiting` tasks being held back; 99th percentiles."""
    return asyncio.run(_latency(port, waiting, times))


async def _latency(port: int, waiting: int, times: int) -> dict[str, float]:
    """Another run follows when fewer tasks than `waiting` are left, since a late pause leaves fewer for the next one."""
    clears, pauses = list[float](), list[float]()
    with Gardener(port) as gardener:
        while len(pauses) < times:
            steered, size = Steered(port, gardener), waiting + (times - len(pauses)) * _EACH
            run = await steered.held(size)
            while len(pauses) < times and size - len(steered.starts) >= waiting:
                clears.append(await steered.effect(b""))
                pauses.append(await steered.effect(PAUSE))
            await steered.end(run)
    return {"clear": _p99(clears), "pause": _p99(pauses)}


def standing_still(port: int, waiting: int, seconds: float) -> float:
    """Seconds of CPU that a paused run takes in a minute, all threads of its process together."""
    return asyncio.run(_standing_still(port, waiting, seconds))


async def _standing_still(port: int, waiting: int, seconds: float) -> float:
    with Gardener(port) as gardener:
        steered = Steered(port, gardener)
        run = await steered.held(waiting)
        before = time.process_time()
        await asyncio.sleep(seconds)
        used = time.process_time() - before
        await steered.end(run)
        return used * 60 / seconds


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[98] if len(values) > 1 else values[0]
