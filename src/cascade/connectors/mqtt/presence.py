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


class ConnectionCount:
    """Number of connections of this process, by broker and topic.

    The lock is held while the last connection publishes `offline`, so that a new connection publishes `online` after it.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Reset in a forked child. It has no connections, and a thread of the parent may have held the lock."""
        self.lock = threading.Lock()
        self.count = Counter[tuple[str, int, str]]()


connections = ConnectionCount()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=connections.reset)


class Presence:
    """Presence of the process as seen by one connector. The last connection to end publishes `offline`."""

    def __init__(self, options: MqttOptions, topic: str) -> None:
        self.topic = topic
        self.session_id = secrets.token_hex(8)
        properties = new_properties(PacketTypes.PUBLISH, UserProperty=(SESSION_ID, self.session_id))
        self._properties: bytes = properties.pack()  # type: ignore[no-untyped-call]
        self._key = (options.hostname, options.port, topic)
        self._is_counted = False

    def publish_online(self, connection: Connection) -> None:
        """Publish `online`, and again whenever the retained message is replaced. It is retained if the broker supports that."""
        with connections.lock:
            connections.count[self._key] += 1
            self._is_counted = True
        connection.on_presence = lambda body: self._on_message(connection, body)
        self._on_message(connection, b"")  # nothing is retained

    def _on_message(self, connection: Connection, body: bytes) -> None:
        # A broker may publish the Last Will of an earlier session long after its connection was lost.
        if self._is_counted and body != ONLINE:
            connection.publish(self.topic, ONLINE, self._properties, retain=True)

    async def publish_offline(self, connection: Connection, *, waits: bool) -> None:
        """Publish `offline` and remove the retained message, if this is the last connection.

        `waits` selects whether to wait for the acknowledgements. Without the wait, answers of the broker to a closed
        connection can make the system discard messages that the broker has not read yet.

        Raises:
            aiomqtt.MqttError: The window of the broker is full. After this error the broker publishes the Last Will.
        """
        with connections.lock:
            if self._remove():
                connection.publish(self.topic, OFFLINE, self._properties, retain=False)
                if connection.client.limits.retain_available:
                    connection.publish(self.topic, b"", self._properties, retain=True)
                if not await connection.wait_acknowledged(OFFLINE_TIMEOUT if waits else 0):
                    raise aiomqtt.MqttError("the window is full")

    def release(self) -> None:
        """Remove an ended connection from the count, with or without `publish_offline`."""
        with connections.lock:
            self._remove()

    def _remove(self) -> bool:
        """Remove the connection from the count. Return whether it was the last one."""
        if not self._is_counted:
            return False
        self._is_counted = False
        connections.count[self._key] -= 1
        return not connections.count[self._key]
