"""Subscriptions over one connection: asked for, and complete once all that is retained has come."""

from functools import partial

from paho.mqtt.client import MQTTMessage
from paho.mqtt.reasoncodes import ReasonCode

from cascade.connectors.mqtt._link import FAILURE, Link
from cascade.connectors.mqtt._subscriptions import Subscription, Subscriptions, Warn

MAX_ROUNDS = 1_000
"""Round trips in which to get what is retained; Mosquitto sends 20 messages in each."""


class Subscriber:
    """Keeps the broker's idea of the subscriptions of a link up to date."""

    def __init__(self, link: Link, subscriptions: Subscriptions, client_id: str, warn: Warn) -> None:
        self._link = link
        self._subscriptions = subscriptions
        self._warn = warn
        # Nobody subscribes to it: unsubscribing from it does nothing, and is answered after all that came before.
        self._barrier = f"cascade/barrier/{''.join(c if c.isalnum() else '-' for c in client_id)}"
        self._asked: dict[str, Subscription] = {}
        self._version = -1
        subscriptions.begin()
        link.on_message = self._received

    @property
    def is_outdated(self) -> bool:
        return self._version != self._subscriptions.version

    def update(self) -> None:
        """Subscribe and unsubscribe as needed."""
        self._version = self._subscriptions.version
        wanted = {subscription.pattern: subscription for subscription in self._subscriptions.all()}
        for pattern in [pattern for pattern in self._asked if self._asked[pattern] is not wanted.get(pattern)]:
            del self._asked[pattern]
            self._link.unsubscribe(pattern, _ignore)
        for pattern in [pattern for pattern in wanted if pattern not in self._asked]:
            self._asked[pattern] = wanted[pattern]
            self._link.subscribe(pattern, partial(self._subscribed, wanted[pattern]))

    def _subscribed(self, subscription: Subscription, reason: ReasonCode) -> None:
        if reason.value >= FAILURE:
            self._warn(f"control cannot be received on {subscription.pattern}: {reason}")
            self._subscriptions.complete(subscription)
        else:
            self._look_again(subscription, -1, MAX_ROUNDS)

    def _look_again(self, subscription: Subscription, seen: int, rounds: int) -> None:
        """Make round trips until none brings any more: a broker does not say which retained message is the last."""
        if subscription.retained == seen or not rounds:
            self._subscriptions.complete(subscription)
            return
        now = subscription.retained
        self._link.unsubscribe(self._barrier, lambda _: self._look_again(subscription, now, rounds - 1))

    def _received(self, message: MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            return
        self._subscriptions.receive(topic, bytes(message.payload), retained=message.retain)


def _ignore(_: ReasonCode) -> None:
    pass
