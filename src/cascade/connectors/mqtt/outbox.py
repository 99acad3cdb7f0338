"""Outgoing messages: in order, bounded in memory, counted; and when tasks must wait because too many wait here."""

import math
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from operator import attrgetter

from cascade.connectors._health import jitter

CAPACITY = 64 << 20
"""Bytes: about 70,000 messages."""
MESSAGE_BYTES = 320
"""Memory of a message beside its body."""
MOST_REPEATS = 10
"""Repetitions of a message after lost connections: new messages arrive even if each connection is short."""
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

_LOOK = 10_000
"""Messages on refused topics that are skipped in search of others."""

_number = attrgetter("number")


@dataclass(slots=True, eq=False)
class OutgoingMessage:
    """A message for the broker.

    `number` is its position in the order; `losses` counts as in PoisonMessageFilter. `refusal` is the reason of its latest
    transient refusal. `arrived_at` is the time of its latest acknowledgement, or 0.
    """

    topic: str
    body: bytes
    qos: int
    traceparent: bytes = b""
    tracestate: str = ""
    number: int = 0
    losses: int = 0
    refusal: str = ""
    arrived_at: float = 0.0
    repeats: int = 0


class Outbox:
    """Queue of messages in the order in which they were put. Any thread puts; the network thread takes and settles.

    A full outbox drops the oldest message of QoS 0, then the oldest of QoS 1. It drops no message that is out, that is,
    taken and not settled. `put_count == sent + lost + backlog`, always.

    The outbox keeps messages of QoS 1 for `resend_window` seconds after their acknowledgement, at most `capacity // 4`
    bytes of them beside `bytes`. `resend` queues them again; `sent`, `lost`, `backlog` and `bytes` ignore the repetition.
    """

    def __init__(self, capacity: int = CAPACITY, resend_window: float = 0.0) -> None:
        self._lock = threading.Lock()
        self._capacity = capacity
        self._resend_window = resend_window
        self._arrived: deque[OutgoingMessage] = deque()  # in the order of their acknowledgements
        self._arrived_bytes = 0
        self._waiting: tuple[deque[OutgoingMessage], deque[OutgoingMessage]] = (deque(), deque())  # by QoS, in order
        self._out: dict[int, OutgoingMessage] = {}
        self._refused: dict[str, None] = {}  # topics, by the time of their latest refusal
        self.bytes = 0
        self.put_count = self.sent = self.lost = 0
        self.retried = self.resent = 0
        """Transient refusals, and repetitions of `resend` that were acknowledged."""
        self.reason = ""
        """Why the latest message was lost."""

    def put(self, message: OutgoingMessage) -> None:
        """Add a message; never blocks. A full outbox drops messages, maybe this one."""
        with self._lock:
            message.number = self.put_count
            self.put_count += 1
            self._waiting[message.qos].append(message)
            self.bytes += len(message.body) + MESSAGE_BYTES
            if self.bytes > self._capacity:
                for queue in self._waiting:
                    while queue and self.bytes > self._capacity:
                        self._lose(queue.popleft(), "more than fits in memory")

    def can_take(self, acknowledged: int) -> bool:
        """Whether `take` would return a message, if at most `acknowledged` messages of QoS 1 may follow."""
        minor, major = self._waiting
        with self._lock:
            if major and acknowledged <= 0:
                return bool(minor) and minor[0].number < major[0].number
        return bool(minor or major)

    def take(self, limit: int, acknowledged: int) -> list[OutgoingMessage]:
        """Return the next messages: at most `limit`, and at most `acknowledged` of them with QoS 1.

        Messages on refused topics get a quarter of the places, unless no others wait.
        """
        taken: list[OutgoingMessage] = []
        skipped: deque[OutgoingMessage] = deque()
        minor, major = self._waiting
        with self._lock:
            tried, trials = next(iter(self._refused), None), max(1, limit // 4)
            while len(taken) < limit and len(skipped) < _LOOK and (minor or major):
                if minor and not (major and major[0].number < minor[0].number):
                    message = minor.popleft()
                elif acknowledged > 0:
                    message = major.popleft()
                else:
                    break
                if tried is not None and message.topic in self._refused:
                    if message.topic != tried or not trials:
                        skipped.append(message)
                        continue
                    trials -= 1
                acknowledged -= message.qos
                taken.append(message)
            while skipped and len(taken) < limit and skipped[0].qos <= acknowledged:
                acknowledged -= skipped[0].qos
                taken.append(skipped.popleft())
            if tried is not None:
                taken.sort(key=_number)
                self._requeue(skipped)
            for message in taken:
                self._out[message.number] = message
        return taken

    def settle(self, messages: Iterable[OutgoingMessage]) -> None:
        """Mark messages as arrived."""
        now = time.monotonic()
        with self._lock:
            for message in messages:
                if self._out.pop(message.number, None) is None:
                    continue
                if message.arrived_at:
                    self.resent += 1
                else:
                    self.sent += 1
                    self.bytes -= len(message.body) + MESSAGE_BYTES
                self._refused.pop(message.topic, None)
                if message.qos and self._resend_window and message.repeats < MOST_REPEATS:
                    message.arrived_at = now
                    self._arrived.append(message)
                    self._arrived_bytes += len(message.body) + MESSAGE_BYTES
            self._forget(now - self._resend_window)

    def resend(self, since: float) -> None:
        """Queue the messages of QoS 1 again that were acknowledged in the `resend_window` before `since`, and forget others."""
        with self._lock:
            self._forget(since - self._resend_window)
            again = [*self._arrived]
            for message in again:
                message.repeats += 1
            self._forget(math.inf)
            self._requeue(again)

    def lose(self, message: OutgoingMessage, reason: str) -> None:
        """Give up a message that is out."""
        with self._lock:
            if self._out.pop(message.number, None) is not None:
                self._lose(message, reason)

    def out(self) -> list[OutgoingMessage]:
        """Return the messages that are out, in order."""
        with self._lock:
            return sorted(self._out.values(), key=_number)

    def recall(self, messages: Iterable[OutgoingMessage], refusal: str = "") -> None:
        """Put messages that will not be acknowledged back into the queue, in order, as far as they are out.

        `refusal` is the reason, if the broker has refused them for now.
        """
        with self._lock:
            back = [message for message in messages if self._out.pop(message.number, None) is not None]
            if refusal:
                self.retried += len(back)
                for message in back:
                    message.refusal = refusal
                    self._refused.pop(message.topic, None)
                    self._refused[message.topic] = None
            self._requeue(back)

    def replace(self, message: OutgoingMessage, body: bytes) -> None:
        """Replace the body of a message that waits or is out."""
        with self._lock:
            if not message.arrived_at:
                self.bytes += len(body) - len(message.body)
            message.body = body

    def abandon(self, before: int, reason: str) -> None:
        """Give up all messages before that number that have not arrived."""
        with self._lock:
            given_up = [self._out.pop(number) for number in [*self._out] if number < before]
            for queue in self._waiting:
                while queue and queue[0].number < before:
                    given_up.append(queue.popleft())
            refusal = next((message.refusal for message in given_up if message.refusal), "")
            reason += f", after {self.retried:,} refusals {refusal!r}" if refusal else ""
            for message in given_up:
                self._lose(message, reason)

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

    def exceeds(self, share: float, most: float) -> bool:
        """Whether the backlog uses that share of the memory, or has more than `most` messages."""
        return self.bytes >= self._capacity * share or self.put_count - self.sent - self.lost > most

    def _lose(self, message: OutgoingMessage, reason: str) -> None:
        self._refused.pop(message.topic, None)
        if not message.arrived_at:
            self.lost += 1
            self.reason = reason
            self.bytes -= len(message.body) + MESSAGE_BYTES

    def _requeue(self, messages: Collection[OutgoingMessage]) -> None:
        for qos, queue in enumerate(self._waiting):
            back = [message for message in messages if message.qos == qos]
            last = max(map(_number, back), default=-1)
            while queue and queue[0].number < last:
                back.append(queue.popleft())
            queue.extendleft(sorted(back, key=_number, reverse=True))

    def _forget(self, before: float) -> None:
        """Forget acknowledged messages: those acknowledged earlier, and the oldest beyond a quarter of the memory."""
        arrived = self._arrived
        while arrived and (arrived[0].arrived_at < before or self._arrived_bytes * 4 > self._capacity):
            self._arrived_bytes -= len(arrived.popleft().body) + MESSAGE_BYTES


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
