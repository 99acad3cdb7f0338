"""Incoming messages of one subscriber, on their way into its event loop: the latest of each topic, in bounded memory."""

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

from cascade._loggers import get_logger
from cascade.spec.protocols import MessageCallback
from cascade.telemetry.wire import MAX_RECEIVED_BYTES, received, with_expiry

logger = get_logger("cascade.connectors.mqtt")

CAPACITY = 64 << 20
"""Bytes: about 200,000 constraints."""
ENTRY_BYTES = 200
"""Memory of a message beside its payload and topic."""
BATCH = 32
"""Messages that are handed over before other callbacks of the event loop run."""

Incoming = bytes | dict[str, Any]


def incoming(data: bytes, expiry: int | None = None) -> Incoming:
    """Return the part of a message to keep: its bytes, or the payload with the time at which the message expires.

    Of a message that is far too big it is only the refusal. `expiry` is in seconds from now.
    """
    if expiry is not None and data:
        return with_expiry(received(data), expiry, time.time())
    return data if len(data) <= MAX_RECEIVED_BYTES else received(data)


def has_expired(message: Incoming, now: float) -> bool:
    """Whether a message with a Message Expiry Interval has expired at `now`, in Unix seconds."""
    return isinstance(message, dict) and isinstance(ends := message.get("expires_at"), float) and ends <= now


class Latest(dict[str, Incoming]):
    """The latest message of each topic; the topic that has waited longest comes first. Only `put` and `take` change it."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes = 0

    def put(self, topic: str, message: Incoming) -> bool:
        """Replace the message of the topic. If that exceeds the memory, nothing changes and the result is False."""
        before = self.get(topic)
        growth = _size(topic, message) - (0 if before is None else _size(topic, before))
        if growth > 0 and self._bytes + growth > CAPACITY:
            return False
        self.pop(topic, None)
        self[topic] = message
        self._bytes += growth
        return True

    def first(self, count: int) -> list[tuple[str, Incoming]]:
        """Remove and return the first messages, with their topics."""
        batch = list(islice(self.items(), count))
        for topic, _ in batch:
            self.take(topic)
        return batch

    def take(self, topic: str) -> Incoming | None:
        """Remove and return the message of a topic."""
        message = self.pop(topic, None)
        if message is not None:
            self._bytes -= _size(topic, message)
        return message


class Inbox:
    """Calls a callback in the event loop in which the inbox was created. Any thread may put.

    A message that was not handed over is replaced by the next one of its topic. So a flood neither grows memory nor keeps
    the event loop busy with outdated messages.
    """

    def __init__(self, callback: MessageCallback, on_idle: Callable[[], None]) -> None:
        self.callback = callback
        self.is_idle = True
        self._on_idle = on_idle
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._pending = Latest()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = self._is_due = False
        self._has_failed = False
        self.handed_over = 0
        """Number of messages that the callback was called with."""

    def put(self, topic: str, message: Incoming) -> bool:
        """Add a message, to hand over after the next `wake`; return False if too much waits already."""
        with self._lock:
            if self._is_closed:
                return True
            if not self._pending.put(topic, message):
                return False
            self._is_due |= self.is_idle
            self.is_idle = False
        return True

    def wake(self) -> None:
        """Begin to hand over."""
        with self._lock:
            is_due, self._is_due = self._is_due, False
        if is_due:
            try:
                self._loop.call_soon_threadsafe(self._start, context=self._context)
            except RuntimeError:  # the loop is closed
                self._is_closed = True

    @property
    def is_closed(self) -> bool:
        """Whether it hands nothing over any more."""
        return self._is_closed or self._loop.is_closed()

    async def close(self) -> None:
        """Hand nothing more over. A running call of the callback is cancelled, and awaited in its own event loop."""
        self._is_closed = True
        task = self._task
        if self._loop is not asyncio.get_running_loop():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._cancel)
        elif task is not None and task is not asyncio.current_task():
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _start(self) -> None:
        self._task = self._loop.create_task(self._hand_over(), name="cascade-mqtt-inbox")

    async def _hand_over(self) -> None:
        while batch := self._take():
            for topic, message in batch:
                if self._is_closed:
                    return
                await self._call(topic, received(message) if isinstance(message, bytes) else message)
            await asyncio.sleep(0)

    def _take(self) -> list[tuple[str, Incoming]]:
        with self._lock:
            batch = self._pending.first(BATCH)
            self.is_idle = not batch
        if not batch:
            self._on_idle()
        return batch

    async def _call(self, topic: str, payload: dict[str, Any]) -> None:
        self.handed_over += 1
        try:
            await self.callback(topic, payload)
        except (Exception, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            if not self._has_failed:  # a callback may await a task that is cancelled
                self._has_failed = True
                logger.exception("MqttConnector: a subscriber failed for %s; further failures are not logged", topic)


def _size(topic: str, message: Incoming) -> int:
    return ENTRY_BYTES + len(topic) + (len(message) if isinstance(message, bytes) else ENTRY_BYTES)
