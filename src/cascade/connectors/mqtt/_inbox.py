"""One subscriber's messages on their way into its event loop: the latest of each topic, one at a time."""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any

from cascade._loggers import get_logger
from cascade.connectors.mqtt._latest import Incoming, Latest
from cascade.spec.protocols import MessageCallback
from cascade.telemetry.wire import received

logger = get_logger("cascade.connectors.mqtt")

BATCH = 32
"""Messages handed over between two turns of whatever else is in the event loop."""


class Inbox:
    """Belongs to the event loop in which it was made; any thread may put.

    A message that has not been handed over when the next of its topic comes is not handed over any more: no flood can
    grow memory, nor keep the loop busy with what is out of date.
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
        self._is_closed = False
        self._has_failed = False

    def put(self, topic: str, message: Incoming) -> bool:
        """Take a message; False if too much waits already."""
        with self._lock:
            if self._is_closed:
                return True
            if not self._pending.put(topic, message):
                return False
            wakes, self.is_idle = self.is_idle, False
        if wakes:
            try:
                self._loop.call_soon_threadsafe(self._start, context=self._context)
            except RuntimeError:  # the loop is closed
                self._is_closed = True
        return True

    @property
    def is_closed(self) -> bool:
        """Whether nobody listens any more."""
        return self._is_closed or self._loop.is_closed()

    async def close(self) -> None:
        """Hand over nothing more. In its own event loop, a callback that is being called is cancelled first."""
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
        try:
            await self.callback(topic, payload)
        except Exception:
            if not self._has_failed:
                self._has_failed = True
                logger.exception("MqttConnector: a subscriber failed for %s; further failures are not told", topic)
