"""Limits in CONNACK: a proxy checks in the packets that the connector respects each of them."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes

import cascade as cs
from cascade.connectors.mqtt import MqttConnector, presence
from cascade.connectors.mqtt.client import Client
from cascade.telemetry.topics import source, status_topic
from stack.addresses import reserved_port
from tests.connectors.mqtt.broker import Broker, Listener
from tests.connectors.mqtt.messages import events, numbers, statuses, telemetry, warnings
from tests.connectors.mqtt.other_brokers import PUBLISHED, TOPIC, Limit, double, publish_over_connections
from tests.connectors.mqtt.proxy import (
    Packet,
    Proxy,
    change_connack,
    most_in_flight,
    received_by_client,
    sent_by_client,
)

TAKEN_OVER = 0x8E


RETAIN = Limit({"RetainAvailable": 0}, mosquitto=("retain_available false",), mochi={"retain_available": 0})


@pytest.mark.parametrize("broker_name", ["mosquitto", "mochi", "connack"])
def test_without_retain_everything_but_presence_arrives(
    broker_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RETAIN.kept_by(broker_name, tmp_path) as observed:
        connector = MqttConnector("127.0.0.1", observed.proxy.port)
        for _ in range(2):
            assert not any(message.retain for message in observed.run(connector))
        last = observed.published()[-1].connection
        assert not any(packet.retain for packet in observed.published() if packet.connection == last)
        accepted = observed.proxy.matching(received_by_client(PacketTypes.CONNACK))[-1]
        assert accepted.body[1] == 0
    (warning,) = warnings(caplog)
    assert "retain" in warning.lower()


NO_QOS = Limit({"MaximumQoS": 0}, listener=("max_qos 0",), mochi={"maximum_qos": 0})


@pytest.mark.parametrize("broker_name", ["mosquitto", "mochi", "connack"])
def test_with_maximum_qos_0_everything_arrives_with_qos_0(
    broker_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with NO_QOS.kept_by(broker_name, tmp_path) as observed:
        connector = MqttConnector("127.0.0.1", observed.proxy.port)
        for _ in range(2):
            observed.run(connector)
        assert {packet.qos for packet in observed.published()} == {0}
    (warning,) = warnings(caplog)
    assert "QoS" in warning


ONE_QOS = Limit({"MaximumQoS": 1}, listener=("max_qos 1",), mochi={"maximum_qos": 1})


@pytest.mark.parametrize("broker_name", ["mosquitto", "mochi", "connack"])
def test_with_maximum_qos_1_nothing_changes(broker_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with ONE_QOS.kept_by(broker_name, tmp_path) as observed:
        observed.run()
        assert {packet.qos for packet in observed.published()} == {0, 1}
    assert warnings(caplog) == []


@pytest.mark.parametrize("most", [1, 2, 7])
@pytest.mark.parametrize("broker_name", ["mosquitto", "mochi", "connack"])
def test_no_more_is_in_flight_than_receive_maximum(
    broker_name: str, most: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limit = Limit(
        {"ReceiveMaximum": most}, mosquitto=(f"max_inflight_messages {most}",), mochi={"receive_maximum": most}
    )
    with limit.kept_by(broker_name, tmp_path) as observed:
        observed.proxy.latency = 0.002
        observed.run()
        assert 0 < most_in_flight(observed.proxy.packets) <= most
        assert {packet.connection for packet in observed.published()} == {0}
    assert warnings(caplog) == []


SMALL = 2_000
"""Bytes."""


@pytest.mark.parametrize("alias", [0, 5])
@pytest.mark.parametrize("broker_name", ["mosquitto", "mochi", "aedes", "connack"])
async def test_no_packet_exceeds_maximum_packet_size(
    broker_name: str, alias: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The messages have all sizes around the limit. With aliases, a packet without a topic is smaller than the first one."""
    limit = Limit(
        {"MaximumPacketSize": SMALL, "TopicAliasMaximum": alias or None},
        mosquitto=(f"max_packet_size {SMALL}",),
        listener=(f"max_topic_alias {alias}",),
        mochi={"maximum_packet_size": SMALL, "topic_alias_maximum": alias},
        aedes={"maximumPacketSize": SMALL, "topicAliasMaximum": alias},
    )
    with limit.kept_by(broker_name, tmp_path) as observed:
        connector = MqttConnector("127.0.0.1", observed.proxy.port)
        await connector.connect()
        for number in range(100):
            await connector.publish(TOPIC, telemetry(number, output="x" * (1_500 + 5 * number)), number % 2)
        await connector.disconnect()
        messages = observed.listener.wait_for(lambda seen: len(numbers(seen)) == 100)
        sizes = [len(packet.encoded) for packet in observed.published()]
        assert {packet.connection for packet in observed.published()} == {0}
    assert max(sizes) <= SMALL
    found = {payload["seq"]: payload["body"]["metadata"] for payload in events(messages)}
    truncated = [number for number in sorted(found) if "truncated" in found[number]]
    assert truncated
    assert truncated == list(range(truncated[0], 100)), "smaller messages are complete"
    assert max(sizes) > SMALL - 10, "a message that fits is not changed"
    assert warnings(caplog) == []


def test_a_too_small_maximum_packet_size_loses_messages_but_not_the_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Limit({"MaximumPacketSize": 100}).kept_by("connack", tmp_path) as observed:
        connector = MqttConnector("127.0.0.1", observed.proxy.port)
        assert cs.run(double.map(x=[1, 2]), connector=connector, log_level="ERROR") == [2, 4]
        assert max(len(packet.encoded) for packet in observed.published()) <= 100
        assert len(observed.proxy.matching(sent_by_client(PacketTypes.CONNECT))) == 1
    (warning,) = warnings(caplog)
    assert "8 of 8 messages were lost" in warning
    assert "larger than the broker" in warning


def test_a_presence_that_exceeds_the_maximum_with_its_properties_is_not_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A broker would end each connection because of it."""
    topic = status_topic("local", "default", source())
    with Limit({"MaximumPacketSize": len(topic) + 30}).kept_by("connack", tmp_path) as observed:
        cs.run(double(1), connector=MqttConnector("127.0.0.1", observed.proxy.port), log_level="ERROR")
        assert not [packet for packet in observed.published() if packet.topic == topic]
        assert len(observed.proxy.matching(sent_by_client(PacketTypes.CONNECT))) == 1
    assert f"a message on topic {topic} has" in warnings(caplog)[0]


async def test_the_limits_of_one_connection_do_not_affect_others(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    def rule(packet: Packet) -> Iterable[Packet]:
        return change_connack(MaximumQoS=0, RetainAvailable=0)(packet) if packet.connection == 1 else (packet,)

    with Proxy(broker.port, rule) as proxy, Listener(broker.port, TOPIC) as listener:
        packets = [*filter(PUBLISHED, await publish_over_connections(3, proxy, listener))]
    for number, qos in ((0, 1), (1, 0), (2, 1)):
        own = [packet for packet in packets if packet.connection == number]
        assert {packet.qos for packet in own} == {qos}
        assert any(packet.retain for packet in own) is bool(qos)
    assert sorted("QoS" in warning for warning in warnings(caplog)) == [False, True]


@pytest.mark.parametrize("broker_name", ["mochi", "aedes", "connack"])
async def test_pings_come_at_the_interval_of_server_keep_alive(broker_name: str, tmp_path: Path) -> None:
    limit = Limit({"ServerKeepAlive": 1}, mochi={"server_keepalive": 2}, aedes={"keepaliveLimit": 1})
    with limit.kept_by(broker_name, tmp_path) as observed:
        connector = MqttConnector("127.0.0.1", observed.proxy.port, keepalive=3_600)
        await connector.connect()
        await asyncio.to_thread(observed.proxy.wait_for_count, 2, sent_by_client(PacketTypes.PINGREQ))
        await connector.disconnect()


async def test_a_warning_has_the_client_id_that_the_broker_assigned(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with Proxy(broker.port, change_connack(AssignedClientIdentifier="assigned-7")) as proxy:
        connector = MqttConnector("127.0.0.1", proxy.port)
        await connector.connect()
        await asyncio.to_thread(proxy.wait_for_count, 1, PUBLISHED)
        proxy.send(Packet(PacketTypes.DISCONNECT, bytes([TAKEN_OVER]), from_broker=True))
        await asyncio.to_thread(proxy.wait_for_count, 2, received_by_client(PacketTypes.CONNACK))
        await connector.disconnect()
    (warning,) = warnings(caplog)
    assert "assigned-7" in warning


async def test_a_generated_client_id_respects_the_limit_of_aws(broker: Broker) -> None:
    """A unique suffix makes a configured id longer. Other brokers accept more bytes."""
    with Proxy(broker.port) as proxy:
        connector = MqttConnector("127.0.0.1", proxy.port, client_id="c" * 128)
        await connector.connect()
        await asyncio.to_thread(proxy.wait_for_count, 1, PUBLISHED)
        proxy.send(Packet(PacketTypes.DISCONNECT, bytes([TAKEN_OVER]), from_broker=True))
        (first, second) = await asyncio.to_thread(proxy.wait_for_count, 2, sent_by_client(PacketTypes.CONNECT))
        await connector.disconnect()
    assert b"c" * 128 in first.body
    found = re.search(rb"\x00\x80(c{119}-[0-9a-f]{8})(?![0-9a-f])", second.body)
    assert found


def has_wildcard(packet: Packet) -> bool:
    return re.search(rb"[+#]", packet.payload) is not None


@pytest.mark.parametrize("broker_name", ["mochi", "connack"])
def test_without_wildcard_subscriptions_a_run_has_no_control(
    broker_name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limit = Limit({"WildcardSubscriptionAvailable": 0}, mochi={"wildcard_sub_available": 0})
    with limit.kept_by(broker_name, tmp_path, pattern="unused") as observed:
        proxy = observed.proxy
        connector = MqttConnector("127.0.0.1", proxy.port)
        for _ in range(2):
            assert cs.run(double.map(x=[1, 2]), connector=connector, log_level="ERROR") == [2, 4]
        subscribed = proxy.matching(sent_by_client(PacketTypes.SUBSCRIBE))
        sent = proxy.wait_for_count(1, PUBLISHED)
        acknowledged = proxy.matching(received_by_client(PacketTypes.PUBACK))
    assert not [packet for packet in subscribed if has_wildcard(packet)]
    assert len(acknowledged) == sum(packet.qos for packet in sent)
    (warning,) = warnings(caplog)
    assert "wildcard" in warning.lower()
    assert "control" in warning


@pytest.mark.parametrize("name", ["SubscriptionIdentifierAvailable", "SharedSubscriptionAvailable"])
def test_without_other_kinds_of_subscriptions_nothing_changes(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Limit({name: 0}).kept_by("connack", tmp_path) as observed:
        observed.run()
        subscribed = observed.proxy.matching(sent_by_client(PacketTypes.SUBSCRIBE))
    assert [packet for packet in subscribed if has_wildcard(packet)]
    assert not [packet for packet in subscribed if packet.properties or b"$share" in packet.payload]
    assert warnings(caplog) == []


@pytest.mark.parametrize("name", ["RetainAvailable", "MaximumQoS"])
def test_presence_needs_neither_retain_nor_qos_1(name: str, tmp_path: Path) -> None:
    retain = name != "RetainAvailable"
    with Limit({name: 0}).kept_by("connack", tmp_path) as observed:
        observed.run()
        expected = [(b"online", retain), (b"offline", False)] + [(b"", True)] * retain
        observed.listener.wait_for(lambda seen: statuses(seen) == expected)
        (connect,) = observed.proxy.matching(sent_by_client(PacketTypes.CONNECT))
        assert connect.body[7] & 0b0011_1000 == 0b0010_1000, "the will of a first connection: QoS 1, retained"


def refuse_silently(packet: Packet) -> Iterable[Packet]:
    """Mosquitto closes the connection for a malformed CONNECT; the flags of the will are part of its eighth byte."""
    is_refused = packet.kind == PacketTypes.CONNECT and packet.body[7] & 0b0011_1000
    return (replace(packet, body=b"") if is_refused else packet,)


@pytest.mark.parametrize(
    "announced", [{}, {"RetainAvailable": 0}, {"MaximumQoS": 0}, {"RetainAvailable": 0, "MaximumQoS": 0}]
)
def test_a_broker_that_rejects_the_will_gets_one_without_retain_and_qos(
    announced: dict[str, int], broker: Broker
) -> None:
    with Proxy(broker.port, refuse_silently, change_connack(**announced)) as proxy, Listener(broker.port) as listener:
        for _ in range(2):
            listener.forget()
            assert cs.run(double(1), connector=MqttConnector("127.0.0.1", proxy.port), log_level="ERROR") == 2
            messages = listener.wait_for(lambda seen: (b"offline", False) in statuses(seen))
            assert sorted(numbers(messages)) == list(range(4))


@pytest.mark.parametrize(("code", "feature"), [(0x9A, "retain"), (0x9B, "qos")])
def test_refused_flags_are_not_used_in_the_next_connection(
    code: int, feature: str, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """The broker refuses a feature that CONNACK has announced."""

    def refuse(packet: Packet) -> Iterable[Packet]:
        is_refused = PUBLISHED(packet) and getattr(packet, feature)
        answer = Packet(PacketTypes.DISCONNECT, bytes([code]), from_broker=True, connection=packet.connection)
        return (answer if is_refused else packet,)

    with Proxy(broker.port, refuse) as proxy, Listener(broker.port) as listener:
        assert cs.run(double(1), connector=MqttConnector("127.0.0.1", proxy.port), log_level="ERROR") == 2
        messages = listener.wait_for(lambda seen: (b"offline", False) in statuses(seen))
        second = [packet for packet in proxy.matching(PUBLISHED) if packet.connection == 1]
    assert sorted(numbers(messages)) == list(range(4))
    assert not any(getattr(packet, feature) for packet in second)
    (warning,) = warnings(caplog)
    assert feature in warning.lower()


async def test_a_broker_that_has_accepted_the_will_gets_it_again(broker: Broker) -> None:
    """A restarting broker closes connections without an answer."""
    with Proxy(broker.port) as proxy:
        connector = MqttConnector("127.0.0.1", proxy.port)
        await connector.connect()
        await asyncio.to_thread(proxy.wait_for_count, 1, PUBLISHED)
        proxy.rules.append(refuse_silently)
        proxy.cut()
        packets = await asyncio.to_thread(proxy.wait_for_count, 3, sent_by_client(PacketTypes.CONNECT))
        await connector.disconnect()
    assert {packet.body[7] & 0b0011_1000 for packet in packets} == {0b0010_1000}


async def test_with_a_full_window_the_will_replaces_the_offline_message(
    broker: Broker, limits: pytest.MonkeyPatch
) -> None:
    limits.setattr(presence, "OFFLINE_TIMEOUT", 0.05)
    with Proxy(broker.port, change_connack(ReceiveMaximum=1)) as proxy, Listener(broker.port) as listener:
        proxy.hold(received_by_client(PacketTypes.PUBACK))
        connector = MqttConnector("127.0.0.1", proxy.port)
        await connector.connect()
        await asyncio.to_thread(proxy.wait_for_count, 1, PUBLISHED)
        await connector.disconnect()
        messages = await asyncio.to_thread(listener.wait_for, lambda seen: len(seen) == 2)
        assert proxy.matching(sent_by_client(PacketTypes.DISCONNECT)) == []
        assert most_in_flight(proxy.packets) == 1
    assert statuses(messages) == [(b"online", True), (b"offline", True)]


@pytest.mark.parametrize("most", [1, 2])
async def test_final_presence_messages_fit_into_a_small_window(most: int, broker: Broker) -> None:
    with (
        Proxy(broker.port, change_connack(ReceiveMaximum=most), latency=0.002) as proxy,
        Listener(broker.port) as listener,
    ):
        connector = MqttConnector("127.0.0.1", proxy.port)
        await connector.connect()
        for number in range(10):
            await connector.publish(TOPIC, telemetry(number), 1)
        await connector.disconnect()
        messages = await asyncio.to_thread(listener.wait_for, lambda seen: (b"", True) in statuses(seen))
        assert most_in_flight(proxy.packets) == most
    assert statuses(messages) == [(b"online", True), (b"offline", False), (b"", True)]
    assert numbers(messages) == list(range(10))


async def test_without_server_keep_alive_the_connection_is_idle(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pings of another connector measure the time."""
    turns = Counter[Client]()

    def keep_alive(client: Client, original: Callable[[Client], None] = Client.keep_alive) -> None:
        turns[client] += 1
        original(client)

    monkeypatch.setattr(Client, "keep_alive", keep_alive)
    with (
        Proxy(broker.port, change_connack(ServerKeepAlive=0)) as never,
        Proxy(broker.port, change_connack(ServerKeepAlive=1)) as often,
    ):
        connectors = [MqttConnector("127.0.0.1", proxy.port) for proxy in (never, often)]
        for connector in connectors:
            await connector.connect()
        await asyncio.to_thread(often.wait_for_count, 2, sent_by_client(PacketTypes.PINGREQ))
        assert never.matching(sent_by_client(PacketTypes.PINGREQ)) == []
        for connector in connectors:
            await connector.disconnect()
    assert len(turns) == 2
    assert max(turns.values()) < 500


def answer_as_mqtt_3(packet: Packet) -> Iterable[Packet]:
    """Accept any CONNECT with the CONNACK of MQTT 3.1.1, which has no properties."""
    answer = Packet(PacketTypes.CONNACK, bytes(2), from_broker=True, connection=packet.connection)
    return (answer if packet.kind == PacketTypes.CONNECT else packet,)


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        (True, "the broker's answer to CONNECT is malformed"),
        (False, "closed the connection without an answer to CONNECT"),
    ],
)
def test_a_server_without_mqtt_5_is_reported_with_the_requirement(
    answers: bool,
    text: str,
    shared_broker: Broker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    target = shared_broker.port if answers else reserved_port()
    with Proxy(target, answer_as_mqtt_3) as proxy:
        assert cs.run(double(1), connector=MqttConnector("127.0.0.1", proxy.port), log_level="ERROR") == 2
    (warning,) = warnings(caplog)
    assert text in warning
    assert warning.endswith("MqttConnector requires MQTT 5")
