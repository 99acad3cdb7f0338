"""Memory-bound buffer of a queue, and the counts of its items. The lock of the queue guards both."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from sys import getsizeof
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan

from cascade._internal_errors import raise_in_tests

MAX_ENTRY = 64  # encoded items in an entry
HIGH_WATERMARK = 0.75  # of the capacity; above it no task starts, because the rest is for the tasks in progress
LOW_WATERMARK = 0.5  # of the capacity; at or below it waiting producers continue
IMPORTANT_CAPACITY = 1.25  # of the capacity; the limit for important entries, while batches in flight use the capacity

# Bytes of a finished span without attributes, and of each attribute, event and link: measured with tracemalloc on SDK 1.45.
_SPAN_SIZE = 2_700
_ATTRIBUTE_SIZE = 80
_EVENT_SIZE = _LINK_SIZE = 500
ITEM_OVERHEAD = 60  # bytes of the object of an encoded span, of its place in a list, and of its share of an entry

Item = ReadableSpan | bytes
"""A span of the SDK, or an encoded span or log record, which needs a tenth of the memory."""


@dataclass(frozen=True, slots=True)
class FlushReport:
    """Counts of some items; `put == sent + lost + pending` always holds.

    `retried` is the number of items that needed more than one request. `pending` items are queued or in a request. `reason`
    is the reason of the latest loss, retry or incomplete flush.
    """

    put: int = 0
    sent: int = 0
    retried: int = 0
    lost: int = 0
    pending: int = 0
    reason: str = ""

    def text(self, noun: str, endpoint: str) -> str:
        """Return one line about the undelivered items. A failed flush of another provider has a reason and no counts."""
        counts = [f"{self.lost} {noun} were lost"] if self.lost else []
        counts += [f"{self.pending} {noun} are not yet delivered"] if self.pending else []
        counts = counts or [f"{noun} may not be delivered"]
        hint = "; they stay queued until they are delivered or the process ends" if self.pending else ""
        where = f" at {endpoint}" if endpoint else ""
        return f"{' and '.join(counts)}{where}" + (f": {self.reason}" if self.reason else "") + hint

    def __add__(self, other: "FlushReport") -> "FlushReport":
        """Return the sums, with the reason of a report that has lost or pending items."""
        return FlushReport(
            self.put + other.put,
            self.sent + other.sent,
            self.retried + other.retried,
            self.lost + other.lost,
            self.pending + other.pending,
            other.reason if other.lost or other.pending else self.reason,
        )


class Counters:
    """Counts of the items of a run, a connector or a queue. The lock of the queue guards them.

    The items of a run also count for its connector, and the items of a connector also count for the queue.
    """

    __slots__ = ("__weakref__", "_parent", "lost", "put", "reason", "retried", "sent")

    def __init__(self, parent: "Counters | None" = None) -> None:
        self._parent = parent
        self.put = self.sent = self.retried = self.lost = 0
        self.reason = ""

    @property
    def pending(self) -> int:
        return self.put - self.sent - self.lost

    def count_put(self) -> None:
        self.put += 1
        if self._parent is not None:
            self._parent.count_put()

    def add(self, *, sent: int = 0, retried: int = 0, lost: int = 0, reason: str = "") -> None:
        self.sent += sent
        self.retried += retried
        self.lost += lost
        self.reason = reason or self.reason
        if self._parent is not None:
            self._parent.add(sent=sent, retried=retried, lost=lost, reason=reason)

    def forget_pending(self) -> None:
        """Remove the pending items from the counts. After a fork the parent process sends them."""
        self.put = self.sent + self.lost

    def report(self) -> FlushReport:
        return FlushReport(self.put, self.sent, self.retried, self.lost, self.pending, self.reason)


@dataclass(slots=True, eq=False)
class QueuedItems:
    """Entry of a queue: one item, or successive encoded items with the same counters.

    An entry is open until its items are counted as sent or lost. An important entry contains the span of a run or of a map. It
    is dropped last, because that span is the parent of others.
    """

    items: list[Item]
    size: int
    counters: Counters
    put_at: float
    is_important: bool = False
    is_open: bool = True

    def halves(self) -> "list[QueuedItems]":
        """Split an entry of several items."""
        middle = len(self.items) // 2
        parts = self.items[:middle], self.items[middle:]
        sizes = sum(map(estimate, parts[0])), self.size - sum(map(estimate, parts[0]))
        return [
            QueuedItems(part, size, self.counters, self.put_at, self.is_important, self.is_open)
            for part, size in zip(parts, sizes, strict=True)
        ]


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

    `size` is the memory of both in bytes. The queue alone has `queued` items of `queued_size` bytes. Encoded items share
    entries, because the garbage collector would be slow with 100,000 objects.
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
        """Return whether an item that was put until `before` is pending. `counters` selects the items of one run or connector."""
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
    """Count the items of a batch as retried, unless they have been counted already."""
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


def estimate(item: Item) -> int:
    """Return the bytes of memory that an item needs, with an error of about 10 %."""
    if isinstance(item, bytes):
        return ITEM_OVERHEAD + len(item)
    try:
        size = _SPAN_SIZE + _attributes_size(item.attributes)
        for event in item.events:
            size += _EVENT_SIZE + _attributes_size(event.attributes)
        for link in item.links:
            size += _LINK_SIZE + _attributes_size(link.attributes)
    except Exception as error:  # noqa: BLE001 - an invalid span must not raise in the code that ended it
        raise_in_tests(error)
        return _SPAN_SIZE
    return size


def _attributes_size(attributes: Any) -> int:
    if not attributes:
        return 0
    # The mappings of the SDK are slow: iterate once.
    values = list(attributes.values())
    size = len(values) * _ATTRIBUTE_SIZE + sum(map(getsizeof, values))
    if tuple in map(type, values):
        size += sum(sum(map(getsizeof, value)) for value in values if type(value) is tuple)
    return size
