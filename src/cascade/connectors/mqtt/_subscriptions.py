"""Who wants which messages, and what is retained for them on the other side."""

import threading
from collections.abc import Callable

from cascade.connectors.mqtt._inbox import MAX_TOPICS, Inbox, Incoming, incoming
from cascade.spec.protocols import MessageCallback
from cascade.telemetry.topics import topic_matches

Warn = Callable[[str], None]


class Subscription:
    """A topic filter, who listens to it, and what it holds: the retained messages that were seen last, by topic."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.inboxes: list[Inbox] = []
        self.held: dict[str, Incoming] = {}
        self.unconfirmed: set[str] = set()
        """Topics that held something before the connection was lost and have not been sent again yet."""
        self.retained = 0
        """How many retained messages have come."""
        self.is_ready = False
        """Whether all that is retained has come over the present connection, or never will."""


class Subscriptions:
    """All of a connector's. The session's thread brings messages in; event loops come and go."""

    def __init__(self, on_change: Callable[[], None], warn: Warn) -> None:
        self._lock = threading.RLock()
        self._on_change = on_change
        self._warn = warn
        self._by_filter: dict[str, Subscription] = {}
        self.version = 0
        """Changes with the set of filters."""

    def add(self, pattern: str, callback: MessageCallback) -> tuple[Subscription, Inbox]:
        """Listen, in the running event loop; what the filter is known to hold is handed over at once."""
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
        """Forget one who listens; the inbox, if there was one, is the caller's to close."""
        with self._lock:
            subscription = self._by_filter.get(pattern)
            found = [i for i in subscription.inboxes if i.callback == callback] if subscription else []
            if subscription is None or not found:
                return None
            subscription.inboxes.remove(found[0])
            self._forget_unheard(subscription)
            return found[0]

    def clear(self) -> list[Inbox]:
        """Forget all; the inboxes are the caller's to close."""
        with self._lock:
            inboxes = [inbox for subscription in self._by_filter.values() for inbox in subscription.inboxes]
            self._by_filter.clear()
            self.version += 1
            return inboxes

    def all(self) -> list[Subscription]:
        with self._lock:
            return list(self._by_filter.values())

    def begin(self) -> None:
        """A new connection: what was held is to be confirmed."""
        with self._lock:
            for subscription in self._by_filter.values():
                subscription.is_ready = False
                subscription.unconfirmed = set(subscription.held)

    def complete(self, subscription: Subscription) -> None:
        """All that is retained has come: what has not was cleared while we were away."""
        with self._lock:
            for topic in subscription.unconfirmed:
                subscription.held.pop(topic, None)
                self._deliver(subscription, topic, b"")
            subscription.unconfirmed = set()
            subscription.is_ready = True
        self._on_change()

    def receive(self, topic: str, data: bytes, *, retained: bool) -> None:
        """A message has come in."""
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
            self._warn(f"messages of more than {MAX_TOPICS:,} topics wait for a subscriber: new topics are refused")
        if any(inbox.is_closed for inbox in subscription.inboxes):
            subscription.inboxes = [inbox for inbox in subscription.inboxes if not inbox.is_closed]
            self._forget_unheard(subscription)

    def _forget_unheard(self, subscription: Subscription) -> None:
        if not subscription.inboxes and self._by_filter.get(subscription.pattern) is subscription:
            del self._by_filter[subscription.pattern]
            self.version += 1


def _is_known(subscription: Subscription, topic: str, message: Incoming) -> bool:
    """Whether it is what is held from before the connection was lost: nothing new to anybody."""
    return topic in subscription.unconfirmed and subscription.held.get(topic) == message


def _hold(subscription: Subscription, topic: str, message: Incoming) -> None:
    subscription.retained += 1
    subscription.unconfirmed.discard(topic)
    if message == b"":
        subscription.held.pop(topic, None)
    elif topic in subscription.held or len(subscription.held) < MAX_TOPICS:
        subscription.held[topic] = message
