"""When a broker is taken for dead: not for what our own thread did not get round to."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator

import pytest

import cascade as cs
from cascade.connectors import _health
from cascade.connectors._health import ConnectionHealth
from cascade.connectors.mqtt import MqttConnector
from cascade.connectors.mqtt.client import Client
from cascade.connectors.mqtt.connection import Connection
from tests.connectors.mqtt.broker import Broker, Listener
from tests.connectors.mqtt.messages import telemetry, warnings
from tests.connectors.mqtt.waiting import is_connected
from tests.lab.waiting import HANG, until

TOPIC = "cascade/telemetry/local/default/run/events"
CONTROL = "cascade/control/local/default/constraints/#"
PAUSE = "cascade/control/local/default/constraints/global/pause"
LONGER = 0.2
"""Seconds, more than the patience that a stalled connector has."""


@cs.task
async def double(x: int) -> int:
    return 2 * x


async def ignore(topic: str, payload: object) -> None:
    pass


class Stall:
    """Holds up a connector's thread once, when it has messages out: so it is when others do not let go of the GIL.

    The patience with the broker is short until then, and out of reach again when the stall is over.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limits: pytest.MonkeyPatch) -> None:
        self.begun, self.is_over = threading.Event(), threading.Event()
        work, self._limits = Connection.work, limits

        def hold_up(connection: Connection) -> None:
            work(connection)
            if connection._unacknowledged and not self.begun.is_set():
                limits.setattr(_health, "ANSWER_TIMEOUT", LONGER / 2)
                self.begun.set()
                assert self.is_over.wait(HANG)

        monkeypatch.setattr(Connection, "work", hold_up)

    def end(self) -> None:
        self._limits.setattr(_health, "ANSWER_TIMEOUT", HANG)
        self.is_over.set()


@pytest.fixture
def stall(monkeypatch: pytest.MonkeyPatch, limits: pytest.MonkeyPatch) -> Iterator[Stall]:
    stall = Stall(monkeypatch, limits)
    yield stall
    stall.end()


async def test_a_thread_without_a_turn_says_nothing_about_the_broker(broker: Broker, stall: Stall) -> None:
    connector = MqttConnector("127.0.0.1", broker.port, max_buffer_bytes=40_000)
    await connector.connect()
    for number in range(70):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await connector.publish(TOPIC, telemetry(number), 1)
    await until(stall.begun.is_set)
    await asyncio.sleep(LONGER)
    assert connector.is_full(), "it is alive"
    stall.end()
    await connector.disconnect()
    assert (connector.report().sent, connector.report().lost) == (70, 0)


def test_a_run_whose_telemetry_has_no_turn_for_long_waits_for_it(
    broker: Broker, stall: Stall, caplog: pytest.LogCaptureFixture
) -> None:
    connector = MqttConnector("127.0.0.1", broker.port, max_buffer_bytes=100_000)

    def release() -> None:
        stall.begun.wait(HANG)
        time.sleep(LONGER)
        stall.end()

    releasing = threading.Thread(target=release)
    releasing.start()
    cs.run(double.map(x=list(range(1_000))), connector=connector, log_level="ERROR")
    releasing.join()
    assert connector.report().lost == 0
    assert warnings(caplog) == []


async def test_a_broker_that_says_anything_is_alive(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, limits: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "_acknowledged", lambda *_: None)
    heard, hear = threading.Event(), ConnectionHealth.record_activity

    def noted(health: ConnectionHealth) -> None:
        hear(health)
        assert health.silence == 0
        heard.set()

    monkeypatch.setattr(ConnectionHealth, "record_activity", noted)
    connector = MqttConnector("127.0.0.1", broker.port, flush_timeout=0.1)
    await connector.connect()
    await connector.subscribe(CONTROL, ignore)
    await connector.publish(TOPIC, telemetry(), 1)
    session = connector._session
    assert session is not None
    with Listener(broker.port, "nothing") as other:
        for _ in range(2):
            await until(lambda: session.health.silence > 0)  # an answer is due
            heard.clear()
            await asyncio.to_thread(other.publish, PAUSE, b"{}")
            await until(heard.is_set)
    assert session.is_alive(), "the answer may stand behind"
    limits.undo()
    await until(lambda: not session.is_alive())
    await connector.disconnect()


async def test_a_flood_is_read_many_messages_at_a_time(
    broker: Broker, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, reads, read = 1_000, 0, Client._read

    def counted(client: Client) -> None:
        nonlocal reads
        reads += 1
        read(client)

    connector = MqttConnector("127.0.0.1", broker.port)
    await connector.connect()
    await until(lambda: is_connected(connector))
    found: list[int] = []

    async def keep(topic: str, payload: dict[str, int]) -> None:
        found.append(payload["n"])

    await connector.subscribe(CONTROL, keep)
    await connector.publish(TOPIC, telemetry(), 1)
    await until(stall.begun.is_set)
    with Listener(broker.port, "nothing") as other:
        for number in range(count):
            other.client.publish(PAUSE, json.dumps({"n": number}))
        await asyncio.to_thread(other.publish, PAUSE, json.dumps({"n": count}))
    monkeypatch.setattr(Client, "_read", counted)
    stall.end()
    await until(lambda: found[-1:] == [count])
    assert reads < count / 10
    await connector.disconnect()
