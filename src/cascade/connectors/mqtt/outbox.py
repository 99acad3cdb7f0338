"""Outgoing messages: in order, bounded in memory, counted; and those that make the broker close the connection."""

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from operator import attrgetter

from cascade.connectors.mqtt.packets import packet_bytes, publish_properties
from cascade.connectors.report import ConnectorReport
from cascade.telemetry import wire
from cascade.telemetry.limits import shrink
from cascade.telemetry.state_schedule import RunStates

CAPACITY = 64 << 20
"""Bytes: about 70,000 messages."""
MESSAGE_BYTES = 320
"""Memory of a message beside its body."""
MOST_REPEATS = 10
"""Repetitions of a message after lost connections: new messages arrive even if each connection is short."""
_LOOK = 10_000
"""Messages on refused topics that are skipped in search of others."""
SOON = 5.0
"""Seconds. A connection that lasts longer has not ended because of the messages that were sent first."""
_ENOUGH_LOSSES, MOST_LOSSES = 2, 4
"""Connections that end early while a message is the only unacknowledged one, before it is shrunk, or dropped. In a row
and with an unacknowledged state, before states are shrunk, or pause."""
PAUSE = 600.0
"""Seconds without states after such connections. The network may have been at fault."""
_BIG, _BIG_STATE = 4_096, 2_000
"""Bytes: a smaller message, or state of a run, was not refused for its size. A state without tasks has about 700."""

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

    def report(self, *, connected: bool, connection_error: str) -> ConnectorReport:
        """Return the counts of one moment. Repetitions that wait for their acknowledgement are not queued messages."""
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


class PoisonMessageFilter:
    """Detects messages that make the broker close the connection, shrinks them, and finally drops them.

    Mosquitto closes the connection, without a reason, for some messages, such as those over its `message_size_limit`. If
    all were sent again, it would close each further connection. After two early ends in a row, the messages that were
    unacknowledged are therefore sent one by one, until the one at fault is known. A state of a run is suspected first,
    because its loss costs less.
    """

    def __init__(self, outbox: Outbox, states: RunStates) -> None:
        self.most = self.most_of_state = math.inf
        """Bytes of a packet that the broker is believed to accept."""
        self.state_losses = 0
        """Early ends with an unacknowledged state since one was accepted."""
        self._outbox = outbox
        self._states = states
        self._early_ends = 0
        self._careful_until = 0

    def window(self, most: int) -> int:
        """How many messages may be unacknowledged at once, if no message is suspected: `most`."""
        if self._careful_until and self._outbox.has_settled(self._careful_until):
            self._careful_until = 0
        return 1 if self._careful_until else most

    def lost(self, seconds: float, reason: str, state_bytes: int = 0) -> bool:
        """Record the end of a connection after so many seconds, before its messages are recalled.

        `state_bytes` is the size of the largest unacknowledged state. Returns whether one message is known to be the reason.
        """
        if state_bytes and seconds < SOON:
            self._lost_state(state_bytes)
            return False
        self._early_ends = self._early_ends + 1 if seconds < SOON else 1
        out = self._outbox.out()
        if not out or seconds >= SOON:
            return False
        if len(out) > 1:
            if self._early_ends > 1:
                self._careful_until = out[-1].number + 1
            return False
        message = out[0]
        message.losses += 1
        if message.losses >= MOST_LOSSES:
            self._outbox.lose(message, f"the connection broke whenever it was sent: {reason}")
        elif message.losses == _ENOUGH_LOSSES and len(message.body) > _BIG:
            self.most = min(self.most, max(_BIG, _largest(message) // 2))
            self.fit(message, 1)
        return message.losses >= _ENOUGH_LOSSES

    def _lost_state(self, size: int) -> None:
        self.state_losses += 1
        if self.state_losses >= _ENOUGH_LOSSES:  # the first end may be a restart of the broker
            self.most_of_state = max(_BIG_STATE, min(self.most_of_state, size // 2))
        if self.state_losses >= MOST_LOSSES:
            self._states.pause("the connection broke whenever it was sent", PAUSE)

    def fit(self, message: OutgoingMessage, most: int) -> bool:
        """Remove optional parts of a message until its packet has at most so many bytes; whether it has."""
        beside = _largest(message) - len(message.body)
        with contextlib.suppress(ValueError, KeyError, AttributeError, TypeError):  # the message is not one of a run
            payload = shrink(wire.loads(message.body), int(min(most, self.most)) - beside)
            self._outbox.replace(message, wire.dumps(payload))
        return beside + len(message.body) <= most


def _largest(message: OutgoingMessage) -> int:
    """The largest size of a packet with the message: with its topic and with an alias."""
    properties = publish_properties(message.traceparent, message.tracestate, alias=1)
    return packet_bytes(message.topic, len(properties) + len(message.body))
