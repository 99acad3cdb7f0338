"""The sending side of a queue: batches when they are due, requests until they are answered.

One thread sends one batch after another; further ones join it while a peer answers slowly and more batches wait.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from cascade.connectors.otel.answers import Reply
from cascade.connectors.otel.batch import Counters, QueuedItems
from cascade.connectors.otel.buffer import Batch, Buffer, count_lost, count_rejected, count_retried, count_sent
from cascade.connectors.otel.health import CollectorHealth, ItemLabel, OutageLog, log_outage
from cascade.connectors.otel.transport import Transport, open_safely, suppress_instrumentation
from cascade.runtime.threads import start_daemon
from cascade.telemetry.safe import error_text

BATCH_MEMORY = 16 << 20  # bytes of memory, which become about a tenth on the wire
MAX_BODY = 3 << 20  # bytes; gRPC servers refuse more than 4 MiB by default
SPLIT_AFTER = 4  # answers of "later" to a request, after which its halves are tried
LEAST_PART = 64  # spans; smaller requests would cost an overloaded peer more than they bring
MAX_SENDERS = 4  # requests at once
_SLOW_ANSWER = 0.02  # seconds; from there on the time of waiting is better spent on encoding the next batch


Pack = Callable[[Sequence[QueuedItems]], tuple[bytes, list[QueuedItems]]]
"""Encodes one request of some entries; returns its body and the entries that cannot be encoded."""


IDLE = 30.0  # seconds after which a thread without work ends, and with it its connections


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a queue: bytes of memory, spans, and seconds; the clock of its peer."""

    capacity: int
    batch_size: int
    schedule_delay: float
    request_timeout: float
    hold_timeout: float
    clock: Callable[[], float]


class ExportState:
    """One lock, the state that it guards, and two conditions: `work` wakes the senders, `settled` the flushes.

    A forked child makes a new one, because a thread of the parent may have been changing this one.
    """

    def __init__(
        self, limits: Limits, open_transport: Callable[[], Transport], pack: Pack, label: ItemLabel, total: Counters
    ) -> None:
        # Reentrant, because a signal handler or a finalizer may end a span while its thread is in here.
        self.lock = threading.RLock()
        self.work = threading.Condition(self.lock)
        self.settled = threading.Condition(self.lock)
        self.limits = limits
        self.open_transport = open_transport
        self.pack = pack
        self.label = label
        self.total = total
        self.buffer = Buffer(limits.capacity, limits.batch_size)
        self.health = CollectorHealth(limits.clock, hold_timeout=limits.hold_timeout)
        self.outage = OutageLog(label, limits.clock)
        self.flushes = 0  # in progress
        self.is_urgent = False
        self.is_closed = False
        self.probe: Batch | None = None  # the only request while the peer is in trouble
        self.senders: list[threading.Thread] = []
        self.idle = IDLE
        self.owner: object = None  # the queue, while a thread sends: it may have no other holder

    def discard(self, reason: str) -> None:
        """Count all waiting items as lost."""
        self.buffer.discard(reason)
        self.work.notify_all()
        self.settled.notify_all()


def start_sender(state: ExportState) -> bool:
    """Add a sending thread. Called with the lock held. False while the interpreter shuts down."""
    sender = start_daemon(partial(_run, state), name="cascade-otlp")
    if sender is not None:
        state.senders.append(sender)
    return sender is not None


def _run(state: ExportState) -> None:
    """Send what is due until the queue is closed or long idle."""
    with suppress_instrumentation():
        transport = open_safely(state.open_transport)
        try:
            while batch := _next_batch(state):
                _deliver(state, transport, batch)
        finally:
            with state.lock:
                _remove_sender(state)
            transport.close()


def _remove_sender(state: ExportState) -> None:
    state.senders = [sender for sender in state.senders if sender is not threading.current_thread()]
    state.owner = state.owner if state.senders else None


def _next_batch(state: ExportState) -> Batch | None:
    """The next batch, once it is due; None when there is no more work."""
    buffer, limits = state.buffer, state.limits
    with state.lock:
        while not state.is_closed:
            left = _due(state) - limits.clock()
            if left <= 0:
                state.is_urgent = state.is_urgent and buffer.count > limits.batch_size
                batch = buffer.take(limits.batch_size, BATCH_MEMORY)
                _add_sender_if_slow(state)
                return batch
            if not state.work.wait(min(left, state.idle)) and not buffer.waiting:
                break
        _remove_sender(state)  # under the same lock: the next put starts a new thread
        return None


def _add_sender_if_slow(state: ExportState) -> None:
    """Add a thread if another batch is full and the peer, though it accepts requests, takes its time."""
    is_busy = state.buffer.count >= state.limits.batch_size and len(state.buffer.in_flight) >= len(state.senders)
    is_slow = state.health.latency > _SLOW_ANSWER and not state.health.is_failing
    if is_busy and is_slow and len(state.senders) < MAX_SENDERS:
        start_sender(state)


def _due(state: ExportState) -> float:
    buffer = state.buffer
    if not buffer.waiting:
        return float("inf")
    is_full = buffer.count >= state.limits.batch_size or buffer.queued >= BATCH_MEMORY or buffer.is_tight
    if is_full or state.is_urgent or state.flushes:
        return 0.0
    return buffer.waiting[0].put_at + state.limits.schedule_delay


def _deliver(state: ExportState, transport: Transport, batch: Batch) -> None:
    """Send a batch, in parts if need be, until each part has been counted."""
    parts = [batch]
    while parts:
        part = parts.pop()
        try:
            reply = _reply_for(state, transport, part)
        except Exception as error:  # noqa: BLE001 - a fault of ours costs this part, not the thread
            reply = Reply("refused", error_text(error, 200))
        if reply.too_large and part.count > 1:
            with state.lock:
                parts += state.buffer.split(part)
        else:
            _complete(state, part, reply)


def _reply_for(state: ExportState, transport: Transport, batch: Batch) -> Reply:
    body, bad = state.pack(batch.entries)
    with state.lock:
        count_lost(bad, "it cannot be encoded")
    if len(body) > MAX_BODY and batch.count > 1:
        return Reply("refused", too_large=True)
    return _exchange(state, transport, batch, body) if body else Reply("accepted")


def _exchange(state: ExportState, transport: Transport, batch: Batch, body: bytes) -> Reply:
    """Send until the peer has taken or refused it, the queue has discarded it, or a part of it may pass sooner.

    A queue that is almost full, or smaller than the request, has room for a part only.
    """
    tries = 0
    while _wait_for_turn(state, batch):
        began = state.limits.clock()
        try:
            _ask(state, began)
            reply = transport.send(body, state.limits.request_timeout)
        finally:
            if state.probe is batch:  # another may have been out since before the trouble
                state.probe = None
        with state.lock:
            state.health.record(reply, began)
            state.work.notify_all()
            if reply.outcome != "retry":
                return reply
            count_retried(batch, reply.reason)
            tries += not reply.dead
            state.settled.notify_all()
        if tries >= SPLIT_AFTER and batch.count > LEAST_PART:
            return replace(reply, too_large=True)
    return Reply("refused", "discarded")


def _wait_for_turn(state: ExportState, batch: Batch) -> bool:
    """Wait until the next request is due; False if the batch has been discarded meanwhile."""
    with state.lock:
        while batch.is_wanted():
            left = state.health.next_request_at(is_flushing=state.flushes > 0) - state.limits.clock()
            if left <= 0 and state.probe is None:
                state.probe = batch if state.health.is_failing else None
                return True
            state.work.wait(left if left > 0 else None)
        return False


def _ask(state: ExportState, now: float) -> None:
    """A request goes out."""
    with state.lock:
        state.health.ask(now)
        state.settled.notify_all()


def _complete(state: ExportState, batch: Batch, reply: Reply) -> None:
    with state.lock:
        if reply.outcome == "accepted":
            entries = [entry for entry in batch.entries if entry.is_open]
            # A partial success has the number of the rejected items only.
            count_rejected(entries, reply.rejected, f"rejected: {reply.reason}")
            state.outage.accepted(entries)
            count_sent(entries)
        else:
            count_lost(batch.entries, reply.reason)
        state.buffer.complete(batch)
        state.settled.notify_all()
        line = state.outage.ended(state.total.report(), lambda before: state.buffer.has_pending(None, before))
    log_outage(line)
