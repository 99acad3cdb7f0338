"""Bounded waits of a run for the broker: for retained messages at its start, for room, and for acknowledgements at its end."""

import asyncio
import math
import time

from cascade.connectors.mqtt.connection import Shared
from cascade.connectors.mqtt.inbox import Inbox
from cascade.connectors.mqtt.presence import GOODBYE
from cascade.connectors.mqtt.session import Session
from cascade.connectors.mqtt.subscriber import LATE
from cascade.connectors.mqtt.subscriptions import Subscription
from cascade.connectors.mqtt.transport import FAREWELL

SUBSCRIBE_TIMEOUT = 3.0
"""Seconds without a retained message, beside the round trips, after which `subscribe` returns."""
HANDSHAKES = 3
"""Round trips of TLS and MQTT until the connection is made."""
CHECK = 0.1
"""Seconds between two checks whether a silent broker is dead."""
ROOM_CHECK = 0.5
"""Seconds after which tasks that wait for room check again."""
_GRACE = 0.5
"""Seconds that a session may take to end beside its last messages."""


class Flush:
    """Waits until all messages, and the final states of runs, from before now have arrived or are lost."""

    def __init__(self, session: Session, shared: Shared, timeout: float) -> None:
        self.session = session
        self._shared = shared
        self._start = time.monotonic()
        self._deadline = self._start + timeout
        self.before = shared.outbox.put_count
        self._ended = shared.states.ended

    async def wait(self) -> None:
        """Return after `timeout` seconds, and earlier if the broker is dead."""
        health = self.session.health
        while not self._is_over():
            if not (health.is_connected or health.is_busy):
                self.session.hurry()
            await self._shared.changes.until(self._is_over, min(CHECK, self._deadline - time.monotonic()))
        if not self._has_settled():
            health.waited_in_vain()

    @property
    def reason(self) -> str:
        """Why messages have not arrived."""
        if self.session.health.is_connected or not self.session.health.reason:
            return f"not acknowledged within {time.monotonic() - self._start:.2g} s"
        return self.session.health.reason

    def _has_settled(self) -> bool:
        return self._shared.outbox.has_settled(self.before) and self._shared.states.has_settled(self._ended)

    def _is_over(self) -> bool:
        is_hopeless = self.session.health.is_hopeless(self._start) or time.monotonic() >= self._deadline
        return is_hopeless or self._has_settled()


async def until_closed(session: Session, shared: Shared) -> None:
    """Wait for the end of a session, as long as a clean end takes. A session that hangs ends by itself later."""
    # Without a connection the thread may be in a system call that takes seconds.
    await shared.changes.until(
        lambda: session.is_closed, GOODBYE + FAREWELL + _GRACE if session.health.is_connected else CHECK
    )


async def room(shared: Shared) -> None:
    """Return when the outbox has room again, or after half a second. Cheap for any number of waiting tasks."""
    change = shared.room.next()
    if not shared.backpressure.is_tight:
        return
    # One timer notifies all waiting tasks. To cancel a time limit of each of ten thousand takes seconds.
    timer = asyncio.get_running_loop().call_later(ROOM_CHECK, shared.room.notify)
    try:
        await asyncio.wait({change})
    finally:
        timer.cancel()


async def retained(shared: Shared, session: Session, subscription: Subscription, inbox: Inbox) -> None:
    """Wait until the callback has received all retained messages, unless the broker is dead."""
    health, start = session.health, time.monotonic()

    def is_over() -> bool:
        return (subscription.is_ready and inbox.is_idle) or health.is_dead

    def time_left() -> float:
        return start + health.patience + HANDSHAKES * health.round_trip - time.monotonic()

    # TCP may have connected meanwhile: the broker is there, and its distance is known.
    while not (health.is_connected or is_over()) and (left := time_left()) > 0:
        await shared.changes.until(lambda: health.is_connected or is_over(), left)
    progress, deadline = -1, math.inf
    while health.is_alive and not is_over() and time.monotonic() < deadline:
        if progress != subscription.retained + inbox.handed_over:
            progress = subscription.retained + inbox.handed_over
            deadline = time.monotonic() + SUBSCRIBE_TIMEOUT + HANDSHAKES * health.round_trip
        await shared.changes.until(is_over, CHECK)
    if not is_over():
        health.waited_in_vain()
        if health.is_alive:
            shared.warn(f"{LATE}: they are not complete on {subscription.pattern}")
