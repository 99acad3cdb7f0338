"""Topic filters of a connector, their subscribers, and the messages that were received last."""

import threading
import time
from collections.abc import Callable

from cascade.connectors.mqtt.inbox import CAPACITY, Inbox, Incoming, Latest, has_expired, incoming
from cascade.spec.protocols import MessageCallback
from cascade.telemetry.topics import topic_matches

_FULL = f"more than {CAPACITY >> 20} MiB of messages wait for a subscriber: further topics are refused"
Warn = Callable[[str], None]


class Subscription:
    """A topic filter, its subscribers, and the messages that were received last, by topic."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self._prefix = pattern[:-1] if pattern.endswith("/#") and "+" not in pattern else None
        self.inboxes: list[Inbox] = []
        self.held = Latest()
        """Retained messages, for later subscribers."""
        self.live = Latest()
        """Messages that were not retained, received since the last retained message of their topic."""
        self.unconfirmed: set[str] = set()
        """Topics of messages from before the connection was lost, for which the broker has sent nothing since."""
        self.retained = 0
        """Number of retained messages that were received."""
        self.is_ready = False
        """Whether all retained messages were received over the present connection, or never will be."""

    def matches(self, topic: str) -> bool:
        """Whether the filter matches a topic."""
        if self._prefix is not None and topic.startswith(self._prefix):
            return True
        return topic_matches(self.pattern, topic)

    def begin(self) -> None:
        """Begin a new connection."""
        self.is_ready = False
        self.unconfirmed |= set(self.held) | set(self.live)
        for topic in self.live:  # the retained message, which was replaced for the subscribers, applies to them again
            self.held.take(topic)
        self.live = Latest()

    def is_known(self, topic: str, message: Incoming) -> bool:
        """Whether a retained message is the same as before the connection was lost."""
        return topic in self.unconfirmed and self.held.get(topic) == message

    def hold(self, topic: str, message: Incoming, *, retained: bool) -> bool:
        """Keep a message that was received; whether memory has room for it."""
        self.retained += retained
        self.unconfirmed.discard(topic)
        self.live.take(topic)
        if message == b"":
            self.held.take(topic)
            return True
        return (self.held if retained else self.live).put(topic, message)


class Subscriptions:
    """The subscriptions of a connector. The network thread adds messages; event loops add and remove subscribers."""

    def __init__(self, on_change: Callable[[], None], warn: Warn) -> None:
        self._lock = threading.RLock()
        self._on_change = on_change
        self.warn = warn
        self._by_filter: dict[str, Subscription] = {}
        self.version = 0
        """Changes whenever the set of filters does."""
        self.returns_presence = True
        """Whether the broker is expected to send the presence back. It does not without the right to read it."""
        self.unanswered = 0
        """Connections in a row that have ended instead of an answer to a subscription to the presence."""

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
            for topic, message in subscription.held.items():
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
        """Begin a new connection, over which the broker sends the retained messages again."""
        with self._lock:
            for subscription in self._by_filter.values():
                subscription.begin()

    def complete(self, subscription: Subscription, *, is_certain: bool) -> None:
        """End the wait for retained messages. `is_certain` means that the broker has sent all of them.

        In that case, messages that it has not sent again were cleared meanwhile. Otherwise they stay valid.
        """
        with self._lock:
            if is_certain:
                for topic in subscription.unconfirmed:
                    subscription.held.take(topic)
                    self._deliver(subscription, topic, b"")
                subscription.unconfirmed = set()
            subscription.is_ready = True
            self.wake()
        self._on_change()

    def receive(self, topic: str, data: bytes, *, retained: bool, expiry: int | None = None) -> None:
        """Add a message to the inboxes of all filters that match its topic, for the next `wake`.

        It expires in `expiry` seconds.
        """
        message = incoming(data, expiry)
        with self._lock:
            for subscription in list(self._by_filter.values()):
                if subscription.matches(topic):
                    if not (retained and subscription.is_known(topic, message)):
                        self._deliver(subscription, topic, message)
                    if not subscription.hold(topic, message, retained=retained):
                        self.warn(_FULL)

    def wake(self) -> None:
        """Wake the event loops of the subscribers. An interruption costs more than many messages."""
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
