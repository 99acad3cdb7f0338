"""From finished spans, or log records, to acknowledged OTLP requests: bounded in memory, lossless with a live peer, quick with a dead one."""

import time
import weakref
from collections.abc import Callable

from cascade.connectors import _lifetime
from cascade.connectors.otel import _sender, _store
from cascade.connectors.otel._batch import Entry, Item, encode, estimate
from cascade.connectors.otel._shared import IDLE, Limits, Pack, Shared
from cascade.connectors.otel._tally import FlushReport, Tally
from cascade.connectors.otel._transport import Transport

CAPACITY = 64 << 20  # bytes of memory: 100,000 tasks' spans, or some 16,000 of the SDK's with ten attributes each
BATCH_SIZE = 1024  # spans, some 400 KB on the wire: more at a time is no faster and only delays the answer
SCHEDULE_DELAY = 0.5  # seconds: with the time of a request, what has ended is on its way within one
REQUEST_TIMEOUT = 10.0  # seconds; OTLP's default
FLUSH_TIMEOUT = 5.0  # seconds


class Outbox:
    """Takes finished spans from any thread and exports them from threads of its own.

    The first thread starts with the first span, in a forked child too: there the outbox is empty, because what was
    waiting is sent by the parent. When `capacity` bytes are held, a new span is refused and counted as lost, or the
    oldest ones make room if it is important. At interpreter exit what is left has `exit_timeout` seconds. A batch
    becomes a request by `pack`. It serves log records as well as it does spans.

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
    ) -> None:
        if min(capacity, batch_size) < 1 or min(schedule_delay, exit_timeout) < 0 or request_timeout <= 0:
            raise ValueError("capacity, batch_size and request_timeout must be above zero, delays not below")
        self._exit_timeout = exit_timeout
        limits = Limits(capacity, batch_size, schedule_delay, request_timeout)
        self._shared = Shared(limits, open_transport, pack)
        self._total = Tally()
        self._tallies = weakref.WeakSet([self._total])
        self._capacities: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        _lifetime.watch(self)

    def reserve(self, user: object, capacity: int) -> None:
        """Register a user of this outbox with its memory bound in bytes. The largest bound of the live users holds."""
        with self._shared.lock:
            self._capacities[user] = capacity
            self._shared.store.capacity = max(self._capacities.values())
            self._shared.idle = IDLE

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
        """Whether it is so full that whoever makes spans had better wait; never with a peer that is not alive."""
        shared = self._shared
        return shared.store.is_full and shared.peer.is_alive

    def wait_for_room(self, timeout: float) -> bool:
        """Wait until it is at most half full; False if it still is not, or as soon as the peer is not alive."""
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
                entry = Entry([span], size, counted, time.monotonic(), important)
                if refusal := self._admit(entry):
                    _store.lose([entry], refusal)
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

        What then still waits is given up and counted as lost, even if a request is out with it; with a `tally` only
        the spans of that one. Seconds are not spent on a dead peer: `Peer` has the rule.
        """
        start = time.monotonic()
        shared = self._shared
        span_of_time = (start, start + timeout)
        with shared.lock:
            shared.flushes.append(span_of_time)
            shared.store.seal()
            shared.work.notify_all()
            try:
                self._await_settled(tally, *span_of_time)
            finally:
                shared.flushes.remove(span_of_time)
            return self.report(tally)

    def close(self, timeout: float = FLUSH_TIMEOUT) -> FlushReport:
        """Flush, then refuse what comes; the thread and its connections end."""
        deadline = time.monotonic() + timeout
        self.flush(timeout)
        shared = self._shared
        with shared.lock:
            shared.is_closed = True
            shared.give_up(None, float("inf"), "closed")
            # A thread that is out with a request may take longer than we have.
            senders = [] if shared.store.flights else list(shared.senders)
        for sender in senders:
            sender.join(max(0.0, deadline - time.monotonic()))
        return self.report()

    def close_at_exit(self) -> None:
        self.close(self._exit_timeout)

    def reset_after_fork(self) -> None:
        """Begin anew in a child process: the parent keeps its spans, and no other thread lives here."""
        old = self._shared
        self._shared = Shared(old.limits, old.open_transport, old.pack)
        self._shared.is_closed = old.is_closed
        self._shared.store.capacity = old.store.capacity
        for tally in list(self._tallies):
            tally.disown_pending()

    def _admit(self, entry: Entry) -> str:
        """Queue an entry and see to it that a thread will send it; if that cannot be, why."""
        shared = self._shared
        if shared.is_closed:
            return "closed"
        try:
            if not shared.senders:
                _sender.start(shared)
                shared.owner = self
        except RuntimeError:
            return "the interpreter is shutting down"
        if shared.store.add(entry):
            return ""
        refusal = shared.peer.reason if shared.peer.is_dead else "more than fits in memory"
        if entry.is_important:
            _store.lose(shared.store.evict(entry.size), refusal)
            return "" if shared.store.add(entry) else refusal
        return refusal

    def _await_settled(self, tally: Tally | None, start: float, deadline: float) -> None:
        shared = self._shared
        while shared.store.holds(tally, start):
            end = min(deadline, shared.peer.patience(start))
            left = end - time.monotonic()
            if left <= 0 or shared.peer.is_hopeless(start, end):
                waited = f"no answer within {time.monotonic() - start:.2g} s"
                shared.give_up(tally, start, shared.peer.reason or waited)
                return
            shared.settled.wait(left)
