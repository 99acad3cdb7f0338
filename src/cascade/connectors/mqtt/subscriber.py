"""Subscribes over one connection, and detects when all retained messages were received."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar, cast

import aiomqtt
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from cascade.connectors.mqtt.backpressure import FIRST_DELAY, MAX_DELAY, LoopNotifier
from cascade.connectors.mqtt.client import Client
from cascade.connectors.mqtt.health import ConnectionHealth
from cascade.connectors.mqtt.packets import FAILURE, TRANSIENT
from cascade.connectors.mqtt.subscriptions import Inbox, Subscription, Subscriptions
from cascade.connectors.mqtt.transport import unexpected_error_text
from cascade.spec.retry import random_factor

T = TypeVar("T")

RETAINED_GAP = 0.05
"""Seconds without a retained message that complete the retained messages, once the presence was received."""
LIVE_RATE = 100
"""Retained messages per second for new topics. After the presence was received, a lower rate means that they are new
publications."""
PRESENCE_TIMEOUT = 2.0
"""Seconds without a retained message to wait for the presence or the answer to UNSUBSCRIBE, in addition to two round trips."""
MAX_ROUNDS = 1_000
"""Largest number of round trips to receive the retained messages. Mosquitto sends 20 messages in each."""
_MAX_UNANSWERED = 2
LATE_WARNING = "retained constraints may not have been applied before the first task"
UNCERTAIN_WARNING = f"{LATE_WARNING}, because the broker does not send the presence of this process back"
SUBSCRIBE_TIMEOUT = 3.0
"""Seconds without a retained message after which `subscribe` returns, in addition to the round trips."""
HANDSHAKES = 3
"""Round trips of the TLS and MQTT handshakes."""
CHECK_INTERVAL = 0.1
"""Seconds between two checks whether the broker still answers."""
_CONTROL = SubscribeOptions(qos=1, retainAsPublished=True)


class Barrier:
    """Detects when the broker has sent all retained messages for a SUBSCRIBE packet. MQTT does not mark the last one.

    The presence of this process is a retained message. The SUBSCRIBE packet ends with a subscription to it, so the broker
    sends it after the other retained messages. If the presence does not come back, the answer to an UNSUBSCRIBE packet
    serves instead: the broker sends it after all earlier packets.
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
        self._changed = asyncio.Event()
        self._topics: set[str] | None = None
        """Topics of the retained messages that were received since a `wait` began; None between them."""

    def record_retained(self, topic: str) -> None:
        """Record a retained message. A second one for the same topic is a new publication and is not counted."""
        if self._topics is not None and topic != self._topic:
            if topic in self._topics:
                return
            self._topics.add(topic)
        self._received += 1
        self._changed.set()
        if topic == self._topic:
            self._returned += 1
            if self._returned == self._missing:
                self._subscriptions.returns_presence = True
                self._subscriptions.warn(f"{LATE_WARNING}: the broker sends them late")

    def begin(self) -> tuple[int, list[tuple[str, SubscribeOptions]]]:
        """Return a number for `wait`, and the filters to append to a SUBSCRIBE packet.

        The list is empty if two connections in a row have ended before an answer, since the broker may forbid the filter.
        """
        if not self._begun:
            if self._subscriptions.unanswered >= _MAX_UNANSWERED:
                self._is_refused = True
                return 1, []
            self._subscriptions.unanswered += 1
        self._begun += 1
        self._topics = self._topics or set()
        # Without retainAsPublished, the flag is set only if the message was retained before the subscription.
        return self._begun, [(self._topic, SubscribeOptions(qos=1))]

    def record_answers(self, reasons: Iterable[ReasonCode]) -> None:
        """Record the reason codes for the filters of `begin`."""
        self._subscriptions.unanswered = 0
        if any(reason.value >= FAILURE for reason in reasons):
            self.record_refusal()

    def record_refusal(self) -> None:
        """Record that the broker has refused the presence, or the subscription to it."""
        self._is_refused = True
        self._changed.set()

    async def wait(self, number: int, round_trip: float) -> bool:
        """Wait until all retained messages were received. Return False, after a warning, if the broker gives no sign of it."""
        try:
            return not self._client.limits.retain_available or await self._wait(number, round_trip)
        finally:
            if number == self._begun:
                self._topics = None

    async def _wait(self, number: int, round_trip: float) -> bool:
        limit = PRESENCE_TIMEOUT + 2 * round_trip
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
                self._subscriptions.warn(f"{UNCERTAIN_WARNING}; allow this user to read {self._topic}")
        return is_complete

    async def _until_quiet(self, number: int, limit: float) -> None:
        """Wait until no retained message was received for `limit` seconds, or for `RETAINED_GAP` if no presence is expected.

        A rate below `LIVE_RATE` does not continue the wait: these messages are new publications.
        """
        is_quiet, second, received = False, time.monotonic() + 1, self._received
        while not is_quiet:
            self._changed.clear()
            is_expected = self._subscriptions.returns_presence and not self._is_refused and self._returned < number
            if time.monotonic() > second:
                if not is_expected and self._received - received < LIVE_RATE:
                    return
                second, received = time.monotonic() + 1, self._received
            try:
                async with asyncio.timeout(limit if is_expected else RETAINED_GAP):
                    await self._changed.wait()
            except TimeoutError:
                is_quiet = not self._changed.is_set()

    async def _make_round_trips(self, limit: float) -> bool:
        """Make round trips until one brings no retained message. Return whether the broker has answered."""
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
        self._subscriptions.warn(f"{LATE_WARNING}: the broker did not answer UNSUBSCRIBE")
        return False


class Subscriber:
    """Synchronizes the subscriptions of one connection with those of the connector, in asyncio tasks."""

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
        """Run a coroutine in an asyncio task until it ends or `cancel` is called. The end of the connection is not an error."""
        task = asyncio.get_running_loop().create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def cancel(self) -> None:
        """Cancel all tasks."""
        for task in self._tasks:
            task.cancel()

    async def make_round_trip(self) -> None:
        """Wait until the broker has handled all packets that were sent before."""
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
        """Subscribe with one packet, and wait until all retained messages were received. `pause` is the last delay of `_repeat`."""
        new, start = self._supported(wanted), time.monotonic()
        number, own = self.barrier.begin()
        filters = [(subscription.pattern, _CONTROL) for subscription in new] + own
        if not filters:
            return
        answer = await self._call(self._client.subscribe, filters)
        reasons = cast("list[ReasonCode]", answer)  # of MQTT 5
        self.barrier.record_answers(reasons[len(new) :])
        refused = {one: reason for one, reason in zip(new, reasons, strict=False) if reason.value >= FAILURE}
        for subscription, reason in refused.items() if not pause else ():
            self._refuse(subscription, str(reason))
        later = [one for one, reason in refused.items() if reason.value in TRANSIENT]
        if later:
            self.start(self._repeat(later, min(2 * pause or FIRST_DELAY, MAX_DELAY)))
        accepted = [one for one in new if one not in refused]
        if accepted:
            is_certain = await self.barrier.wait(number, time.monotonic() - start)
            for subscription in accepted:
                self._subscriptions.complete(subscription, is_certain=is_certain)

    async def _repeat(self, refused: list[Subscription], pause: float) -> None:
        """Subscribe again, after about `pause` seconds, to filters that the broker has refused with a transient reason code."""
        await asyncio.sleep(pause * random_factor())
        wanted = [one for one in refused if one is self._subscribed.get(one.pattern)]
        if wanted:
            await self._subscribe(wanted, pause)

    def _supported(self, wanted: list[Subscription]) -> list[Subscription]:
        """Return the subscriptions that the broker supports. A warning reports each of the others."""
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
            self._subscriptions.warn(unexpected_error_text(error))

    async def _call(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Call a method of the client and wait for the answer of the broker, without a time limit."""
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
    """Wait until the callback has received all retained messages, or the broker is unreachable."""
    start = time.monotonic()

    def is_over() -> bool:
        return (subscription.is_ready and inbox.is_idle) or health.is_dead

    def time_left() -> float:
        return start + health.wait_limit + HANDSHAKES * health.round_trip - time.monotonic()

    # TCP may have connected meanwhile, which sets `round_trip`.
    while not (health.is_connected or is_over()) and (left := time_left()) > 0:
        await changes.until(lambda: health.is_connected or is_over(), left)
    progress, deadline = -1, math.inf
    while health.is_alive and not is_over() and time.monotonic() < deadline:
        if progress != subscription.retained_count + inbox.delivered:
            progress = subscription.retained_count + inbox.delivered
            deadline = time.monotonic() + SUBSCRIBE_TIMEOUT + HANDSHAKES * health.round_trip
        await changes.until(is_over, CHECK_INTERVAL)
    if not is_over():
        health.record_failed_wait()
        if health.is_alive:
            subscriptions.warn(f"{LATE_WARNING}: they are not complete on {subscription.pattern}")
