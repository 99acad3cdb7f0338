"""Memory-bound queue of finished spans or log records, which it delivers in acknowledged OTLP requests.

Cascade has its own queue, because no span of a burst must be lost. With default settings and a burst of 100,000 spans, the
queue loses none. The BatchSpanProcessor of the SDK loses 53 % over gRPC and 60 % over HTTP (`make bench ARGS=burst`).
"""

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

from cascade.connectors import _lifetime
from cascade.connectors.otel.buffer import Counters, FlushReport, Item, QueuedItems, count_lost, estimate
from cascade.connectors.otel.encode import encode
from cascade.connectors.otel.health import HOLD_TIMEOUT, SPANS, ItemLabel, log_outage
from cascade.connectors.otel.sender import IDLE_TIMEOUT, Encode, ExportState, Limits, start_sender
from cascade.connectors.otel.transport import Transport
from cascade.connectors.report import ConnectorReport

CAPACITY = 64 << 20  # bytes of memory: the spans of 100,000 tasks, or about 16,000 of the SDK with ten attributes each
BATCH_SIZE = 1024  # spans, about 400 KB in a request: larger batches are no faster, and their responses come later
SCHEDULE_DELAY = 0.5  # seconds, so that an ended span arrives within one second
REQUEST_TIMEOUT = 10.0  # seconds; the default of OTLP
FLUSH_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits that one user of a queue sets: bytes of memory, seconds of delay of tasks, seconds of the flush at the exit."""

    capacity: int
    hold_timeout: float
    exit_timeout: float


class ExportQueue:
    """Exports items in threads of its own. Any thread may put items.

    The first item starts the first thread. A forked child starts with an empty queue, because the parent sends its items.
    Items stay queued until the collector accepts or refuses them, or until the process exits, which waits `exit_timeout`
    seconds. When `capacity` bytes are in use, a new item is dropped; an important item replaces the oldest ones.

    Args:
        open_transport: Returns the transport of one sending thread.
        encode: Returns the body of a request.
        capacity: Bytes of memory.
        batch_size: Items in a request.
        schedule_delay: Seconds until an item is sent in a batch that is not full.
        request_timeout: Seconds for one request.
        exit_timeout: Seconds of the flush when the process exits.
        hold_timeout: Seconds of retryable responses only, after which a full queue is no longer reported as full.
        label: Name of the items and their destination for log lines.
        clock: Clock for the health of the collector.

    Raises:
        ValueError: A limit is out of range.
    """

    def __init__(
        self,
        open_transport: Callable[[], Transport],
        *,
        encode: Encode = encode,
        capacity: int = CAPACITY,
        batch_size: int = BATCH_SIZE,
        schedule_delay: float = SCHEDULE_DELAY,
        request_timeout: float = REQUEST_TIMEOUT,
        exit_timeout: float = FLUSH_TIMEOUT,
        hold_timeout: float = HOLD_TIMEOUT,
        label: ItemLabel = SPANS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if min(capacity, batch_size) < 1 or min(schedule_delay, exit_timeout) < 0 or request_timeout <= 0:
            raise ValueError("capacity, batch_size and request_timeout must be above zero, delays not below")
        self._exit_timeout = exit_timeout
        limits = Limits(capacity, batch_size, schedule_delay, request_timeout, hold_timeout, clock)
        self._total = Counters()
        self._state = ExportState(limits, open_transport, encode, label, self._total)
        self._counters = weakref.WeakSet([self._total])
        self._bounds: weakref.WeakKeyDictionary[object, Bounds] = weakref.WeakKeyDictionary()
        _lifetime.watch(self)

    def reserve(self, user: object, bounds: Bounds) -> None:
        """Register a user of this queue until `release`. The largest bounds of all users apply.

        Items that a larger capacity has accepted stay queued.
        """
        with self._state.lock:
            self._bounds[user] = bounds
            in_use, buffer = list(self._bounds.values()), self._state.buffer
            buffer.capacity = max(min(buffer.size, buffer.capacity), *(one.capacity for one in in_use))
            self._state.health.hold_timeout = max(one.hold_timeout for one in in_use)
            self._state.idle_timeout = IDLE_TIMEOUT
            self._exit_timeout = max(one.exit_timeout for one in in_use)

    def release(self, user: object) -> None:
        """Release the bounds of a user, except its `exit_timeout`, which applies as long as the user exists."""
        with self._state.lock:
            if user in self._bounds:
                self._bounds[user] = replace(self._bounds[user], capacity=0, hold_timeout=0.0)

    def retire(self) -> None:
        """End idle sending threads at once, until the queue is reserved again."""
        with self._state.lock:
            self._state.idle_timeout = 0.0
            self._state.work.notify_all()

    def new_counters(self, parent: Counters | None = None) -> Counters:
        """Return counters for one connector or run. Their items also count in `parent`, or in the total of the queue."""
        with self._state.lock:
            counters = Counters(parent or self._total)
            self._counters.add(counters)
            return counters

    @property
    def totals(self) -> Callable[[], FlushReport]:
        """Function that returns the counts of all items. It does not reference the queue."""
        return self._total.report

    def report(self, counters: Counters | None = None) -> FlushReport:
        """Return the counts so far, of one counters or of all items."""
        with self._state.lock:
            return (counters or self._total).report()

    def connector_report(self, counters: Counters) -> ConnectorReport:
        """Return the counts of one connector, and whether the collector has responded to its latest request."""
        with self._state.lock:
            found = counters.report()
            return ConnectorReport(
                sent=found.sent,
                lost=found.lost,
                retried=found.retried,
                queued=found.pending,
                connected=self._state.health.is_connected,
                last_error=found.reason,
            )

    def is_full(self) -> bool:
        """Return whether the buffer is so full that no task should start. It is False while the collector does not respond."""
        state = self._state
        return state.buffer.is_full and state.health.is_alive

    def wait_for_capacity(self, timeout: float) -> bool:
        """Wait until at most half of the capacity is in use. Return False at the timeout, or if the collector fails."""
        state = self._state
        deadline = time.monotonic() + timeout
        with state.lock:
            while state.buffer.is_above_low_watermark:
                left = deadline - time.monotonic()
                if left <= 0 or not state.health.is_alive:
                    return False
                state.settled.wait(left)
            return True

    def put(
        self, item: Item, *, urgent: bool = False, important: bool = False, counters: Counters | None = None
    ) -> bool:
        """Queue an item without blocking. Return False if it was dropped and counted as lost. Never raises.

        Args:
            item: The item.
            urgent: Send it at once, and not with the next full batch or after the schedule delay.
            important: Drop the oldest items that are not important rather than this one.
            counters: The counters of its run or connector.
        """
        size = estimate(item)
        state = self._state
        with state.lock:
            counted = counters or self._total
            counted.count_put()
            if important or not isinstance(item, bytes) or not state.buffer.append(item, size, counted):
                entry = QueuedItems([item], size, counted, state.limits.clock(), important)
                if refusal := self._add(entry):
                    count_lost([entry], refusal)
                    return False
            state.is_urgent |= urgent
            queued = state.buffer.queued
            if urgent or queued == 1 or queued % state.limits.batch_size == 0 or state.buffer.is_above_low_watermark:
                state.work.notify_all()
            return True

    def refuse(self, reason: str, *, counters: Counters | None = None) -> None:
        """Count an item that could not be created as put and lost."""
        counted = counters or self._total
        with self._state.lock:
            counted.count_put()
            counted.add(lost=1, reason=reason)

    def flush(self, timeout: float = FLUSH_TIMEOUT, *, counters: Counters | None = None) -> FlushReport:
        """Wait at most `timeout` seconds until all items, or those of one counters, are sent or lost.

        The wait is shorter if the collector does not respond, see `CollectorHealth`. Undelivered items stay queued, and are
        `pending` in the report.
        """
        return self.start_flush(timeout, counters=counters).wait()

    def start_flush(self, timeout: float = FLUSH_TIMEOUT, *, counters: Counters | None = None) -> "Flush":
        """Start a flush, and return it. The caller must call its `wait`. Several queues can flush at the same time."""
        state = self._state
        with state.lock:
            state.flushes += 1
            state.buffer.seal()
            state.work.notify_all()
            return Flush(state, counters, timeout)

    def starts_outage(self, report: FlushReport) -> bool:
        """Return whether the end of a run with this report causes a warning, as it does for the first run of an outage."""
        with self._state.lock:
            return self._state.outage.start(report, self._total.report())

    def close(self, timeout: float = FLUSH_TIMEOUT) -> FlushReport:
        """Flush, count the pending items as lost, and end the sending threads. Later items are lost."""
        return self._close(self.start_flush(timeout))

    def start_exit(self) -> Callable[[], None]:
        """Start the last flush. The returned function waits for it, closes the queue, and logs new losses."""
        with self._state.lock:
            self._state.health.begin_exit()
        flush = self.start_flush(self._exit_timeout)

        def finish() -> None:
            state, lost = self._state, self._total.lost
            reason = flush.wait().reason
            with state.lock:
                line = state.outage.close(self._total.lost - lost + self._total.pending, reason)
            self._close(flush)
            log_outage(line)

        return finish

    def discard(self, reason: str) -> None:
        """Count all pending items as lost, and end an outage without a log line."""
        with self._state.lock:
            self._state.outage.close(0, "")
            self._state.discard(reason)

    def _close(self, flush: "Flush") -> FlushReport:
        state = self._state
        reason = flush.wait().reason
        with state.lock:
            state.is_closed = True
            state.discard(reason or "closed")
            # A request in progress may take longer than the flush.
            senders = [] if state.buffer.in_flight else list(state.senders)
        for sender in senders:
            sender.join(max(0.0, flush.end - state.limits.clock()))
        return self.report()

    def reset_after_fork(self) -> None:
        """Start with an empty queue: the parent sends its items, and its threads do not exist in the child."""
        old = self._state
        self._state = ExportState(old.limits, old.open_transport, old.encode, old.label, self._total)
        self._state.is_closed = old.is_closed
        self._state.buffer.capacity = old.buffer.capacity
        self._state.health.hold_timeout = old.health.hold_timeout
        for counters in list(self._counters):
            counters.forget_pending()

    def _add(self, entry: QueuedItems) -> str:
        """Queue an entry, and start a sending thread if there is none. Return the reason if that fails."""
        state = self._state
        if state.is_closed:
            return "closed"
        if not state.senders:
            if not start_sender(state):
                return "the interpreter is shutting down"
            state.owner = self
        if state.buffer.add(entry):
            return ""
        refusal = state.health.reason or "more than fits in memory"
        if entry.is_important:
            count_lost(state.buffer.evict(entry.size), refusal)
            return "" if state.buffer.add(entry) else refusal
        return refusal


class Flush:
    """A flush in progress.

    Args:
        state: The state of the queue.
        counters: The counters of the items to wait for; None for all items.
        timeout: Seconds from now that `wait` takes at most.
    """

    def __init__(self, state: ExportState, counters: Counters | None, timeout: float) -> None:
        self._state = state
        self._counters = counters
        self._start = state.limits.clock()
        self.end = self._start + timeout
        self._report: FlushReport | None = None

    def wait(self, limit: float = float("inf")) -> FlushReport:
        """Wait until all items that were put before the start are sent or lost, but not longer than until the end.

        Later calls return the same report at once.

        Args:
            limit: An earlier end, on the clock of `time.monotonic`.
        """
        state = self._state
        with state.lock:
            if self._report is None:
                try:
                    is_settled = self._is_settled(min(limit, self.end))
                finally:
                    state.flushes -= 1
                reason = "" if is_settled else state.health.record_failed_flush(self._start)
                report = (self._counters or state.total).report()
                self._report = replace(report, reason=reason or report.reason)
            return self._report

    def _is_settled(self, deadline: float) -> bool:
        state = self._state
        while state.buffer.has_pending(self._counters, self._start):
            end = min(deadline, state.health.flush_deadline(self._start))
            left = end - state.limits.clock()
            if left <= 0 or state.health.should_end_flush(self._start, end):
                return False
            state.settled.wait(left)
        return True
