"""The proxy of the tests: clients of paho show the effect of its rules."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
from paho.mqtt.packettypes import PacketTypes

from tests.connectors.mqtt.broker import Broker, Listener
from tests.connectors.mqtt.proxy import (
    Packet,
    Proxy,
    change_connack,
    most_in_flight,
    received_by_client,
    sent_by_client,
)
from tests.lab.waiting import NEVER

PUBLISHED, ACKNOWLEDGED = sent_by_client(PacketTypes.PUBLISH), received_by_client(PacketTypes.PUBACK)
RECEIVED = received_by_client(PacketTypes.PUBLISH)


@pytest.fixture
def proxy(shared_broker: Broker) -> Iterator[Proxy]:
    with Proxy(shared_broker.port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy, project: str) -> Iterator[Listener]:
    with Listener(proxy.port, f"{project}/#") as client:
        yield client


def test_each_packet_is_recorded_with_its_fields(proxy: Proxy, client: Listener, project: str) -> None:
    client.publish(f"{project}/a", b"x" * 300, retain=True)
    client.wait_for(len)
    (sent,), (received,) = proxy.matching(PUBLISHED), proxy.wait_for_count(1, RECEIVED)
    for packet in (sent, received):
        assert (packet.topic, packet.payload, packet.qos, packet.retain) == (f"{project}/a", b"x" * 300, 1, True)
        assert len(packet.encoded) == 3 + len(packet.body)
    (acknowledged,) = proxy.matching(ACKNOWLEDGED)
    assert acknowledged.packet_id == sent.packet_id
    (subscribed,) = proxy.matching(sent_by_client(PacketTypes.SUBSCRIBE))
    assert subscribed.payload == len(f"{project}/#").to_bytes(2) + f"{project}/#".encode() + b"\x09"
    client.publish(f"{project}/a", b"", retain=True)


def test_a_rule_changes_drops_and_adds_packets(proxy: Proxy, client: Listener, project: str) -> None:
    def rule(packet: Packet) -> Iterable[Packet]:
        if not PUBLISHED(packet) or packet.payload == b"as it is":
            return (packet,)
        if packet.payload == b"changed":
            return (replace(packet, body=packet.body.replace(b"changed", b"CHANGED")),)
        answer = Packet(
            PacketTypes.PUBACK, packet.packet_id.to_bytes(2), from_broker=True, connection=packet.connection
        )
        return (answer,)

    proxy.rules.append(rule)
    for payload in (b"changed", b"lost", b"as it is"):
        client.publish(f"{project}/a", payload)
    seen = client.wait_for(lambda seen: len(seen) == 2)
    assert [message.payload for message in seen] == [b"CHANGED", b"as it is"]


def test_packets_are_held_until_they_are_released(proxy: Proxy, client: Listener, project: str) -> None:
    proxy.hold(ACKNOWLEDGED)
    infos = [client.client.publish(f"{project}/{number}", b"", 1) for number in range(3)]
    client.wait_for(lambda seen: len(seen) == 3)
    assert not any(info.is_published() for info in infos)
    assert most_in_flight(proxy.packets) == 3
    proxy.release()
    acknowledged = proxy.wait_for_count(3, ACKNOWLEDGED)
    assert [packet.packet_id for packet in acknowledged] == [packet.packet_id for packet in proxy.matching(PUBLISHED)]


def test_latency_keeps_the_order(proxy: Proxy, client: Listener, project: str) -> None:
    proxy.latency = 0.01
    topics = [f"{project}/{number}" for number in range(50)]
    for topic in topics:
        client.client.publish(topic, b"", 1)
    assert [message.topic for message in client.wait_for(lambda seen: len(seen) == 50)] == topics


def test_a_packet_with_a_delay_is_overtaken(proxy: Proxy, client: Listener, project: str) -> None:
    delays = {f"{project}/never": NEVER, f"{project}/late": 0.01}
    proxy.rules.append(
        lambda packet: (replace(packet, delay=delays.get(packet.topic, 0.0)) if RECEIVED(packet) else packet,)
    )
    for name in ("never", "late", "soon"):
        client.client.publish(f"{project}/{name}", b"", 1)
    seen = client.wait_for(lambda seen: len(seen) == 2)
    assert {message.topic for message in seen} == {f"{project}/late", f"{project}/soon"}


def test_properties_of_connack_are_set_and_removed(broker: Broker, project: str) -> None:
    changes = change_connack(ReceiveMaximum=3, TopicAliasMaximum=None, ServerKeepAlive=9, AssignedClientIdentifier="me")
    with Proxy(broker.port, changes) as proxy, Listener(proxy.port, project):
        (answer,) = proxy.matching(received_by_client(PacketTypes.CONNACK))
    assert answer.properties == {
        "ReceiveMaximum": 3,
        "ServerKeepAlive": 9,
        "AssignedClientIdentifier": "me",
    }


def test_a_connection_that_is_cut_is_followed_by_another(proxy: Proxy, client: Listener) -> None:
    client.forget()
    proxy.cut()
    client.await_subscription()
    assert [packet.connection for packet in proxy.matching(sent_by_client(PacketTypes.CONNECT))] == [0, 1]


def test_a_packet_of_the_test_reaches_the_client(proxy: Proxy, client: Listener) -> None:
    client.forget()
    proxy.send(Packet(PacketTypes.DISCONNECT, bytes([0x97]), from_broker=True, connection=0))
    client.await_subscription()
    assert len(proxy.matching(sent_by_client(PacketTypes.CONNECT))) == 2
