"""When messages wait for the broker: how fast it accepts them, and when tasks must wait because too many wait here."""

import asyncio
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable

from cascade.connectors._health import jitter
from cascade.connectors.mqtt.outbox import Outbox

RATE_WINDOW = 0.25
"""Seconds, at least, over which the rate is measured."""
RATE_WINDOWS = 4
"""The best of so many windows counts: in a single one the thread or the broker may have been held up."""
FLOOR, _FLOOR_REFUSED = 1_000, 100
"""Messages that may always wait: a burst does not stop a run. The second value holds after a transient refusal, until the
rate is known."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds without a message after a transient refusal."""
PACE = 0.1
"""Seconds of one round of `Throttle`."""
_FEWEST, _MANY = 8, 500
"""Messages of a round: more than one, so that a message that is always refused does not stop the others; and so many
that no limit is needed."""
ROOM_CHECK = 0.5
"""Seconds after which tasks that wait for room check again."""


class Throttle:
    """Limits the rate of messages after transient refusals, in rounds of `PACE` seconds.

    A refusal begins a pause, which is as long as the time since the broker accepted a message. A round may have a quarter
    more messages than the broker accepted in the round before. There is no limit until the first refusal, nor once a round
    may have 500. The network thread alone uses it, over all connections of a session.
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

    def refused(self) -> None:
        """Begin a pause, unless one has begun in this round."""
        now = time.monotonic()
        self.refused_since = min(self.refused_since, now)
        if self._is_refused:
            return
        if not self.is_active:
            self._accepted = 0
        self._is_refused, self._left = True, 0
        self._next = now + min(LONGEST_PAUSE, max(FIRST_PAUSE, now - self.refused_since)) * jitter()

    def accepted(self, count: int, *, is_acknowledged: bool) -> None:
        """Record messages that the broker has accepted, with or without an acknowledgement among them."""
        self._accepted += count
        if is_acknowledged:
            self.refused_since = math.inf

    def sent(self, count: int) -> None:
        self._left -= count

    def room(self) -> float:
        """How many messages may be sent now."""
        if not self._left and time.monotonic() >= self._next:
            most = self._accepted * 5 // 4 + _FEWEST
            self._left = most if most < _MANY else math.inf
            self._accepted, self._is_refused = 0, False
            self._next = time.monotonic() + PACE
        return self._left


class Rate:
    """Messages per second, measured only while further messages wait: an idle connection is not a slow one."""

    def __init__(self) -> None:
        self._windows: deque[float] = deque(maxlen=RATE_WINDOWS)
        self._start: float | None = None
        self._done = 0

    def measure(self, done: int, *, is_saturated: bool) -> None:
        """Record how many messages are done by now. Call it often."""
        now = time.monotonic()
        if is_saturated and self._start is not None:
            if now - self._start < RATE_WINDOW:
                return
            self._windows.append((done - self._done) / (now - self._start))
        self._start, self._done = now if is_saturated else None, done

    @property
    def value(self) -> float:
        """Infinite until it is known."""
        return max(self._windows, default=math.inf)


class LoopNotifier:
    """Wakes coroutines that wait for a change. Each event loop has one future, for any number of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.AbstractEventLoop, asyncio.Future[None]] = {}

    def notify(self) -> None:
        """Wake all waiting coroutines. Any thread may call it; without waiting coroutines it costs next to nothing."""
        if not self._waiting:
            return
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for loop, change in waiting.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_settle, change)

    def next(self) -> asyncio.Future[None]:
        """Return a future that is done at the next change. It is shared: do not cancel it."""
        loop = asyncio.get_running_loop()
        with self._lock:
            change = self._waiting.get(loop)
            if change is None:
                change = self._waiting[loop] = loop.create_future()
            return change

    async def until(self, condition: Callable[[], bool], timeout: float) -> bool:  # noqa: ASYNC109 - its purpose
        """Wait until the condition holds, at most `timeout` seconds; return whether it holds."""
        deadline = time.monotonic() + timeout
        while True:
            # Before the condition, so that no change is missed between the check and the wait.
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
    """Holds tasks back while more messages wait than fit in memory, or than the broker accepts in half of a flush.

    Half, because the rate may fall. A broker that refuses every message for longer than a flush takes holds no task back.
    The network thread measures; any thread reads.
    """

    def __init__(self, outbox: Outbox, flush_timeout: float) -> None:
        self.throttle = Throttle()
        self._outbox = outbox
        self._room = LoopNotifier()
        self._flush_timeout = flush_timeout
        self._rate = Rate()
        self._most = math.inf

    def restart(self) -> None:
        """Begin a new connection. The time without one counts only if the broker has refused messages before."""
        if self.throttle.refused_since == math.inf:
            self._rate.measure(0, is_saturated=False)

    def refused(self) -> None:
        """Record a transient refusal. Until the rate is known, no more messages may wait than now, or 100."""
        self.throttle.refused()
        if self._most == math.inf:
            self._most = max(_FLOOR_REFUSED, self._outbox.backlog)

    def measure(self) -> None:
        done = self._outbox.sent + self._outbox.lost + self._outbox.resent
        self._rate.measure(done, is_saturated=self._outbox.is_waiting)
        rate, is_throttled = self._rate.value, self.throttle.is_active
        if rate < math.inf:
            self._most = max(1 if is_throttled else FLOOR, rate * self._flush_timeout / 2)
        elif not is_throttled:
            self._most = math.inf

    @property
    def is_full(self) -> bool:
        """Whether no task should start. A quarter of the memory is for the messages of the running tasks."""
        return self._outbox.exceeds(0.75, self._most) and not self._is_given_up()

    @property
    def is_tight(self) -> bool:
        """Whether tasks that wait because it was full should go on waiting."""
        return self._outbox.exceeds(0.5, self._most / 2) and not self._is_given_up()

    def notify(self) -> None:
        """Wake the waiting tasks if there is room."""
        if not self.is_tight:
            self._room.notify()

    async def room(self) -> None:
        """Return when the outbox has room again, or after half a second. Cheap for any number of waiting tasks."""
        change = self._room.next()
        if not self.is_tight:
            return
        # One timer notifies all waiting tasks. To cancel a time limit of each of ten thousand takes seconds.
        timer = asyncio.get_running_loop().call_later(ROOM_CHECK, self._room.notify)
        try:
            await asyncio.wait({change})
        finally:
            timer.cancel()

    def _is_given_up(self) -> bool:
        return time.monotonic() - self.throttle.refused_since > self._flush_timeout
