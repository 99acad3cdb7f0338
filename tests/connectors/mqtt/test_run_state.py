"""Retained states of runs: when they are published, and what a late subscriber receives."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from paho.mqtt.packettypes import PacketTypes

import cascade as cs
from cascade.connectors.memory import PublishedMessage
from cascade.connectors.mqtt import MqttConnector
from cascade.telemetry.schema import load as load_schema
from cascade.telemetry.state_schedule import EXPIRY, FINAL_EXPIRY, INTERVAL
from cascade.telemetry.wire import loads
from cascade.testing import MemoryConnector
from tests.connectors.mqtt.broker import SETTINGS, Broker, Listener, Message
from tests.connectors.mqtt.messages import events, warnings
from tests.connectors.mqtt.proxy import Packet, Proxy, change_connack, received_by_client, sent_by_client
from tests.lab.waiting import HANG, until, until_blocking, with_timeout
from tests.lab.workflows import load, recorded

VALIDATOR = Draft202012Validator(load_schema("state"))


def copies(messages: list[Any], count: int) -> list[PublishedMessage]:
    """Return the messages of one run as those of several runs."""
    return [
        replace(
            message,
            topic=f"cascade/telemetry/local/default/run-{number}/events",
            payload=message.payload | {"run_id": f"run-{number}"},
        )
        for number in range(count)
        for message in messages
    ]


def is_state(packet: Packet) -> bool:
    return sent_by_client(PacketTypes.PUBLISH)(packet) and packet.topic.endswith("/state")


def state_messages(messages: list[Message]) -> list[Message]:
    return [message for message in messages if message.topic.endswith("/state")]


def states(messages: list[Message]) -> list[dict[str, Any]]:
    """Return the published states, and check each with its schema."""
    found = [json.loads(message.payload) for message in state_messages(messages)]
    for state in found:
        VALIDATOR.validate(state)
    return found


def expiry(message: Message) -> Any:
    return getattr(message.properties, "MessageExpiryInterval", None)


class WaitingRun:
    """A run in this event loop, whose task waits for `release`."""

    def __init__(self, port: int, failures: int = 0) -> None:
        self.release = asyncio.Event()
        self._failures = failures
        self.connector = MqttConnector("127.0.0.1", port)
        target = cs.task(self._work, name="wait")().with_retry(failures, delay=0.001)
        self.run = asyncio.ensure_future(cs.run_async(target, connector=self.connector, log_level="OFF"))

    async def _work(self) -> int:
        if self._failures:
            self._failures -= 1
            raise ConnectionError("not yet")
        await self.release.wait()
        return 1

    async def end(self) -> None:
        self.release.set()
        assert await with_timeout(self.run) == 1


def retained(port: int, count: int = 1) -> list[Message]:
    """Return the retained states that a new subscriber receives."""
    with Listener(port, "cascade/telemetry/+/+/+/state") as late:
        return late.wait_for(lambda seen: len(seen) >= count)


async def seen(listener: Listener, condition: Callable[[dict[str, Any]], object]) -> None:
    await until(lambda: any(condition(state) for state in states(list(listener.messages))))


async def test_the_state_of_a_run_is_retained_until_one_minute_after_its_end(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Listener(broker.port) as early:
        waiting_run = WaitingRun(broker.port)
        await seen(early, lambda state: state["running"])
        (message,) = await asyncio.to_thread(retained, broker.port)
        (state,) = states([message])
        assert (message.qos, message.retain, state["status"]) == (1, True, "running")
        assert [task["task_name"] for task in state["running"]] == ["wait"]
        assert FINAL_EXPIRY < expiry(message) <= EXPIRY
        monkeypatch.setattr("cascade.telemetry.state_schedule.FINAL_EXPIRY", 2)
        await waiting_run.end()
        last = early.wait_for(lambda messages: states(messages)[-1]["status"] == "success")
    assert expiry(state_messages(last)[-1]) in {1, 2}

    def is_gone() -> bool:
        mark = "cascade/telemetry/local/default/mark/state"
        with Listener(broker.port, "cascade/telemetry/+/+/+/state") as late:
            late.publish(mark, b"{}")
            return [m.topic for m in late.wait_for(lambda seen: any(m.topic == mark for m in seen))] == [mark]

    await asyncio.to_thread(until_blocking, is_gone)


def test_the_final_state_is_published_before_the_run_returns(broker: Broker) -> None:
    cs.run(load(), connector=MqttConnector("127.0.0.1", broker.port), log_level="OFF")
    (message,) = retained(broker.port)
    (state,) = states([message])
    assert (state["status"], state["counts"]["completed"]) == ("success", 1)
    assert 0 < expiry(message) <= FINAL_EXPIRY


def test_a_large_map_has_few_states(shared_broker: Broker, project: str) -> None:
    items = cs.task(abs).map(x=list(range(5_000)))
    with Listener(shared_broker.port, f"cascade/telemetry/local/{project}/+/state") as listener:
        cs.run(items, connector=MqttConnector("127.0.0.1", shared_broker.port), log_level="OFF")
        found = states(listener.wait_for(lambda seen: seen and states(seen)[-1]["end_time"]))
    assert (found[-1]["counts"]["completed"], found[-1]["tasks"]) == (5_001, 5_001)
    assert len(found) <= 2 + found[-1]["duration_ms"] / 1000 / INTERVAL
    assert [state["seq"] for state in found] == sorted(state["seq"] for state in found)


async def publish_at_once(port: int, messages: Iterable[PublishedMessage]) -> None:
    """Publish messages before there is a connection."""
    connector = MqttConnector("127.0.0.1", port)
    for message in messages:
        await connector.publish(message.topic, message.payload, message.qos)
    await connector.connect()
    await connector.disconnect()


async def test_the_final_states_of_thousands_of_runs_that_end_at_once_are_retained(broker: Broker) -> None:
    count = 1_500
    await publish_at_once(broker.port, copies(await asyncio.to_thread(recorded), count))
    found = states(await asyncio.to_thread(retained, broker.port, count))
    assert {state["run_id"]: state["status"] for state in found} == {f"run-{n}": "success" for n in range(count)}


async def test_an_invalid_message_ends_only_the_states_of_its_run(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    messages = (await asyncio.to_thread(recorded))[:2]
    messages[1].payload["body"]["metadata"]["start_ns"] = "yesterday"
    with Listener(broker.port) as listener:
        await publish_at_once(broker.port, messages)
        listener.wait_for(lambda seen: len(events(seen)) == len(messages))
    (warning,) = warnings(caplog)
    assert "a message of the run is invalid" in warning


async def test_states_leave_half_of_the_window_to_messages(broker: Broker) -> None:
    out = list[int]()

    def answers_a_later_state(packet: Packet) -> bool:
        if is_state(packet):
            out.append(packet.packet_id)
        return received_by_client(PacketTypes.PUBACK)(packet) and packet.packet_id in out[1:]

    def has_all_messages(packets: list[Packet]) -> bool:
        return sum(sent_by_client(PacketTypes.PUBLISH)(p) and p.topic.endswith("/events") for p in packets) == 10

    started = (await asyncio.to_thread(recorded))[0]
    with Proxy(broker.port, change_connack(ReceiveMaximum=4)) as proxy:
        proxy.hold(answers_a_later_state)
        connector = MqttConnector("127.0.0.1", proxy.port)
        await connector.connect()
        for message in copies([started], 10):
            await connector.publish(message.topic, message.payload, 1)
        await asyncio.to_thread(proxy.wait_for, has_all_messages)
        assert len(out) == 3, "the answered state, and half of the window"
        await asyncio.to_thread(proxy.release)
        await connector.disconnect()


async def test_concurrent_and_nested_runs_have_separate_states(shared_broker: Broker, listener: Listener) -> None:
    @cs.task
    async def outer() -> int:
        return await cs.run_async(load(), connector=connector, log_level="OFF")

    connector = MqttConnector("127.0.0.1", shared_broker.port)
    await asyncio.gather(*(cs.run_async(outer(), connector=connector, log_level="OFF") for _ in range(3)))

    def over() -> dict[str, dict[str, Any]]:
        return {state["run_id"]: state for state in states(list(listener.messages)) if state["end_time"]}

    await until(lambda: len(over()) == 6)
    assert sorted(state["target"] for state in over().values()) == ["load"] * 3 + ["outer"] * 3


async def test_the_state_contains_an_attempt_after_its_delay(shared_broker: Broker, listener: Listener) -> None:
    waiting_run = WaitingRun(shared_broker.port, failures=1)
    await seen(listener, lambda state: [task.get("attempt") for task in state["running"]] == [2])
    await waiting_run.end()


async def test_a_broker_that_has_lost_its_retained_messages_gets_the_state_again(broker: Broker) -> None:
    with Listener(broker.port) as listener:
        waiting_run = WaitingRun(broker.port)
        await seen(listener, lambda state: state["running"])
    await asyncio.to_thread(broker.kill)
    await asyncio.to_thread(broker.restart)
    (message,) = await asyncio.to_thread(retained, broker.port)
    assert [task["task_name"] for task in states([message])[0]["running"]] == ["wait"]
    await waiting_run.end()


def test_forbidden_states_are_reported_once_and_lose_no_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = tmp_path / "acl"
    rules.write_text("topic write cascade/telemetry/+/+/+/events\ntopic cascade/status/#\ntopic read cascade/#\n")
    memory = MemoryConnector()
    with Broker(tmp_path, *SETTINGS, f"acl_file {rules}") as broker, Listener(broker.port) as listener:
        cs.run(load(), connector=[MqttConnector("127.0.0.1", broker.port), memory], log_level="OFF")
        found = listener.wait_for(lambda seen: events(seen)[-1:] and "event" in events(seen)[-1]["body"])
        listener.wait_for(lambda seen: len({payload["seq"] for payload in events(seen)}) == len(memory.payloads))
        assert states(found) == []
    (warning,) = warnings(caplog)
    # Mosquitto may close the connection before the connector has read its answer: then the reason is unknown.
    assert warning.startswith("MqttConnector: the state of a run is not published at 127.0.0.1")


async def test_a_refused_state_that_ends_the_connection_loses_no_message(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    closed = set[int]()

    def refuse_states_and_then_close(packet: Packet) -> Iterable[Packet]:
        number = packet.connection
        if number in closed:
            ends = packet.kind in {PacketTypes.PUBLISH, PacketTypes.UNSUBSCRIBE}
            return (Packet(PacketTypes.DISCONNECT, b"\x80\x00", from_broker=True, connection=number),) * ends
        if not is_state(packet):
            return (packet,)
        closed.add(number)
        answer = packet.packet_id.to_bytes(2) + b"\x87"
        return (Packet(PacketTypes.PUBACK, answer, from_broker=True, connection=number),)

    messages = await asyncio.to_thread(recorded)
    with Proxy(broker.port, refuse_states_and_then_close) as proxy, Listener(broker.port) as listener:
        await publish_at_once(proxy.port, messages)
        listener.publish("cascade/end", b"")
        seen = listener.wait_for(lambda seen: any(message.topic == "cascade/end" for message in seen))
    assert {p["seq"] for p in events(seen)} == {message.payload["seq"] for message in messages}
    (warning,) = warnings(caplog)
    assert "Not authorized, on topic cascade/telemetry/local/default/" in warning


async def test_two_lost_connections_do_not_end_the_states_of_a_run(broker: Broker) -> None:
    broken = set[int]()

    def close_twice(packet: Packet) -> Iterable[Packet]:
        number = packet.connection
        if number not in broken and len(broken) < 2 and is_state(packet):
            broken.add(number)
            return (Packet(PacketTypes.DISCONNECT, b"\x80\x00", from_broker=True, connection=number),)
        return () if number in broken else (packet,)

    with Proxy(broker.port, close_twice) as proxy, Listener(broker.port) as listener:
        waiting_run = WaitingRun(proxy.port)
        await seen(listener, lambda state: state["running"])
        assert len(broken) == 2
        await waiting_run.end()


async def test_a_broker_without_retained_messages_gets_no_states(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    with Proxy(broker.port, change_connack(RetainAvailable=0)) as proxy:
        await cs.run_async(load(), connector=MqttConnector("127.0.0.1", proxy.port), log_level="OFF")
        topics = {packet.topic for packet in proxy.matching(sent_by_client(PacketTypes.PUBLISH))}
    assert any(topic.endswith("/events") for topic in topics)
    assert not any(topic.endswith("/state") for topic in topics)
    (warning,) = warnings(caplog)
    assert "does not support retained messages" in warning


@pytest.mark.parametrize("code", [0x80, 0x83, 0x97])
async def test_a_transiently_refused_state_is_sent_again(
    broker: Broker, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    refused: list[dict[str, Any]] = []

    def refuse_the_first_final_state(packet: Packet) -> Iterable[Packet]:
        if not is_state(packet) or refused or loads(packet.payload)["status"] == "running":
            return (packet,)
        refused.append(loads(packet.payload))
        answer = packet.packet_id.to_bytes(2) + bytes([code])
        return (Packet(PacketTypes.PUBACK, answer, from_broker=True, connection=packet.connection),)

    with Proxy(broker.port, refuse_the_first_final_state) as proxy:
        await cs.run_async(load(), connector=MqttConnector("127.0.0.1", proxy.port), log_level="OFF")
    (message,) = await asyncio.to_thread(retained, broker.port)
    assert refused
    assert states([message])[0]["status"] == "success"
    assert warnings(caplog) == []


async def test_a_broker_with_qos_0_gets_states_with_qos_0(broker: Broker) -> None:
    with Proxy(broker.port, change_connack(MaximumQoS=0)) as proxy:
        connector = MqttConnector("127.0.0.1", proxy.port)
        await connector.connect()
        for message in await asyncio.to_thread(recorded):
            await connector.publish(message.topic, message.payload, 0)
        await connector.disconnect()
        sent = [p for p in proxy.matching(sent_by_client(PacketTypes.PUBLISH)) if p.topic.endswith("/state")]
    assert [(packet.qos, packet.retain) for packet in sent[-1:]] == [(0, True)]
    assert json.loads(sent[-1].payload)["status"] == "success"


def test_a_state_that_ends_the_connection_loses_no_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    async def hold(_: int) -> None:
        await asyncio.to_thread(release.wait)

    memory = MemoryConnector()
    with Broker(tmp_path, *SETTINGS, "message_size_limit 2500") as broker, Listener(broker.port) as listener:
        work = cs.task(hold, name="a_task_with_a_name_that_is_rather_long").map(_=list(range(20)))
        options: Any = {"connector": [MqttConnector("127.0.0.1", broker.port), memory], "log_level": "OFF"}
        run = threading.Thread(target=lambda: cs.run(work, **options), daemon=True)
        run.start()
        # With 20 tasks it has twice the size that the broker accepts.
        listener.wait_for(lambda seen: any(len(s["running"]) < s["counts"]["running"] == 21 for s in states(seen)))
        release.set()
        listener.wait_for(lambda seen: any(b"ENGINE_STOPPED" in message.payload for message in seen))
        run.join(HANG)
        (final,) = states(retained(broker.port))
    assert {p["seq"] for p in events(listener.messages)} == {p["seq"] for p in memory.payloads}
    assert (final["status"], final["counts"]["completed"]) == ("success", 21)
    assert warnings(caplog) == []
