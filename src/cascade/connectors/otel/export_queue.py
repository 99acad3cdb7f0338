"""Queue of finished spans or log records, which become acknowledged OTLP requests within a bound of memory.

Cascade has a queue of its own because it keeps the promise that nothing is lost: of a burst of 100,000 spans with default
settings it loses none, and the SDK's BatchSpanProcessor 53 % over gRPC and 60 % over HTTP (`make bench ARGS=burst`).
"""

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

from cascade.connectors import _lifetime
from cascade.connectors.otel.batch import Counters, FlushReport, Item, QueuedItems, encode, estimate
from cascade.connectors.otel.buffer import count_lost
from cascade.connectors.otel.health import HOLD_TIMEOUT, SPANS, ItemLabel, log_outage
from cascade.connectors.otel.sender import IDLE, ExportState, Limits, Pack, start_sender
from cascade.connectors.otel.transport import Transport
from cascade.connectors.report import ConnectorReport

CAPACITY = 64 << 20  # bytes of memory: 100,000 tasks' spans, or some 16,000 of the SDK's with ten attributes each
BATCH_SIZE = 1024  # spans, some 400 KB on the wire: more at a time is no faster and only delays the answer
SCHEDULE_DELAY = 0.5  # seconds: with the time of a request, what has ended is on its way within one
REQUEST_TIMEOUT = 10.0  # seconds; OTLP's default
FLUSH_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds that one user of a queue sets: bytes of memory, seconds of holding tasks back, seconds at the exit."""

    capacity: int
    hold_timeout: float
    exit_timeout: float


class ExportQueue:
    """Takes finished spans from any thread and exports them from threads of its own.

    The first thread starts with the first span, in a forked child too: there the queue is empty, because what was
    waiting is sent by the parent. When `capacity` bytes are held, a new span is refused and counted as lost, or the
    oldest ones make room if it is important. ItemLabel stay queued until the peer accepts or refuses them, or until the
    interpreter's exit, which waits `exit_timeout` seconds for the rest. `pack` makes a request of a batch. `items` names
    the spans, or log records, and their destination in log lines. `clock` decides what is known of the peer.

    Raises:
        ValueError: When a limit cannot be met.
    """

    def __init__(
        self,
        open_transport: Callable[[], Transport],
        *,
        pack: Pack = encode,
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
        self._state = ExportState(limits, open_transport, pack, label, self._total)
        self._counters = weakref.WeakSet([self._total])
        self._bounds: weakref.WeakKeyDictionary[object, Bounds] = weakref.WeakKeyDictionary()
        _lifetime.watch(self)

    def reserve(self, user: object, bounds: Bounds) -> None:
        """Register a user of this queue with its bounds, until `release`. The largest bounds of the users hold.

        ItemLabel that fit into an earlier, larger capacity stay.
        """
        with self._state.lock:
            self._bounds[user] = bounds
            in_use, buffer = list(self._bounds.values()), self._state.buffer
            buffer.capacity = max(min(buffer.held, buffer.capacity), *(one.capacity for one in in_use))
            self._state.health.hold_timeout = max(one.hold_timeout for one in in_use)
            self._state.idle = IDLE
            self._exit_timeout = max(one.exit_timeout for one in in_use)

    def release(self, user: object) -> None:
        """End a use: another user's bounds hold from then on. The user's `exit_timeout` holds while the user exists."""
        with self._state.lock:
            if user in self._bounds:
                self._bounds[user] = replace(self._bounds[user], capacity=0, hold_timeout=0.0)

    def retire(self) -> None:
        """End the sending threads as soon as they have no work, until the queue is reserved again."""
        with self._state.lock:
            self._state.idle = 0.0
            self._state.work.notify_all()

    def new_counters(self, parent: Counters | None = None) -> Counters:
        """Return counters for the spans of one connector or run. They count in `parent` and in the queue's total as well."""
        with self._state.lock:
            counters = Counters(parent or self._total)
            self._counters.add(counters)
            return counters

    @property
    def totals(self) -> Callable[[], FlushReport]:
        """Returns the counts of all spans so far, and does not keep the queue alive."""
        return self._total.report

    def report(self, counters: Counters | None = None) -> FlushReport:
        """The counts so far, of one counters or of all spans."""
        with self._state.lock:
            return (counters or self._total).report()

    def connector_report(self, counters: Counters) -> ConnectorReport:
        """Return the counts of one connector, and whether the collector has answered its latest request."""
        with self._state.lock:
            found, health = counters.report(), self._state.health
            return ConnectorReport(
                sent=found.sent,
                lost=found.lost,
                retried=found.retried,
                queued=found.pending,
                connected=health.has_answered,
                last_error=found.reason,
            )

    def is_full(self) -> bool:
        """Whether so much is held that no further task should start; False while the peer is not alive."""
        state = self._state
        return state.buffer.is_full and state.health.is_alive

    def wait_for_capacity(self, timeout: float) -> bool:
        """Wait until at most half of the capacity is held; False at the timeout or as soon as the peer is not alive."""
        state = self._state
        deadline = time.monotonic() + timeout
        with state.lock:
            while state.buffer.is_tight:
                left = deadline - time.monotonic()
                if left <= 0 or not state.health.is_alive:
                    return False
                state.settled.wait(left)
            return True

    def put(
        self, span: Item, *, urgent: bool = False, important: bool = False, counters: Counters | None = None
    ) -> bool:
        """Take a span, at once and without raising; False if it was refused, and counted as lost.

        It leaves with the next full batch or after the schedule delay, an `urgent` one immediately. When there is no
        room for it, an `important` one takes that of the oldest that are not.
        """
        size = estimate(span)
        state = self._state
        with state.lock:
            counted = counters or self._total
            counted.count_put()
            if important or not isinstance(span, bytes) or not state.buffer.append(span, size, counted):
                entry = QueuedItems([span], size, counted, state.limits.clock(), important)
                if refusal := self._admit(entry):
                    count_lost([entry], refusal)
                    return False
            state.is_urgent |= urgent
            waiting = state.buffer.count
            if urgent or waiting == 1 or waiting % state.limits.batch_size == 0 or state.buffer.is_tight:
                state.work.notify_all()
            return True

    def refuse(self, reason: str, *, counters: Counters | None = None) -> None:
        """Count something that never became an item as put, and lost."""
        counted = counters or self._total
        with self._state.lock:
            counted.count_put()
            counted.add(lost=1, reason=reason)

    def flush(self, timeout: float = FLUSH_TIMEOUT, *, counters: Counters | None = None) -> FlushReport:
        """Wait until everything put before the call is sent or lost, for `timeout` seconds at the most.

        With a `counters`, wait for its spans only. Spans that are still undelivered then stay queued and are `pending` in
        the report. A peer that does not answer ends the wait earlier: `CollectorHealth` has the rule.
        """
        return self.start_flush(timeout, counters=counters).wait()

    def start_flush(self, timeout: float = FLUSH_TIMEOUT, *, counters: Counters | None = None) -> "Flush":
        """Begin a flush; its `wait` must follow. Several queues flushed so wait at the same time."""
        state = self._state
        with state.lock:
            state.flushes += 1
            state.buffer.seal()
            state.work.notify_all()
            return Flush(state, counters, timeout)

    def announce(self, report: FlushReport) -> bool:
        """Whether a run that ends with this report, of a flush, logs a warning: the first run of an outage does."""
        with self._state.lock:
            return self._state.outage.announce(report, self._total.report())

    def close(self, timeout: float = FLUSH_TIMEOUT) -> FlushReport:
        """Flush, count the rest as lost, and refuse later items; the threads and their connections end."""
        return self._close(self.start_flush(timeout))

    def start_exit(self) -> Callable[[], None]:
        """Begin the last flush; the returned function waits for it, closes, and logs losses not yet warned of."""
        with self._state.lock:
            self._state.health.begin_exit()
        flush = self.start_flush(self._exit_timeout)

        def finish() -> None:
            state, lost = self._state, self._total.lost
            reason = flush.wait().reason
            with state.lock:
                line = state.outage.closed(self._total.lost - lost + self._total.pending, reason)
            self._close(flush)
            log_outage(line)

        return finish

    def _close(self, flush: "Flush") -> FlushReport:
        state = self._state
        reason = flush.wait().reason
        with state.lock:
            state.is_closed = True
            state.discard(reason or "closed")
            # A thread that is out with a request may take longer than the flush.
            senders = [] if state.buffer.in_flight else list(state.senders)
        for sender in senders:
            sender.join(max(0.0, flush.end - state.limits.clock()))
        return self.report()

    def reset_after_fork(self) -> None:
        """Begin anew in a child process: the parent keeps its spans, and no other thread lives here."""
        old = self._state
        self._state = ExportState(old.limits, old.open_transport, old.pack, old.label, self._total)
        self._state.is_closed = old.is_closed
        self._state.buffer.capacity = old.buffer.capacity
        self._state.health.hold_timeout = old.health.hold_timeout
        for counters in list(self._counters):
            counters.forget_pending()

    def _admit(self, entry: QueuedItems) -> str:
        """Queue an entry and see to it that a thread will send it; if that cannot be, why."""
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
    """A flush that has begun. Each is waited for, once or several times.

    Args:
        state: The state of the queue.
        counters: The count of the spans to wait for; None for all.
        timeout: Seconds from now that `wait` takes at the most.
    """

    def __init__(self, state: ExportState, counters: Counters | None, timeout: float) -> None:
        self._state = state
        self._counters = counters
        self._start = state.limits.clock()
        self.end = self._start + timeout
        self._report: FlushReport | None = None

    def wait(self, limit: float = float("inf")) -> FlushReport:
        """Return once all spans put before the start are sent or lost, or at the end.

        Args:
            limit: An earlier end, on `time.monotonic`'s clock.
        """
        state = self._state
        with state.lock:
            if self._report is None:
                try:
                    is_settled = self._is_settled(min(limit, self.end))
                finally:
                    state.flushes -= 1
                reason = "" if is_settled else state.health.end_flush(self._start)
                report = (self._counters or state.total).report()
                self._report = replace(report, reason=reason or report.reason)
            return self._report

    def _is_settled(self, deadline: float) -> bool:
        state = self._state
        while state.buffer.has_pending(self._counters, self._start):
            end = min(deadline, state.health.flush_deadline(self._start))
            left = end - state.limits.clock()
            if left <= 0 or state.health.is_flush_futile(self._start, end):
                return False
            state.settled.wait(left)
        return True
