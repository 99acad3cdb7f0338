"""The queue of outgoing messages."""

import math
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from operator import attrgetter

from cascade.connectors.report import ConnectorReport

CAPACITY = 64 << 20
"""Bytes: about 70,000 messages."""
MESSAGE_BYTES = 320
"""Memory of a message beside its body."""
MAX_REPEATS = 10
"""Largest number of times that `resend` repeats a message, so that new messages are sent even if each connection is short."""
_MAX_SKIPPED = 10_000
"""Largest number of messages on refused topics that `take` skips."""

_number = attrgetter("number")


@dataclass(slots=True, eq=False)
class OutgoingMessage:
    """A message for the broker.

    `number` is its position in the order. `losses` is the count of PoisonMessageFilter. `refusal` is the reason of its latest
    transient refusal. `acknowledged_at` is the time of its latest acknowledgement, or 0.
    """

    topic: str
    body: bytes
    qos: int
    traceparent: bytes = b""
    tracestate: str = ""
    number: int = 0
    losses: int = 0
    refusal: str = ""
    acknowledged_at: float = 0.0
    repeats: int = 0


class Outbox:
    """Bounded queue of messages, in the order of `put`. Any thread may call `put`; the network thread takes and settles.

    A full outbox drops the oldest message of QoS 0, then the oldest of QoS 1. It never drops a message in flight, which is
    one that was taken and is not settled. `put_count == sent + lost + backlog` always holds.

    The outbox keeps messages of QoS 1 for `resend_window` seconds after their acknowledgement, up to `capacity // 4` bytes
    in addition to `bytes`. `resend` queues them again. `sent`, `lost`, `backlog` and `bytes` do not count repetitions.
    """

    def __init__(self, capacity: int = CAPACITY, resend_window: float = 0.0) -> None:
        self._lock = threading.Lock()
        self._capacity = capacity
        self._resend_window = resend_window
        self.repeatable: deque[OutgoingMessage] = deque()  # in the order of their acknowledgements
        self.repeatable_bytes = 0
        self.waiting: tuple[deque[OutgoingMessage], deque[OutgoingMessage]] = (deque(), deque())  # by QoS, in order
        self._in_flight: dict[int, OutgoingMessage] = {}
        self._refused: dict[str, None] = {}  # topics, by the time of their latest refusal
        self.bytes = 0
        self.put_count = self.sent = self.lost = 0
        self.retried = self.resent = 0
        """Transient refusals, and repetitions of `resend` that were acknowledged."""
        self.reason = ""
        """The reason of the latest loss."""

    def put(self, message: OutgoingMessage) -> None:
        """Add a message, without blocking. A full outbox drops messages, which can include this one."""
        with self._lock:
            message.number = self.put_count
            self.put_count += 1
            self.waiting[message.qos].append(message)
            self.bytes += len(message.body) + MESSAGE_BYTES
            if self.bytes > self._capacity:
                for queue in self.waiting:
                    while queue and self.bytes > self._capacity:
                        self._drop(queue.popleft(), "more than fits in memory")

    def can_take(self, max_qos_1: int) -> bool:
        """Return whether `take` would return a message, with at most `max_qos_1` messages of QoS 1."""
        qos_0, qos_1 = self.waiting
        with self._lock:
            if qos_1 and max_qos_1 <= 0:
                return bool(qos_0) and qos_0[0].number < qos_1[0].number
        return bool(qos_0 or qos_1)

    def take(self, limit: int, max_qos_1: int) -> list[OutgoingMessage]:
        """Return the next messages: at most `limit`, and at most `max_qos_1` of them with QoS 1.

        Messages on refused topics are at most a quarter of them, unless no others are queued.
        """
        taken: list[OutgoingMessage] = []
        skipped: deque[OutgoingMessage] = deque()
        qos_0, qos_1 = self.waiting
        with self._lock:
            retried_topic, retries_left = next(iter(self._refused), None), max(1, limit // 4)
            while len(taken) < limit and len(skipped) < _MAX_SKIPPED and (qos_0 or qos_1):
                if qos_0 and not (qos_1 and qos_1[0].number < qos_0[0].number):
                    message = qos_0.popleft()
                elif max_qos_1 > 0:
                    message = qos_1.popleft()
                else:
                    break
                if retried_topic is not None and message.topic in self._refused:
                    if message.topic != retried_topic or not retries_left:
                        skipped.append(message)
                        continue
                    retries_left -= 1
                max_qos_1 -= message.qos
                taken.append(message)
            while skipped and len(taken) < limit and skipped[0].qos <= max_qos_1:
                max_qos_1 -= skipped[0].qos
                taken.append(skipped.popleft())
            if retried_topic is not None:
                taken.sort(key=_number)
                self._requeue(skipped)
            for message in taken:
                self._in_flight[message.number] = message
        return taken

    def settle(self, messages: Iterable[OutgoingMessage]) -> None:
        """Mark messages as acknowledged."""
        now = time.monotonic()
        with self._lock:
            for message in messages:
                if self._in_flight.pop(message.number, None) is None:
                    continue
                if message.acknowledged_at:
                    self.resent += 1
                else:
                    self.sent += 1
                    self.bytes -= len(message.body) + MESSAGE_BYTES
                self._refused.pop(message.topic, None)
                if message.qos and self._resend_window and message.repeats < MAX_REPEATS:
                    message.acknowledged_at = now
                    self.repeatable.append(message)
                    self.repeatable_bytes += len(message.body) + MESSAGE_BYTES
            self._forget(now - self._resend_window)

    def resend(self, since: float) -> None:
        """Queue again the messages of QoS 1 that were acknowledged in the `resend_window` before `since`. Forget the others."""
        with self._lock:
            self._forget(since - self._resend_window)
            again = [*self.repeatable]
            for message in again:
                message.repeats += 1
            self._forget(math.inf)
            self._requeue(again)

    def drop(self, message: OutgoingMessage, reason: str) -> None:
        """Drop a message in flight."""
        with self._lock:
            if self._in_flight.pop(message.number, None) is not None:
                self._drop(message, reason)

    def in_flight(self) -> list[OutgoingMessage]:
        """Return the messages in flight, in order."""
        with self._lock:
            return sorted(self._in_flight.values(), key=_number)

    def put_back(self, messages: Iterable[OutgoingMessage], refusal: str = "") -> None:
        """Put messages in flight back into the queue, in order. Other messages are ignored.

        `refusal` is the reason of the broker for a transient refusal.
        """
        with self._lock:
            back = [message for message in messages if self._in_flight.pop(message.number, None) is not None]
            if refusal:
                self.retried += len(back)
                for message in back:
                    message.refusal = refusal
                    self._refused.pop(message.topic, None)
                    self._refused[message.topic] = None
            self._requeue(back)

    def replace(self, message: OutgoingMessage, body: bytes) -> None:
        """Replace the body of a message that is queued or in flight."""
        with self._lock:
            if not message.acknowledged_at:
                self.bytes += len(body) - len(message.body)
            message.body = body

    def abandon(self, before: int, reason: str) -> None:
        """Drop all unacknowledged messages with a number below `before`."""
        with self._lock:
            dropped = [self._in_flight.pop(number) for number in [*self._in_flight] if number < before]
            for queue in self.waiting:
                while queue and queue[0].number < before:
                    dropped.append(queue.popleft())
            refusal = next((message.refusal for message in dropped if message.refusal), "")
            reason += f", after {self.retried:,} refusals {refusal!r}" if refusal else ""
            for message in dropped:
                self._drop(message, reason)

    def has_settled(self, before: int) -> bool:
        """Return whether all messages with a number below `before` are acknowledged or lost."""
        with self._lock:
            heads = [queue[0].number for queue in self.waiting if queue]
            return min(heads, default=before) >= before and min(self._in_flight, default=before) >= before

    @property
    def has_in_flight(self) -> bool:
        """Whether any message is in flight."""
        return bool(self._in_flight)

    @property
    def is_waiting(self) -> bool:
        """Whether any message is queued."""
        qos_0, qos_1 = self.waiting
        return bool(qos_0 or qos_1)

    @property
    def backlog(self) -> int:
        """Number of messages that are queued or in flight."""
        return self.put_count - self.sent - self.lost

    def report(self, *, connected: bool, connection_error: str) -> ConnectorReport:
        """Return a consistent set of counts. Repetitions are not queued messages."""
        with self._lock:
            return ConnectorReport(
                sent=self.sent,
                lost=self.lost,
                retried=self.retried + self.resent,
                queued=self.backlog,
                connected=connected,
                last_error=connection_error or self.reason,
            )

    def exceeds(self, share: float, most: float) -> bool:
        """Return whether the backlog uses that share of the memory, or has more than `most` messages."""
        return self.bytes >= self._capacity * share or self.put_count - self.sent - self.lost > most

    def _drop(self, message: OutgoingMessage, reason: str) -> None:
        self._refused.pop(message.topic, None)
        if not message.acknowledged_at:
            self.lost += 1
            self.reason = reason
            self.bytes -= len(message.body) + MESSAGE_BYTES

    def _requeue(self, messages: Collection[OutgoingMessage]) -> None:
        for qos, queue in enumerate(self.waiting):
            back = [message for message in messages if message.qos == qos]
            last = max(map(_number, back), default=-1)
            while queue and queue[0].number < last:
                back.append(queue.popleft())
            queue.extendleft(sorted(back, key=_number, reverse=True))

    def _forget(self, before: float) -> None:
        """Forget messages that were acknowledged before that time, and the oldest above a quarter of the memory."""
        repeatable = self.repeatable
        while repeatable and (repeatable[0].acknowledged_at < before or self.repeatable_bytes * 4 > self._capacity):
            self.repeatable_bytes -= len(repeatable.popleft().body) + MESSAGE_BYTES
