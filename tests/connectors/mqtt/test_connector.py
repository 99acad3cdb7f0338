"""Whole runs over a real broker."""

import asyncio
import itertools
import json
import os
import time
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.mqtt import MqttConnector
from cascade.connectors.mqtt.connection import BATCH
from cascade.telemetry.topics import events_topic
from cascade.testing import ConnectorConformance
from stack.addresses import reserved_port
from tests.connectors.mqtt.broker import Broker, Listener
from tests.connectors.mqtt.messages import SPAN, TRACE, events, numbers, telemetry, telemetry_of, warnings
from tests.lab.waiting import HANG

TOPIC = events_topic("local", "default", "run")


@cs.task
async def double(x: int) -> int:
    return 2 * x


class TestMqttConnector(ConnectorConformance):
    @pytest.fixture(autouse=True)
    def _other_side(self, shared_broker: Broker, listener: Listener) -> None:
        self.port = shared_broker.port
        self.listener = listener

    def make_connector(self) -> MqttConnector:
        return MqttConnector("127.0.0.1", self.port)

    def make_dead_connector(self) -> MqttConnector:
        return MqttConnector("127.0.0.1", reserved_port())

    def received(self) -> list[dict[str, Any]]:
        # Acknowledged messages are on their way to the listener. Its own message arrives after them.
        mark = f"cascade/telemetry/local/{os.environ['CASCADE_PROJECT_ID']}/mark-{next(_marks)}"
        self.listener.publish(mark, b"{}")
        messages = self.listener.wait_for(lambda messages: messages[-1:] and messages[-1].topic == mark)
        return [payload for payload in events(messages) if payload]


_marks = itertools.count()


def test_a_subscriber_receives_a_run_from_start_to_end(shared_broker: Broker, listener: Listener, project: str) -> None:
    connector = MqttConnector("127.0.0.1", shared_broker.port)
    assert cs.run(double.map(x=[1, 2, 3]), connector=connector, log_level="ERROR") == [2, 4, 6]
    messages = listener.wait_for(lambda seen: events(seen)[-1:] and _is_end(events(seen)[-1]))
    telemetry_messages = telemetry_of(messages)
    payloads = events(messages)
    assert [payload["seq"] for payload in payloads] == list(range(len(payloads)))
    assert {message.topic for message in telemetry_messages} == {events_topic("local", project, payloads[0]["run_id"])}
    for message, payload in zip(telemetry_messages, payloads, strict=True):
        minor = payload["body"].get("state") in {"RUNNING", "PENDING"}
        assert message.qos == (0 if minor else 1)
        assert not message.retain
        assert message.properties is not None
        flags = f"{payload['trace_flags']:02x}"
        expected = ("traceparent", f"00-{payload['trace_id']}-{payload['span_id']}-{flags}")
        assert message.properties.ContentType == "application/json"  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        assert message.properties.UserProperty == [expected]  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]


def _is_end(payload: dict[str, Any]) -> bool:
    return bool(payload["body"].get("event") == "ENGINE_STOPPED")


def test_messages_have_the_tracestate_of_the_caller(
    shared_broker: Broker, listener: Listener, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACEPARENT", f"00-{TRACE}-{SPAN}-01")
    monkeypatch.setenv("TRACESTATE", "acme=t61rcWkgMzE,ot=th:c")
    connector = MqttConnector("127.0.0.1", shared_broker.port)
    cs.run(double(1), connector=connector, log_level="ERROR")
    messages = listener.wait_for(lambda seen: events(seen)[-1:] and _is_end(events(seen)[-1]))
    telemetry_messages = telemetry_of(messages)
    for message, payload in zip(telemetry_messages, events(messages), strict=True):
        assert payload["tracestate"] == "acme=t61rcWkgMzE,ot=th:c"
        given = dict(message.properties.UserProperty)  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        assert given == {
            "traceparent": f"00-{TRACE}-{payload['span_id']}-01",
            "tracestate": "acme=t61rcWkgMzE,ot=th:c",
        }


def test_a_burst_arrives_in_order(shared_broker: Broker, listener: Listener, caplog: Any) -> None:
    connector = MqttConnector("127.0.0.1", shared_broker.port)
    cs.run(double.map(x=list(range(3_000))), connector=connector, log_level="ERROR")
    messages = listener.wait_for(lambda seen: len(seen) > 6_000 and _is_end(events(seen[-4:])[-1]))
    assert numbers(messages) == list(range(len(numbers(messages))))
    assert warnings(caplog) == []


async def test_messages_of_qos_0_are_sent_without_a_wait(
    shared_broker: Broker, listener: Listener, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker answers none of them, so the session must not wait for an answer after each batch."""
    for wait in ("ANSWER_CHECK_INTERVAL", "MAX_IDLE"):
        monkeypatch.setattr(f"cascade.connectors.mqtt.session.{wait}", HANG)
    connector, count = MqttConnector("127.0.0.1", shared_broker.port, keepalive=65_535), 5 * BATCH
    await connector.connect()
    for number in range(count):
        await connector.publish(f"cascade/telemetry/local/{project}/run/events", telemetry(number), 0)
    await connector.disconnect()
    assert (connector.report().sent, connector.report().lost) == (count, 0)
    assert numbers(listener.wait_for(lambda seen: len(numbers(seen)) == count)) == list(range(count))


async def test_the_event_loop_may_be_blocked_for_longer_than_the_keepalive(
    shared_broker: Broker, listener: Listener, project: str, caplog: Any
) -> None:
    connector = MqttConnector("127.0.0.1", shared_broker.port, keepalive=2)
    topic = events_topic("local", project, "run")
    await connector.connect()
    await connector.publish(topic, telemetry(0), 1)
    time.sleep(4)  # noqa: ASYNC251 - as a task may do it
    await connector.publish(topic, telemetry(1), 1)
    await connector.disconnect()
    messages = listener.wait_for(lambda seen: len(numbers(seen)) == 2)
    online = [message for message in messages if message.payload == b"online"]
    assert len(online) == 1, "there was one connection"
    assert [m for m in messages if m.payload == b"offline" and m.retain] == [], "there was no Last Will"
    assert warnings(caplog) == []


def test_several_event_loops_share_a_connector(shared_broker: Broker, listener: Listener, caplog: Any) -> None:
    import threading

    connector = MqttConnector("127.0.0.1", shared_broker.port)
    results: list[Any] = []

    def run() -> None:
        results.append(cs.run(double.map(x=list(range(100))), connector=connector, log_level="ERROR"))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[2 * x for x in range(100)]] * 4
    ended = listener.wait_for(lambda seen: sum(map(_is_end, events(seen))) == 4)
    by_run: dict[str, list[int]] = {}
    for payload in events(ended):
        by_run.setdefault(payload["run_id"], []).append(payload["seq"])
    assert len(by_run) == 4
    assert all(seqs == list(range(len(seqs))) for seqs in by_run.values())
    assert warnings(caplog) == []


async def test_an_invalid_topic_is_refused_before_it_is_sent(shared_broker: Broker) -> None:
    connector = MqttConnector("127.0.0.1", shared_broker.port)
    for topic in ("", "a\0b", "a/+", "a/#", "/".join("a" * 200), "$SYS/x", "a\nb"):
        with pytest.raises(ValueError, match="topic"):
            await connector.publish(topic, telemetry(), 1)


async def test_disconnecting_without_a_connection_does_nothing() -> None:
    connector = MqttConnector("127.0.0.1", reserved_port())
    await connector.disconnect()
    await connector.publish(TOPIC, telemetry(), 1)


async def test_a_finished_run_is_flushed_while_another_continues(
    shared_broker: Broker, listener: Listener, project: str
) -> None:
    connector = MqttConnector("127.0.0.1", shared_broker.port)
    await connector.connect()
    await connector.connect()
    await connector.publish(events_topic("local", project, "run"), telemetry(7), 1)
    await connector.disconnect()
    seen = listener.wait_for(lambda seen: numbers(seen) == [7])
    assert [message.payload for message in seen if b"offline" in message.payload] == []
    await connector.disconnect()
    listener.wait_for(lambda seen: any(message.payload == b"offline" for message in seen))


def test_a_forked_child_has_its_own_connection(shared_broker: Broker, listener: Listener, project: str) -> None:
    connector = MqttConnector("127.0.0.1", shared_broker.port)
    topic = events_topic("local", project, "run")

    async def both() -> None:
        await connector.connect()
        await connector.publish(topic, telemetry(0), 1)
        child = os.fork()
        if not child:
            code = 1
            try:
                asyncio.run(in_child())
                code = 0
            finally:
                os._exit(code)
        await connector.publish(topic, telemetry(1), 1)
        assert await asyncio.to_thread(os.waitpid, child, 0) == (child, 0)
        await connector.disconnect()

    async def in_child() -> None:
        await connector.connect()
        await connector.publish(topic, telemetry(2), 1)
        await connector.disconnect()

    asyncio.run(both())
    messages = listener.wait_for(lambda seen: len(numbers(seen)) == 3)
    assert sorted(numbers(messages)) == [0, 1, 2], "no message is sent twice"


def test_the_traceparent_follows_w3c_trace_context() -> None:
    from cascade.connectors.mqtt.packets import traceparent

    assert traceparent(telemetry()) == f"00-{TRACE}-{SPAN}-01".encode()
    assert traceparent(json.loads("{}")) == b""
