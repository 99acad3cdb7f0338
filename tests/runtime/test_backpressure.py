"""Tasks wait for a slow connector of any kind, but not for a stalled one."""

import asyncio
from typing import Any

import pytest

import cascade as cs
from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.connectors.fanout import FanoutConnector
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.bus import CombinedBackpressure, MessageBus
from cascade.runtime.engine import Engine
from cascade.runtime.subscribers import TelemetrySubscriber
from tests.lab.waiting import HANG, with_timeout

ITEMS = 400
AT_ONCE = 100
"""Tasks that wait for one another; the debug mode of asyncio makes many of them slow."""


@cs.task
async def double(x: int) -> int:
    return 2 * x


@cs.task
async def total(xs: list[int]) -> int:
    return sum(xs)


waiting: dict[str, Any] = {}


@cs.task
async def wait_for(n: int) -> int:
    waiting["at_work"] += 1
    if waiting["at_work"] == AT_ONCE:
        waiting["all_here"].set()
    await waiting["all_here"].wait()
    return n


class Slow(MemoryConnector):
    """Publishes slowly: one message in some iterations of the loop."""

    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        await super().publish(topic, payload, qos)


class Stuck(MemoryConnector):
    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
        await asyncio.Event().wait()


class ConnectorLimit:
    """Backpressure of a connector that has room from the third call of `room` on."""

    def __init__(self) -> None:
        self.room_calls = 0

    def is_full(self) -> bool:
        return self.room_calls < 3

    async def room(self) -> None:
        self.room_calls += 1
        await asyncio.sleep(0)


class RecordedBackpressure(CombinedBackpressure):
    """Records whether it was full when a task was about to start."""

    was_full = False

    def is_full(self) -> bool:
        full = super().is_full()
        self.was_full |= full
        return full


class Limited(MemoryConnector, ConnectorLimit):
    def __init__(self) -> None:
        MemoryConnector.__init__(self)
        ConnectorLimit.__init__(self)


async def run(connector: Any, *, max_bytes: int = 2_000_000, drain_timeout: float = HANG) -> TelemetrySubscriber:
    bus = MessageBus()
    subscriber = TelemetrySubscriber(bus, connector, max_bytes=max_bytes, drain_timeout=drain_timeout)
    engine = Engine(NativeSolver(), LocalExecutor(), bus, connector=connector)
    assert await engine.run(double.map(x=list(range(ITEMS)))) == [2 * x for x in range(ITEMS)]
    return subscriber


def held(connector: MemoryConnector) -> list[dict[str, Any]]:
    bodies = [payload["body"] for payload in connector.payloads]
    return [body for body in bodies if body.get("state") == "PENDING"]


async def test_a_burst_waits_for_a_slow_connector_and_no_message_is_lost() -> None:
    connector = Slow()
    subscriber = await run(connector)
    assert subscriber.lost == 0
    assert {body["metadata"]["reason"] for body in held(connector)} == {"telemetry"}
    ended = [p["body"] for p in connector.payloads if p["body"].get("state") == "COMPLETED"]
    assert len(ended) == ITEMS + 1
    assert {wait["reason"] for body in ended for wait in body["metadata"].get("waits", ())} == {"telemetry"}


async def test_tasks_of_a_graph_wait_like_items_of_a_map() -> None:
    connector, bus = Slow(), MessageBus()
    subscriber = TelemetrySubscriber(bus, connector, max_bytes=2_000_000, drain_timeout=HANG)
    engine = Engine(NativeSolver(), LocalExecutor(), bus, connector=connector)
    assert await engine.run(total([double(x) for x in range(ITEMS)])) == ITEMS * (ITEMS - 1)
    assert subscriber.lost == 0
    assert 0 < len(held(connector)) < ITEMS // 2, "only those wait that have been started"


@pytest.mark.usefixtures("real_limits")
async def test_tasks_do_not_wait_for_a_stalled_connector(caplog: pytest.LogCaptureFixture) -> None:
    subscriber = await run(Stuck(), drain_timeout=0.1)
    assert subscriber.lost > ITEMS
    (warning,) = [record for record in caplog.records if record.name.startswith("cascade.")]
    assert "Stuck: " in warning.getMessage()


async def test_the_slowest_of_several_connectors_limits_the_starts() -> None:
    slow, quick = Slow(), MemoryConnector()
    fan = FanoutConnector([quick, slow], max_bytes=2_000_000)
    await run(fan)
    assert len(slow.payloads) == len(quick.payloads)
    assert held(quick)


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: FanoutConnector([MemoryConnector(), one])])
async def test_a_connector_may_limit_its_own_queue(wrap: Any) -> None:
    limited = Limited()
    await run(wrap(limited))
    assert limited.room_calls == 3
    assert held(limited)


@pytest.mark.parametrize("flow", [lambda n: wait_for.map(n=n), lambda n: total([wait_for(i) for i in n])])
async def test_tasks_start_before_running_ones_end(flow: Any) -> None:
    """All tasks run at the same time before any ends, although backpressure delays their starts."""
    connector, bus = Slow(), MessageBus()
    bus.backpressure = backpressure = RecordedBackpressure()
    TelemetrySubscriber(bus, connector, max_bytes=100_000, drain_timeout=HANG)
    engine = Engine(NativeSolver(), LocalExecutor(), bus, connector=connector)
    waiting.update(at_work=0, all_here=asyncio.Event())
    await with_timeout(engine.run(flow(list(range(AT_ONCE)))))
    assert waiting["at_work"] == AT_ONCE
    assert backpressure.was_full
