"""The status topic shows which processes are connected."""

import asyncio
import json
import os
import subprocess
import sys
from functools import partial
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.mqtt import MqttConnector, presence
from cascade.telemetry.topics import source, status_topic
from tests.connectors.mqtt.broker import Broker, Listener, Message
from tests.connectors.mqtt.messages import statuses
from tests.connectors.mqtt.proxy import Proxy
from tests.connectors.mqtt.waiting import is_connected
from tests.lab.waiting import HANG, until

CLEAN = [(b"online", True), (b"offline", False), (b"", True)]
"""Messages that a connected subscriber receives. The last one removes the retained message."""


@cs.task
async def one() -> int:
    return 1


@cs.task
async def fail() -> int:
    raise LookupError("the workflow's own")


def test_a_run_publishes_online_and_offline(shared_broker: Broker, listener: Listener, project: str) -> None:
    assert cs.run(one(), connector=MqttConnector("127.0.0.1", shared_broker.port), log_level="ERROR") == 1
    seen = listener.wait_for(lambda seen: (b"", True) in statuses(seen))
    assert statuses(seen) == CLEAN
    found = [message for message in seen if message.topic.startswith("cascade/status/")]
    assert {message.topic for message in found} == {status_topic("local", project, source())}
    assert {message.qos for message in found} == {1}
    with Listener(shared_broker.port, f"cascade/status/local/{project}/#") as later:
        later.publish(f"cascade/status/local/{project}/mark", b"mark")
        assert [message.payload for message in later.wait_for(len)] == [b"mark"], "no message was retained"


def test_a_failed_run_publishes_offline(shared_broker: Broker, listener: Listener) -> None:
    with pytest.raises(LookupError, match="own"):
        cs.run(fail(), connector=MqttConnector("127.0.0.1", shared_broker.port), log_level="ERROR")
    seen = listener.wait_for(lambda seen: (b"", True) in statuses(seen))
    assert statuses(seen) == CLEAN


async def test_a_cancelled_run_publishes_offline(shared_broker: Broker, listener: Listener) -> None:
    running = asyncio.Event()

    @cs.task
    async def forever() -> None:
        running.set()
        await asyncio.Event().wait()

    connector = MqttConnector("127.0.0.1", shared_broker.port)
    run = asyncio.ensure_future(cs.run_async(forever(), connector=connector, log_level="ERROR"))
    await running.wait()
    run.cancel()
    await asyncio.wait({run})
    seen = listener.wait_for(lambda seen: (b"", True) in statuses(seen))
    assert statuses(seen) == CLEAN


async def test_online_is_published_over_each_connection(broker: Broker) -> None:
    connector = MqttConnector("127.0.0.1", broker.port)
    await connector.connect()
    for _ in range(2):
        with Listener(broker.port, "cascade/status/#") as listener:
            assert [m.payload for m in listener.wait_for(len)] == [b"online"]
        broker.restart()
    await connector.disconnect()


async def test_the_last_of_two_connectors_publishes_offline(
    shared_broker: Broker, listener: Listener, project: str
) -> None:
    mark = f"cascade/mark/local/{project}"
    first, second = (MqttConnector("127.0.0.1", shared_broker.port) for _ in range(2))
    await first.connect()
    await until(lambda: is_connected(first))
    await second.connect()
    listener.wait_for(lambda seen: len(statuses(seen)) == 2)
    await first.disconnect()
    listener.publish(mark, b"")
    seen = listener.wait_for(lambda seen: seen[-1].topic == mark)
    assert statuses(seen) == [(b"online", True)] * 2
    await second.disconnect()
    seen = listener.wait_for(lambda seen: (b"", True) in statuses(seen))
    assert statuses(seen) == [(b"online", True), *CLEAN]


async def test_offline_is_published_after_a_lost_connection(broker: Broker) -> None:
    connector = MqttConnector("127.0.0.1", broker.port)
    await connector.connect()
    await until(lambda: is_connected(connector))
    broker.restart()
    with Listener(broker.port, "cascade/status/#") as listener:
        listener.wait_for(lambda seen: (b"online", True) in statuses(seen))
        await connector.disconnect()
        listener.wait_for(lambda seen: (b"", True) in statuses(seen))


def test_a_forked_child_does_not_inherit_a_held_lock() -> None:
    with presence.connections.lock:
        child = os.fork()
        if not child:
            os._exit(0 if presence.connections.lock.acquire(timeout=HANG) else 1)
    assert os.waitpid(child, 0) == (child, 0)


def test_a_forked_child_has_its_own_source_and_status(shared_broker: Broker, listener: Listener, project: str) -> None:
    connector = MqttConnector("127.0.0.1", shared_broker.port)
    assert cs.run(one(), connector=connector, log_level="ERROR") == 1
    child = os.fork()
    if not child:
        code = 1
        try:
            cs.run(one(), connector=connector, log_level="ERROR")
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0) == (child, 0)
    seen = listener.wait_for(lambda seen: len(statuses(seen)) == 2 * len(CLEAN))
    sources = {json.loads(message.payload)["source"] for message in seen if message.topic.endswith("/events")}
    assert {message.topic for message in seen if message.topic.startswith("cascade/status/")} == {
        status_topic("local", project, found) for found in sources
    }
    (childs,) = sources - {source()}
    assert f"-{child}-" in childs


FORKING = """
import asyncio, os, sys
from cascade.connectors.mqtt import MqttConnector

async def main():
    connector = MqttConnector("127.0.0.1", int(sys.argv[1]), keepalive=65_535)
    await connector.connect()
    sys.stdin.readline()
    child = os.fork()
    if not child:
        print("forked", flush=True)
        sys.stdin.readline()
        os._exit(0)
    os.waitpid(child, 0)

asyncio.run(main())
"""


def test_a_child_does_not_hide_the_end_of_its_parent(broker: Broker) -> None:
    """The child inherits the socket. While it is open in one process, the broker does not detect the end of the other one."""
    with (
        Listener(broker.port, "cascade/status/#") as listener,
        subprocess.Popen(
            [sys.executable, "-c", FORKING, str(broker.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # Python 3.12 warns of a fork beside a thread
        ) as program,
    ):
        assert program.stdin
        assert program.stdout
        listener.wait_for(lambda seen: (b"online", True) in statuses(seen))
        program.stdin.write(b"\n")
        program.stdin.flush()
        assert program.stdout.readline() == b"forked\n"
        program.kill()
        listener.wait_for(lambda seen: (b"offline", True) in statuses(seen))


async def test_presence_stays_online_between_overlapping_runs(shared_broker: Broker, listener: Listener) -> None:
    connector = MqttConnector("127.0.0.1", shared_broker.port)
    await connector.connect()
    assert await cs.run_async(one(), connector=connector, log_level="ERROR") == 1
    assert await cs.run_async(one(), connector=connector, log_level="ERROR") == 1
    await connector.disconnect()
    seen = listener.wait_for(lambda seen: (b"", True) in statuses(seen))
    assert statuses(seen) == CLEAN


def sessions(messages: list[Message]) -> list[str]:
    """The session id of each message on a status topic."""
    found: list[Any] = [message.properties for message in messages if message.topic.startswith("cascade/status/")]
    return [dict(properties.UserProperty)["session_id"] for properties in found]


async def test_presence_and_last_will_have_the_id_of_their_session(broker: Broker) -> None:
    with Listener(broker.port, "cascade/status/#") as listener, Proxy(broker.port) as proxy:
        connector = MqttConnector("127.0.0.1", proxy.port)
        await connector.connect()
        await asyncio.to_thread(listener.wait_for, len)
        proxy.cut()
        seen = await asyncio.to_thread(listener.wait_for, lambda seen: len(seen) == 3)
        assert statuses(seen) == [(b"online", True), (b"offline", True), (b"online", True)]
        await connector.disconnect()
        seen = await asyncio.to_thread(listener.wait_for, lambda seen: len(seen) == 5)
        assert len(sessions(seen)) == 5
        await connector.connect()
        seen = await asyncio.to_thread(listener.wait_for, lambda seen: len(seen) == 6)
        assert len(set(sessions(seen)[:5])) == 1
        assert len(set(sessions(seen))) == 2
        await connector.disconnect()


def has(count: int, messages: list[Message]) -> bool:
    return len(messages) == count


@pytest.mark.parametrize("payload", [b"offline", b""])
async def test_the_last_will_of_an_earlier_session_is_replaced(
    shared_broker: Broker, listener: Listener, project: str, payload: bytes
) -> None:
    """The earlier session can belong to another container with the same host name and process id."""
    connector, topic = MqttConnector("127.0.0.1", shared_broker.port), status_topic("local", project, source())
    await connector.connect()
    await asyncio.to_thread(listener.wait_for, len)
    for number in (1, 2):
        await asyncio.to_thread(listener.publish, topic, payload, retain=True)
        seen = await asyncio.to_thread(listener.wait_for, partial(has, 2 * number + 1))
    assert statuses(seen) == [(b"online", True), *[(payload, True), (b"online", True)] * 2]
    await connector.disconnect()
    seen = await asyncio.to_thread(listener.wait_for, lambda seen: len(seen) == 7)
    assert statuses(seen)[-2:] == CLEAN[1:]
