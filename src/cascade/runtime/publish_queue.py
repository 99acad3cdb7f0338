"""Bounded queue that publishes the messages of runs to a connector, in order."""

import asyncio
from collections import deque
from collections.abc import Mapping
from inspect import iscoroutinefunction
from typing import Any, NamedTuple

from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.runtime.bus import CombinedBackpressure
from cascade.runtime.guard import FAULTS, is_own_cancellation
from cascade.runtime.protocols import Buffering
from cascade.spec.protocols import Connector
from cascade.telemetry.sanitize import error_text

logger = get_logger(__name__)

MAX_QUEUED_BYTES = 64 * 1024 * 1024
"""Bytes of the messages in the queue. The messages of 100,000 tasks fit; the bound protects the process from a
connector that hangs."""

MESSAGE_BYTES = 2_500
"""Estimated bytes of memory of a message without long texts."""
FULL_BYTES = MAX_QUEUED_BYTES // 4
"""Queued bytes above which no task starts, until at most half of this number is queued."""
STALL_TIMEOUT = 1.0
"""Seconds without a published message after which the connector counts as stalled. Tasks do not wait for it."""
FINAL_DRAIN_TIMEOUT = 2.0
"""Seconds to publish the rest at the end of a drain, whether or not the connector has room."""

_FULL = "its queue was full"


class Message(NamedTuple):
    """A message in the queue. `size` is an estimate in bytes. Messages with QoS 1 are dropped last."""

    topic: str
    payload: dict[str, Any]
    qos: int
    size: int


class PublishQueue:
    """Queue that publishes messages to one connector, in order and one at a time.

    Above `max_bytes`, the queue drops all messages with QoS 0, then the oldest ones with QoS 1.

    A `Buffering` connector gets messages at once. They wait in this queue only while the connector is full, until it has room
    or a drain ends.

    Attributes:
        published: The number of published messages.
        lost: The number of messages that were dropped or could not be published.
        last_error: The reason of the last loss.
    """

    def __init__(self, connector: Connector, *, max_bytes: int = MAX_QUEUED_BYTES) -> None:
        self.connector = connector
        self.lost = 0
        self.published = 0
        self.last_error = ""
        self._reported = 0
        self._max_bytes = max_bytes
        self._full_bytes = min(FULL_BYTES, max_bytes // 4)
        self._room: asyncio.Future[None] | None = None
        self._progress_at = 0.0
        self._queue: deque[tuple[int, Message]] = deque()  # with each message's number, in their order
        self._count = 0
        self._publishing: int | None = None
        self._bytes = 0
        self._count_of_qos_0 = 0
        self._task: asyncio.Task[None] | None = None
        self._drains: list[tuple[int, asyncio.Future[None]]] = []
        self._close_reason = ""
        self._backpressure = CombinedBackpressure()
        self._put = None
        if isinstance(connector, Buffering) and not iscoroutinefunction(connector.put):  # it may have another meaning
            self._put = connector.put
            self._backpressure.add(connector)
        self._final_drains = 0  # drains that no longer wait for room in the connector

    @property
    def is_closed(self) -> bool:
        """Whether the queue drops all messages."""
        return bool(self._close_reason)

    @property
    def queued(self) -> int:
        """The number of messages that are neither published nor lost."""
        return len(self._queue) + (self._publishing is not None)

    def is_full(self) -> bool:
        """Whether more than `FULL_BYTES` are queued and the connector is not stalled."""
        return self._bytes > self._full_bytes and not self._is_stalled()

    async def room(self) -> None:
        """Wait until at most half of `FULL_BYTES` is queued, or the connector is stalled."""
        while self._bytes > self._full_bytes // 2 and not self._is_stalled():
            if self._room is None or self._room.done():
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._room}, timeout=STALL_TIMEOUT)

    def put(self, message: Message) -> None:
        """Add a message. Does not block or raise."""
        if self._close_reason:
            self._drop(1, self._close_reason)
            return
        if self._put is not None and not self._queue and self._publishing is None:
            try:
                if self._put(message.topic, message.payload, message.qos) is not False:  # None would be sent twice
                    self.published += 1
                    return
            except FAULTS as error:
                raise_in_tests(error)
                self._drop(1, error_text(error))
                return
        self._queue.append((self._count, message))
        self._count += 1
        self._bytes += message.size
        self._count_of_qos_0 += not message.qos
        if self._bytes > self._max_bytes:
            self._make_room()
        self._start_publishing()

    def close(self, reason: str) -> None:
        """Drop all messages, also those that are put later."""
        self._close_reason = reason
        self._drop_before(self._count, reason)
        self._wake_drains()

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - the bound is this method's purpose
        """Wait at most `timeout` seconds until the present messages are published, then drop the rest of them.

        Messages that are put meanwhile stay in the queue. Logs the number of messages that were lost since the last drain.
        """
        await self._drain(timeout)
        lost, self._reported = self.lost - self._reported, self.lost
        if lost:
            name = type(self.connector).__name__
            logger.warning("%s: %d telemetry messages were lost: %s", name, lost, self.last_error)

    async def _drain(self, timeout: float) -> None:  # noqa: ASYNC109 - as `drain`
        self._start_publishing()
        target = self._count
        if self._oldest() >= target:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._drains.append((target, done))
        try:
            await asyncio.wait({done}, timeout=timeout)
            if not done.done() and self._backpressure.is_full():
                self._final_drains += 1  # a full connector drops messages by its own priorities
                try:
                    await asyncio.wait({done}, timeout=FINAL_DRAIN_TIMEOUT)
                finally:
                    self._final_drains -= 1
        finally:
            self._drains.remove((target, done))
        if not done.done():
            await self._abandon(target, f"not published within {timeout:g} s")

    def _is_stalled(self) -> bool:
        if self._publishing is None:
            return False
        return asyncio.get_running_loop().time() - self._progress_at > STALL_TIMEOUT

    def _start_publishing(self) -> None:
        if not self._queue or _is_running(self._task):
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # outside of a loop: the next drain publishes it
            return
        if self._publishing is not None:
            self._publishing = None
            self._drop(1, "the event loop was closed")
        self._task = loop.create_task(self._publish_all(), name=f"cascade-telemetry-{type(self.connector).__name__}")

    async def _publish_all(self) -> None:
        now = asyncio.get_running_loop().time
        while self._queue:
            if not self._final_drains and self._backpressure.is_full():
                await self._backpressure.room()
                continue
            self._progress_at = now()
            self._publishing, message = self._pop()
            try:
                await self.connector.publish(message.topic, message.payload, message.qos)
                self.published += 1
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | SystemExit) or is_own_cancellation(error, self._task):
                    raise
                raise_in_tests(error)
                self._drop(1, error_text(error))
            finally:
                self._publishing = None
            if self._drains:
                self._wake_drains()
            if self._room is not None and self._bytes <= self._full_bytes // 2 and not self._room.done():
                self._room.set_result(None)

    async def _abandon(self, target: int, reason: str) -> None:
        """Drop the messages before the target, also the one that is being published, and continue with the rest."""
        if self._publishing is not None and self._publishing < target and self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._drop(1, reason)
        self._drop_before(target, reason)
        self._start_publishing()

    def _oldest(self) -> int:
        """Return the number of the oldest message that is neither published nor dropped."""
        if self._publishing is not None:
            return self._publishing
        return self._queue[0][0] if self._queue else self._count

    def _wake_drains(self) -> None:
        oldest = self._oldest()
        for target, done in self._drains:
            if oldest >= target and not done.done():
                done.set_result(None)

    def _make_room(self) -> None:
        if self._count_of_qos_0:
            self._drop(self._count_of_qos_0, _FULL)
            self._queue = deque(entry for entry in self._queue if entry[1].qos)
            self._bytes, self._count_of_qos_0 = sum(message.size for _, message in self._queue), 0
        while self._bytes > self._max_bytes:
            self._pop()
            self._drop(1, _FULL)

    def _pop(self) -> tuple[int, Message]:
        number, message = self._queue.popleft()
        self._bytes -= message.size
        self._count_of_qos_0 -= not message.qos
        return number, message

    def _drop_before(self, target: int, reason: str) -> None:
        while self._queue and self._queue[0][0] < target:
            self._pop()
            self._drop(1, reason)

    def _drop(self, count: int, reason: str) -> None:
        self.lost += count
        self.last_error = reason


def _is_running(task: asyncio.Task[None] | None) -> bool:
    """Return whether the task can continue. A loop that is closed during a run leaves pending tasks."""
    return task is not None and not task.done() and not task.get_loop().is_closed()


def estimated_size(metadata: Mapping[str, Any]) -> int:
    """Estimate the bytes of memory of a message: a fixed part, and the texts that may be long."""
    size = MESSAGE_BYTES
    if "exception" in metadata:
        size += len(metadata["exception"].get("stacktrace", ""))
    if "links" in metadata:
        size += 300 * len(metadata["links"])
    return size
