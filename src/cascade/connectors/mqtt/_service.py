"""What is done over a connection while it lasts."""

import time
from dataclasses import dataclass

from cascade.connectors.mqtt._changes import Changes
from cascade.connectors.mqtt._link import Link
from cascade.connectors.mqtt._outbox import Outbox
from cascade.connectors.mqtt._subscriber import Subscriber
from cascade.connectors.mqtt._subscriptions import Subscriptions, Warn
from cascade.connectors.mqtt._suspects import SOON, Suspects
from cascade.connectors.mqtt._window import Window


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a session shares with the event loops that it works for.

    `changes` is told when something is acknowledged, an attempt fails, what is retained has come, or the session ends;
    `room` when the outbox has room again.
    """

    outbox: Outbox
    subscriptions: Subscriptions
    changes: Changes
    room: Changes
    warn: Warn


class Service:
    """Sends what waits in the outbox, and keeps the subscriptions."""

    def __init__(self, link: Link, around: Surroundings, suspects: Suspects, client_id: str) -> None:
        self._around = around
        self._window = Window(link, around.outbox, suspects)
        self._subscriber = Subscriber(link, around.subscriptions, client_id, around.warn)
        self._began = time.monotonic()
        self._has_moved = False

    @property
    def age(self) -> float:
        """Seconds since the connection was made."""
        return time.monotonic() - self._began

    @property
    def is_proven(self) -> bool:
        """Whether the connection was of use, or has lasted."""
        return self._has_moved or self.age > SOON

    def has_work(self) -> bool:
        """Whether there is something to be done without waiting for the broker."""
        return self._window.can_send() or self._subscriber.is_outdated

    def work(self) -> None:
        """Do a part of it."""
        if self._subscriber.is_outdated:
            self._subscriber.update()
        self._window.fill()

    def settle(self) -> None:
        """Tell those who wait what has come of it."""
        if not self._window.settle():
            return
        self._has_moved = True
        self._around.changes.tell()
        if not self._around.outbox.is_tight:
            self._around.room.tell()
