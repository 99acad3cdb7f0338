"""A delayed network thread does not make a broker count as unreachable."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from paho.mqtt.packettypes import PacketTypes

import cascade as cs
from cascade.connectors.mqtt import MqttConnector, health
from cascade.connectors.mqtt.connection import Connection
from cascade.connectors.mqtt.health import ConnectionHealth
from cascade.connectors.mqtt.outbox import Outbox, OutgoingMessage
from cascade.connectors.mqtt.transport import Transport
from tests.connectors.mqtt.broker import Broker, Listener
from tests.connectors.mqtt.messages import telemetry, warnings
from tests.connectors.mqtt.proxy import Proxy, received_by_client
from tests.connectors.mqtt.waiting import is_connected
from tests.lab.waiting import HANG, until

TOPIC = "cascade/telemetry/local/default/run/events"
CONTROL = "cascade/control/local/default/constraints/#"
PAUSE = "cascade/control/local/default/constraints/global/pause"
LONGER = 0.2
"""Seconds: more than the time limit for an answer during the delay."""


@cs.task
async def double(x: int) -> int:
    return 2 * x


async def ignore(topic: str, payload: object) -> None:
    pass


class NetworkThreadDelay:
    """Delays the thread of a connector once, when messages are in flight, like a thread that keeps the GIL.

    The time limit for an answer is short during the delay, and out of reach afterwards.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limits: pytest.MonkeyPatch) -> None:
        self.begun, self.is_over = threading.Event(), threading.Event()
        work, take, self._limits = Connection.work, Outbox.take, limits
        taken = list[OutgoingMessage]()

        def record(outbox: Outbox, *arguments: int) -> list[OutgoingMessage]:
            batch = take(outbox, *arguments)
            taken.extend(batch)
            return batch

        def delay(connection: Connection) -> int:
            count = work(connection)
            if taken and not self.begun.is_set():
                limits.setattr(health, "ANSWER_TIMEOUT", LONGER / 2)
                self.begun.set()
                assert self.is_over.wait(HANG)
            return count

        monkeypatch.setattr(Outbox, "take", record)
        monkeypatch.setattr(Connection, "work", delay)

    def end(self) -> None:
        self._limits.setattr(health, "ANSWER_TIMEOUT", HANG)
        self.is_over.set()


@pytest.fixture
def delay(monkeypatch: pytest.MonkeyPatch, limits: pytest.MonkeyPatch) -> Iterator[NetworkThreadDelay]:
    delay = NetworkThreadDelay(monkeypatch, limits)
    yield delay
    delay.end()


async def test_a_delayed_network_thread_does_not_count_as_silence(broker: Broker, delay: NetworkThreadDelay) -> None:
    connector = MqttConnector("127.0.0.1", broker.port, max_buffer_bytes=40_000)
    await connector.connect()
    for number in range(70):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await connector.publish(TOPIC, telemetry(number), 1)
    await until(delay.begun.is_set)
    await asyncio.sleep(LONGER)
    assert connector.is_full(), "the broker counts as reachable"
    delay.end()
    await connector.disconnect()
    assert (connector.report().sent, connector.report().lost) == (70, 0)


def test_a_run_waits_for_a_delayed_network_thread(
    broker: Broker, delay: NetworkThreadDelay, caplog: pytest.LogCaptureFixture
) -> None:
    connector = MqttConnector("127.0.0.1", broker.port, max_buffer_bytes=100_000)

    def release() -> None:
        delay.begun.wait(HANG)
        time.sleep(LONGER)
        delay.end()

    releasing = threading.Thread(target=release)
    releasing.start()
    cs.run(double.map(x=list(range(1_000))), connector=connector, log_level="ERROR")
    releasing.join()
    assert connector.report().lost == 0
    assert warnings(caplog) == []


async def test_any_packet_of_the_broker_counts_as_activity(
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
    limits: pytest.MonkeyPatch,
    latest_health: Callable[[], ConnectionHealth],
) -> None:
    active, record = threading.Event(), ConnectionHealth.record_activity

    def record_and_check(health: ConnectionHealth) -> None:
        record(health)
        assert health.silence == 0
        active.set()

    monkeypatch.setattr(ConnectionHealth, "record_activity", record_and_check)
    with Proxy(broker.port) as proxy, Listener(broker.port, "nothing") as other:
        proxy.hold(received_by_client(PacketTypes.PUBACK))
        connector = MqttConnector("127.0.0.1", proxy.port, flush_timeout=0.1)
        await connector.connect()
        await connector.subscribe(CONTROL, ignore)
        await connector.publish(TOPIC, telemetry(), 1)
        for _ in range(2):
            await until(lambda: latest_health().silence > 0)  # an answer is due
            active.clear()
            await asyncio.to_thread(other.publish, PAUSE, b"{}")
            await until(active.is_set)
        assert latest_health().is_alive, "the answer may be queued behind other packets"
        limits.undo()
        await until(lambda: not latest_health().is_alive)
        await connector.disconnect()


async def test_a_flood_is_read_many_messages_at_a_time(
    broker: Broker, delay: NetworkThreadDelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, reads, fill = 1_000, 0, Transport.fill

    def counted(transport: Transport) -> None:
        nonlocal reads
        reads += 1
        fill(transport)

    connector = MqttConnector("127.0.0.1", broker.port)
    await connector.connect()
    await until(lambda: is_connected(connector))
    found: list[int] = []

    async def store(topic: str, payload: dict[str, int]) -> None:
        found.append(payload["n"])

    await connector.subscribe(CONTROL, store)
    await connector.publish(TOPIC, telemetry(), 1)
    await until(delay.begun.is_set)
    with Listener(broker.port, "nothing") as other:
        for number in range(count):
            other.client.publish(PAUSE, json.dumps({"n": number}))
        await asyncio.to_thread(other.publish, PAUSE, json.dumps({"n": count}))
    monkeypatch.setattr(Transport, "fill", counted)
    delay.end()
    await until(lambda: found[-1:] == [count])
    assert reads < count / 10
    await connector.disconnect()
