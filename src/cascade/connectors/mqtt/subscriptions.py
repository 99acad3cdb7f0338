"""Topic filters of a connector, their subscribers, and the inboxes that deliver messages to event loops.

Memory is bounded: only the latest message of each topic is kept.
"""

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.spec.protocols import MessageCallback
from cascade.telemetry.topics import topic_matches
from cascade.telemetry.wire import MAX_RECEIVED_BYTES, decode_incoming, with_expiry

logger = get_logger("cascade.connectors.mqtt")

CAPACITY = 64 << 20
"""Bytes: about 200,000 constraints."""
ENTRY_BYTES = 200
"""Memory of a message beside its payload and topic."""
BATCH = 32
"""Messages that are delivered before other callbacks of the event loop run."""

_FULL = f"more than {CAPACITY >> 20} MiB of received messages are queued for a subscriber; messages on further topics are dropped"
Warn = Callable[[str], None]

Incoming = bytes | dict[str, Any]


def incoming(data: bytes, expiry: int | None = None) -> Incoming:
    """Return the bytes of a message, or its payload with the time of its expiry.

    A message above the size limit becomes an `InvalidPayload`. `expiry` is in seconds from now.
    """
    if expiry is not None and data:
        return with_expiry(decode_incoming(data), expiry, time.time())
    return data if len(data) <= MAX_RECEIVED_BYTES else decode_incoming(data)


def has_expired(message: Incoming, now: float) -> bool:
    """Whether a message with a Message Expiry Interval has expired at `now`, in Unix seconds."""
    return isinstance(message, dict) and isinstance(ends := message.get("expires_at"), float) and ends <= now


class LatestMessages(dict[str, Incoming]):
    """The latest message of each topic, ordered by the time of its last `put`. Only `put` and `take` change it."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes = 0

    def put(self, topic: str, message: Incoming) -> bool:
        """Replace the message of the topic. Return False, and change nothing, if it does not fit into `CAPACITY`."""
        before = self.get(topic)
        growth = _size(topic, message) - (0 if before is None else _size(topic, before))
        if growth > 0 and self._bytes + growth > CAPACITY:
            return False
        self.pop(topic, None)
        self[topic] = message
        self._bytes += growth
        return True

    def take_first(self, count: int) -> list[tuple[str, Incoming]]:
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
    """Delivers messages to a callback, in the event loop in which the inbox was created. Any thread may call `put`.

    A message that is not delivered yet is replaced by the next one on its topic. A flood of messages therefore does not use
    more memory, and does not keep the event loop busy with outdated messages.
    """

    def __init__(self, callback: MessageCallback, on_idle: Callable[[], None]) -> None:
        self.callback = callback
        self.is_idle = True
        self._on_idle = on_idle
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._pending = LatestMessages()
        self._task: asyncio.Task[None] | None = None
        self._is_closed = self._is_due = False
        self._has_failed = False
        self.delivered = 0
        """Number of messages that the callback was called with."""

    def put(self, topic: str, message: Incoming) -> bool:
        """Add a message, which the next `wake` delivers. Return False if the inbox is full."""
        with self._lock:
            if self._is_closed:
                return True
            if not self._pending.put(topic, message):
                return False
            self._is_due |= self.is_idle
            self.is_idle = False
        return True

    def wake(self) -> None:
        """Start the delivery."""
        with self._lock:
            is_due, self._is_due = self._is_due, False
        if is_due:
            try:
                self._loop.call_soon_threadsafe(self._start, context=self._context)
            except RuntimeError:  # the loop is closed
                self._is_closed = True

    @property
    def is_closed(self) -> bool:
        """Whether the delivery has ended, or the event loop is closed."""
        return self._is_closed or self._loop.is_closed()

    async def close(self) -> None:
        """End the delivery. A running call of the callback is cancelled. It is awaited if this is its event loop."""
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
        self._task = self._loop.create_task(self._deliver_all(), name="cascade-mqtt-inbox")

    async def _deliver_all(self) -> None:
        while batch := self._take():
            for topic, message in batch:
                if self._is_closed:
                    return
                await self._call(topic, decode_incoming(message) if isinstance(message, bytes) else message)
            await asyncio.sleep(0)

    def _take(self) -> list[tuple[str, Incoming]]:
        with self._lock:
            batch = self._pending.take_first(BATCH)
            self.is_idle = not batch
        if not batch:
            self._on_idle()
        return batch

    async def _call(self, topic: str, payload: dict[str, Any]) -> None:
        self.delivered += 1
        try:
            await self.callback(topic, payload)
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise_in_tests(error)
            if not self._has_failed:  # a callback may await a task that is cancelled
                self._has_failed = True
                logger.exception("MqttConnector: a subscriber failed for %s; further failures are not logged", topic)


def _size(topic: str, message: Incoming) -> int:
    return ENTRY_BYTES + len(topic) + (len(message) if isinstance(message, bytes) else ENTRY_BYTES)


class Subscription:
    """A topic filter, its subscribers, and the latest message of each topic."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._prefix = pattern[:-1] if pattern.endswith("/#") and "+" not in pattern else None
        self.inboxes: list[Inbox] = []
        self.retained = LatestMessages()
        """Retained messages, for later subscribers."""
        self.live = LatestMessages()
        """Messages that were not retained, received since the last retained message of their topic."""
        self.unconfirmed: set[str] = set()
        """Topics of messages from before the latest reconnection, for which the broker has sent no message since."""
        self.retained_count = 0
        """Number of retained messages that were received."""
        self.is_ready = False
        """Whether all retained messages were received over the present connection, or the wait for them has ended."""

    def matches(self, topic: str) -> bool:
        """Whether the filter matches a topic."""
        if self._prefix is not None and topic.startswith(self._prefix):
            return True
        return topic_matches(self.pattern, topic)

    def begin(self) -> None:
        """Prepare for the retained messages of a new connection."""
        self.is_ready = False
        self.unconfirmed |= set(self.retained) | set(self.live)
        for topic in self.live:  # the retained message of the topic applies again
            self.retained.take(topic)
        self.live = LatestMessages()

    def is_known(self, topic: str, message: Incoming) -> bool:
        """Whether a retained message is the same as before the connection was lost."""
        return topic in self.unconfirmed and self.retained.get(topic) == message

    def store(self, topic: str, message: Incoming, *, retained: bool) -> bool:
        """Store a received message. Return False if it does not fit into memory."""
        self.retained_count += retained
        self.unconfirmed.discard(topic)
        self.live.take(topic)
        if message == b"":
            self.retained.take(topic)
            return True
        return (self.retained if retained else self.live).put(topic, message)


class Subscriptions:
    """The subscriptions of a connector. The network thread adds messages; event loops add and remove subscribers."""

    def __init__(self, on_change: Callable[[], None], warn: Warn) -> None:
        self._lock = threading.RLock()
        self._on_change = on_change
        self.warn = warn
        self._by_filter: dict[str, Subscription] = {}
        self.version = 0
        """Number of changes of the set of filters."""
        self.returns_presence = True
        """Whether the broker sends the presence back. It does not if its access list forbids this user to read it."""
        self.unanswered = 0
        """Consecutive connections that have ended before an answer to the subscription to the presence."""

    def add(self, pattern: str, callback: MessageCallback) -> tuple[Subscription, Inbox]:
        """Add a subscriber in the running event loop. It receives the known retained messages at once."""
        inbox = Inbox(callback, self._on_change)
        with self._lock:
            subscription = self._by_filter.get(pattern)
            if subscription is None:
                subscription = self._by_filter[pattern] = Subscription(pattern)
                self.version += 1
            subscription.inboxes.append(inbox)
            now = time.time()
            for topic, message in subscription.retained.items():
                if not has_expired(message, now):
                    inbox.put(topic, message)
            inbox.wake()
        return subscription, inbox

    def remove(self, pattern: str, callback: MessageCallback) -> Inbox | None:
        """Remove a subscriber and return its inbox, for the caller to close; None if there is none."""
        with self._lock:
            subscription = self._by_filter.get(pattern)
            found = [i for i in subscription.inboxes if i.callback == callback] if subscription else []
            if subscription is None or not found:
                return None
            subscription.inboxes.remove(found[0])
            self._forget_unused(subscription)
            return found[0]

    def clear(self) -> list[Inbox]:
        """Remove all subscribers and return their inboxes, for the caller to close."""
        with self._lock:
            inboxes = [inbox for subscription in self._by_filter.values() for inbox in subscription.inboxes]
            self._by_filter.clear()
            self.version += 1
            return inboxes

    def all(self) -> list[Subscription]:
        with self._lock:
            return list(self._by_filter.values())

    def begin(self) -> None:
        """Prepare for a new connection, over which the broker sends the retained messages again."""
        with self._lock:
            for subscription in self._by_filter.values():
                subscription.begin()

    def complete(self, subscription: Subscription, *, is_certain: bool) -> None:
        """End the wait for retained messages. `is_certain`: the broker has sent all of them.

        If so, messages that it has not sent again were removed meanwhile, and the subscribers get an empty message for each.
        Otherwise these messages stay valid.
        """
        with self._lock:
            if is_certain:
                for topic in subscription.unconfirmed:
                    subscription.retained.take(topic)
                    self._deliver(subscription, topic, b"")
                subscription.unconfirmed = set()
            subscription.is_ready = True
            self.wake()
        self._on_change()

    def receive(self, topic: str, data: bytes, *, retained: bool, expiry: int | None = None) -> None:
        """Add a message to the inboxes of all filters that match its topic. The next `wake` delivers it.

        The message expires in `expiry` seconds.
        """
        message = incoming(data, expiry)
        with self._lock:
            for subscription in list(self._by_filter.values()):
                if subscription.matches(topic):
                    if not (retained and subscription.is_known(topic, message)):
                        self._deliver(subscription, topic, message)
                    if not subscription.store(topic, message, retained=retained):
                        self.warn(_FULL)

    def wake(self) -> None:
        """Wake the event loops of the subscribers. Call it once for many messages: a wake-up costs more than they do."""
        with self._lock:
            for subscription in self._by_filter.values():
                for inbox in subscription.inboxes:
                    inbox.wake()

    def _deliver(self, subscription: Subscription, topic: str, message: Incoming) -> None:
        for inbox in subscription.inboxes:
            if not inbox.put(topic, message):
                self.warn(_FULL)
        if any(inbox.is_closed for inbox in subscription.inboxes):
            subscription.inboxes = [inbox for inbox in subscription.inboxes if not inbox.is_closed]
            self._forget_unused(subscription)

    def _forget_unused(self, subscription: Subscription) -> None:
        if not subscription.inboxes and self._by_filter.get(subscription.pattern) is subscription:
            del self._by_filter[subscription.pattern]
            self.version += 1
