"""What the callers of an outbox and its sending thread have in common."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cascade.connectors.otel._batch import Entry
from cascade.connectors.otel._peer import Peer
from cascade.connectors.otel._store import Flight, Store
from cascade.connectors.otel._tally import Tally
from cascade.connectors.otel._transport import Transport

Pack = Callable[[Sequence[Entry]], tuple[bytes, list[Entry]]]
"""Makes one request of some entries, and says which are not in it because they cannot be encoded."""


IDLE = 30.0  # seconds after which a thread without work ends, and with it its connections


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds an outbox: bytes of memory, spans, and seconds."""

    capacity: int
    batch_size: int
    schedule_delay: float
    request_timeout: float


class Shared:
    """One lock, the state it guards, and two conditions: `work` for who sends, `settled` for who waits for that.

    A forked child makes a new one: the old may be in the middle of anything.
    """

    def __init__(self, limits: Limits, open_transport: Callable[[], Transport], pack: Pack) -> None:
        # Reentrant, because a signal handler or a finalizer may end a span while its thread is in here.
        self.lock = threading.RLock()
        self.work = threading.Condition(self.lock)
        self.settled = threading.Condition(self.lock)
        self.limits = limits
        self.open_transport = open_transport
        self.pack = pack
        self.store = Store(limits.capacity, limits.batch_size)
        self.peer = Peer()
        self.flushes: list[tuple[float, float]] = []  # start and deadline of each that goes on
        self.is_urgent = False
        self.is_closed = False
        self.probe: Flight | None = None  # the one that a dead peer is asked with: one at a time is enough
        self.senders: list[threading.Thread] = []
        self.idle = IDLE
        self.owner: object = None  # the outbox, while a thread sends: it may have no other holder

    def give_up(self, tally: Tally | None, before: float, reason: str) -> None:
        """Nobody waits any more for what was put until `before`, of one tally or of all."""
        self.store.give_up(tally, before, reason)
        self.work.notify_all()
        self.settled.notify_all()
