"""Outgoing messages: in order, bounded in memory, counted; and when tasks must wait because too many wait here."""

import math
import threading
import time
from collections import deque
from collections.abc import Iterable

CAPACITY = 64 << 20
"""Bytes: about 70,000 messages."""
MESSAGE_BYTES = 320
"""Memory of a message beside its body."""
RATE_WINDOW = 0.25
"""Seconds, at least, over which the rate is measured."""
RATE_WINDOWS = 4
"""The best of so many windows counts: in a single one the thread or the broker may have been held up."""
FLOOR = 1_000
"""Messages that may always wait: a burst does not stop a run."""

_FULL = "more than fits in memory"


class OutgoingMessage:
    """A message for the broker. `number` is its position in the order; `losses` counts as in PoisonMessageFilter."""

    __slots__ = ("body", "losses", "number", "qos", "topic", "traceparent", "tracestate")

    def __init__(self, topic: str, body: bytes, qos: int, traceparent: bytes = b"", tracestate: str = "") -> None:
        self.topic = topic
        self.body = body
        self.qos = qos
        self.traceparent = traceparent
        self.tracestate = tracestate
        self.number = 0
        self.losses = 0


class Outbox:
    """Queue of messages in the order in which they were put. Any thread puts; the network thread takes and settles.

    A full outbox drops the oldest message of QoS 0, then the oldest of QoS 1. It drops no message that is out, that is,
    taken and not settled. `put_count == sent + lost + backlog`, always.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._lock = threading.Lock()
        self._capacity = capacity
        self._waiting: tuple[deque[OutgoingMessage], deque[OutgoingMessage]] = (deque(), deque())  # by QoS, in order
        self._out: dict[int, OutgoingMessage] = {}
        self.bytes = 0
        self.put_count = self.sent = self.lost = 0
        self.reason = ""
        """Why the latest message was lost."""
        self.moved_at = -math.inf
        """Time of the latest acknowledgement, or at which a message went out while no other was."""

    def put(self, message: OutgoingMessage) -> None:
        """Add a message; never blocks. A full outbox drops messages, maybe this one."""
        with self._lock:
            message.number = self.put_count
            self.put_count += 1
            self._waiting[message.qos].append(message)
            self.bytes += len(message.body) + MESSAGE_BYTES
            if self.bytes > self._capacity:
                self._make_room()

    def can_take(self, acknowledged: int) -> bool:
        """Whether `take` would return a message, if at most `acknowledged` messages of QoS 1 may follow."""
        minor, major = self._waiting
        if not major or acknowledged > 0:
            return bool(minor or major)
        try:
            return minor[0].number < major[0].number
        except IndexError:  # another thread has just dropped it
            return False

    def take(self, limit: int, acknowledged: int) -> list[OutgoingMessage]:
        """Return the next messages: at most `limit`, and at most `acknowledged` of them with QoS 1."""
        taken: list[OutgoingMessage] = []
        minor, major = self._waiting
        with self._lock:
            if not self._out:
                self.moved_at = time.monotonic()
            while len(taken) < limit and (minor or major):
                if minor and not (major and major[0].number < minor[0].number):
                    message = minor.popleft()
                elif acknowledged > 0:
                    message = major.popleft()
                    acknowledged -= 1
                else:
                    break
                self._out[message.number] = message
                taken.append(message)
        return taken

    def settle(self, messages: Iterable[OutgoingMessage]) -> None:
        """Mark messages as arrived."""
        with self._lock:
            self.moved_at = time.monotonic()
            for message in messages:
                if self._out.pop(message.number, None) is not None:
                    self.sent += 1
                    self.bytes -= len(message.body) + MESSAGE_BYTES

    def lose(self, message: OutgoingMessage, reason: str) -> None:
        """Give up a message that is out."""
        with self._lock:
            if self._out.pop(message.number, None) is not None:
                self._lose(message, reason)

    def out(self) -> list[OutgoingMessage]:
        """Return the messages that are out, in order."""
        with self._lock:
            return sorted(self._out.values(), key=lambda message: message.number)

    def recall(self, messages: Iterable[OutgoingMessage]) -> None:
        """Put messages that will not be acknowledged back to the front of the queue, as far as they are out."""
        in_order = sorted(messages, key=lambda message: message.number)
        with self._lock:
            for message in reversed(in_order):
                if self._out.pop(message.number, None) is not None:
                    self._waiting[message.qos].appendleft(message)

    def replace(self, message: OutgoingMessage, body: bytes) -> None:
        """Replace the body of a message that waits or is out."""
        with self._lock:
            self.bytes += len(body) - len(message.body)
            message.body = body

    def abandon(self, before: int, reason: str) -> None:
        """Give up all messages before that number that have not arrived."""
        with self._lock:
            for message in [message for message in self._out.values() if message.number < before]:
                self._lose(self._out.pop(message.number), reason)
            for queue in self._waiting:
                while queue and queue[0].number < before:
                    self._lose(queue.popleft(), reason)

    def has_settled(self, before: int) -> bool:
        """Whether all messages before that number have arrived or are lost."""
        with self._lock:
            heads = [queue[0].number for queue in self._waiting if queue]
            return min(heads, default=before) >= before and min(self._out, default=before) >= before

    @property
    def is_out(self) -> bool:
        """Whether any message is out."""
        return bool(self._out)

    @property
    def is_waiting(self) -> bool:
        """Whether any message waits to be taken."""
        minor, major = self._waiting
        return bool(minor or major)

    @property
    def backlog(self) -> int:
        """Number of messages that wait or are out."""
        return self.put_count - self.sent - self.lost

    @property
    def is_full(self) -> bool:
        """Whether no task should start. A quarter of the memory is for the messages of the running tasks."""
        return self.bytes * 4 >= self._capacity * 3

    @property
    def is_tight(self) -> bool:
        """Whether tasks that wait because it was full should go on waiting."""
        return self.bytes * 2 > self._capacity

    def _make_room(self) -> None:
        for queue in self._waiting:
            while queue and self.bytes > self._capacity:
                self._lose(queue.popleft(), _FULL)

    def _lose(self, message: OutgoingMessage, reason: str) -> None:
        self.lost += 1
        self.reason = reason
        self.bytes -= len(message.body) + MESSAGE_BYTES


class Rate:
    """Messages per second, measured only while further messages wait: an idle connection is not a slow one."""

    def __init__(self) -> None:
        self._windows: deque[float] = deque(maxlen=RATE_WINDOWS)
        self._start: float | None = None
        self._done = 0

    def restart(self) -> None:
        """Begin a new window, after a lost connection."""
        self._start = None

    def measure(self, done: int, *, is_saturated: bool) -> bool:
        """Record how many messages are done by now; return whether the rate has changed. Call it often."""
        if not is_saturated:
            self._start = None
            return False
        now = time.monotonic()
        if self._start is not None and now - self._start < RATE_WINDOW:
            return False
        is_new = self._start is not None
        if self._start is not None:
            self._windows.append((done - self._done) / (now - self._start))
        self._start, self._done = now, done
        return is_new

    @property
    def value(self) -> float:
        """Infinite until it is known."""
        return max(self._windows, default=math.inf)


class Backpressure:
    """Holds tasks back while more messages wait than fit in memory, or than the broker accepts in half of a flush.

    Half, because the rate may fall. The network thread measures; any thread reads.
    """

    def __init__(self, outbox: Outbox, flush_timeout: float) -> None:
        self._outbox = outbox
        self._seconds = flush_timeout / 2
        self._rate = Rate()
        self._most = math.inf

    def restart(self) -> None:
        self._rate.restart()

    def measure(self) -> None:
        if self._rate.measure(self._outbox.sent + self._outbox.lost, is_saturated=self._outbox.is_waiting):
            self._most = max(FLOOR, self._rate.value * self._seconds)

    @property
    def is_full(self) -> bool:
        """Whether no task should start."""
        return self._outbox.is_full or self._outbox.backlog > self._most

    @property
    def is_tight(self) -> bool:
        """Whether tasks that wait because it was full should go on waiting."""
        return self._outbox.is_tight or self._outbox.backlog * 2 > self._most
