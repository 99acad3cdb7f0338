"""One connector's lane: a bounded queue in front of it, and a pump that publishes in order."""

import asyncio
from collections import deque
from typing import Any, NamedTuple

from cascade.runtime.gates import Gates
from cascade.runtime.guard import FAULTS, is_own_cancellation
from cascade.runtime.protocols import Gate
from cascade.spec.protocols import Connector
from cascade.telemetry.safe import error_text

MAX_QUEUED_BYTES = 64 * 1024 * 1024
"""A burst of 100,000 tasks fits; a connector that hangs for good does not take the process along."""

MESSAGE_BYTES = 2_500
"""Of memory, for a message without long texts: an estimate."""
HELD_BYTES = MAX_QUEUED_BYTES // 4
"""From here on no further task is started until half of it is published: the burst outruns the connector."""
PATIENCE = 1.0
"""Seconds after which a connector that has published nothing is taken for dead: tasks do not wait for it any more."""
HURRY = 2.0
"""Seconds to publish what a drain leaves, without waiting for room in the connector."""

_FULL = "its queue was full"


class Message(NamedTuple):
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

    The queue of a connector whose attribute `waits_in_lane` is True is not filled beyond its `is_full`: messages wait here
    until it has room, or a drain ends.
    """

    def __init__(self, connector: Connector, *, max_bytes: int = MAX_QUEUED_BYTES) -> None:
        self.connector = connector
        self.lost = 0
        self.published = 0
        self.last_error = ""
        self._max_bytes = max_bytes
        self._held_bytes = min(HELD_BYTES, max_bytes // 4)
        self._room: asyncio.Future[None] | None = None
        self._progress_at = 0.0
        self._queue: deque[tuple[int, Message]] = deque()  # with each message's number, in their order
        self._count = 0
        self._in_hand: int | None = None
        self._bytes = 0
        self._minor = 0
        self._pump: asyncio.Task[None] | None = None
        self._drains: list[tuple[int, asyncio.Future[None]]] = []
        self._closed_by = ""
        self._gates = Gates(connector) if _waits_in_lane(connector) and isinstance(connector, Gate) else Gates()
        self._hurries = 0  # drains that have waited long enough

    def is_full(self) -> bool:
        """Whether a burst had better wait: much is queued, and the connector is getting on with it."""
        return self._bytes > self._held_bytes and not self._is_stalled()

    async def room(self) -> None:
        """Wait until half of what made it full is published, or the connector is taken for dead."""
        while self._bytes > self._held_bytes // 2 and not self._is_stalled():
            if self._room is None or self._room.done():
                self._room = asyncio.get_running_loop().create_future()
            await asyncio.wait({self._room}, timeout=PATIENCE)

    def put(self, message: Message) -> None:
        """Queue a message and see that it is published soon. Never blocks, never raises."""
        if self._closed_by:
            self._lose(1, self._closed_by)
            return
        self._queue.append((self._count, message))
        self._count += 1
        self._bytes += message.size
        self._minor += not message.terminal
        if self._bytes > self._max_bytes:
            self._make_room()
        self._start_pump()

    def close(self, reason: str) -> None:
        """Give up: lose what waits and all that still comes."""
        self._closed_by = reason
        self._lose_before(self._count, reason)
        self._wake_drains()

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 - the bound is this method's purpose
        """Wait until all that was put before is published, at most `timeout` seconds; what is left of it then is lost.

        What others put meanwhile is neither waited for nor lost.
        """
        self._start_pump()
        target = self._count
        if self._oldest() >= target:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._drains.append((target, done))
        try:
            await asyncio.wait({done}, timeout=timeout)
            if not done.done() and self._gates.is_full():
                await self._publish_without_waiting(done)
        finally:
            self._drains.remove((target, done))
        if not done.done():
            await self._abandon(target, f"not published within {timeout:g} s")

    async def _publish_without_waiting(self, done: asyncio.Future[None]) -> None:
        """The connector takes the rest at once, and drops by its own priorities what does not fit."""
        self._hurries += 1
        try:
            await asyncio.wait({done}, timeout=HURRY)
        finally:
            self._hurries -= 1

    def _is_stalled(self) -> bool:
        if self._in_hand is None:
            return False
        return asyncio.get_running_loop().time() - self._progress_at > PATIENCE

    def _start_pump(self) -> None:
        if not self._queue or (self._pump is not None and not self._pump.done()):
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # outside of a loop: the next drain publishes it
            return
        self._pump = loop.create_task(self._publish_all(), name=f"cascade-telemetry-{type(self.connector).__name__}")

    async def _publish_all(self) -> None:
        now = asyncio.get_running_loop().time
        while self._queue:
            self._progress_at = now()
            self._in_hand, message = self._pop()
            try:
                await self.connector.publish(message.topic, message.payload, message.qos)
                self.published += 1
            except FAULTS as error:
                if is_own_cancellation(error):
                    raise
                self._lose(1, error_text(error))
            finally:
                self._in_hand = None
            if self._drains:
                self._wake_drains()
            if self._room is not None and self._bytes <= self._held_bytes // 2 and not self._room.done():
                self._room.set_result(None)
            while not self._hurries and self._gates.is_full():
                await self._gates.room()

    async def _abandon(self, target: int, reason: str) -> None:
        """Lose what was put before the target, the message in hand included, and go on with the rest."""
        if self._in_hand is not None and self._in_hand < target and self._pump is not None:
            self._pump.cancel()
            await asyncio.wait({self._pump})
            self._lose(1, reason)
        self._lose_before(target, reason)
        self._start_pump()

    def _oldest(self) -> int:
        """The number of the oldest message that is neither published nor lost."""
        if self._in_hand is not None:
            return self._in_hand
        return self._queue[0][0] if self._queue else self._count

    def _wake_drains(self) -> None:
        oldest = self._oldest()
        for target, done in self._drains:
            if oldest >= target and not done.done():
                done.set_result(None)

    def _make_room(self) -> None:
        if self._minor:
            self._lose(self._minor, _FULL)
            self._queue = deque(entry for entry in self._queue if entry[1].terminal)
            self._bytes, self._minor = sum(message.size for _, message in self._queue), 0
        while self._bytes > self._max_bytes:
            self._pop()
            self._lose(1, _FULL)

    def _pop(self) -> tuple[int, Message]:
        number, message = self._queue.popleft()
        self._bytes -= message.size
        self._minor -= not message.terminal
        return number, message

    def _lose_before(self, target: int, reason: str) -> None:
        while self._queue and self._queue[0][0] < target:
            self._pop()
            self._lose(1, reason)

    def _lose(self, count: int, reason: str) -> None:
        self.lost += count
        self.last_error = reason


def _waits_in_lane(connector: object) -> bool:
    return getattr(connector, "waits_in_lane", False) is True
