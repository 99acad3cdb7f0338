"""When messages come faster than the broker takes them: tasks wait for one that is alive, and for no other."""

import asyncio
import contextlib
import time
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.mqtt import MqttConnector
from cascade.connectors.mqtt._window import Window
from tests.connectors.mqtt.broker import Broker, Listener, free_port
from tests.connectors.mqtt.messages import events, numbers, telemetry, warnings
from tests.connectors.mqtt.waiting import is_connected, until

ITEMS = 400
BUFFER = 40_000
"""Bytes: some twenty tasks."""


@cs.task
async def double(x: int) -> int:
    return 2 * x


def flow() -> Any:
    return double.map(x=list(range(ITEMS)))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that takes five messages in each turn, and few turns."""
    take = Window.fill

    def fill(window: Window) -> None:
        time.sleep(0.01)
        take(window)

    monkeypatch.setattr(Window, "fill", fill)
    monkeypatch.setattr("cascade.connectors.mqtt._window.BATCH", 5)


def test_new_tasks_wait_for_a_broker_that_is_alive_but_slow(
    slow: None, shared_broker: Broker, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    connector, beside = MqttConnector("127.0.0.1", shared_broker.port, max_buffer_bytes=BUFFER), MemoryConnector()
    assert cs.run(flow(), connector=[connector, beside], log_level="ERROR") == [2 * x for x in range(ITEMS)]
    seen = listener.wait_for(lambda seen: any(p["body"].get("event") == "ENGINE_STOPPED" for p in events(seen)))
    assert warnings(caplog) == []
    assert numbers(seen) == list(range(len(numbers(seen))))
    held = [p for p in beside.payloads if p["body"].get("state") == "PENDING"]
    assert {p["body"]["metadata"]["reason"] for p in held} == {"telemetry"}


def test_who_prefers_loss_does_not_wait(slow: None, shared_broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    connector = MqttConnector("127.0.0.1", shared_broker.port, max_buffer_bytes=BUFFER, on_full="drop")
    cs.run(flow(), connector=connector, log_level="ERROR")
    (warning,) = warnings(caplog)
    assert "messages were lost at 127.0.0.1" in warning
    assert "more than fits in memory" in warning


def test_nobody_waits_for_a_broker_that_is_dead(caplog: pytest.LogCaptureFixture) -> None:
    beside = MemoryConnector()
    connector = MqttConnector("127.0.0.1", free_port(), max_buffer_bytes=BUFFER)
    assert cs.run(flow(), connector=[connector, beside], log_level="ERROR") == [2 * x for x in range(ITEMS)]
    assert not [p for p in beside.payloads if p["body"].get("state") == "PENDING"]
    (warning,) = warnings(caplog)
    assert f"MqttConnector: {2 * ITEMS + 4} of {2 * ITEMS + 4} messages were lost" in warning


async def test_nobody_waits_for_a_broker_that_is_frozen(broker: Broker) -> None:
    connector = MqttConnector("127.0.0.1", broker.port, max_buffer_bytes=BUFFER, flush_timeout=0.1)
    await connector.connect()
    await until(lambda: is_connected(connector))
    with broker.frozen():
        start = time.monotonic()
        for number in range(200):
            await connector.publish("cascade/telemetry/local/default/run/events", telemetry(number), 1)
        # It is not known to be dead before a second has passed; from then on it is.
        await until(lambda: not connector.is_full())
        assert time.monotonic() - start < 4
        await connector.disconnect()


async def test_thousands_may_wait_for_room_at_once(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    connector = MqttConnector("127.0.0.1", broker.port, max_buffer_bytes=BUFFER, flush_timeout=0.1)
    await connector.connect()
    await until(lambda: is_connected(connector))
    monkeypatch.setattr(Window, "can_send", lambda _: False)
    monkeypatch.setattr(Window, "fill", lambda _: None)
    for number in range(70):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await connector.publish("cascade/telemetry/local/default/run/events", telemetry(number), 1)
    assert connector.is_full()
    start = time.monotonic()
    waiting = [asyncio.ensure_future(connector.room()) for _ in range(1_000)]
    await asyncio.gather(*waiting)
    assert time.monotonic() - start < 5
    await connector.disconnect()
