"""When a broker is taken for dead: not for what our own thread did not get round to."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Iterator

import pytest

import cascade as cs
from cascade.connectors.mqtt import MqttConnector
from cascade.connectors.mqtt._link import Link
from cascade.connectors.mqtt._peer import PATIENCE
from cascade.connectors.mqtt._window import Window
from tests.connectors.mqtt.broker import Broker, Listener
from tests.connectors.mqtt.messages import telemetry, warnings
from tests.connectors.mqtt.waiting import is_connected, until

TOPIC = "cascade/telemetry/local/default/run/events"
CONTROL = "cascade/control/local/default/constraints/#"
PAUSE = "cascade/control/local/default/constraints/global/pause"
LONGER = 1.5 * PATIENCE


@cs.task
async def double(x: int) -> int:
    return 2 * x


async def ignore(topic: str, payload: object) -> None:
    pass


class Stall:
    """Holds up a connector's thread once, when it has messages out: so it is when others do not let go of the GIL."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.is_over = threading.Event(), threading.Event()
        settle = Window.settle

        def hold_up(window: Window) -> bool:
            if window._unacknowledged and not self.begun.is_set():
                self.begun.set()
                assert self.is_over.wait(20)
            return settle(window)

        monkeypatch.setattr(Window, "settle", hold_up)


@pytest.fixture
def stall(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stall]:
    stall = Stall(monkeypatch)
    yield stall
    stall.is_over.set()


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
    stall.is_over.set()
    await connector.disconnect()
    assert (connector._outbox.sent, connector._outbox.lost) == (70, 0)


def test_a_run_whose_telemetry_has_no_turn_for_long_waits_for_it(
    broker: Broker, stall: Stall, caplog: pytest.LogCaptureFixture
) -> None:
    connector = MqttConnector("127.0.0.1", broker.port, max_buffer_bytes=100_000)

    def release() -> None:
        stall.begun.wait(20)
        time.sleep(LONGER)
        stall.is_over.set()

    releasing = threading.Thread(target=release)
    releasing.start()
    cs.run(double.map(x=list(range(1_000))), connector=connector, log_level="ERROR")
    releasing.join()
    assert connector._outbox.lost == 0
    assert warnings(caplog) == []


async def test_a_broker_that_says_anything_is_alive(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Window, "_acknowledged", lambda *_: None)
    connector = MqttConnector("127.0.0.1", broker.port, flush_timeout=0.1)
    await connector.connect()
    await connector.subscribe(CONTROL, ignore)
    await connector.publish(TOPIC, telemetry(), 1)
    session = connector._session
    assert session is not None
    start = time.monotonic()
    with Listener(broker.port, "nothing") as other:
        while time.monotonic() - start < LONGER:
            await asyncio.to_thread(other.publish, PAUSE, b"{}")
    assert session.is_alive(), "what is due may stand behind"
    await until(lambda: not session.is_alive())
    await connector.disconnect()


async def test_a_flood_is_read_many_messages_at_a_time(
    broker: Broker, stall: Stall, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, reads, read = 1_000, 0, Link.read

    def counted(link: Link) -> None:
        nonlocal reads
        reads += 1
        read(link)

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
    monkeypatch.setattr(Link, "read", counted)
    stall.is_over.set()
    await until(lambda: found[-1:] == [count])
    assert reads < count / 10
    await connector.disconnect()
