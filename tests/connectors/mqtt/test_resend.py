"""Messages that a broker has acknowledged, but has lost because it was killed, are sent again."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes

from cascade.connectors.mqtt import MqttConnector
from cascade.connectors.mqtt.health import ConnectionHealth
from cascade.connectors.mqtt.packets import TAKEN_OVER
from cascade.telemetry.topics import events_topic
from tests.connectors.mqtt.broker import Broker, Listener
from tests.connectors.mqtt.messages import numbers, telemetry, warnings
from tests.connectors.mqtt.proxy import Packet, Proxy, received_by_client
from tests.connectors.mqtt.waiting import delay_connections, is_connected
from tests.lab.waiting import until

TOPIC = events_topic("local", "default", "run")


@contextlib.contextmanager
def without_first_messages(broker: Broker) -> Iterator[Listener]:
    """A subscriber that receives nothing before its first connection is lost, although the broker sends all messages."""

    def rule(packet: Packet) -> tuple[Packet, ...]:
        is_early = received_by_client(PacketTypes.PUBLISH)(packet) and packet.connection == 0
        return () if is_early else (packet,)

    with Proxy(broker.port, rule) as proxy, Listener(proxy.port, "cascade/telemetry/#") as listener:
        yield listener


async def kill(broker: Broker, listener: Listener, patch: pytest.MonkeyPatch) -> None:
    """Kill the broker and start it again; the subscriber subscribes before the connector connects."""
    listener.forget_subscription()
    failed, record = threading.Event(), ConnectionHealth.record_failure

    def recorded(*arguments: Any, **options: Any) -> None:
        record(*arguments, **options)
        failed.set()

    with patch.context() as watched:
        watched.setattr(ConnectionHealth, "record_failure", recorded)
        broker.kill()
        await until(failed.is_set)
    with patch.context() as held:
        may_connect = delay_connections(held)
        broker.start()
        listener.await_subscription()
        may_connect.set()


async def publish(connector: MqttConnector, *numbers: int, qos: int = 1) -> None:
    for number in numbers:
        await connector.publish(TOPIC, telemetry(number), qos)
    await until(lambda: connector.report().queued == 0)


@pytest.mark.parametrize(("window", "expected"), [(3600.0, [*range(50), 100, 101]), (0, [100, 101])])
async def test_acknowledged_messages_are_sent_again_first_and_in_order(
    window: float,
    expected: list[int],
    broker: Broker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connector = MqttConnector("127.0.0.1", broker.port, resend_window=window)
    with without_first_messages(broker) as listener:
        await connector.connect()
        await publish(connector, *range(50))
        await publish(connector, *range(50, 100), qos=0)
        await kill(broker, listener, monkeypatch)
        await publish(connector, 100, 101)
        await connector.disconnect()
        assert numbers(listener.wait_for(lambda seen: numbers(seen)[-1:] == [101])) == expected
    assert (connector.report().sent, connector.report().lost) == (102, 0)
    assert connector.report().retried == len(expected) - 2
    assert warnings(caplog) == []


async def test_no_message_is_lost_by_many_kills(
    broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker is killed right after each acknowledgement."""
    connector, kills, batch = MqttConnector("127.0.0.1", broker.port), 10, 20
    with Listener(broker.port, "cascade/telemetry/#") as listener:
        await connector.connect()
        for number in range(kills):
            await publish(connector, *range(number * batch, (number + 1) * batch))
            await kill(broker, listener, monkeypatch)
        await publish(connector, kills * batch)
        await connector.disconnect()
        seen = numbers(listener.wait_for(lambda seen: numbers(seen)[-1:] == [kills * batch]))
    assert sorted({*seen}) == list(range(kills * batch + 1))
    assert (connector.report().sent, connector.report().lost) == (kills * batch + 1, 0)
    assert warnings(caplog) == []


async def test_after_a_clean_end_nothing_is_sent_again(broker: Broker) -> None:
    connector = MqttConnector("127.0.0.1", broker.port)
    with Listener(broker.port, "cascade/telemetry/#") as listener:
        for number in range(2):
            await connector.connect()
            await publish(connector, number)
            await connector.disconnect()
        assert numbers(listener.wait_for(lambda seen: len(seen) == 2)) == [0, 1]
    assert connector.report().retried == 0


@pytest.mark.parametrize(("code", "expected"), [(TAKEN_OVER, [0, 1]), (0x97, [0, 1]), (0x8B, [0, 0, 1])])
async def test_messages_are_repeated_only_if_the_broker_may_have_lost_them(
    code: int, expected: list[int], broker: Broker
) -> None:
    """The codes 'session taken over' and 'quota exceeded' concern one client. A broker that shuts down may lose messages."""
    with Proxy(broker.port) as proxy, Listener(broker.port, "cascade/telemetry/#") as listener:
        connector = MqttConnector("127.0.0.1", proxy.port)
        await connector.connect()
        await publish(connector, 0)
        proxy.send(Packet(PacketTypes.DISCONNECT, bytes([code, 0]), from_broker=True, connection=0))
        await until(lambda: proxy.matching(lambda packet: packet.connection == 1))
        await publish(connector, 1)
        await connector.disconnect()
        assert numbers(listener.wait_for(lambda seen: numbers(seen)[-1:] == [1])) == expected


@pytest.mark.usefixtures("real_limits")
async def test_the_end_of_the_broker_after_the_last_acknowledgement_is_not_reported(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    connector = MqttConnector("127.0.0.1", broker.port, strict=True, flush_timeout=3_600.0)
    await connector.connect()
    await publish(connector, *range(10))
    broker.kill()
    await until(lambda: not is_connected(connector))
    await connector.disconnect()
    report = connector.report()
    assert (report.sent, report.lost, report.queued) == (10, 0, 0)
    assert warnings(caplog) == []
