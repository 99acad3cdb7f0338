"""The subscriptions of one connection, and when all retained messages were received."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar, cast

import aiomqtt
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from cascade.connectors._health import ConnectionHealth, jitter
from cascade.connectors.mqtt.backpressure import FIRST_PAUSE, LONGEST_PAUSE, LoopNotifier
from cascade.connectors.mqtt.client import Client
from cascade.connectors.mqtt.packets import FAILURE, TRANSIENT
from cascade.connectors.mqtt.subscriptions import Inbox, Subscription, Subscriptions
from cascade.connectors.mqtt.transport import fault

T = TypeVar("T")

QUIET = 0.05
"""Seconds without a further retained message after which all were received, once the presence has come back."""
TRICKLE = 100
"""Retained messages for new topics in a second, once the presence has come back. Fewer are published at this moment."""
RETURN_TIMEOUT = 2.0
"""Seconds beside two round trips to wait for the presence, or for an answer to UNSUBSCRIBE, without a retained message."""
MAX_ROUNDS = 1_000
"""Round trips in which to receive the retained messages; Mosquitto sends 20 messages in each."""
_MOST_UNANSWERED = 2
LATE = "retained constraints may not have been applied before the first task"
UNCERTAIN = f"{LATE}, because the broker does not send the presence of this process back"
SUBSCRIBE_TIMEOUT = 3.0
"""Seconds without a retained message, beside the round trips, after which `subscribe` returns."""
HANDSHAKES = 3
"""Round trips of TLS and MQTT until the connection is made."""
CHECK = 0.1
"""Seconds between two checks whether a silent broker is dead."""
_GRACE = 0.5
"""Seconds that a session may take to end beside its last messages."""
HANDSHAKES = 3
"""Round trips of TLS and MQTT until the connection is made."""
CHECK = 0.1
"""Seconds between two checks whether a silent broker is dead."""
_GRACE = 0.5
"""Seconds that a session may take to end beside its last messages."""
CHECK = 0.1
"""Seconds between two checks whether a silent broker is dead."""
_GRACE = 0.5
"""Seconds that a session may take to end beside its last messages."""
_CONTROL = SubscribeOptions(qos=1, retainAsPublished=True)


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


class Subscriber:
    """Keeps the subscriptions of one connection equal to those of the connector, in tasks that wait for its answers."""

    def __init__(self, client: Client, subscriptions: Subscriptions, presence_topic: str) -> None:
        self.barrier = Barrier(client, presence_topic, subscriptions)
        self._client = client
        self._subscriptions = subscriptions
        self._calls = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscribed: dict[str, Subscription] = {}
        self._version = -1

    @property
    def is_outdated(self) -> bool:
        """Whether the filters have changed since the last `update`."""
        return self._version != self._subscriptions.version

    @property
    def is_waiting(self) -> bool:
        """Whether a call waits for an answer of the broker."""
        return self._calls > 0

    def start(self, call: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in a task, until `cancel` at the latest. The end of the connection is not an error."""
        task = asyncio.get_running_loop().create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def cancel(self) -> None:
        """Cancel all tasks."""
        for task in self._tasks:
            task.cancel()

    async def make_round_trip(self) -> None:
        """Return when the broker has handled all packets that were sent before."""
        await self._call(self._client.unsubscribe, self.barrier.unused)

    def update(self) -> None:
        """Send SUBSCRIBE and UNSUBSCRIBE packets for the filters that have changed."""
        is_first, self._version = self._version < 0, self._subscriptions.version
        wanted = {subscription.pattern: subscription for subscription in self._subscriptions.all()}
        for pattern, subscription in self._subscribed.items():
            if subscription is not wanted.get(pattern):
                self.start(self._unsubscribe(pattern))
        new = [one for pattern, one in wanted.items() if one is not self._subscribed.get(pattern)]
        self._subscribed = wanted
        if new or is_first:
            self.start(self._subscribe(new))

    async def _unsubscribe(self, pattern: str) -> None:
        await self._call(self._client.unsubscribe, pattern)

    async def _subscribe(self, wanted: list[Subscription], pause: float = 0.0) -> None:
        """Subscribe with one packet, and wait until all retained messages were received. `pause` as in `_repeat`."""
        new, start = self._supported(wanted), time.monotonic()
        number, own = self.barrier.begin()
        filters = [(subscription.pattern, _CONTROL) for subscription in new] + own
        if not filters:
            return
        answer = await self._call(self._client.subscribe, filters)
        reasons = cast("list[ReasonCode]", answer)  # of MQTT 5
        self.barrier.answered(reasons[len(new) :])
        refused = {one: reason for one, reason in zip(new, reasons, strict=False) if reason.value >= FAILURE}
        for subscription, reason in refused.items() if not pause else ():
            self._refuse(subscription, str(reason))
        later = [one for one, reason in refused.items() if reason.value in TRANSIENT]
        if later:
            self.start(self._repeat(later, min(2 * pause or FIRST_PAUSE, LONGEST_PAUSE)))
        accepted = [one for one in new if one not in refused]
        if accepted:
            is_certain = await self.barrier.wait(number, time.monotonic() - start)
            for subscription in accepted:
                self._subscriptions.complete(subscription, is_certain=is_certain)

    async def _repeat(self, refused: list[Subscription], pause: float) -> None:
        """Subscribe again after about so many seconds to filters that the broker has refused for now."""
        await asyncio.sleep(pause * jitter())
        wanted = [one for one in refused if one is self._subscribed.get(one.pattern)]
        if wanted:
            await self._subscribe(wanted, pause)

    def _supported(self, wanted: list[Subscription]) -> list[Subscription]:
        """The subscriptions that the broker supports. The others are refused."""
        has_wildcards = self._client.limits.wildcards_available
        new = [one for one in wanted if has_wildcards or not {"+", "#"}.intersection(one.pattern)]
        for subscription in wanted:
            if subscription not in new:
                self._refuse(subscription, "the broker has no wildcard subscriptions")
        return new

    def _refuse(self, subscription: Subscription, reason: str) -> None:
        self._subscriptions.warn(f"control cannot be received on {subscription.pattern}: {reason}")
        self._subscriptions.complete(subscription, is_certain=False)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, aiomqtt.MqttError):
            self._subscriptions.warn(fault(error))

    async def _call(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Call a method of the client, and wait for the answer of the broker until the connection ends."""
        self._calls += 1
        try:
            return await function(*arguments, timeout=math.inf)
        finally:
            self._calls -= 1


async def wait_for_retained(
    subscriptions: Subscriptions,
    changes: LoopNotifier,
    health: ConnectionHealth,
    subscription: Subscription,
    inbox: Inbox,
) -> None:
    """Wait until the callback has received all retained messages, unless the broker is dead."""
    start = time.monotonic()

    def is_over() -> bool:
        return (subscription.is_ready and inbox.is_idle) or health.is_dead

    def time_left() -> float:
        return start + health.patience + HANDSHAKES * health.round_trip - time.monotonic()

    # TCP may have connected meanwhile: the broker is there, and its distance is known.
    while not (health.is_connected or is_over()) and (left := time_left()) > 0:
        await changes.until(lambda: health.is_connected or is_over(), left)
    progress, deadline = -1, math.inf
    while health.is_alive and not is_over() and time.monotonic() < deadline:
        if progress != subscription.retained + inbox.handed_over:
            progress = subscription.retained + inbox.handed_over
            deadline = time.monotonic() + SUBSCRIBE_TIMEOUT + HANDSHAKES * health.round_trip
        await changes.until(is_over, CHECK)
    if not is_over():
        health.record_failed_wait()
        if health.is_alive:
            subscriptions.warn(f"{LATE}: they are not complete on {subscription.pattern}")
