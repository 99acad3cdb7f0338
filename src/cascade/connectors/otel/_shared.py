"""The state that the callers of an outbox share with its sending threads."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cascade.connectors.otel._batch import Entry
from cascade.connectors.otel._outage import Items, Outage
from cascade.connectors.otel._peer import Peer
from cascade.connectors.otel._store import Flight, Store
from cascade.connectors.otel._tally import Tally
from cascade.connectors.otel._transport import Transport

Pack = Callable[[Sequence[Entry]], tuple[bytes, list[Entry]]]
"""Encodes one request of some entries; returns its body and the entries that cannot be encoded."""


IDLE = 30.0  # seconds after which a thread without work ends, and with it its connections


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of an outbox: bytes of memory, spans, and seconds; the clock of its peer."""

    capacity: int
    batch_size: int
    schedule_delay: float
    request_timeout: float
    hold_timeout: float
    clock: Callable[[], float]


class Shared:
    """One lock, the state that it guards, and two conditions: `work` wakes the senders, `settled` the flushes.

    A forked child makes a new one, because a thread of the parent may have been changing this one.
    """

    def __init__(
        self, limits: Limits, open_transport: Callable[[], Transport], pack: Pack, items: Items, total: Tally
    ) -> None:
        # Reentrant, because a signal handler or a finalizer may end a span while its thread is in here.
        self.lock = threading.RLock()
        self.work = threading.Condition(self.lock)
        self.settled = threading.Condition(self.lock)
        self.limits = limits
        self.open_transport = open_transport
        self.pack = pack
        self.items = items
        self.total = total
        self.store = Store(limits.capacity, limits.batch_size)
        self.peer = Peer(limits.clock, hold_timeout=limits.hold_timeout)
        self.outage = Outage(items, limits.clock)
        self.flushes = 0  # in progress
        self.is_urgent = False
        self.is_closed = False
        self.probe: Flight | None = None  # the only request while the peer is in trouble
        self.senders: list[threading.Thread] = []
        self.idle = IDLE
        self.owner: object = None  # the outbox, while a thread sends: it may have no other holder

    def discard(self, reason: str) -> None:
        """Count all waiting items as lost."""
        self.store.discard(reason)
        self.work.notify_all()
        self.settled.notify_all()
