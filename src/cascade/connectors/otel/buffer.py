"""Queued items and items in a request, within one bound of memory. The outbox's lock guards them."""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from cascade.connectors.otel.batch import Entry, Tally

BUNDLE = 64  # encoded items in an entry
FULL = 0.75  # of the capacity; the rest is for what has been started already
OVERDRAFT = 1.25  # of the capacity, for what is important, when all the rest is out with a request
ROOM = 0.5  # of the capacity; from there on a burst has room again


@dataclass(slots=True, eq=False)
class Flight:
    """The entries of one request."""

    entries: list[Entry] = field(default_factory=list)
    is_retried: bool = False

    @property
    def count(self) -> int:
        return sum(len(entry.items) for entry in self.entries)

    def is_wanted(self) -> bool:
        """False once all entries have been counted as lost."""
        return any(entry.is_open for entry in self.entries)


class Store:
    """A queue, and the flights taken from it. All that is in either counts against the capacity, in bytes.

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
        self.queue: deque[Entry] = deque()
        self.flights: list[Flight] = []

    @property
    def is_tight(self) -> bool:
        """Whether batches are sent without waiting until they are full."""
        return self.held > self.capacity * ROOM

    @property
    def is_full(self) -> bool:
        return self.held > self.capacity * FULL

    def add(self, entry: Entry) -> bool:
        """Queue an entry; False if there is no room."""
        if self.held + entry.size > self.capacity * (OVERDRAFT if entry.is_important else 1):
            return False
        self.queue.append(entry)
        self.queued += entry.size
        self.held += entry.size
        self.count += 1
        self._is_sealed = entry.is_important or not isinstance(entry.items[0], bytes)
        return True

    def join(self, item: bytes, size: int, tally: Tally) -> bool:
        """Queue an encoded item with the one before it; False if it needs an entry of its own."""
        if self._is_sealed or not self.queue or self.held + size > self.capacity:
            return False
        last = self.queue[-1]
        if last.tally is not tally or len(last.items) >= self._bundle:
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

    def evict(self, size: int) -> list[Entry]:
        """Take the oldest entries that are not important out of the queue, until there is room for `size` bytes."""
        gone, kept = list[Entry](), list[Entry]()
        while self.queue and self.held + size > self.capacity:
            entry = self.queue.popleft()
            if entry.is_important:
                kept.append(entry)
                continue
            gone.append(entry)
            self._unqueue(entry)
            self.held -= entry.size
        self.queue.extendleft(reversed(kept))
        return gone

    def take(self, count: int, size: int) -> Flight:
        """The oldest items, up to `count` of them and about `size` bytes, at least one entry."""
        flight = Flight()
        taken = 0
        while self.queue and taken < size and count >= len(self.queue[0].items):
            entry = self.queue.popleft()
            flight.entries.append(entry)
            self._unqueue(entry)
            taken += entry.size
            count -= len(entry.items)
        self.flights.append(flight)
        return flight

    def split(self, flight: Flight) -> list[Flight]:
        """Two flights in place of one of several items."""
        entries = flight.entries if len(flight.entries) > 1 else flight.entries[0].halves()
        middle = len(entries) // 2
        halves = [Flight(part, flight.is_retried) for part in (entries[:middle], entries[middle:])]
        self.flights.remove(flight)
        self.flights += halves
        return halves

    def land(self, flight: Flight) -> None:
        """Remove a flight whose entries have been counted, and free its room."""
        self.flights.remove(flight)
        self.held -= sum(entry.size for entry in flight.entries)

    def discard(self, reason: str) -> None:
        """Count all that is queued or in flight as lost, and empty the queue."""
        lose([*(entry for flight in self.flights for entry in flight.entries), *self.queue], reason)
        for entry in self.queue:
            self._unqueue(entry)
            self.held -= entry.size
        self.queue.clear()

    def holds(self, tally: Tally | None, before: float) -> bool:
        """True while an item that was put until `before`, of one tally or of all, has not been counted."""
        if tally is not None and not tally.pending:
            return False
        if any(_is_meant(entry, tally, before) for flight in self.flights for entry in flight.entries):
            return True
        return any(_is_meant(entry, tally, before) for entry in self.queue)

    def _unqueue(self, entry: Entry) -> None:
        self.queued -= entry.size
        self.count -= len(entry.items)


def send(entries: Iterable[Entry]) -> None:
    """Count entries as sent, unless they have been counted before."""
    for tally, count in _close(entries).items():
        tally.add(sent=count)


def lose(entries: Iterable[Entry], reason: str) -> None:
    """Count entries as lost, unless they have been counted before."""
    for tally, count in _close(entries).items():
        tally.add(lost=count, reason=reason)


def lose_some(entries: Iterable[Entry], count: int, reason: str) -> None:
    """Count so many items as lost, whichever; the rest of their entries stays open."""
    for entry in entries:
        gone = min(count, len(entry.items)) if entry.is_open else 0
        if gone:
            entry.tally.add(lost=gone, reason=reason)
            del entry.items[:gone]
            count -= gone


def retry(flight: Flight, reason: str) -> None:
    """Count a flight's items as retried, once."""
    counts: Counter[Tally] = Counter()
    for entry in flight.entries:
        counts[entry.tally] += len(entry.items) if entry.is_open else 0
    for tally, count in counts.items():
        tally.add(retried=0 if flight.is_retried else count, reason=reason)
    flight.is_retried = True


def _close(entries: Iterable[Entry]) -> Counter[Tally]:
    counts: Counter[Tally] = Counter()
    for entry in entries:
        if entry.is_open:
            entry.is_open = False
            counts[entry.tally] += len(entry.items)
    return counts


def _is_meant(entry: Entry, tally: Tally | None, before: float) -> bool:
    return entry.is_open and entry.put_at <= before and (tally is None or entry.tally is tally)
