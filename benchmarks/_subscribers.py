"""Subscribers: mosquitto_sub, which measures rates, and a client that counts ends of tasks across broker restarts."""

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
_PATIENCE = 120.0
_SESSION = 3600
_LOOK = 0.02
LOG_SUBSCRIPTIONS = "log_type subscribe"
"""Line of the broker's configuration that `fastest` needs."""


@contextmanager
def fastest(broker: MosquittoProcess, count: int) -> Iterator[Callable[[], float]]:
    """mosquitto_sub in its own process. The function waits for `count` messages and returns the Unix time of the last.

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
            time.sleep(_LOOK)

        def wait() -> float:
            process.wait(_PATIENCE)
            return time.time()

        try:
            yield wait
        finally:
            process.kill()


class Ends:
    """Counts tasks whose end has been received, each once. Its session outlives a restart of the broker."""

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
        properties.SessionExpiryInterval = _SESSION
        client.connect("127.0.0.1", port, clean_start=False, properties=properties)

    def __enter__(self) -> Self:
        self._client.loop_start()
        self._subscribed.wait(_PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def wait_for(self, count: int, patience: float = _PATIENCE) -> int:
        """How many there are, once there are so many or none has come for so long."""
        with self._changed:
            while len(self._ended) < count and self._changed.wait(patience):
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
