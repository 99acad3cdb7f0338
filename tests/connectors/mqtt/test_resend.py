"""Messages that a broker has acknowledged, but has lost because it was killed, are sent again."""

import contextlib
from collections.abc import Iterator

import pytest
from paho.mqtt.packettypes import PacketTypes

from cascade.connectors.mqtt import MqttConnector
from cascade.connectors.mqtt.packets import TAKEN_OVER
from cascade.telemetry.topics import events_topic
from tests.connectors.mqtt.broker import Broker, Listener
from tests.connectors.mqtt.messages import numbers, telemetry, warnings
from tests.connectors.mqtt.proxy import Packet, Proxy, received_by_client
from tests.connectors.mqtt.waiting import hold_back, is_connected
from tests.lab.waiting import until

TOPIC = events_topic("local", "default", "run")


@contextlib.contextmanager
def deaf(broker: Broker) -> Iterator[Listener]:
    """A subscriber that receives nothing before it has lost its connection, although the broker sends everything."""

    def rule(packet: Packet) -> tuple[Packet, ...]:
        is_early = received_by_client(PacketTypes.PUBLISH)(packet) and packet.connection == 0
        return () if is_early else (packet,)

    with Proxy(broker.port, rule) as proxy, Listener(proxy.port, "cascade/telemetry/#") as listener:
        yield listener


async def kill(broker: Broker, connector: MqttConnector, listener: Listener, patch: pytest.MonkeyPatch) -> None:
    """Kill the broker and start it again; the subscriber subscribes before the connector connects."""
    listener.forget_subscription()
    broker.kill()
    await until(lambda: has_failed(connector))
    with patch.context() as held:
        may_connect = hold_back(held)
        broker.start()
        listener.await_subscription()
        may_connect.set()


def has_failed(connector: MqttConnector) -> bool:
    """Whether an attempt to connect has failed since the connection was lost."""
    return connector._health is not None and connector._health._failed_at > connector._health._lost_at


async def publish(connector: MqttConnector, *numbers: int, qos: int = 1) -> None:
    for number in numbers:
        await connector.publish(TOPIC, telemetry(number), qos)
    await until(lambda: connector.report().queued == 0)


@pytest.mark.parametrize(("window", "expected"), [(3600.0, [*range(50), 100, 101]), (0, [100, 101])])
async def test_what_was_acknowledged_before_the_end_comes_again_first_and_in_order(
    window: float,
    expected: list[int],
    broker: Broker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connector = MqttConnector("127.0.0.1", broker.port, resend_window=window)
    with deaf(broker) as listener:
        await connector.connect()
        await publish(connector, *range(50))
        await publish(connector, *range(50, 100), qos=0)
        await kill(broker, connector, listener, monkeypatch)
        await publish(connector, 100, 101)
        await connector.disconnect()
        assert numbers(listener.wait_for(lambda seen: numbers(seen)[-1:] == [101])) == expected
    assert (connector.report().sent, connector.report().lost) == (102, 0)
    assert connector.report().retried == len(expected) - 2
    assert warnings(caplog) == []


async def test_every_message_survives_many_kills(
    broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The subscriber confirms nothing in time: each kill comes right after the acknowledgement."""
    connector, kills, batch = MqttConnector("127.0.0.1", broker.port), 10, 20
    with Listener(broker.port, "cascade/telemetry/#") as listener:
        await connector.connect()
        for number in range(kills):
            await publish(connector, *range(number * batch, (number + 1) * batch))
            await kill(broker, connector, listener, monkeypatch)
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
async def test_a_broker_that_goes_on_keeps_what_it_has_acknowledged(
    code: int, expected: list[int], broker: Broker
) -> None:
    """Session taken over and quota exceeded concern one client alone; a broker that is shutting down may lose messages."""
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
async def test_a_broker_that_dies_after_the_last_acknowledgement_costs_no_warning(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    connector = MqttConnector("127.0.0.1", broker.port, strict=True, flush_timeout=3_600.0)
    await connector.connect()
    await publish(connector, *range(10))
    broker.kill()
    await until(lambda: not is_connected(connector))
    await connector.disconnect()
    assert (connector.report().sent, connector.report().lost, connector._outbox.bytes) == (10, 0, 0)
    assert warnings(caplog) == []
