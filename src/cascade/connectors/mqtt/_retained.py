"""The wait at a run's start, for what steers it to be known."""

import time

from cascade.connectors.mqtt._changes import Changes
from cascade.connectors.mqtt._inbox import Inbox
from cascade.connectors.mqtt._peer import Peer
from cascade.connectors.mqtt._subscriptions import Subscription

SUBSCRIBE_TIMEOUT = 1.0
"""Seconds until `subscribe` returns, whatever has come until then."""


async def retained(changes: Changes, subscription: Subscription, inbox: Inbox, peer: Peer) -> None:
    """Wait until all that is retained has been handed over, as long as that can be hoped for."""
    deadline = time.monotonic() + SUBSCRIBE_TIMEOUT

    def is_over() -> bool:
        return (subscription.is_ready and inbox.is_idle) or peer.is_dead

    await changes.until(lambda: peer.is_connected or is_over(), peer.patience)
    if peer.is_connected:
        await changes.until(is_over, deadline - time.monotonic())
    if not is_over():
        peer.waited_in_vain()
