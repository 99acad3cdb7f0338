"""Queued items and items in a request, within one bound of memory. The queue's lock guards them."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from cascade.connectors.otel.batch import Counters, QueuedItems

BUNDLE = 64  # encoded items in an entry
FULL = 0.75  # of the capacity; the rest is for what has been started already
OVERDRAFT = 1.25  # of the capacity, for what is important, when all the rest is out with a request
ROOM = 0.5  # of the capacity; from there on a burst has room again


@dataclass(slots=True, eq=False)
class Batch:
    """The entries of one request."""

    entries: list[QueuedItems] = field(default_factory=list)
    is_retried: bool = False

    @property
    def count(self) -> int:
        return sum(len(entry.items) for entry in self.entries)

    def is_wanted(self) -> bool:
        """False once all entries have been counted as lost."""
        return any(entry.is_open for entry in self.entries)


class Buffer:
    """A queue, and the in_flight taken from it. All that is in either counts against the capacity, in bytes.

    `count` is the number of items in the queue, `queued` their bytes, and `held` the bytes of all. Encoded items share
    entries, which keeps the garbage collector from looking at each of 100,000.
    """

    def __init__(self, capacity: int, batch_size: int) -> None:
        self.capacity = capacity
        self.held = 0
        self.queued = 0
        self.count = 0
        self._bundle = min(BUNDLE, batch_size)
        self._is_sealed = True
        self.waiting: deque[QueuedItems] = deque()
        self.in_flight: list[Batch] = []

    @property
    def is_tight(self) -> bool:
        """Whether batches are sent without waiting until they are full."""
        return self.held > self.capacity * ROOM

    @property
    def is_full(self) -> bool:
        return self.held > self.capacity * FULL

    def add(self, entry: QueuedItems) -> bool:
        """Queue an entry; False if there is no room."""
        if self.held + entry.size > self.capacity * (OVERDRAFT if entry.is_important else 1):
            return False
        self.waiting.append(entry)
        self.queued += entry.size
        self.held += entry.size
        self.count += 1
        self._is_sealed = entry.is_important or not isinstance(entry.items[0], bytes)
        return True

    def append(self, item: bytes, size: int, counters: Counters) -> bool:
        """Queue an encoded item with the one before it; False if it needs an entry of its own."""
        if self._is_sealed or not self.waiting or self.held + size > self.capacity:
            return False
        last = self.waiting[-1]
        if last.counters is not counters or len(last.items) >= self._bundle:
            return False
        last.items.append(item)
        last.size += size
        self.queued += size
        self.held += size
        self.count += 1
        return True

    def seal(self) -> None:
        """Start a new entry with the next item, so that the boundary of a flush is exact."""
        self._is_sealed = True

    def evict(self, size: int) -> list[QueuedItems]:
        """Take the oldest entries that are not important out of the queue, until there is room for `size` bytes."""
        gone, kept = list[QueuedItems](), list[QueuedItems]()
        while self.waiting and self.held + size > self.capacity:
            entry = self.waiting.popleft()
            if entry.is_important:
                kept.append(entry)
                continue
            gone.append(entry)
            self._unqueue(entry)
            self.held -= entry.size
        self.waiting.extendleft(reversed(kept))
        return gone

    def take(self, count: int, size: int) -> Batch:
        """The oldest items, up to `count` of them and about `size` bytes, at least one entry."""
        batch = Batch()
        taken = 0
        while self.waiting and taken < size and count >= len(self.waiting[0].items):
            entry = self.waiting.popleft()
            batch.entries.append(entry)
            self._unqueue(entry)
            taken += entry.size
            count -= len(entry.items)
        self.in_flight.append(batch)
        return batch

    def split(self, batch: Batch) -> list[Batch]:
        """Two in_flight in place of one of several items."""
        entries = batch.entries if len(batch.entries) > 1 else batch.entries[0].halves()
        middle = len(entries) // 2
        halves = [Batch(part, batch.is_retried) for part in (entries[:middle], entries[middle:])]
        self.in_flight.remove(batch)
        self.in_flight += halves
        return halves

    def complete(self, batch: Batch) -> None:
        """Remove a batch whose entries have been counted, and free its room."""
        self.in_flight.remove(batch)
        self.held -= sum(entry.size for entry in batch.entries)

    def discard(self, reason: str) -> None:
        """Count all that is queued or in batch as lost, and empty the queue."""
        count_lost([*(entry for batch in self.in_flight for entry in batch.entries), *self.waiting], reason)
        for entry in self.waiting:
            self._unqueue(entry)
            self.held -= entry.size
        self.waiting.clear()

    def has_pending(self, counters: Counters | None, before: float) -> bool:
        """True while an item that was put until `before`, of one counters or of all, has not been counted."""
        if counters is not None and not counters.pending:
            return False
        if any(_is_meant(entry, counters, before) for batch in self.in_flight for entry in batch.entries):
            return True
        return any(_is_meant(entry, counters, before) for entry in self.waiting)

    def _unqueue(self, entry: QueuedItems) -> None:
        self.queued -= entry.size
        self.count -= len(entry.items)


def count_sent(entries: Iterable[QueuedItems]) -> None:
    """Count entries as sent, unless they have been counted before."""
    for counters, count in _close(entries).items():
        counters.add(sent=count)


def count_lost(entries: Iterable[QueuedItems], reason: str) -> None:
    """Count entries as lost, unless they have been counted before."""
    for counters, count in _close(entries).items():
        counters.add(lost=count, reason=reason)


def count_rejected(entries: Iterable[QueuedItems], count: int, reason: str) -> None:
    """Count so many items as lost, whichever; the rest of their entries stays open."""
    for entry in entries:
        gone = min(count, len(entry.items)) if entry.is_open else 0
        if gone:
            entry.counters.add(lost=gone, reason=reason)
            del entry.items[:gone]
            count -= gone


def count_retried(batch: Batch, reason: str) -> None:
    """Count a batch's items as retried, once."""
    counts: Counter[Counters] = Counter()
    for entry in batch.entries:
        counts[entry.counters] += len(entry.items) if entry.is_open else 0
    for counters, count in counts.items():
        counters.add(retried=0 if batch.is_retried else count, reason=reason)
    batch.is_retried = True


def _close(entries: Iterable[QueuedItems]) -> Counter[Counters]:
    counts: Counter[Counters] = Counter()
    for entry in entries:
        if entry.is_open:
            entry.is_open = False
            counts[entry.counters] += len(entry.items)
    return counts


def _is_meant(entry: QueuedItems, counters: Counters | None, before: float) -> bool:
    return entry.is_open and entry.put_at <= before and (counters is None or entry.counters is counters)
