"""A flood of control messages from one process, and the event loop of another that subscribes to them."""

import asyncio
import json
import time
from typing import Any

from benchmarks._process import background
from cascade.connectors.mqtt import MqttConnector
from cascade.telemetry.topics import control_filter, control_topic

TOPIC = control_topic("local", "default", "global", "pause")


def longest_stop(port: int, count: int) -> float:
    """Seconds for which nothing else could run in the event loop while the messages came, at the most."""
    return asyncio.run(_longest_stop(port, count))


async def _longest_stop(port: int, count: int) -> float:
    connector, latest, longest = MqttConnector("127.0.0.1", port), [-1], 0.0

    async def keep(_: str, payload: dict[str, Any]) -> None:
        latest[0] = payload["n"]

    await connector.connect()
    await connector.subscribe(control_filter("local", "default"), keep)
    with background(send, port=port, count=count) as sent:
        before = time.perf_counter()
        while latest[0] < count - 1:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, before = max(longest, now - before), now
        await asyncio.to_thread(sent)
    await connector.disconnect()
    return longest


def send(port: int, count: int) -> int:
    """Publish as fast as bare paho can; the messages are numbered."""
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

    client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.connect("127.0.0.1", port)
    client.loop_start()
    for number in range(count):
        client.publish(TOPIC, json.dumps({"n": number}), 1 if number == count - 1 else 0).wait_for_publish()
    client.disconnect()
    client.loop_stop()
    return count
