"""Limits the number of plain functions that run at once: each one holds a place in the pool of the process.

All executors share the pool. A run that a task starts from its worker thread may borrow the place of that task, which
waits meanwhile, so that nested runs cannot exhaust the pool.
"""

import asyncio
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

DEFAULT_PLACES: int = min(32, (getattr(os, "process_cpu_count", os.cpu_count)() or 1) + 4)
"""Default of `concurrent.futures`: plain functions mostly wait for a disk or a server.

Each thread that computes delays the
event loop by up to 5 ms at a time, the switch interval of the interpreter."""
STALL_TIMEOUT = 1.0
"""Seconds without a released place after which a run without a place gets an extra one: the tasks that hold the places
may wait for this run, for instance in a thread of their own."""


class PlacePool:
    """Places of all executors. Thread-safe.

    The size of the pool is the largest limit of an open share, and at least `DEFAULT_PLACES`. Executors that wait for a
    place get one in turn.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the garbage collector may close a share at any time
        self._limits: list[int] = []
        self._waiting: OrderedDict[ThreadPlaces, OrderedDict[Waiter, None]] = OrderedDict()
        self._used = 0
        self._freed_at = 0.0
        self.size = DEFAULT_PLACES

    @property
    def is_open(self) -> bool:
        """Whether a share is open."""
        return bool(self._limits)

    def open(self, limit: int | None) -> "Share":
        """Return a share of at most `limit` places; None is `DEFAULT_PLACES`."""
        limit = DEFAULT_PLACES if limit is None else limit
        with self._lock:
            self._limits.append(limit)
            self.size = max(self.size, limit)
            granted = self._grant()
        self._deliver(granted)
        return Share(self, limit)

    def close(self, share: "Share") -> bool:
        """Close a share. Returns whether it was the last one."""
        with self._lock:
            share.is_open = False
            self._limits.remove(share.limit)
            self.size = max(DEFAULT_PLACES, *self._limits, 0)
            return not self._limits

    def take(self, places: "ThreadPlaces") -> "ThreadPlace | None":
        with self._lock:
            return self._take(places)

    def request(self, waiter: "Waiter") -> None:
        with self._lock:
            self._waiting.setdefault(waiter.places, OrderedDict())[waiter] = None
            granted = self._grant()
        for each in granted:
            each.deliver_soon()

    def withdraw(self, waiter: "Waiter") -> None:
        with self._lock:
            if waiter.place is None:
                self._remove(waiter)
                return
        if not waiter.is_over:
            waiter.place.release()

    def grant_extra(self, waiter: "Waiter") -> None:
        """Grant a place beyond the size of the pool if no place becomes free and the share of the waiter has none."""
        with self._lock:
            stalled = time.monotonic() - self._freed_at >= STALL_TIMEOUT
            if not stalled or waiter.place is not None or waiter.places.is_used:
                return
            waiter.place = self._take(waiter.places, extra=True)
            if waiter.place is None:
                return
            self._freed_at = time.monotonic()
            self._remove(waiter)
        self._deliver([waiter])

    def release(self, place: "ThreadPlace") -> None:
        with self._lock:
            self._give_back(place)
            self._freed_at = time.monotonic()
            granted = self._grant() if self._waiting else ()
        self._deliver(granted)

    def _deliver(self, granted: "Iterable[Waiter]") -> None:
        for waiter in granted:
            if waiter.is_in_its_loop:
                waiter.deliver()
            elif not waiter.deliver_soon() and waiter.place is not None:
                self.release(waiter.place)

    def _take(self, places: "ThreadPlaces", *, extra: bool = False) -> "ThreadPlace | None":
        share, lender = places.share, places.lender
        if lender is not None and lender.borrower is None and not lender.is_released:
            lender.borrower = place = ThreadPlace(share, lender)
            return place
        if share.used < share.limit and (extra or self._used < self.size):
            share.used += 1
            self._used += 1
            return ThreadPlace(share)
        return None

    def _give_back(self, place: "ThreadPlace") -> None:
        place.is_released = True
        if place.borrower is not None:  # a nested run outlives the task and still uses the place
            return
        lender = place.lender
        if lender is None:
            place.share.used -= 1
            self._used -= 1
        else:
            lender.borrower = None
            if lender.is_released:
                self._give_back(lender)

    def _grant(self) -> "list[Waiter]":
        """Grant the free places to waiters, one per executor in turn. Returns the waiters with a new place."""
        granted: list[Waiter] = []
        count = -1
        while count < len(granted):
            count = len(granted)
            for places in list(self._waiting):
                if (place := self._take(places)) is not None:
                    waiter = next(iter(self._waiting[places]))
                    waiter.place = place
                    granted.append(waiter)
                    self._remove(waiter)
                    if places in self._waiting:
                        self._waiting.move_to_end(places)
        return granted

    def _remove(self, waiter: "Waiter") -> None:
        waiters = self._waiting[waiter.places]
        del waiters[waiter]
        if not waiters:
            del self._waiting[waiter.places]


class Share:
    """Share of one executor in the pool: at most `limit` places at once."""

    __slots__ = ("__weakref__", "is_open", "limit", "places", "pool", "used")

    def __init__(self, pool: PlacePool, limit: int) -> None:
        self.pool = pool
        self.limit = limit
        self.used = 0
        self.is_open = True
        self.places = ThreadPlaces(self)


class ThreadPlaces:
    """Places of one share.

    With a `lender`, the place of the task that has started a nested run can be borrowed, too.
    """

    __slots__ = ("lender", "share")

    def __init__(self, share: Share, lender: "ThreadPlace | None" = None) -> None:
        self.share = share
        self.lender = lender

    @property
    def size(self) -> int:
        return min(self.share.limit, self.share.pool.size)

    @property
    def is_used(self) -> bool:
        """Whether a task of this share holds a place, its own or a borrowed one."""
        borrower = None if self.lender is None else self.lender.borrower
        return bool(self.share.used) or (borrower is not None and borrower.share is self.share)

    def try_acquire(self) -> "ThreadPlace | None":
        return self.share.pool.take(self)

    def request(self, granted: Callable[["ThreadPlace"], object]) -> "Waiter":
        waiter = Waiter(self, granted)
        self.share.pool.request(waiter)
        return waiter

    async def acquire(self) -> "ThreadPlace":
        """Wait for a place."""
        if (place := self.try_acquire()) is not None:
            return place
        granted: asyncio.Future[ThreadPlace] = asyncio.get_running_loop().create_future()
        request = self.request(lambda place: place.release() if granted.done() else granted.set_result(place))
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                request.withdraw()
            else:
                granted.result().release()
            raise


class ThreadPlace:
    """One place. `borrower` is the place of a task of a nested run that has borrowed this place."""

    __slots__ = ("_lent", "borrower", "is_released", "lender", "share")

    def __init__(self, share: Share, lender: "ThreadPlace | None" = None) -> None:
        self.share = share
        self.lender = lender
        self.borrower: ThreadPlace | None = None
        self.is_released = False
        self._lent: dict[Share, ThreadPlaces] | None = None

    def release(self) -> None:
        self.share.pool.release(self)

    def lend(self, share: Share) -> ThreadPlaces:
        """Return the places of a share plus this place, for a run that the holder of this place has started."""
        if self._lent is None:
            self._lent = {}
        found = self._lent.get(share)
        if found is None:
            self._lent = {open_: places for open_, places in self._lent.items() if open_.is_open}
            found = self._lent[share] = ThreadPlaces(share, self)
        return found


class Waiter:
    """Request for a place. `granted` is called with the place, in the event loop of the request."""

    __slots__ = ("_granted", "_loop", "_timer", "is_over", "place", "places")

    def __init__(self, places: ThreadPlaces, granted: Callable[["ThreadPlace"], object]) -> None:
        self.places = places
        self.place: ThreadPlace | None = None
        self.is_over = False
        self._granted = granted
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(STALL_TIMEOUT, self._on_timeout)

    def withdraw(self) -> None:
        """Cancel the request. A place that is granted but not delivered is released."""
        self._timer.cancel()
        self.places.share.pool.withdraw(self)
        self.is_over = True

    @property
    def is_in_its_loop(self) -> bool:
        """Whether the caller runs in the event loop of the request."""
        return asyncio._get_running_loop() is self._loop  # noqa: SLF001 - documented in asyncio

    def deliver_soon(self) -> bool:
        """Deliver the place in the next turn of the event loop.

        Thread-safe. Returns False if the event loop is closed.
        """
        try:
            self._loop.call_soon_threadsafe(self.deliver)
        except RuntimeError:
            return False
        return True

    def deliver(self) -> None:
        if not self.is_over and self.place is not None:
            self.is_over = True
            self._timer.cancel()
            self._granted(self.place)

    def _on_timeout(self) -> None:
        self._timer = self._loop.call_later(STALL_TIMEOUT, self._on_timeout)
        self.places.share.pool.grant_extra(self)
