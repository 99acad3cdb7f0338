"""Topic filters of a connector, their subscribers, and the retained messages of the broker."""

import threading
from collections.abc import Callable

from cascade.connectors.mqtt.inbox import CAPACITY, Inbox, Incoming, Latest, incoming
from cascade.spec.protocols import MessageCallback
from cascade.telemetry.topics import topic_matches

Warn = Callable[[str], None]


class Subscription:
    """A topic filter, its subscribers, and the retained messages that were received last, by topic."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.inboxes: list[Inbox] = []
        self.held = Latest()
        self.unconfirmed: set[str] = set()
        """Topics of retained messages that the broker has not sent again since the connection was lost."""
        self.retained = 0
        """Number of retained messages that were received."""
        self.is_ready = False
        """Whether all retained messages were received over the present connection, or never will be."""


class Subscriptions:
    """The subscriptions of a connector. The network thread adds messages; event loops add and remove subscribers."""

    def __init__(self, on_change: Callable[[], None], warn: Warn) -> None:
        self._lock = threading.RLock()
        self._on_change = on_change
        self._warn = warn
        self._by_filter: dict[str, Subscription] = {}
        self.version = 0
        """Changes whenever the set of filters does."""

    def add(self, pattern: str, callback: MessageCallback) -> tuple[Subscription, Inbox]:
        """Add a subscriber in the running event loop. It receives the known retained messages at once."""
        inbox = Inbox(callback, self._on_change)
        with self._lock:
            subscription = self._by_filter.get(pattern)
            if subscription is None:
                subscription = self._by_filter[pattern] = Subscription(pattern)
                self.version += 1
            subscription.inboxes.append(inbox)
            for topic, message in subscription.held.items():
                inbox.put(topic, message)
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
                subscription.is_ready = False
                subscription.unconfirmed = set(subscription.held)

    def complete(self, subscription: Subscription) -> None:
        """The broker has sent all retained messages: those that it has not sent again were cleared meanwhile."""
        with self._lock:
            for topic in subscription.unconfirmed:
                subscription.held.take(topic)
                self._deliver(subscription, topic, b"")
            subscription.unconfirmed = set()
            subscription.is_ready = True
        self._on_change()

    def give_up(self, subscription: Subscription) -> None:
        """The retained messages are unknown: those that were received before stay valid."""
        with self._lock:
            subscription.is_ready = True
        self._on_change()

    def receive(self, topic: str, data: bytes, *, retained: bool) -> None:
        """Hand a message over to the subscribers of all filters that match its topic."""
        message = incoming(data)
        with self._lock:
            for subscription in list(self._by_filter.values()):
                if topic_matches(subscription.pattern, topic):
                    if not (retained and _is_known(subscription, topic, message)):
                        self._deliver(subscription, topic, message)
                    if retained:
                        _hold(subscription, topic, message)

    def _deliver(self, subscription: Subscription, topic: str, message: Incoming) -> None:
        refused = [inbox for inbox in subscription.inboxes if not inbox.put(topic, message)]
        if refused:
            self._warn(f"more than {CAPACITY >> 20} MiB of messages wait for a subscriber: further topics are refused")
        if any(inbox.is_closed for inbox in subscription.inboxes):
            subscription.inboxes = [inbox for inbox in subscription.inboxes if not inbox.is_closed]
            self._forget_unused(subscription)

    def _forget_unused(self, subscription: Subscription) -> None:
        if not subscription.inboxes and self._by_filter.get(subscription.pattern) is subscription:
            del self._by_filter[subscription.pattern]
            self.version += 1


def _is_known(subscription: Subscription, topic: str, message: Incoming) -> bool:
    """Whether the retained message is the same as before the connection was lost."""
    return topic in subscription.unconfirmed and subscription.held.get(topic) == message


def _hold(subscription: Subscription, topic: str, message: Incoming) -> None:
    subscription.retained += 1
    subscription.unconfirmed.discard(topic)
    if message == b"":
        subscription.held.take(topic)
    else:
        subscription.held.put(topic, message)
