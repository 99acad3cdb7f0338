"""Backpressure: measures the rate of the broker, limits the rate of messages, and delays tasks while too many are queued."""

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable

from cascade.connectors.mqtt.outbox import Outbox
from cascade.spec.retry import random_factor

RATE_WINDOW = 0.25
"""Smallest interval in seconds over which the rate is measured."""
RATE_WINDOWS = 4
"""Number of intervals. The highest rate of them counts, because the thread or the broker may have been delayed in one."""
FLOOR, _FLOOR_AFTER_REFUSAL = 1_000, 100
"""Number of messages that may always be queued, so that a burst does not delay tasks. The second value applies after a
transient refusal, until the rate is known."""

FIRST_DELAY, MAX_DELAY = 0.1, 2.0
"""Shortest and longest pause in seconds after a transient refusal."""
ROUND = 0.1
"""Seconds per round of `Throttle`."""
_MIN_PER_ROUND, _UNLIMITED_PER_ROUND = 8, 500
"""Messages per round: the minimum, so that a message that is always refused does not block the others; and the number from
which on there is no limit."""
ROOM_CHECK_INTERVAL = 0.5
"""Seconds after which tasks that wait for room are checked again."""


class Throttle:
    """Limits the rate of messages after transient refusals, in rounds of `ROUND` seconds.

    A refusal begins a pause, which is as long as the time since the latest accepted message. A round may send a quarter
    more messages than the broker accepted in the previous round. There is no limit before the first refusal, nor when a
    round may send 500. Only the network thread uses it, for all connections of a session.
    """

    def __init__(self) -> None:
        self.refused_since = math.inf
        """Time of the first refusal since an acknowledgement."""
        self._left = math.inf
        self._accepted = 0
        self._is_refused = False
        self._next = 0.0

    @property
    def is_active(self) -> bool:
        """Whether there is a limit."""
        return self._left != math.inf

    @property
    def pause(self) -> float:
        """Seconds until `room` allows the next message."""
        return 0.0 if self._left else max(0.0, self._next - time.monotonic())

    def record_refusal(self) -> None:
        """Record a refusal. It begins a pause, unless one has begun in this round."""
        now = time.monotonic()
        self.refused_since = min(self.refused_since, now)
        if self._is_refused:
            return
        if not self.is_active:
            self._accepted = 0
        self._is_refused, self._left = True, 0
        self._next = now + min(MAX_DELAY, max(FIRST_DELAY, now - self.refused_since)) * random_factor()

    def record_accepted(self, count: int, *, is_acknowledged: bool) -> None:
        """Record accepted messages. `is_acknowledged`: at least one of them had QoS 1."""
        self._accepted += count
        if is_acknowledged:
            self.refused_since = math.inf

    def record_sent(self, count: int) -> None:
        self._left -= count

    def room(self) -> float:
        """Return the number of messages that may be sent now."""
        if not self._left and time.monotonic() >= self._next:
            most = self._accepted * 5 // 4 + _MIN_PER_ROUND
            self._left = most if most < _UNLIMITED_PER_ROUND else math.inf
            self._accepted, self._is_refused = 0, False
            self._next = time.monotonic() + ROUND
        return self._left


class Rate:
    """Messages per second, measured only while messages are queued: an idle connection is not a slow one."""

    def __init__(self) -> None:
        self._windows: deque[float] = deque(maxlen=RATE_WINDOWS)
        self._start: float | None = None
        self._done = 0

    def measure(self, done: int, *, is_saturated: bool) -> None:
        """Record the total number of settled messages. Call it often."""
        now = time.monotonic()
        if is_saturated and self._start is not None:
            if now - self._start < RATE_WINDOW:
                return
            self._windows.append((done - self._done) / (now - self._start))
        self._start, self._done = now if is_saturated else None, done

    @property
    def value(self) -> float:
        """The rate; infinite until it is known."""
        return max(self._windows, default=math.inf)


class LoopNotifier:
    """Condition variable for coroutines of several event loops. Each loop has one future for all its waiting coroutines."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.AbstractEventLoop, asyncio.Future[None]] = {}

    def notify(self) -> None:
        """Wake all waiting coroutines. Any thread may call it. It costs little without waiting coroutines."""
        if not self._waiting:
            return
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for loop, change in waiting.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_settle, change)

    def next(self) -> asyncio.Future[None]:
        """Return the future of the next change. Several coroutines share it: do not cancel it."""
        loop = asyncio.get_running_loop()
        with self._lock:
            change = self._waiting.get(loop)
            if change is None:
                change = self._waiting[loop] = loop.create_future()
            return change

    async def until(self, condition: Callable[[], bool], timeout: float) -> bool:  # noqa: ASYNC109 - its purpose
        """Wait at most `timeout` seconds until the condition holds. Return whether it holds."""
        deadline = time.monotonic() + timeout
        while True:
            # Taken before the check, so that no change between the check and the wait is missed.
            change = self.next()
            if condition():
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            await asyncio.wait({change}, timeout=left)


def _settle(change: asyncio.Future[None]) -> None:
    if not change.done():
        change.set_result(None)


class Backpressure:
    """Delays tasks while more messages are queued than fit in memory, or than the broker accepts in half of `flush_timeout`.

    Half, because the rate may fall. A broker that refuses all messages for longer than `flush_timeout` delays no task.
    The network thread measures the rate; any thread may read.
    """

    def __init__(self, outbox: Outbox, flush_timeout: float) -> None:
        self.throttle = Throttle()
        self._outbox = outbox
        self._room = LoopNotifier()
        self._flush_timeout = flush_timeout
        self._rate = Rate()
        self._max_waiting = math.inf

    def restart(self) -> None:
        """Prepare for a new connection. The rate includes the time without a connection only if the broker has refused messages."""
        if self.throttle.refused_since == math.inf:
            self._rate.measure(0, is_saturated=False)

    def record_refusal(self) -> None:
        """Record a transient refusal. Until the rate is known, the present number of messages may be queued, and at least 100."""
        self.throttle.record_refusal()
        if self._max_waiting == math.inf:
            self._max_waiting = max(_FLOOR_AFTER_REFUSAL, self._outbox.backlog)

    def measure(self) -> None:
        done = self._outbox.sent + self._outbox.lost + self._outbox.resent
        self._rate.measure(done, is_saturated=self._outbox.is_waiting)
        rate, is_throttled = self._rate.value, self.throttle.is_active
        if rate < math.inf:
            self._max_waiting = max(1 if is_throttled else FLOOR, rate * self._flush_timeout / 2)
        elif not is_throttled:
            self._max_waiting = math.inf

    @property
    def is_full(self) -> bool:
        """Whether new tasks must wait. A quarter of the memory stays free for the messages of running tasks."""
        return self._outbox.exceeds(0.75, self._max_waiting) and not self._is_refusing()

    @property
    def is_above_low_mark(self) -> bool:
        """Whether tasks that wait must continue to wait: there is a lower limit to resume than to stop."""
        return self._outbox.exceeds(0.5, self._max_waiting / 2) and not self._is_refusing()

    def notify(self) -> None:
        """Wake the waiting tasks if the queue is below the lower limit."""
        if not self.is_above_low_mark:
            self._room.notify()

    async def room(self) -> None:
        """Wait until the outbox has room again, at most half a second. It costs little for any number of waiting tasks."""
        change = self._room.next()
        if not self.is_above_low_mark:
            return
        # One timer notifies all waiting tasks: separate time limits of ten thousand tasks take seconds to cancel.
        timer = asyncio.get_running_loop().call_later(ROOM_CHECK_INTERVAL, self._room.notify)
        try:
            await asyncio.wait({change})
        finally:
            timer.cancel()

    def _is_refusing(self) -> bool:
        return time.monotonic() - self.throttle.refused_since > self._flush_timeout
