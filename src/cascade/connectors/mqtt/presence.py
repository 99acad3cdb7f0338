"""Presence of this process: `online` while it is connected, `offline` at its end."""

import asyncio
import os
import threading
from collections import Counter

from cascade.connectors.mqtt.connection import Connection
from cascade.connectors.mqtt.options import MqttOptions

ONLINE, OFFLINE = b"online", b"offline"
GOODBYE = 0.5
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
        self._key = (options.hostname, options.port, topic)
        self._is_counted = False

    def join(self, connection: Connection) -> None:
        """Publish `online`, retained. The Last Will revokes it."""
        with _connections.lock:
            _connections.count[self._key] += 1
            self._is_counted = True
        connection.start(connection.publish(self.topic, ONLINE, retain=True))

    async def part(self, connection: Connection, *, waits: bool) -> None:
        """Publish `offline` if this is the last connection, and retain nothing; `waits` for the acknowledgements.

        The broker reads the messages in order even if this does not wait. But its answers to a closed connection can
        make the system discard what the broker has not read yet.
        """
        with _connections.lock:
            if self._leave():
                calls = [connection.publish(self.topic, OFFLINE), connection.publish(self.topic, b"", retain=True)]
                await asyncio.wait([connection.start(call) for call in calls], timeout=GOODBYE if waits else 0)

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
        if _connections.count[self._key]:
            return False
        del _connections.count[self._key]
        return True
