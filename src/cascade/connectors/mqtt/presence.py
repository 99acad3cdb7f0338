"""Presence of this process: `online` while it is connected, `offline` at its end."""

import os
import secrets
import threading
from collections import Counter

import aiomqtt
from paho.mqtt.packettypes import PacketTypes

from cascade.connectors.mqtt.connection import Connection
from cascade.connectors.mqtt.options import MqttOptions
from cascade.connectors.mqtt.packets import SESSION_ID, new_properties

ONLINE, OFFLINE = b"online", b"offline"
OFFLINE_TIMEOUT = 0.5
"""Seconds for the broker to acknowledge the last messages."""


class _ConnectionCount:
    """Number of connections of this process, by broker and topic.

    The lock is held while the last one publishes `offline`, so that the `online` of a new one comes after it.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """A forked child has none of its parent's connections, and a thread that it does not have may hold the lock."""
        self.lock = threading.Lock()
        self.count = Counter[tuple[str, int, str]]()


_connections = _ConnectionCount()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_connections.reset)


class Presence:
    """The share of one connector in the presence of the process: the last connection that ends publishes `offline`."""

    def __init__(self, options: MqttOptions, topic: str) -> None:
        self.topic = topic
        self.session_id = secrets.token_hex(8)
        properties = new_properties(PacketTypes.PUBLISH, UserProperty=(SESSION_ID, self.session_id))
        self._properties: bytes = properties.pack()  # type: ignore[no-untyped-call]
        self._key = (options.hostname, options.port, topic)
        self._is_counted = False

    def join(self, connection: Connection) -> None:
        """Publish `online`, and again whenever it is replaced. It is retained if the broker supports that."""
        with _connections.lock:
            _connections.count[self._key] += 1
            self._is_counted = True
        connection.on_presence = lambda body: self._received(connection, body)
        self._received(connection, b"")  # nothing is retained

    def _received(self, connection: Connection, body: bytes) -> None:
        # A broker may publish the Last Will of an earlier session long after its connection was lost.
        if self._is_counted and body != ONLINE:
            connection.publish(self.topic, ONLINE, self._properties, retain=True)

    async def part(self, connection: Connection, *, waits: bool) -> None:
        """Publish `offline` if this is the last connection, and retain nothing; `waits` for the acknowledgements.

        The broker reads the messages in order even if this does not wait. But its answers to a closed connection can
        make the system discard what the broker has not read yet.

        Raises:
            aiomqtt.MqttError: The window of the broker has no place. After this error the broker publishes the Last Will.
        """
        with _connections.lock:
            if self._leave():
                connection.publish(self.topic, OFFLINE, self._properties, retain=False)
                if connection.client.limits.retain_available:
                    connection.publish(self.topic, b"", self._properties, retain=True)
                if not await connection.arrive(OFFLINE_TIMEOUT if waits else 0):
                    raise aiomqtt.MqttError("the window is full")

    def leave(self) -> None:
        """The connection has ended, with or without `part`."""
        with _connections.lock:
            self._leave()

    def _leave(self) -> bool:
        """Whether it was the last connection."""
        if not self._is_counted:
            return False
        self._is_counted = False
        _connections.count[self._key] -= 1
        return not _connections.count[self._key]
