"""Topic filters of a connector, their subscribers, and the retained messages of the broker."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable

import aiomqtt
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from cascade.connectors.mqtt.client import FAILURE, Client
from cascade.connectors.mqtt.inbox import CAPACITY, Inbox, Incoming, Latest, has_expired, incoming
from cascade.spec.protocols import MessageCallback
from cascade.telemetry.topics import topic_matches

QUIET = 0.05
"""Seconds without a further retained message after which all were received, once the presence has come back."""
TRICKLE = 100
"""Retained messages for new topics in a second, once the presence has come back. Fewer are published at this moment."""
RETURN_TIMEOUT = 2.0
"""Seconds beside two round trips to wait for the presence, or for an answer to UNSUBSCRIBE, without a retained message."""
MAX_ROUNDS = 1_000
"""Round trips in which to receive the retained messages; Mosquitto sends 20 messages in each."""
_MOST_UNANSWERED = 2
_FULL = f"more than {CAPACITY >> 20} MiB of messages wait for a subscriber: further topics are refused"
LATE = "retained constraints may not have been applied before the first task"
UNCERTAIN = f"{LATE}, because the broker does not send the presence of this process back"

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


class Barrier:
    """Finds out when the broker has sent all retained messages for a SUBSCRIBE packet. It does not mark the last one.

    The presence was published before and is retained. The packet ends with a subscription to it, so that it comes back by
    the same path as the other retained messages. A broker that does not return it must answer an UNSUBSCRIBE packet after
    all that it has sent before.
    """

    def __init__(self, client: Client, presence_topic: str, subscriptions: Subscriptions) -> None:
        self._client = client
        self._topic = presence_topic
        self._subscriptions = subscriptions
        # No subscription has this filter: to unsubscribe from it has no effect.
        self.unused = f"cascade/barrier/{''.join(c if c.isalnum() else '-' for c in client.identifier)}"
        self._received = self._begun = self._returned = 0
        self._missing = 0
        """Number of the latest `wait` that ended without the presence."""
        self._is_refused = False
        self._news = asyncio.Event()
        self._topics: set[str] | None = None
        """Topics of the retained messages that were received since a `wait` began; None between them."""

    def note(self, topic: str) -> None:
        """Record a retained message. The broker sends one for each topic: a further one was published meanwhile."""
        if self._topics is not None and topic != self._topic:
            if topic in self._topics:
                return
            self._topics.add(topic)
        self._received += 1
        self._news.set()
        if topic == self._topic:
            self._returned += 1
            if self._returned == self._missing:
                self._subscriptions.returns_presence = True
                self._subscriptions.warn(f"{LATE}: the broker sends them late")

    def begin(self) -> tuple[int, list[tuple[str, SubscribeOptions]]]:
        """Return a number for `wait`, and the filters with which a SUBSCRIBE packet must end.

        There are none if two connections in a row have ended instead of an answer: the filter may be forbidden.
        """
        if not self._begun:
            if self._subscriptions.unanswered >= _MOST_UNANSWERED:
                self._is_refused = True
                return 1, []
            self._subscriptions.unanswered += 1
        self._begun += 1
        self._topics = self._topics or set()
        # Without retainAsPublished, the flag is set only if the message was retained before the subscription.
        return self._begun, [(self._topic, SubscribeOptions(qos=1))]

    def answered(self, reasons: Iterable[ReasonCode]) -> None:
        """Record the reason codes for the filters of `begin`."""
        self._subscriptions.unanswered = 0
        if any(reason.value >= FAILURE for reason in reasons):
            self.refuse()

    def refuse(self) -> None:
        """The broker has refused the presence, or the subscription to it."""
        self._is_refused = True
        self._news.set()

    async def wait(self, number: int, round_trip: float) -> bool:
        """Wait until all retained messages were received. False if that stays unknown, which is reported."""
        try:
            return not self._client.limits.retain_available or await self._wait(number, round_trip)
        finally:
            if number == self._begun:
                self._topics = None

    async def _wait(self, number: int, round_trip: float) -> bool:
        limit = RETURN_TIMEOUT + 2 * round_trip
        await self._until_quiet(number, limit)
        is_complete = True
        if self._returned < number:
            is_complete = await self._make_round_trips(limit)
            if self._returned >= number:
                await self._until_quiet(number, limit)
        self._subscriptions.returns_presence = self._returned >= number
        if not self._subscriptions.returns_presence:
            self._missing = number
            if is_complete:
                self._subscriptions.warn(f"{UNCERTAIN}; allow this user to read {self._topic}")
        return is_complete

    async def _until_quiet(self, number: int, limit: float) -> None:
        """Return when no retained message has come for `limit` seconds, or for `QUIET` if the presence is not expected.

        Fewer than `TRICKLE` in a second do not continue the wait: they are published at this moment.
        """
        is_quiet, second, received = False, time.monotonic() + 1, self._received
        while not is_quiet:
            self._news.clear()
            is_expected = self._subscriptions.returns_presence and not self._is_refused and self._returned < number
            if time.monotonic() > second:
                if not is_expected and self._received - received < TRICKLE:
                    return
                second, received = time.monotonic() + 1, self._received
            try:
                async with asyncio.timeout(limit if is_expected else QUIET):
                    await self._news.wait()
            except TimeoutError:
                is_quiet = not self._news.is_set()

    async def _make_round_trips(self, limit: float) -> bool:
        """Make round trips until one brings no retained message; whether the broker has answered."""
        for _ in range(MAX_ROUNDS):
            count = self._received
            try:
                await self._client.unsubscribe(self.unused, timeout=limit)
            except aiomqtt.MqttError:
                if self._client.is_over:
                    raise
                break
            if self._received == count:
                return True
        self._subscriptions.warn(f"{LATE}: the broker did not answer UNSUBSCRIBE")
        return False
