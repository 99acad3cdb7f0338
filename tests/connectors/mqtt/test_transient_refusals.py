"""Transient refusals: the connector pauses, and sends the same messages again in order."""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from paho.mqtt.packettypes import PacketTypes

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.mqtt import MqttConnector, backpressure, health
from cascade.connectors.mqtt.oversize_messages import MAX_LOSSES
from cascade.telemetry.topics import events_topic
from tests.connectors.mqtt.broker import Broker, Listener
from tests.connectors.mqtt.messages import numbers, telemetry, warnings
from tests.connectors.mqtt.proxy import Packet, Proxy, Rule, change_connack, received_by_client, sent_by_client
from tests.lab.waiting import until

ITEMS = 400
BUFFER = 40_000
"""Bytes: some twenty tasks."""
SERVER_REFERENCE = 0x1C


@cs.task
async def double(x: int) -> int:
    return 2 * x


def run(*connectors: Any, items: int = ITEMS) -> None:
    flow = double.map(x=list(range(items)))
    assert cs.run(flow, connector=[*connectors], log_level="ERROR") == [2 * x for x in range(items)]


def is_event(packet: Packet) -> bool:
    """Return whether it is a message of a run with QoS 1 from the connector."""
    return sent_by_client(PacketTypes.PUBLISH)(packet) and packet.qos == 1 and packet.topic.endswith("/events")


def refuse(code: int, condition: Callable[[Packet], object]) -> Rule:
    """Return a rule that answers messages of a run with a PUBACK of this reason code."""

    def rule(packet: Packet) -> Iterable[Packet]:
        if not (is_event(packet) and condition(packet)):
            return (packet,)
        body = packet.packet_id.to_bytes(2) + bytes([code])
        return (Packet(PacketTypes.PUBACK, body, from_broker=True, connection=packet.connection),)

    return rule


def end(code: int, condition: Callable[[Packet], object], reference: str = "") -> Rule:
    """Return a rule that answers messages of a run with a DISCONNECT of this reason code."""
    value = reference.encode()
    properties = bytes([SERVER_REFERENCE]) + len(value).to_bytes(2) + value if value else b""

    def rule(packet: Packet) -> Iterable[Packet]:
        if not (is_event(packet) and condition(packet)):
            return (packet,)
        body = bytes([code, len(properties)]) + properties
        return (Packet(PacketTypes.DISCONNECT, body, from_broker=True, connection=packet.connection),)

    return rule


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backpressure, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(backpressure, "MAX_DELAY", 0.02)
    monkeypatch.setattr(backpressure, "ROUND", 0.01)
    monkeypatch.setattr(health, "MAX_DELAY", 0.01)


@pytest.fixture
def proxy(shared_broker: Broker) -> Iterator[Proxy]:
    """Without topic aliases: the broker would not receive the alias of a refused message."""
    with Proxy(shared_broker.port, change_connack(TopicAliasMaximum=None)) as proxy:
        yield proxy


async def publish(proxy: Proxy, topic: str, count: int) -> MqttConnector:
    connector = MqttConnector("127.0.0.1", proxy.port)
    await connector.connect()
    for number in range(count):
        await connector.publish(topic, telemetry(number), 1)
    await connector.disconnect()
    return connector


@pytest.mark.parametrize("code", [0x80, 0x83, 0x97])
async def test_transiently_refused_messages_are_sent_again_in_order(
    code: int, proxy: Proxy, listener: Listener, project: str, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = Counter[bytes]()

    def is_early(packet: Packet) -> bool:
        attempts[packet.payload] += 1
        return attempts[packet.payload] < 3

    proxy.rules.append(refuse(code, is_early))
    connector = await publish(proxy, events_topic("local", project, "run"), 100)
    seen = listener.wait_for(lambda seen: len(numbers(seen)) >= 100)
    assert numbers(seen) == list(range(100))
    assert (connector.report().sent, connector.report().lost, connector.report().retried) == (100, 0, 200)
    assert warnings(caplog) == []


async def test_a_message_that_is_always_refused_does_not_block_others(
    proxy: Proxy, listener: Listener, project: str, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.rules.append(refuse(0x83, lambda packet: json.loads(packet.payload)["seq"] == 3))
    connector = MqttConnector("127.0.0.1", proxy.port, flush_timeout=0.1)
    await connector.connect()
    for number in range(1_000):
        await connector.publish(events_topic("local", project, "run"), telemetry(number), 1)
    await until(lambda: connector.report().sent == 999)
    await connector.disconnect()
    seen = listener.wait_for(lambda seen: len(numbers(seen)) >= 999)
    assert sorted({*numbers(seen), 3}) == list(range(1_000))
    (warning,) = warnings(caplog)
    assert "1 of 1000 messages were lost" in warning
    assert f"after {connector.report().retried:,} refusals 'Implementation specific error'" in warning


async def test_a_topic_that_is_always_refused_does_not_block_others(
    proxy: Proxy, listener: Listener, project: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = (events_topic("local", project, run) for run in ("bad", "good"))
    proxy.rules.append(refuse(0x97, lambda packet: packet.topic == bad))
    connector = MqttConnector("127.0.0.1", proxy.port, flush_timeout=0.1)
    await connector.connect()
    for topic in (bad, good):
        for number in range(1_000):
            await connector.publish(topic, telemetry(number), 1)
    await until(lambda: connector.report().sent == 1_000)
    await connector.disconnect()
    assert numbers(listener.wait_for(lambda seen: len(numbers(seen)) >= 1_000)) == list(range(1_000))
    (warning,) = warnings(caplog)
    assert "1000 of 2000 messages were lost" in warning


def test_tasks_wait_during_transient_refusals(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    memory = MemoryConnector()
    proxy.rules.append(refuse(0x97, lambda _: not held(memory)))
    connector = MqttConnector("127.0.0.1", proxy.port, max_buffer_bytes=BUFFER)
    run(connector, memory)
    assert {payload["body"]["metadata"]["reason"] for payload in held(memory)} == {"telemetry"}
    assert connector.report().lost == 0
    assert warnings(caplog) == []


def held(memory: MemoryConnector) -> list[dict[str, Any]]:
    return [payload for payload in memory.payloads if payload["body"].get("state") == "PENDING"]


def test_the_rate_adapts_to_a_quota(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    per_second = 300
    tokens, last = per_second / 10, time.monotonic()

    def is_over_quota(_: Packet) -> bool:
        nonlocal tokens, last
        now = time.monotonic()
        tokens, last = min(per_second / 10, tokens + (now - last) * per_second), now
        tokens -= tokens >= 1
        return tokens < 1

    proxy.rules.append(refuse(0x97, is_over_quota))
    connector = MqttConnector("127.0.0.1", proxy.port, flush_timeout=10.0)
    run(connector, items=1_000)
    assert connector.report().retried > 0
    assert connector.report().lost == 0
    assert warnings(caplog) == []


def test_permanent_refusals_do_not_block_a_run(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    proxy.rules.append(refuse(0x97, lambda _: True))
    connector = MqttConnector("127.0.0.1", proxy.port, flush_timeout=0.2)
    run(connector, items=2_000)
    (warning,) = warnings(caplog)
    assert re.search(r"MqttConnector: \d{4} of 40\d\d messages were lost", warning)
    assert f"after {connector.report().retried:,} refusals 'Quota exceeded'" in warning


@pytest.mark.parametrize("code", [0x80, 0x83, 0x89, 0x96, 0x97, 0x9C, 0x9D, 0x9F])
async def test_the_end_of_a_connection_by_a_quota_is_not_attributed_to_a_message(
    code: int, proxy: Proxy, listener: Listener, project: str, caplog: pytest.LogCaptureFixture
) -> None:
    ends, ended = 3 * MAX_LOSSES, set[int]()

    def is_first_of_five(packet: Packet) -> bool:
        is_due = len(ended) < ends and json.loads(packet.payload)["seq"] == 5
        if is_due:
            ended.add(packet.connection)
        return is_due

    proxy.rules.append(end(code, is_first_of_five, "other.example.com:1883" if code == 0x9D else ""))
    connector = await publish(proxy, events_topic("local", project, "run"), 20)
    seen = listener.wait_for(lambda seen: {*numbers(seen)} >= {*range(20)})
    assert list(dict.fromkeys(numbers(seen)))[:5] == list(range(5))
    assert ended == set(range(ends))
    assert (connector.report().sent, connector.report().lost) == (20, 0)
    assert connector.report().retried >= ends
    there = " (other.example.com:1883)" if code == 0x9D else ""
    text = "does not follow redirections; set its address to that broker"
    expected = {0x9C: "Use another server", 0x9D: f"Server moved{there}"}
    assert warnings(caplog) == ([f"MqttConnector: {expected[code]}: the connector {text}"] if code in expected else [])


@pytest.mark.parametrize("code", [0x88, 0x89, 0x97, 0x9F])
def test_a_broker_that_is_busy_at_first_receives_all_messages(
    code: int, proxy: Proxy, caplog: pytest.LogCaptureFixture, limits: pytest.MonkeyPatch
) -> None:
    """The flush continues while the refusals are transient, also after the end of the run."""
    limits.undo()
    is_flushing = threading.Event()
    refusals = iter(range(2))

    def rule(packet: Packet) -> Iterable[Packet]:
        if not received_by_client(PacketTypes.CONNACK)(packet):
            return (packet,)
        if is_flushing.is_set() and next(refusals, None) is None:
            return (packet,)
        body = bytes([0, code, 0])
        return (Packet(PacketTypes.CONNACK, body, from_broker=True, connection=packet.connection),)

    class ObservedConnector(MqttConnector):
        async def disconnect(self) -> None:
            is_flushing.set()
            await super().disconnect()

    proxy.rules.append(rule)
    connector = ObservedConnector("127.0.0.1", proxy.port, flush_timeout=60.0)
    run(connector, items=20)
    assert (connector.report().sent, connector.report().lost) == (44, 0)
    assert warnings(caplog) == []


async def test_a_disconnect_right_after_connack_is_not_logged(proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    ends = iter(range(3))

    def rule(packet: Packet) -> Iterable[Packet]:
        if not received_by_client(PacketTypes.CONNACK)(packet) or next(ends, None) is None:
            return (packet,)
        busy = Packet(PacketTypes.DISCONNECT, b"\x89\x00", from_broker=True, connection=packet.connection)
        return (packet, busy)

    proxy.rules.append(rule)
    connector = await publish(proxy, events_topic("local", "default", "run"), 1)
    assert connector.report().sent == 1
    assert [record.getMessage() for record in caplog.records if "never retrieved" in record.getMessage()] == []
