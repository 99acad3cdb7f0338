"""A Mosquitto broker, and a subscriber that records all messages."""

import itertools
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.lab.mosquitto import MosquittoProcess
from tests.lab.programs import program
from tests.lab.waiting import HANG

__all__ = ["SETTINGS", "Broker", "Listener", "Message"]

SETTINGS = ("max_queued_messages 0", "max_inflight_messages 0")
"""With its default limits, Mosquitto drops messages to a slow subscriber, and delivers QoS 0 before queued QoS 1."""


class Broker(MosquittoProcess):
    """A Mosquitto broker for a test. The test is skipped if Mosquitto is not installed."""

    def __init__(self, folder: Path, *lines: str, listener: tuple[str, ...] = (), anonymous: bool = True) -> None:
        program("mosquitto")
        super().__init__(*lines, listener=listener, anonymous=anonymous, folder=folder)


@dataclass(frozen=True, slots=True)
class Message:
    topic: str
    payload: bytes
    qos: int
    retain: bool
    properties: Properties | None


_numbers = itertools.count()


class Listener:
    """A subscriber that uses paho, in its own thread."""

    def __init__(
        self,
        port: int,
        pattern: str = "cascade/#",
        *,
        host: str = "127.0.0.1",
        context: ssl.SSLContext | None = None,
        **credentials: str,
    ) -> None:
        self.messages: list[Message] = []
        self._changed = threading.Condition()
        self._subscribed = threading.Event()
        self._pattern = pattern
        self.client = Client(
            CallbackAPIVersion.VERSION2,
            f"listener-{next(_numbers)}",
            protocol=MQTTProtocolVersion.MQTTv5,
        )
        self.client.username = credentials.get("username")
        self.client.password = credentials.get("password")
        self.client.on_connect = self._connected
        self.client.on_message = self._received
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.connect_timeout = HANG
        if context is not None:
            self.client.tls_set_context(context)
        self._address = (host, port)

    def __enter__(self) -> Self:
        self.client.reconnect_delay_set(1, 1)
        self.client.connect(*self._address)
        self.client.loop_start()
        assert self._subscribed.wait(HANG)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def wait_for(self, condition: Callable[[list[Message]], object]) -> list[Message]:
        """Wait until the condition holds for the received messages, and return them."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.messages), HANG), self.messages[-5:]
            return list(self.messages)

    def publish(self, topic: str, payload: bytes | str, *, retain: bool = False, qos: int = 1) -> None:
        """Publish, and wait for the acknowledgement."""
        info = self.client.publish(topic, payload, qos, retain)
        info.wait_for_publish(HANG)
        assert info.is_published()

    def await_subscription(self) -> None:
        """Wait until this client has subscribed after a restart of the broker."""
        assert self._subscribed.wait(HANG)

    def forget_subscription(self) -> None:
        """Make `await_subscription` wait for the next subscription. Call it before a restart of the broker."""
        self._subscribed.clear()

    def forget(self) -> None:
        self.forget_subscription()
        with self._changed:
            self.messages.clear()

    def _connected(self, *_: Any) -> None:
        self.client.subscribe([(self._pattern, SubscribeOptions(qos=1, retainAsPublished=True))])

    def _received(self, _client: Client, _userdata: Any, message: MQTTMessage) -> None:
        with self._changed:
            self.messages.append(
                Message(message.topic, bytes(message.payload), message.qos, message.retain, message.properties)
            )
            self._changed.notify_all()
