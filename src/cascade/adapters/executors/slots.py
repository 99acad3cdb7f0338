"""Limits the number of plain functions that run at once: each one holds a slot in the pool of the process.

All executors share the pool. A run that a task starts from its worker thread may borrow the slot of that task, which
waits meanwhile, so that nested runs cannot exhaust the pool.
"""

import asyncio
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable

DEFAULT_SLOTS: int = min(32, (getattr(os, "process_cpu_count", os.cpu_count)() or 1) + 4)
"""Default of `concurrent.futures`. Plain functions mostly wait for a disk or a server.

A thread that computes delays the event loop by up to 5 ms at a time, the switch interval of the interpreter.
"""
STALL_TIMEOUT = 1.0
"""Seconds without a released slot after which a run without a slot gets an extra one: the tasks that hold the slots
may wait for this run, for instance in a thread of their own."""


class SlotPool:
    """Slots of all executors. Thread-safe.

    The size of the pool is the largest limit of an open share, and at least `DEFAULT_SLOTS`. Executors that wait for a
    slot get one in turn.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # the garbage collector may close a share at any time
        self._limits: list[int] = []
        self._waiting: OrderedDict[ThreadSlots, OrderedDict[ThreadSlotRequest, None]] = OrderedDict()
        self._used = 0
        self._freed_at = 0.0
        self.size = DEFAULT_SLOTS

    @property
    def is_open(self) -> bool:
        """Whether a share is open."""
        return bool(self._limits)

    def open(self, limit: int | None) -> "Share":
        """Return a share of at most `limit` slots; None is `DEFAULT_SLOTS`."""
        limit = DEFAULT_SLOTS if limit is None else limit
        with self._lock:
            self._limits.append(limit)
            self.size = max(self.size, limit)
            granted = self._grant()
        self._deliver(granted)
        return Share(self, limit)

    def close(self, share: "Share") -> bool:
        """Close a share. Returns whether it was the last one.

        The functions of a closed share that still run, such as those that exceeded a timeout, do not count any more: they
        must not block later runs.
        """
        with self._lock:
            self._used -= share.used
            share.is_open = False
            self._limits.remove(share.limit)
            self.size = max(DEFAULT_SLOTS, *self._limits, 0)
            granted = self._grant() if self._waiting else ()
            is_last = not self._limits
        for request in granted:
            if not request.deliver_soon() and request.slot is not None:
                self.release(request.slot)
        return is_last

    def take(self, slots: "ThreadSlots") -> "ThreadSlot | None":
        with self._lock:
            return self._take(slots)

    def request(self, request: "ThreadSlotRequest") -> None:
        with self._lock:
            self._waiting.setdefault(request.slots, OrderedDict())[request] = None
            granted = self._grant()
        for each in granted:
            each.deliver_soon()

    def withdraw(self, request: "ThreadSlotRequest") -> None:
        with self._lock:
            if request.slot is None:
                self._remove(request)
                return
        if not request.is_over:
            request.slot.release()

    def grant_extra(self, request: "ThreadSlotRequest") -> None:
        """Grant a slot beyond the size of the pool if no slot becomes free and the share of the request has none."""
        with self._lock:
            stalled = time.monotonic() - self._freed_at >= STALL_TIMEOUT
            if not stalled or request.slot is not None or request.slots.is_used:
                return
            request.slot = self._take(request.slots, extra=True)
            if request.slot is None:
                return
            self._freed_at = time.monotonic()
            self._remove(request)
        self._deliver([request])

    def release(self, slot: "ThreadSlot") -> None:
        with self._lock:
            self._give_back(slot)
            self._freed_at = time.monotonic()
            granted = self._grant() if self._waiting else ()
        self._deliver(granted)

    def _deliver(self, granted: "Iterable[ThreadSlotRequest]") -> None:
        for request in granted:
            if request.is_in_its_loop:
                request.deliver()
            elif not request.deliver_soon() and request.slot is not None:
                self.release(request.slot)

    def _take(self, slots: "ThreadSlots", *, extra: bool = False) -> "ThreadSlot | None":
        share, lender = slots.share, slots.lender
        if lender is not None and lender.borrower is None and not lender.is_released:
            lender.borrower = slot = ThreadSlot(share, lender)
            return slot
        if share.used < share.limit and (extra or self._used < self.size):
            self._count(share, 1)
            return ThreadSlot(share)
        return None

    def _count(self, share: "Share", change: int) -> None:
        share.used += change
        if share.is_open:
            self._used += change

    def _give_back(self, slot: "ThreadSlot") -> None:
        slot.is_released = True
        if slot.borrower is not None:  # a nested run outlives the task and still uses the slot
            return
        lender = slot.lender
        if lender is None:
            self._count(slot.share, -1)
        else:
            lender.borrower = None
            if lender.is_released:
                self._give_back(lender)

    def _grant(self) -> "list[ThreadSlotRequest]":
        """Grant the free slots, one per executor in turn. Returns the requests that got one."""
        granted: list[ThreadSlotRequest] = []
        count = -1
        while count < len(granted):
            count = len(granted)
            for slots in list(self._waiting):
                if (slot := self._take(slots)) is not None:
                    request = next(iter(self._waiting[slots]))
                    request.slot = slot
                    granted.append(request)
                    self._remove(request)
                    if slots in self._waiting:
                        self._waiting.move_to_end(slots)
        return granted

    def _remove(self, request: "ThreadSlotRequest") -> None:
        requests = self._waiting[request.slots]
        del requests[request]
        if not requests:
            del self._waiting[request.slots]


class Share:
    """Share of one executor in the pool: at most `limit` slots at once."""

    __slots__ = ("__weakref__", "is_open", "limit", "pool", "slots", "used")

    def __init__(self, pool: SlotPool, limit: int) -> None:
        self.pool = pool
        self.limit = limit
        self.used = 0
        self.is_open = True
        self.slots = ThreadSlots(self)


class ThreadSlots:
    """Slots of one share.

    A nested run can also borrow the slot of the task that has started it, the `lender`.
    """

    __slots__ = ("lender", "share")

    def __init__(self, share: Share, lender: "ThreadSlot | None" = None) -> None:
        self.share = share
        self.lender = lender

    @property
    def size(self) -> int:
        return min(self.share.limit, self.share.pool.size)

    @property
    def is_used(self) -> bool:
        """Whether a task of this share holds a slot, its own or a borrowed one."""
        borrower = None if self.lender is None else self.lender.borrower
        return bool(self.share.used) or (borrower is not None and borrower.share is self.share)

    def try_acquire(self) -> "ThreadSlot | None":
        return self.share.pool.take(self)

    def request(self, granted: Callable[["ThreadSlot"], object]) -> "ThreadSlotRequest":
        request = ThreadSlotRequest(self, granted)
        self.share.pool.request(request)
        return request

    async def acquire(self) -> "ThreadSlot":
        """Wait for a slot."""
        if (slot := self.try_acquire()) is not None:
            return slot
        granted: asyncio.Future[ThreadSlot] = asyncio.get_running_loop().create_future()
        request = self.request(lambda slot: slot.release() if granted.done() else granted.set_result(slot))
        try:
            return await granted
        except asyncio.CancelledError:
            if granted.cancelled():
                request.withdraw()
            else:
                granted.result().release()
            raise


class ThreadSlot:
    """One slot. `borrower` is the slot of a task of a nested run that has borrowed this slot."""

    __slots__ = ("_lent", "borrower", "is_released", "lender", "share")

    def __init__(self, share: Share, lender: "ThreadSlot | None" = None) -> None:
        self.share = share
        self.lender = lender
        self.borrower: ThreadSlot | None = None
        self.is_released = False
        self._lent: dict[Share, ThreadSlots] | None = None

    def release(self) -> None:
        self.share.pool.release(self)

    def lend(self, share: Share) -> ThreadSlots:
        """Return the slots of a share plus this slot, for a run that the holder of this slot has started."""
        if self._lent is None:
            self._lent = {}
        found = self._lent.get(share)
        if found is None:
            self._lent = {open_: slots for open_, slots in self._lent.items() if open_.is_open}
            found = self._lent[share] = ThreadSlots(share, self)
        return found


class ThreadSlotRequest:
    """Request for a slot. `granted` is called with the slot, in the event loop of the request."""

    __slots__ = ("_granted", "_loop", "_timer", "is_over", "slot", "slots")

    def __init__(self, slots: ThreadSlots, granted: Callable[["ThreadSlot"], object]) -> None:
        self.slots = slots
        self.slot: ThreadSlot | None = None
        self.is_over = False
        self._granted = granted
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(STALL_TIMEOUT, self._on_timeout)

    def withdraw(self) -> None:
        """Cancel the request. A slot that is granted but not delivered is released."""
        self._timer.cancel()
        self.slots.share.pool.withdraw(self)
        self.is_over = True

    @property
    def is_in_its_loop(self) -> bool:
        """Whether the caller runs in the event loop of the request."""
        return asyncio._get_running_loop() is self._loop  # noqa: SLF001 - documented in asyncio

    def deliver_soon(self) -> bool:
        """Deliver the slot in the next turn of the event loop.

        Thread-safe. Returns False if the event loop is closed.
        """
        try:
            self._loop.call_soon_threadsafe(self.deliver)
        except RuntimeError:
            return False
        return True

    def deliver(self) -> None:
        if not self.is_over and self.slot is not None:
            self.is_over = True
            self._timer.cancel()
            self._granted(self.slot)

    def _on_timeout(self) -> None:
        self._timer = self._loop.call_later(STALL_TIMEOUT, self._on_timeout)
        self.slots.share.pool.grant_extra(self)
