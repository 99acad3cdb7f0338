"""Topic aliases: the connector uses those that the broker accepts, and each message has its topic."""

import asyncio
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes

import cascade as cs
from cascade.connectors.mqtt import MqttConnector
from tests.connectors.mqtt.broker import Broker, Listener
from tests.connectors.mqtt.messages import events, numbers, telemetry, warnings
from tests.connectors.mqtt.other_brokers import PUBLISHED, TOPIC, Limit, double, publish_over_connections
from tests.connectors.mqtt.proxy import (
    Packet,
    Proxy,
    change_connack,
    most_in_flight,
    received_by_client,
)
from tests.lab.waiting import until

TAKEN_OVER = 0x8E

ITEMS = 40


def resolve_aliases(packets: Iterable[Packet], most: dict[int, int]) -> Iterator[str]:
    """The topic of each PUBLISH of a client. `most` has the maximum of each connection."""
    topics = dict[tuple[int, int], str]()
    for packet in filter(PUBLISHED, packets):
        topic, alias = packet.topic, packet.properties.get("TopicAlias")
        if alias is not None:
            assert 1 <= alias <= most[packet.connection]
            key = (packet.connection, alias)
            topics[key] = topic = topic or topics[key]
        assert topic
        yield topic


@pytest.mark.parametrize("most", [1, 3, 65_535])
@pytest.mark.parametrize("broker_name", ["mosquitto", "mochi", "aedes", "connack"])
def test_aliases_replace_topics(broker_name: str, most: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limit = Limit(
        {"TopicAliasMaximum": most},
        listener=(f"max_topic_alias {most}",),
        mochi={"topic_alias_maximum": most},
        aedes={"topicAliasMaximum": most},
    )
    with limit.kept_by(broker_name, tmp_path) as observed:
        messages = observed.run()
        packets = observed.published()
        topics = list(resolve_aliases(packets, {0: most}))
    assert [topic for topic in topics if topic.endswith("/events")] == [
        message.topic for message in messages if message.topic.endswith("/events")
    ]
    without = [packet for packet in packets if not packet.topic]
    assert len(without) >= 2 * ITEMS
    assert warnings(caplog) == []


@pytest.mark.parametrize("most", [1, 2, 3])
def test_more_topics_than_aliases(
    most: int, shared_broker: Broker, project: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        Proxy(shared_broker.port, change_connack(TopicAliasMaximum=most)) as proxy,
        Listener(shared_broker.port, f"cascade/telemetry/local/{project}/+/events") as listener,
        ThreadPoolExecutor() as threads,
    ):
        connector = MqttConnector("127.0.0.1", proxy.port)
        target = double.map(x=list(range(ITEMS)))
        runs = [threads.submit(cs.run, target, connector=connector, log_level="ERROR") for _ in range(5)]
        for each in runs:
            each.result()
        count = 2 * ITEMS + 4
        messages = listener.wait_for(lambda seen: len(numbers(seen)) == 5 * count)
        connections = range(max(packet.connection for packet in proxy.packets) + 1)
        topics = [*resolve_aliases(proxy.packets, dict.fromkeys(connections, most))]
        assert any(not packet.topic for packet in proxy.matching(PUBLISHED))
    by_topic = dict[str, list[int]]()
    for message, payload in zip(messages, events(messages), strict=True):
        assert payload["run_id"] in message.topic
        by_topic.setdefault(message.topic, []).append(payload["seq"])
    assert sorted(map(sorted, by_topic.values())) == [list(range(count))] * 5
    assert set(by_topic) <= set(topics)
    assert warnings(caplog) == []


@pytest.mark.parametrize("most", [0, None])
def test_without_topic_alias_maximum_there_is_no_alias(most: int | None, tmp_path: Path) -> None:
    with Limit({"TopicAliasMaximum": most}).kept_by("connack", tmp_path) as observed:
        observed.run()
        assert not [packet for packet in observed.published() if "TopicAlias" in packet.properties]


async def test_each_connection_has_its_own_aliases_and_limits(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    aliases, windows = {0: 10, 1: 0, 2: 2, 3: 1}, {0: 100, 1: 1, 2: 20, 3: 2}

    def rule(packet: Packet) -> Iterable[Packet]:
        number = packet.connection
        return change_connack(TopicAliasMaximum=aliases[number], ReceiveMaximum=windows[number])(packet)

    with Proxy(broker.port, rule, latency=0.002) as proxy, Listener(broker.port, TOPIC) as listener:
        packets = await publish_over_connections(4, proxy, listener)
    topics = [*resolve_aliases(packets, aliases)]
    assert {topic for topic in topics if "/status/" not in topic} == {TOPIC}
    for number, window in windows.items():
        own = [packet for packet in packets if packet.connection == number]
        assert most_in_flight(own) <= window
        assert any(not packet.topic for packet in filter(PUBLISHED, own)) is bool(aliases[number])
    assert warnings(caplog) == []


def test_all_limits_together_are_respected(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limit = Limit(
        {},
        mochi={
            "maximum_packet_size": 2_000,
            "maximum_qos": 0,
            "receive_maximum": 1,
            "retain_available": 0,
            "topic_alias_maximum": 1,
            "shared_sub_available": 0,
            "sub_id_available": 0,
        },
    )
    with limit.kept_by("mochi", tmp_path) as observed:
        observed.run()
        last = observed.published()[-1].connection
        packets = [packet for packet in observed.published() if packet.connection == last]
        assert set(resolve_aliases(packets, {last: 1}))
    assert not [packet for packet in packets if packet.qos or packet.retain or len(packet.encoded) > 2_000]
    assert [packet for packet in packets if not packet.topic]
    assert sorted("QoS" in warning for warning in warnings(caplog)) == [False, True]


@pytest.mark.parametrize("code", [0x94, 0x80])
async def test_refused_aliases_are_not_used_in_the_next_connection(
    code: int, broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """0x94 is "Topic alias invalid"."""
    with Proxy(broker.port, change_connack(TopicAliasMaximum=5)) as proxy, Listener(broker.port, TOPIC) as listener:
        connector = MqttConnector("127.0.0.1", proxy.port)
        await connector.connect()
        for number in range(100):
            await connector.publish(TOPIC, telemetry(number), 1)
            if number == 50:
                await asyncio.to_thread(proxy.wait_for_count, 52, PUBLISHED)
                proxy.send(Packet(PacketTypes.DISCONNECT, bytes([code]), from_broker=True))
                await asyncio.to_thread(proxy.wait_for_count, 2, received_by_client(PacketTypes.CONNACK))
        await until(lambda: {*numbers(listener.messages)} == set(range(100)))
        await connector.disconnect()
        later = [packet for packet in proxy.matching(PUBLISHED) if packet.connection == 1]
    assert any("TopicAlias" in packet.properties for packet in later) is (code != 0x94)
    assert warnings(caplog) == []
