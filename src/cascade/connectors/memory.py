"""`MemoryConnector` stores messages in memory, for tests and for runs without a server."""

import asyncio
from dataclasses import dataclass
from typing import Any

from cascade.connectors.report import ConnectorReport
from cascade.spec.protocols import MessageCallback
from cascade.telemetry.topics import topic_matches
from cascade.telemetry.wire import InvalidPayload, decode_incoming


@dataclass(frozen=True, slots=True)
class PublishedMessage:
    topic: str
    payload: dict[str, Any]
    qos: int = 0


class MemoryConnector:
    """Stores published messages in `messages`, and delivers the messages of `deliver` to the subscribers."""

    def __init__(self) -> None:
        self.messages: list[PublishedMessage] = []
        self.connections = 0
        self._subscriptions: list[tuple[str, MessageCallback, asyncio.AbstractEventLoop]] = []
        self._retained: dict[str, dict[str, Any]] = {}

    @property
    def payloads(self) -> list[dict[str, Any]]:
        return [message.payload for message in self.messages]

    def report(self) -> ConnectorReport:
        """Return the number of messages in `messages`, and whether a run is connected."""
        return ConnectorReport(sent=len(self.messages), connected=self.connections > 0)

    async def connect(self) -> None:
        self.connections += 1

    async def disconnect(self) -> None:
        self.connections -= 1
        if not self.connections:
            self._subscriptions.clear()

    async def publish(self, topic: str, payload: dict[str, Any], qos: int = 0) -> None:
        self.messages.append(PublishedMessage(topic, payload, qos))

    async def subscribe(self, topic: str, callback: MessageCallback) -> None:
        self._subscriptions.append((topic, callback, asyncio.get_running_loop()))
        for name, payload in list(self._retained.items()):
            if topic_matches(topic, name):
                await callback(name, payload)

    async def unsubscribe(self, topic: str, callback: MessageCallback) -> None:
        subscription = (topic, callback, asyncio.get_running_loop())
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    async def deliver(self, topic: str, payload: dict[str, Any] | bytes, *, retain: bool = False) -> None:
        """Send a message to the subscribers, as bytes or as the decoded payload.

        An empty retained message removes the retained message of its topic. Each callback is called in the event loop that
        subscribed: before `deliver` returns if that is the loop of the caller, otherwise soon.
        """
        is_empty = not payload and not isinstance(payload, InvalidPayload)
        if isinstance(payload, bytes):
            payload = decode_incoming(payload)
        if retain and not is_empty:
            self._retained[topic] = payload
        elif retain:
            self._retained.pop(topic, None)
        for pattern, callback, loop in list(self._subscriptions):
            if topic_matches(pattern, topic):
                if loop is asyncio.get_running_loop():
                    await callback(topic, payload)
                else:
                    _call_in(loop, callback, topic, payload)


def _call_in(loop: asyncio.AbstractEventLoop, callback: MessageCallback, topic: str, payload: dict[str, Any]) -> None:
    async def call() -> None:
        await callback(topic, payload)

    calling = call()
    try:
        asyncio.run_coroutine_threadsafe(calling, loop)
    except RuntimeError:  # the loop is closed
        calling.close()
