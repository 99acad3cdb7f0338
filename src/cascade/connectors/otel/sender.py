"""The sending side of an outbox: batches when they are due, requests until they are answered.

One thread sends one batch after another; further ones join it while a peer answers slowly and more batches wait.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from cascade.connectors.otel.answers import Reply
from cascade.connectors.otel.batch import Entry, Tally
from cascade.connectors.otel.buffer import Flight, Store, lose, lose_some, retry, send
from cascade.connectors.otel.health import Items, Outage, Peer, log_outage
from cascade.connectors.otel.transport import Transport, opened, uninstrumented
from cascade.runtime.threads import start_daemon
from cascade.telemetry.safe import error_text

BATCH_MEMORY = 16 << 20  # bytes of memory, which become about a tenth on the wire
MAX_BODY = 3 << 20  # bytes; gRPC servers refuse more than 4 MiB by default
SPLIT_AFTER = 4  # answers of "later" to a request, after which its halves are tried
LEAST_PART = 64  # spans; smaller requests would cost an overloaded peer more than they bring
MAX_SENDERS = 4  # requests at once
_SLOW_ANSWER = 0.02  # seconds; from there on the time of waiting is better spent on encoding the next batch


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


def start_sender(shared: Shared) -> bool:
    """Add a sending thread. Called with the lock held. False while the interpreter shuts down."""
    sender = start_daemon(partial(_run, shared), name="cascade-otlp")
    if sender is not None:
        shared.senders.append(sender)
    return sender is not None


def _run(shared: Shared) -> None:
    """Send what is due until the outbox is closed or long idle."""
    with uninstrumented():
        transport = opened(shared.open_transport)
        try:
            while flight := _next_flight(shared):
                _deliver(shared, transport, flight)
        finally:
            with shared.lock:
                _sign_off(shared)
            transport.close()


def _sign_off(shared: Shared) -> None:
    shared.senders = [sender for sender in shared.senders if sender is not threading.current_thread()]
    shared.owner = shared.owner if shared.senders else None


def _next_flight(shared: Shared) -> Flight | None:
    """The next batch, once it is due; None when there is no more work."""
    store, limits = shared.store, shared.limits
    with shared.lock:
        while not shared.is_closed:
            left = _due(shared) - limits.clock()
            if left <= 0:
                shared.is_urgent = shared.is_urgent and store.count > limits.batch_size
                flight = store.take(limits.batch_size, BATCH_MEMORY)
                _call_for_help(shared)
                return flight
            if not shared.work.wait(min(left, shared.idle)) and not store.queue:
                break
        _sign_off(shared)  # under the same lock: the next put starts a new thread
        return None


def _call_for_help(shared: Shared) -> None:
    """Add a thread if another batch is full and the peer, though it accepts requests, takes its time."""
    is_busy = shared.store.count >= shared.limits.batch_size and len(shared.store.flights) >= len(shared.senders)
    is_slow = shared.peer.latency > _SLOW_ANSWER and not shared.peer.is_in_trouble
    if is_busy and is_slow and len(shared.senders) < MAX_SENDERS:
        start_sender(shared)


def _due(shared: Shared) -> float:
    store = shared.store
    if not store.queue:
        return float("inf")
    is_full = store.count >= shared.limits.batch_size or store.queued >= BATCH_MEMORY or store.is_tight
    if is_full or shared.is_urgent or shared.flushes:
        return 0.0
    return store.queue[0].put_at + shared.limits.schedule_delay


def _deliver(shared: Shared, transport: Transport, flight: Flight) -> None:
    """Send a flight, in parts if need be, until each part has been counted."""
    parts = [flight]
    while parts:
        part = parts.pop()
        try:
            reply = _reply_for(shared, transport, part)
        except Exception as error:  # noqa: BLE001 - a fault of ours costs this part, not the thread
            reply = Reply("refused", error_text(error, 200))
        if reply.too_large and part.count > 1:
            with shared.lock:
                parts += shared.store.split(part)
        else:
            _land(shared, part, reply)


def _reply_for(shared: Shared, transport: Transport, flight: Flight) -> Reply:
    body, bad = shared.pack(flight.entries)
    with shared.lock:
        lose(bad, "it cannot be encoded")
    if len(body) > MAX_BODY and flight.count > 1:
        return Reply("refused", too_large=True)
    return _exchange(shared, transport, flight, body) if body else Reply("accepted")


def _exchange(shared: Shared, transport: Transport, flight: Flight, body: bytes) -> Reply:
    """Send until the peer has taken or refused it, the outbox has discarded it, or a part of it may pass sooner.

    A queue that is almost full, or smaller than the request, has room for a part only.
    """
    tries = 0
    while _await_turn(shared, flight):
        began = shared.limits.clock()
        try:
            _ask(shared, began)
            reply = transport.send(body, shared.limits.request_timeout)
        finally:
            if shared.probe is flight:  # another may have been out since before the trouble
                shared.probe = None
        with shared.lock:
            shared.peer.record(reply, began)
            shared.work.notify_all()
            if reply.outcome != "retry":
                return reply
            retry(flight, reply.reason)
            tries += not reply.dead
            shared.settled.notify_all()
        if tries >= SPLIT_AFTER and flight.count > LEAST_PART:
            return replace(reply, too_large=True)
    return Reply("refused", "discarded")


def _await_turn(shared: Shared, flight: Flight) -> bool:
    """Wait until the next request is due; False if the flight has been discarded meanwhile."""
    with shared.lock:
        while flight.is_wanted():
            left = shared.peer.next_try(is_flushing=shared.flushes > 0) - shared.limits.clock()
            if left <= 0 and shared.probe is None:
                shared.probe = flight if shared.peer.is_in_trouble else None
                return True
            shared.work.wait(left if left > 0 else None)
        return False


def _ask(shared: Shared, now: float) -> None:
    """A request goes out."""
    with shared.lock:
        shared.peer.ask(now)
        shared.settled.notify_all()


def _land(shared: Shared, flight: Flight, reply: Reply) -> None:
    with shared.lock:
        if reply.outcome == "accepted":
            entries = [entry for entry in flight.entries if entry.is_open]
            # A partial success has the number of the rejected items only.
            lose_some(entries, reply.rejected, f"rejected: {reply.reason}")
            shared.outage.accepted(entries)
            send(entries)
        else:
            lose(flight.entries, reply.reason)
        shared.store.land(flight)
        shared.settled.notify_all()
        line = shared.outage.ended(shared.total.report(), lambda before: shared.store.holds(None, before))
    log_outage(line)
