"""Memory-bound buffer of a queue: waiting items and the batches in flight. The lock of the queue guards it."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from cascade.connectors.otel.batch import Counters, QueuedItems

MAX_ENTRY = 64  # encoded items in an entry
HIGH_WATERMARK = 0.75  # of the capacity; from there on no task starts, and the rest is for the tasks in progress
LOW_WATERMARK = 0.5  # of the capacity; up to there waiting producers may continue
IMPORTANT_CAPACITY = 1.25  # of the capacity, for important entries while batches in flight use all of it


@dataclass(slots=True, eq=False)
class Batch:
    """The entries of one request."""

    entries: list[QueuedItems] = field(default_factory=list)
    is_retried: bool = False

    @property
    def count(self) -> int:
        return sum(len(entry.items) for entry in self.entries)

    @property
    def is_open(self) -> bool:
        """False once all entries have been counted as lost."""
        return any(entry.is_open for entry in self.entries)


class Buffer:
    """Queue of entries, and the batches that were taken from it.

    `size` is in bytes and covers both; `queued` items of `queued_size` bytes are in the queue. Encoded items share entries,
    because the garbage collector would be slow with 100,000 objects.
    """

    def __init__(self, capacity: int, batch_size: int) -> None:
        self.capacity = capacity
        self.size = 0
        self.queued = 0
        self.queued_size = 0
        self._max_entry = min(MAX_ENTRY, batch_size)
        self._is_sealed = True
        self.waiting: deque[QueuedItems] = deque()
        self.in_flight: list[Batch] = []

    @property
    def is_above_low_watermark(self) -> bool:
        return self.size > self.capacity * LOW_WATERMARK

    @property
    def is_full(self) -> bool:
        return self.size > self.capacity * HIGH_WATERMARK

    def add(self, entry: QueuedItems) -> bool:
        """Queue an entry; return False if it exceeds the capacity."""
        if self.size + entry.size > self.capacity * (IMPORTANT_CAPACITY if entry.is_important else 1):
            return False
        self.waiting.append(entry)
        self.queued += 1
        self.queued_size += entry.size
        self.size += entry.size
        self._is_sealed = entry.is_important or not isinstance(entry.items[0], bytes)
        return True

    def append(self, item: bytes, size: int, counters: Counters) -> bool:
        """Add an encoded item to the latest entry; return False if it needs a new entry."""
        if self._is_sealed or not self.waiting or self.size + size > self.capacity:
            return False
        last = self.waiting[-1]
        if last.counters is not counters or len(last.items) >= self._max_entry:
            return False
        last.items.append(item)
        last.size += size
        self.queued += 1
        self.queued_size += size
        self.size += size
        return True

    def seal(self) -> None:
        """Start a new entry with the next item, so that the boundary of a flush is exact."""
        self._is_sealed = True

    def evict(self, size: int) -> list[QueuedItems]:
        """Remove the oldest entries that are not important, until `size` bytes are free, and return them."""
        evicted, kept = list[QueuedItems](), list[QueuedItems]()
        while self.waiting and self.size + size > self.capacity:
            entry = self.waiting.popleft()
            if entry.is_important:
                kept.append(entry)
            else:
                evicted.append(entry)
                self._remove(entry)
        self.waiting.extendleft(reversed(kept))
        return evicted

    def take(self, count: int, size: int) -> Batch:
        """Move the oldest entries into a batch: up to `count` items and about `size` bytes, but at least one entry."""
        batch = Batch()
        taken = 0
        while self.waiting and taken < size and count >= len(self.waiting[0].items):
            entry = self.waiting.popleft()
            batch.entries.append(entry)
            self.queued -= len(entry.items)
            self.queued_size -= entry.size
            taken += entry.size
            count -= len(entry.items)
        self.in_flight.append(batch)
        return batch

    def split(self, batch: Batch) -> list[Batch]:
        """Replace a batch of several items by two."""
        entries = batch.entries if len(batch.entries) > 1 else batch.entries[0].halves()
        middle = len(entries) // 2
        halves = [Batch(part, batch.is_retried) for part in (entries[:middle], entries[middle:])]
        self.in_flight.remove(batch)
        self.in_flight += halves
        return halves

    def complete(self, batch: Batch) -> None:
        """Remove a batch whose items have been counted."""
        self.in_flight.remove(batch)
        self.size -= sum(entry.size for entry in batch.entries)

    def discard(self, reason: str) -> None:
        """Count all items as lost, and clear the queue. Batches in flight use memory until their requests end."""
        count_lost([*(entry for batch in self.in_flight for entry in batch.entries), *self.waiting], reason)
        for entry in self.waiting:
            self._remove(entry)
        self.waiting.clear()

    def has_pending(self, counters: Counters | None, before: float) -> bool:
        """Return whether an item that was put until `before` is pending, of one counters or of all."""
        if counters is not None and not counters.pending:
            return False
        return any(_is_pending(entry, counters, before) for batch in self.in_flight for entry in batch.entries) or any(
            _is_pending(entry, counters, before) for entry in self.waiting
        )

    def _remove(self, entry: QueuedItems) -> None:
        self.queued -= len(entry.items)
        self.queued_size -= entry.size
        self.size -= entry.size


def count_sent(entries: Iterable[QueuedItems]) -> None:
    """Count the items of the open entries as sent."""
    for counters, count in _close(entries).items():
        counters.add(sent=count)


def count_lost(entries: Iterable[QueuedItems], reason: str) -> None:
    """Count the items of the open entries as lost."""
    for counters, count in _close(entries).items():
        counters.add(lost=count, reason=reason)


def count_rejected(entries: Iterable[QueuedItems], count: int, reason: str) -> None:
    """Count any `count` items as lost, and remove them from their entries, which stay open."""
    for entry in entries:
        rejected = min(count, len(entry.items)) if entry.is_open else 0
        if rejected:
            entry.counters.add(lost=rejected, reason=reason)
            del entry.items[:rejected]
            count -= rejected


def count_retried(batch: Batch, reason: str) -> None:
    """Count the items of a batch as retried, unless they were before."""
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


def _is_pending(entry: QueuedItems, counters: Counters | None, before: float) -> bool:
    return entry.is_open and entry.put_at <= before and (counters is None or entry.counters is counters)
