"""Sending threads of a queue, which turn its items into requests and wait for the responses.

One thread sends one batch after the other. More threads start while the collector responds slowly and full batches wait.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from cascade._internal_errors import raise_in_tests
from cascade.connectors.otel.buffer import (
    Batch,
    Buffer,
    Counters,
    QueuedItems,
    count_lost,
    count_rejected,
    count_retried,
    count_sent,
)
from cascade.connectors.otel.health import CollectorHealth, ItemLabel, OutageLog, log_outage
from cascade.connectors.otel.reply import Reply
from cascade.connectors.otel.transport import Transport, open_safely, suppress_instrumentation
from cascade.runtime.threads import start_daemon
from cascade.telemetry.sanitize import error_text

BATCH_MEMORY = 16 << 20  # bytes of memory; the request has about a tenth
MAX_BODY = 3 << 20  # bytes; by default gRPC servers reject more than 4 MiB
SPLIT_AFTER = 4  # retryable responses, after which a batch is split
MIN_SPLIT = 64  # items; the overhead of smaller requests would slow down an overloaded collector
MAX_SENDERS = 4  # concurrent requests
IDLE_TIMEOUT = 30.0  # seconds without items after which a thread ends and closes its connections
_SLOW_RESPONSE = 0.02  # seconds, in which another thread could encode the next batch

Encode = Callable[[Sequence[QueuedItems]], tuple[bytes, list[QueuedItems]]]
"""Returns the body of a request with the items of these entries, and the entries that cannot be encoded."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a queue in bytes of memory, items and seconds, and the clock for the health of the collector."""

    capacity: int
    batch_size: int
    schedule_delay: float
    request_timeout: float
    hold_timeout: float
    clock: Callable[[], float]


class ExportState:
    """State of a queue under one lock, with two conditions: `work` wakes the senders, `settled` the flushes.

    A forked child creates a new one, because a thread of the parent may have held the lock.
    """

    def __init__(
        self, limits: Limits, open_transport: Callable[[], Transport], encode: Encode, label: ItemLabel, total: Counters
    ) -> None:
        # Reentrant, because a signal handler or a finalizer may end a span while its thread holds the lock.
        self.lock = threading.RLock()
        self.work = threading.Condition(self.lock)
        self.settled = threading.Condition(self.lock)
        self.limits = limits
        self.open_transport = open_transport
        self.encode = encode
        self.label = label
        self.total = total
        self.buffer = Buffer(limits.capacity, limits.batch_size)
        self.health = CollectorHealth(limits.clock, hold_timeout=limits.hold_timeout)
        self.outage = OutageLog(label, limits.clock)
        self.flushes = 0  # in progress
        self.is_urgent = False
        self.is_closed = False
        self.probe: Batch | None = None  # the only batch that is sent while the collector fails
        self.senders: list[threading.Thread] = []
        self.idle_timeout = IDLE_TIMEOUT
        self.owner: object = None  # the queue, which is referenced while a thread sends its items

    def discard(self, reason: str) -> None:
        """Count all pending items as lost."""
        self.buffer.discard(reason)
        self.work.notify_all()
        self.settled.notify_all()


def start_sender(state: ExportState) -> bool:
    """Start a sending thread. The caller holds the lock. Return False while the interpreter shuts down."""
    sender = start_daemon(partial(_send_batches, state), name="cascade-otlp")
    if sender is not None:
        state.senders.append(sender)
    return sender is not None


def _send_batches(state: ExportState) -> None:
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
    """Wait until a batch is due; return None when the queue is closed, or empty for the idle timeout."""
    buffer, limits = state.buffer, state.limits
    with state.lock:
        while not state.is_closed:
            left = _due_at(state) - limits.clock()
            if left <= 0:
                state.is_urgent = state.is_urgent and buffer.queued > limits.batch_size
                batch = buffer.take(limits.batch_size, BATCH_MEMORY)
                _add_sender_if_slow(state)
                return batch
            if not state.work.wait(min(left, state.idle_timeout)) and not buffer.waiting:
                break
        _remove_sender(state)  # under the same lock, so that the next item starts a new thread
        return None


def _add_sender_if_slow(state: ExportState) -> None:
    """Start another thread if a full batch waits and the collector accepts requests slowly."""
    is_busy = state.buffer.queued >= state.limits.batch_size and len(state.buffer.in_flight) >= len(state.senders)
    is_slow = state.health.latency > _SLOW_RESPONSE and not state.health.is_failing
    if is_busy and is_slow and len(state.senders) < MAX_SENDERS:
        start_sender(state)


def _due_at(state: ExportState) -> float:
    buffer = state.buffer
    if not buffer.waiting:
        return float("inf")
    is_full = (
        buffer.queued >= state.limits.batch_size or buffer.queued_size >= BATCH_MEMORY or buffer.is_above_low_watermark
    )
    if is_full or state.is_urgent or state.flushes:
        return 0.0
    return buffer.waiting[0].put_at + state.limits.schedule_delay


def _deliver(state: ExportState, transport: Transport, batch: Batch) -> None:
    """Send a batch, in several requests if necessary, until all its items are counted as sent or lost."""
    batches = [batch]
    while batches:
        current = batches.pop()
        try:
            reply = _send(state, transport, current)
        except Exception as error:  # noqa: BLE001 - the items are lost, but the thread continues
            raise_in_tests(error)
            reply = Reply("refused", error_text(error, 200))
        if reply.too_large and current.count > 1:
            with state.lock:
                batches += state.buffer.split(current)
        else:
            _complete(state, current, reply)


def _send(state: ExportState, transport: Transport, batch: Batch) -> Reply:
    """Send a batch until the collector accepts or refuses it, the queue discards it, or it should be split.

    A collector whose queue is almost full may accept a smaller batch earlier.
    """
    body, invalid = state.encode(batch.entries)
    with state.lock:
        count_lost(invalid, "it cannot be encoded")
    if not body:
        return Reply("accepted")
    if len(body) > MAX_BODY and batch.count > 1:
        return Reply("refused", too_large=True)
    retryable = 0
    while _wait_for_turn(state, batch):
        reply = _request(state, transport, batch, body)
        if reply.outcome != "retry":
            return reply
        retryable += not reply.unanswered
        if retryable >= SPLIT_AFTER and batch.count > MIN_SPLIT:
            return replace(reply, too_large=True)
    return Reply("refused", "discarded")


def _wait_for_turn(state: ExportState, batch: Batch) -> bool:
    """Wait until the next request is due; return False if the batch was discarded."""
    with state.lock:
        while batch.is_open:
            left = state.health.next_request_at(is_flushing=state.flushes > 0) - state.limits.clock()
            if left <= 0 and state.probe is None:
                state.probe = batch if state.health.is_failing else None
                return True
            state.work.wait(left if left > 0 else None)
        return False


def _request(state: ExportState, transport: Transport, batch: Batch, body: bytes) -> Reply:
    sent_at = state.limits.clock()
    try:
        with state.lock:
            state.health.record_request(sent_at)
            state.settled.notify_all()
        reply = transport.send(body, state.limits.request_timeout)
    finally:
        if state.probe is batch:  # other requests, which were sent before the failure, end here too
            state.probe = None
    with state.lock:
        state.health.record(reply, sent_at)
        state.work.notify_all()
        if reply.outcome == "retry":
            count_retried(batch, reply.reason)
            state.settled.notify_all()
    return reply


def _complete(state: ExportState, batch: Batch, reply: Reply) -> None:
    with state.lock:
        if reply.outcome == "accepted":
            entries = [entry for entry in batch.entries if entry.is_open]
            # A partial success has only the number of rejected items.
            count_rejected(entries, reply.rejected, f"rejected: {reply.reason}")
            state.outage.record_accepted(entries)
            count_sent(entries)
        else:
            count_lost(batch.entries, reply.reason)
        state.buffer.complete(batch)
        state.settled.notify_all()
        line = state.outage.end(state.total.report(), lambda before: state.buffer.has_pending(None, before))
    log_outage(line)
