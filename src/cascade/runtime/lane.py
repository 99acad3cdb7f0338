"""One connector's lane: a bounded queue in front of it, and a pump that publishes in order."""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Any

from cascade.spec.protocols import Connector

MAX_QUEUED_BYTES = 64 * 1024 * 1024
"""A burst of 100,000 tasks fits; a connector that hangs for good does not take the process along."""

_FULL = "its queue was full"


@dataclass(frozen=True, slots=True)
class Message:
    """What is to be published. `size` is an estimate in bytes; the terminal ones are dropped last."""

    topic: str
    payload: dict[str, Any]
    qos: int
    size: int
    terminal: bool


class Lane:
    """Publishes what it is given, in order, one message at a time.

    When more than `max_bytes` wait, those that matter least go first: messages that are not terminal, the oldest
    ones first. `lost` counts them and those whose publishing failed; `last_error` says why.
    """

    def __init__(self, connector: Connector, *, max_bytes: int = MAX_QUEUED_BYTES) -> None:
        self.connector = connector
        self.lost = 0
        self.published = 0
        self.last_error = ""
        self._max_bytes = max_bytes
        self._queue: deque[Message] = deque()
        self._bytes = 0
        self._minor = 0
        self._pump: asyncio.Task[None] | None = None
        self._closed_by = ""

    def put(self, message: Message) -> None:
        """Queue a message and see that it is published soon. Never blocks, never raises."""
        if self._closed_by:
            self._lose(1, self._closed_by)
            return
        self._queue.append(message)
        self._bytes += message.size
        self._minor += not message.terminal
        if self._bytes > self._max_bytes:
            self._make_room()
        self._start_pump()

    def close(self, reason: str) -> None:
        """Give up: lose what waits and all that still comes."""
        self._closed_by = reason
        self._lose_all(0, reason)

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - the bound is this method's purpose
        """Wait until all that was put is published, at most `timeout` seconds; what is left then is lost."""
        self._start_pump()
        pump = self._pump
        if pump is None or pump.done():
            return
        await asyncio.wait({pump}, timeout=timeout)
        if not pump.done():
            pump.cancel()
            await asyncio.wait({pump})
            self._lose_all(1, f"not published within {timeout:g} s")

    def _start_pump(self) -> None:
        if not self._queue or (self._pump is not None and not self._pump.done()):
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # outside of a loop: the next drain publishes it
            return
        self._pump = loop.create_task(self._publish_all(), name=f"cascade-telemetry-{type(self.connector).__name__}")

    async def _publish_all(self) -> None:
        while self._queue:
            message = self._pop()
            try:
                await self.connector.publish(message.topic, message.payload, message.qos)
                self.published += 1
            except Exception as error:  # noqa: BLE001 - telemetry never breaks a run
                self._lose(1, f"{type(error).__name__}: {error}")

    def _make_room(self) -> None:
        if self._minor:
            self._lose(self._minor, _FULL)
            self._queue = deque(message for message in self._queue if message.terminal)
            self._bytes, self._minor = sum(message.size for message in self._queue), 0
        while self._bytes > self._max_bytes:
            self._pop()
            self._lose(1, _FULL)

    def _pop(self) -> Message:
        message = self._queue.popleft()
        self._bytes -= message.size
        self._minor -= not message.terminal
        return message

    def _lose_all(self, in_hand: int, reason: str) -> None:
        self._lose(len(self._queue) + in_hand, reason)
        self._queue.clear()
        self._bytes = self._minor = 0

    def _lose(self, count: int, reason: str) -> None:
        if count:
            self.lost += count
            self.last_error = reason
