"""Backpressure: tasks wait for a slow broker, and for no other."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.mqtt import MqttConnector
from cascade.connectors.mqtt.backpressure import Backpressure
from cascade.connectors.mqtt.connection import Connection
from stack.addresses import reserved_port
from tests.connectors.mqtt.broker import Broker, Listener
from tests.connectors.mqtt.messages import events, numbers, telemetry, warnings
from tests.connectors.mqtt.waiting import is_connected
from tests.lab.waiting import until, with_timeout

ITEMS = 400
BUFFER = 40_000
"""Bytes: some twenty tasks."""


@cs.task
async def double(x: int) -> int:
    return 2 * x


def flow() -> Any:
    return double.map(x=list(range(ITEMS)))


class Slow:
    """Makes the session send nothing until `may_send` holds, and then five messages per iteration."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, take: Callable[[Connection], int]) -> None:
        self.may_send: Callable[[Connection], object] = lambda _: True

        def fill(connection: Connection) -> int:
            time.sleep(0.01)  # limits the number of iterations
            if not self.may_send(connection):
                return 0
            self.may_send = lambda _: True
            return take(connection)

        monkeypatch.setattr(Connection, "fill", fill)
        monkeypatch.setattr("cascade.connectors.mqtt.connection.BATCH", 5)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    return Slow(monkeypatch, Connection.fill)


def test_new_tasks_wait_for_a_slow_broker(
    slow: Slow, shared_broker: Broker, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    connector, memory = MqttConnector("127.0.0.1", shared_broker.port, max_buffer_bytes=BUFFER), MemoryConnector()
    slow.may_send = lambda _: any(p["body"].get("state") == "PENDING" for p in memory.payloads)
    assert cs.run(flow(), connector=[connector, memory], log_level="ERROR") == [2 * x for x in range(ITEMS)]
    seen = listener.wait_for(lambda seen: any(p["body"].get("event") == "ENGINE_STOPPED" for p in events(seen)))
    assert warnings(caplog) == []
    assert numbers(seen) == list(range(len(numbers(seen))))
    held = [p for p in memory.payloads if p["body"].get("state") == "PENDING"]
    assert {p["body"]["metadata"]["reason"] for p in held} == {"telemetry"}


async def test_publish_waits_for_room(
    slow: Slow, broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The limit does not depend on the memory. `test_backpressure` tests its value."""
    connector = MqttConnector("127.0.0.1", broker.port)
    monkeypatch.setattr(Backpressure, "is_full", property(lambda _: connector.report().queued > 50))
    monkeypatch.setattr(Backpressure, "is_above_low_mark", property(lambda _: connector.report().queued > 25))
    await connector.connect()
    await until(lambda: is_connected(connector))
    waiting = list[int]()
    slow.may_send = lambda _: connector.report().queued > 50
    for number in range(300):
        await connector.publish("cascade/telemetry/local/default/run/events", telemetry(number), 1)
        waiting.append(connector.report().queued)
    await connector.disconnect()
    assert (connector.report().sent, connector.report().lost) == (300, 0)
    assert max(waiting) <= 51
    assert warnings(caplog) == []


def test_with_drop_no_task_waits(slow: Slow, shared_broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    connector = MqttConnector("127.0.0.1", shared_broker.port, max_buffer_bytes=BUFFER, on_full="drop")
    slow.may_send = lambda _: connector.report().lost
    cs.run(flow(), connector=connector, log_level="ERROR")
    (warning,) = warnings(caplog)
    assert "messages were lost at 127.0.0.1" in warning
    assert "more than fits in memory" in warning


def test_no_task_waits_for_an_unreachable_broker(caplog: pytest.LogCaptureFixture) -> None:
    memory = MemoryConnector()
    connector = MqttConnector("127.0.0.1", reserved_port(), max_buffer_bytes=BUFFER)
    assert cs.run(flow(), connector=[connector, memory], log_level="ERROR") == [2 * x for x in range(ITEMS)]
    assert not [p for p in memory.payloads if p["body"].get("state") == "PENDING"]
    (warning,) = warnings(caplog)
    assert f"MqttConnector: {2 * ITEMS + 4} of {2 * ITEMS + 4} messages were lost" in warning


async def test_no_run_waits_for_a_frozen_broker(broker: Broker, limits: pytest.MonkeyPatch) -> None:
    connector = MqttConnector("127.0.0.1", broker.port, max_buffer_bytes=BUFFER, flush_timeout=0.1)
    await connector.connect()
    await until(lambda: is_connected(connector))
    with broker.frozen():
        limits.undo()
        for number in range(200):
            await connector.publish("cascade/telemetry/local/default/run/events", telemetry(number), 1)
        await until(lambda: not connector.is_full())
        await connector.disconnect()


async def test_unwritten_packets_do_not_delay_messages(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example is the acknowledgement of a constraint, which the broker does not answer."""
    fill = Connection.fill

    def ping_and_fill(connection: Connection) -> int:
        connection.client._client._send_pingreq()
        return fill(connection)

    monkeypatch.setattr(Connection, "fill", ping_and_fill)
    connector = MqttConnector("127.0.0.1", broker.port, strict=True)
    await connector.connect()
    for number in range(3):
        await connector.publish("cascade/telemetry/local/default/run/events", telemetry(number), number % 2)
    await connector.disconnect()  # raises TelemetryLostError if they were not sent


async def test_a_thousand_callers_wait_for_room(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, limits: pytest.MonkeyPatch
) -> None:
    connector = MqttConnector("127.0.0.1", broker.port, max_buffer_bytes=BUFFER, flush_timeout=0.1)
    await connector.connect()
    await until(lambda: is_connected(connector))
    monkeypatch.setattr(Connection, "has_work", lambda _: False)
    monkeypatch.setattr(Connection, "fill", lambda _: 0)
    for number in range(70):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await connector.publish("cascade/telemetry/local/default/run/events", telemetry(number), 1)
    assert connector.is_full()
    await with_timeout(asyncio.gather(*(connector.room() for _ in range(1_000))))
    limits.undo()
    await connector.disconnect()
