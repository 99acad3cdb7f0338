"""When messages wait for the broker: how fast it accepts them, and when tasks must wait because too many wait here."""

import math
import time
from collections import deque

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


class Backpressure:
    """Holds tasks back while more messages wait than fit in memory, or than the broker accepts in half of a flush.

    Half, because the rate may fall. A broker that refuses every message for longer than a flush takes holds no task back.
    The network thread measures; any thread reads.
    """

    def __init__(self, outbox: Outbox, flush_timeout: float) -> None:
        self.throttle = Throttle()
        self._outbox = outbox
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

    def _is_given_up(self) -> bool:
        return time.monotonic() - self.throttle.refused_since > self._flush_timeout
