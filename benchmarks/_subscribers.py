"""Subscribers: mosquitto_sub for rates, and a client that counts ended tasks across broker restarts."""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from tests.lab.mosquitto import MosquittoProcess

EVENTS = "cascade/telemetry/+/+/+/events"
_TIMEOUT = 120.0
_SESSION_EXPIRY = 3600
_POLL = 0.02
LOG_SUBSCRIPTIONS = "log_type subscribe"
"""Line of the broker's configuration that `mosquitto_sub` needs."""


@contextmanager
def mosquitto_sub(broker: MosquittoProcess, count: int) -> Iterator[Callable[[], float]]:
    """Start mosquitto_sub. The yielded function waits for `count` messages and returns the Unix time of the last one.

    The broker's configuration needs `LOG_SUBSCRIPTIONS`.
    """
    before = broker.log.count(EVENTS)
    command = [
        "mosquitto_sub",
        "-V",
        "5",
        "-p",
        str(broker.port),
        "-q",
        "1",
        "-t",
        EVENTS,
        "-F",
        "%l",
        "-C",
        str(count),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:  # noqa: S603 - found on the PATH
        while broker.log.count(EVENTS) == before:
            time.sleep(_POLL)

        def wait() -> float:
            process.wait(_TIMEOUT)
            return time.time()

        try:
            yield wait
        finally:
            process.kill()


class EndedTasks:
    """Subscriber that counts ended tasks, each once. Its session continues after a restart of the broker."""

    def __init__(self, port: int) -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        self._ended: set[str] = set()
        self._changed = threading.Condition()
        self._subscribed = threading.Event()
        client = self._client = Client(
            CallbackAPIVersion.VERSION2, "cascade-bench-ends", protocol=MQTTProtocolVersion.MQTTv5
        )
        client.on_connect = self._connected
        client.on_subscribe = lambda *_: self._subscribed.set()
        client.on_message = self._received
        client.reconnect_delay_set(1, 1)
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.SessionExpiryInterval = _SESSION_EXPIRY
        client.connect("127.0.0.1", port, clean_start=False, properties=properties)

    def __enter__(self) -> Self:
        self._client.loop_start()
        self._subscribed.wait(_TIMEOUT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def wait_for(self, count: int, timeout: float = _TIMEOUT) -> int:
        """Wait for `count` ended tasks, or until none has arrived for `timeout` seconds; return their number."""
        with self._changed:
            while len(self._ended) < count and self._changed.wait(timeout):
                pass
            return len(self._ended)

    def _connected(self, client: Any, *_: Any) -> None:
        client.subscribe(EVENTS, 1)

    def _received(self, _client: Any, _userdata: Any, message: Any) -> None:
        body = json.loads(message.payload)["body"]
        if body.get("state") in {"COMPLETED", "FAILED", "SKIPPED"}:
            with self._changed:
                self._ended.add(body["task_id"])
                self._changed.notify_all()
