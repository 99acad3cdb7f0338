"""Publishers that run in their own processes: a run with MqttConnector, the connector alone, and bare clients."""

import asyncio
import gc
import json
import math
import socket
import time
from typing import Any

import cascade as cs
from benchmarks._runs import noop
from cascade.connectors.memory import MemoryConnector, PublishedMessage
from cascade.connectors.mqtt import MqttConnector

Message = tuple[str, bytes, int, Any]
"""Topic, body, QoS and properties."""

CONTENT_TYPE = "application/json"
WORKERS = 50
"""Publishing tasks of aiomqtt. Of 10, 25, 30, 40, 50, 60, 80, 100, 200 and 400, 50 had the highest rate and the lowest CPU
time per message. Each further worker costs CPU time, because aiomqtt iterates over all pending calls at each publish."""
NO_DELAY = ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)
"""Without it, aiomqtt with 40 workers or fewer waits 40 ms for each delayed acknowledgement of TCP."""
IN_FLIGHT = 1_000
FLUSH = 60.0
"""Seconds, far more than the flush of the connector alone takes."""
_POLL = 0.01


@cs.task
async def first() -> float:
    return time.perf_counter()


@cs.task
async def last(started: float, values: list[Any]) -> tuple[int, float, float]:
    """Return the number of tasks that have run, and the times of the first and the last one."""
    return len(values), started, time.perf_counter()


class Clock:
    """Start time and CPU time of a measurement. Garbage is collected before the start."""

    def __init__(self) -> None:
        gc.collect()
        gc.freeze()  # the garbage collector does not visit the prepared objects
        self.start_at, self._cpu = time.time(), time.process_time()

    def stop(self) -> dict[str, float]:
        """Return the start in Unix seconds, and the CPU seconds of all threads since the start."""
        return {"start_at": self.start_at, "cpu": time.process_time() - self._cpu}


def run(size: int, port: int = 0) -> dict[str, Any]:
    """Execute one run, without a connector if the port is 0.

    Returns:
        The value of the run; the seconds to its first task, from the first to the last task, and from the last task to
        the end; the start in Unix seconds; the CPU seconds of the process.
    """
    return _run(size, MqttConnector("127.0.0.1", port) if port else None)


def run_again(size: int, port: int) -> dict[str, Any]:
    """Return the measurement of the second of two runs with one connector, which keeps the state of an unreachable broker."""
    connector = MqttConnector("127.0.0.1", port)
    _run(size, connector)
    return _run(size, connector)


def _run(size: int, connector: MqttConnector | None) -> dict[str, Any]:
    target = _target(size)
    clock, start = Clock(), time.perf_counter()
    value, started, ended = cs.run(target, connector=connector, log_level="ERROR")
    end = time.perf_counter()
    return {"value": value, "first": started - start, "tasks": ended - started, "end": end - ended, **clock.stop()}


def connector(size: int, port: int) -> dict[str, float]:
    """Publish the messages of such a run through a connector without an engine."""
    return asyncio.run(_connector(_recorded(size), port))


async def _connector(recorded: list[PublishedMessage], port: int) -> dict[str, float]:
    connector = MqttConnector("127.0.0.1", port, flush_timeout=FLUSH)
    clock = Clock()
    await connector.connect()
    for message in recorded:
        await connector.publish(message.topic, message.payload, message.qos)
    await connector.disconnect()
    return clock.stop()


def paho(size: int, port: int) -> dict[str, float]:
    """Publish the messages of such a run through bare paho with its own thread."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

    prepared = messages(size)
    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.max_inflight_messages_set(IN_FLIGHT)
    client.connect("127.0.0.1", port)
    client.loop_start()
    while not client.is_connected():
        time.sleep(_POLL)
    clock = Clock()
    sent = [client.publish(topic, body, qos, properties=properties) for topic, body, qos, properties in prepared]
    for info in sent:
        info.wait_for_publish()
    client.disconnect()
    client.loop_stop()
    return clock.stop()


def aiomqtt(size: int, port: int) -> dict[str, float]:
    """Publish the messages of such a run through the public interface of aiomqtt, tuned for throughput."""
    return asyncio.run(_aiomqtt(messages(size), port))


async def _aiomqtt(prepared: list[Message], port: int) -> dict[str, float]:
    """Publish with a fixed number of workers. Without a timeout, aiomqtt creates no timer and no task per message."""
    from aiomqtt import Client, ProtocolVersion

    client = Client(
        "127.0.0.1", port, protocol=ProtocolVersion.V5, max_inflight_messages=IN_FLIGHT, socket_options=NO_DELAY
    )
    client.pending_calls_threshold = IN_FLIGHT
    waiting = iter(prepared)

    async def work() -> None:
        for topic, body, qos, properties in waiting:
            await client.publish(topic, body, qos, properties=properties, timeout=math.inf)

    async with client:
        clock = Clock()
        await asyncio.gather(*[work() for _ in range(WORKERS)])
    return clock.stop()


def messages(size: int) -> list[Message]:
    """Return the messages of such a run in the form in which a bare client publishes them."""
    prepared = []
    for message in _recorded(size):
        payload = message.payload
        traceparent = f"00-{payload['trace_id']}-{payload['span_id']}-{payload['trace_flags']:02x}"
        body = json.dumps(payload, separators=(",", ":")).encode()
        prepared.append((message.topic, body, message.qos, _properties(traceparent)))
    return prepared


def _recorded(size: int) -> list[PublishedMessage]:
    memory = MemoryConnector()
    cs.run(_target(size), connector=memory, log_level="ERROR")
    return [message for message in memory.messages if message.topic.endswith("/events")]


def _target(size: int) -> Any:
    return last(first(), [noop() for _ in range(size)])


def _properties(traceparent: str) -> Any:
    from paho.mqtt.packettypes import PacketTypes
    from paho.mqtt.properties import Properties

    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.ContentType = CONTENT_TYPE
    properties.UserProperty = ("traceparent", traceparent)
    return properties
