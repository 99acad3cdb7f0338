"""What is run in a process of its own: a run with MqttConnector, and bare clients that send the very same messages."""

import asyncio
import json
import time
from typing import Any

import cascade as cs
from benchmarks._runs import noop
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.mqtt import MqttConnector

Message = tuple[str, bytes, int, str]
"""Topic, body, QoS and traceparent."""

CONTENT_TYPE = "application/json"
WINDOW = 100
"""Publishes of aiomqtt that wait for their acknowledgement: with more it gets slower."""
IN_FLIGHT = 1_000


@cs.task
async def begin() -> float:
    return time.perf_counter()


@cs.task
async def last(began: float, values: list[Any]) -> tuple[int, float, float]:
    """What proves that all have run, and when the first and the last did."""
    return len(values), began, time.perf_counter()


def run(size: int, port: int = 0) -> dict[str, Any]:
    """One run, without a connector if there is no port.

    Its value; seconds until its first task, from that to its last one, and from that to its end; and when it began.
    """
    return _run(size, MqttConnector("127.0.0.1", port) if port else None)


def run_again(size: int, port: int) -> dict[str, Any]:
    """The second of two runs with one connector, which has found out in the first what the broker is like."""
    connector = MqttConnector("127.0.0.1", port)
    _run(size, connector)
    return _run(size, connector)


def _run(size: int, connector: MqttConnector | None) -> dict[str, Any]:
    target = last(begin(), [noop() for _ in range(size)])
    start, start_at = time.perf_counter(), time.time()
    value, began, ended = cs.run(target, connector=connector, log_level="ERROR")
    end = time.perf_counter()
    return {"value": value, "first": began - start, "tasks": ended - began, "end": end - ended, "start_at": start_at}


def messages(size: int) -> list[Message]:
    """What such a run says."""
    memory = MemoryConnector()
    cs.run(last(begin(), [noop() for _ in range(size)]), connector=memory, log_level="ERROR")
    found = []
    for message in memory.messages:
        payload = message.payload
        traceparent = f"00-{payload['trace_id']}-{payload['span_id']}-{payload['trace_flags']:02x}"
        body = json.dumps(payload, separators=(",", ":")).encode()
        found.append((message.topic, body, message.qos, traceparent))
    return found


def paho(size: int, port: int) -> dict[str, float]:
    """Bare paho with its own thread."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

    told = messages(size)
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.max_inflight_messages_set(IN_FLIGHT)
    client.connect("127.0.0.1", port)
    client.loop_start()
    while not client.is_connected():
        time.sleep(0.01)
    ready = [(topic, body, qos, _properties(parent)) for topic, body, qos, parent in told]
    start_at = time.time()
    sent = [client.publish(topic, body, qos, properties=properties) for topic, body, qos, properties in ready]
    for info in sent:
        info.wait_for_publish()
    client.disconnect()
    client.loop_stop()
    return {"start_at": start_at}


def aiomqtt(size: int, port: int) -> dict[str, float]:
    """Bare aiomqtt, a window of publishes at a time."""
    return asyncio.run(_aiomqtt(messages(size), port))


async def _aiomqtt(told: list[Message], port: int) -> dict[str, float]:
    import aiomqtt

    options: dict[str, Any] = {"protocol": aiomqtt.ProtocolVersion.V5, "max_concurrent_outgoing_calls": IN_FLIGHT}
    async with aiomqtt.Client("127.0.0.1", port, max_inflight_messages=IN_FLIGHT, **options) as client:
        client.pending_calls_threshold = IN_FLIGHT
        waiting: set[asyncio.Task[None]] = set()
        ready = [(topic, body, qos, _properties(parent)) for topic, body, qos, parent in told]
        start_at = time.time()
        for topic, body, qos, properties in ready:
            work = client.publish(topic, body, qos, properties=properties)
            if qos == 0:
                await work
                continue
            if len(waiting) >= WINDOW:
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            waiting.add(asyncio.ensure_future(work))
        if waiting:
            await asyncio.wait(waiting)
    return {"start_at": start_at}


def _properties(traceparent: str) -> Any:
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ContentType = CONTENT_TYPE
    properties.UserProperty = ("traceparent", traceparent)
    return properties
