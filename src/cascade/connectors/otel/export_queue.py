"""From finished spans, or log records, to acknowledged OTLP requests, within a bound of memory."""

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

from cascade.connectors import _lifetime
from cascade.connectors.otel.batch import Entry, FlushReport, Item, Tally, encode, estimate
from cascade.connectors.otel.buffer import lose
from cascade.connectors.otel.health import HOLD_TIMEOUT, SPANS, Items, log_outage
from cascade.connectors.otel.sender import IDLE, Limits, Pack, Shared, start_sender
from cascade.connectors.otel.transport import Transport

CAPACITY = 64 << 20  # bytes of memory: 100,000 tasks' spans, or some 16,000 of the SDK's with ten attributes each
BATCH_SIZE = 1024  # spans, some 400 KB on the wire: more at a time is no faster and only delays the answer
SCHEDULE_DELAY = 0.5  # seconds: with the time of a request, what has ended is on its way within one
REQUEST_TIMEOUT = 10.0  # seconds; OTLP's default
FLUSH_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds that one user of an outbox sets: bytes of memory, seconds of holding tasks back, seconds at the exit."""

    capacity: int
    hold_timeout: float
    exit_timeout: float


class Outbox:
    """Takes finished spans from any thread and exports them from threads of its own.

    The first thread starts with the first span, in a forked child too: there the outbox is empty, because what was
    waiting is sent by the parent. When `capacity` bytes are held, a new span is refused and counted as lost, or the
    oldest ones make room if it is important. Items stay queued until the peer accepts or refuses them, or until the
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
        items: Items = SPANS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if min(capacity, batch_size) < 1 or min(schedule_delay, exit_timeout) < 0 or request_timeout <= 0:
            raise ValueError("capacity, batch_size and request_timeout must be above zero, delays not below")
        self._exit_timeout = exit_timeout
        limits = Limits(capacity, batch_size, schedule_delay, request_timeout, hold_timeout, clock)
        self._total = Tally()
        self._shared = Shared(limits, open_transport, pack, items, self._total)
        self._tallies = weakref.WeakSet([self._total])
        self._bounds: weakref.WeakKeyDictionary[object, Bounds] = weakref.WeakKeyDictionary()
        _lifetime.watch(self)

    def reserve(self, user: object, bounds: Bounds) -> None:
        """Register a user of this outbox with its bounds, until `release`. The largest bounds of the users hold.

        Items that fit into an earlier, larger capacity stay.
        """
        with self._shared.lock:
            self._bounds[user] = bounds
            in_use, store = list(self._bounds.values()), self._shared.store
            store.capacity = max(min(store.held, store.capacity), *(one.capacity for one in in_use))
            self._shared.peer.hold_timeout = max(one.hold_timeout for one in in_use)
            self._shared.idle = IDLE
            self._exit_timeout = max(one.exit_timeout for one in in_use)

    def release(self, user: object) -> None:
        """End a use: another user's bounds hold from then on. The user's `exit_timeout` holds while the user exists."""
        with self._shared.lock:
            if user in self._bounds:
                self._bounds[user] = replace(self._bounds[user], capacity=0, hold_timeout=0.0)

    def retire(self) -> None:
        """End the sending threads as soon as they have no work, until the outbox is reserved again."""
        with self._shared.lock:
            self._shared.idle = 0.0
            self._shared.work.notify_all()

    def tally(self) -> Tally:
        """A count of its own, for the spans of one run; they count in the outbox's total as well."""
        with self._shared.lock:
            tally = Tally(self._total)
            self._tallies.add(tally)
            return tally

    @property
    def totals(self) -> Callable[[], FlushReport]:
        """Returns the counts of all spans so far, and does not keep the outbox alive."""
        return self._total.report

    def report(self, tally: Tally | None = None) -> FlushReport:
        """The counts so far, of one tally or of all spans."""
        with self._shared.lock:
            return (tally or self._total).report()

    def is_full(self) -> bool:
        """Whether so much is held that no further task should start; False while the peer is not alive."""
        shared = self._shared
        return shared.store.is_full and shared.peer.is_alive

    def wait_for_room(self, timeout: float) -> bool:
        """Wait until at most half of the capacity is held; False at the timeout or as soon as the peer is not alive."""
        shared = self._shared
        deadline = time.monotonic() + timeout
        with shared.lock:
            while shared.store.is_tight:
                left = deadline - time.monotonic()
                if left <= 0 or not shared.peer.is_alive:
                    return False
                shared.settled.wait(left)
            return True

    def put(self, span: Item, *, urgent: bool = False, important: bool = False, tally: Tally | None = None) -> bool:
        """Take a span, at once and without raising; False if it was refused, and counted as lost.

        It leaves with the next full batch or after the schedule delay, an `urgent` one immediately. When there is no
        room for it, an `important` one takes that of the oldest that are not.
        """
        size = estimate(span)
        shared = self._shared
        with shared.lock:
            counted = tally or self._total
            counted.count_put()
            if important or not isinstance(span, bytes) or not shared.store.join(span, size, counted):
                entry = Entry([span], size, counted, shared.limits.clock(), important)
                if refusal := self._admit(entry):
                    lose([entry], refusal)
                    return False
            shared.is_urgent |= urgent
            waiting = shared.store.count
            if urgent or waiting == 1 or waiting % shared.limits.batch_size == 0 or shared.store.is_tight:
                shared.work.notify_all()
            return True

    def refuse(self, reason: str, *, tally: Tally | None = None) -> None:
        """Count something that never became an item as put, and lost."""
        counted = tally or self._total
        with self._shared.lock:
            counted.count_put()
            counted.add(lost=1, reason=reason)

    def flush(self, timeout: float = FLUSH_TIMEOUT, *, tally: Tally | None = None) -> FlushReport:
        """Wait until everything put before the call is sent or lost, for `timeout` seconds at the most.

        With a `tally`, wait for its spans only. Spans that are still undelivered then stay queued and are `pending` in
        the report. A peer that does not answer ends the wait earlier: `Peer` has the rule.
        """
        return self.start_flush(timeout, tally=tally).wait()

    def start_flush(self, timeout: float = FLUSH_TIMEOUT, *, tally: Tally | None = None) -> "Flush":
        """Begin a flush; its `wait` must follow. Several outboxes flushed so wait at the same time."""
        shared = self._shared
        with shared.lock:
            shared.flushes += 1
            shared.store.seal()
            shared.work.notify_all()
            return Flush(shared, tally, timeout)

    def announce(self, report: FlushReport) -> bool:
        """Whether a run that ends with this report, of a flush, logs a warning: the first run of an outage does."""
        with self._shared.lock:
            return self._shared.outage.announce(report, self._total.report())

    def close(self, timeout: float = FLUSH_TIMEOUT) -> FlushReport:
        """Flush, count the rest as lost, and refuse later items; the threads and their connections end."""
        return self._close(self.start_flush(timeout))

    def start_exit(self) -> Callable[[], None]:
        """Begin the last flush; the returned function waits for it, closes, and logs losses not yet warned of."""
        with self._shared.lock:
            self._shared.peer.begin_exit()
        flush = self.start_flush(self._exit_timeout)

        def finish() -> None:
            shared, lost = self._shared, self._total.lost
            reason = flush.wait().reason
            with shared.lock:
                line = shared.outage.closed(self._total.lost - lost + self._total.pending, reason)
            self._close(flush)
            log_outage(line)

        return finish

    def _close(self, flush: "Flush") -> FlushReport:
        shared = self._shared
        reason = flush.wait().reason
        with shared.lock:
            shared.is_closed = True
            shared.discard(reason or "closed")
            # A thread that is out with a request may take longer than the flush.
            senders = [] if shared.store.flights else list(shared.senders)
        for sender in senders:
            sender.join(max(0.0, flush.end - shared.limits.clock()))
        return self.report()

    def reset_after_fork(self) -> None:
        """Begin anew in a child process: the parent keeps its spans, and no other thread lives here."""
        old = self._shared
        self._shared = Shared(old.limits, old.open_transport, old.pack, old.items, self._total)
        self._shared.is_closed = old.is_closed
        self._shared.store.capacity = old.store.capacity
        self._shared.peer.hold_timeout = old.peer.hold_timeout
        for tally in list(self._tallies):
            tally.disown_pending()

    def _admit(self, entry: Entry) -> str:
        """Queue an entry and see to it that a thread will send it; if that cannot be, why."""
        shared = self._shared
        if shared.is_closed:
            return "closed"
        if not shared.senders:
            if not start_sender(shared):
                return "the interpreter is shutting down"
            shared.owner = self
        if shared.store.add(entry):
            return ""
        refusal = shared.peer.reason or "more than fits in memory"
        if entry.is_important:
            lose(shared.store.evict(entry.size), refusal)
            return "" if shared.store.add(entry) else refusal
        return refusal


class Flush:
    """A flush that has begun. Each is waited for, once or several times.

    Args:
        shared: The state of the outbox.
        tally: The count of the spans to wait for; None for all.
        timeout: Seconds from now that `wait` takes at the most.
    """

    def __init__(self, shared: Shared, tally: Tally | None, timeout: float) -> None:
        self._shared = shared
        self._tally = tally
        self._start = shared.limits.clock()
        self.end = self._start + timeout
        self._report: FlushReport | None = None

    def wait(self, limit: float = float("inf")) -> FlushReport:
        """Return once all spans put before the start are sent or lost, or at the end.

        Args:
            limit: An earlier end, on `time.monotonic`'s clock.
        """
        shared = self._shared
        with shared.lock:
            if self._report is None:
                try:
                    is_settled = self._is_settled(min(limit, self.end))
                finally:
                    shared.flushes -= 1
                reason = "" if is_settled else shared.peer.end_flush(self._start)
                report = (self._tally or shared.total).report()
                self._report = replace(report, reason=reason or report.reason)
            return self._report

    def _is_settled(self, deadline: float) -> bool:
        shared = self._shared
        while shared.store.holds(self._tally, self._start):
            end = min(deadline, shared.peer.patience(self._start))
            left = end - shared.limits.clock()
            if left <= 0 or shared.peer.is_hopeless(self._start, end):
                return False
            shared.settled.wait(left)
        return True
