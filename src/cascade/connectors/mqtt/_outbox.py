"""What is to be sent and what is on its way: in order, bounded in memory, counted."""

import math
import threading
import time
from collections import deque
from collections.abc import Iterable

CAPACITY = 64 << 20
"""Bytes: about 70,000 messages."""
LETTER_BYTES = 320
"""Of memory that a message takes beside its body."""

_FULL = "more than fits in memory"


class Letter:
    """One message. `number` says when it was put; `losses` how often a connection broke while it alone was out."""

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
    """Letters in the order in which they were put. Any thread may put; one thread takes, and settles what it took.

    When it is full, what matters least goes first: of QoS 0 the oldest, then the oldest of QoS 1. What is out is never
    dropped for that. `put_count == sent + lost + what waits or is out`, always.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._lock = threading.Lock()
        self._capacity = capacity
        self._waiting: tuple[deque[Letter], deque[Letter]] = (deque(), deque())  # by QoS, each in order
        self._out: dict[int, Letter] = {}
        self.bytes = 0
        self.put_count = self.sent = self.lost = 0
        self.reason = ""
        self.moved_at = -math.inf
        """When something was last acknowledged, or went out when nothing else was."""

    def put(self, letter: Letter) -> None:
        """Take a letter; never blocks. It may be lost at once, or make others so."""
        with self._lock:
            letter.number = self.put_count
            self.put_count += 1
            self._waiting[letter.qos].append(letter)
            self.bytes += len(letter.body) + LETTER_BYTES
            if self.bytes > self._capacity:
                self._make_room()

    def can_take(self, acknowledged: int) -> bool:
        """Whether there is a next letter and it may go, if there may be so many more that need an acknowledgement."""
        minor, major = self._waiting
        if not major or acknowledged > 0:
            return bool(minor or major)
        try:
            return minor[0].number < major[0].number
        except IndexError:  # another thread has just dropped it
            return False

    def take(self, limit: int, acknowledged: int) -> list[Letter]:
        """The next letters, at most `limit`, of which `acknowledged` with QoS 1."""
        taken: list[Letter] = []
        minor, major = self._waiting
        with self._lock:
            if not self._out:
                self.moved_at = time.monotonic()
            while len(taken) < limit and (minor or major):
                if minor and not (major and major[0].number < minor[0].number):
                    letter = minor.popleft()
                elif acknowledged > 0:
                    letter = major.popleft()
                    acknowledged -= 1
                else:
                    break
                self._out[letter.number] = letter
                taken.append(letter)
        return taken

    def settle(self, letters: Iterable[Letter]) -> None:
        """They have arrived."""
        with self._lock:
            self.moved_at = time.monotonic()
            for letter in letters:
                if self._out.pop(letter.number, None) is not None:
                    self.sent += 1
                    self.bytes -= len(letter.body) + LETTER_BYTES

    def lose(self, letter: Letter, reason: str) -> None:
        """Give up a letter that is out."""
        with self._lock:
            if self._out.pop(letter.number, None) is not None:
                self._lose(letter, reason)

    def out(self) -> list[Letter]:
        """What is on its way, in order."""
        with self._lock:
            return sorted(self._out.values(), key=lambda letter: letter.number)

    def recall(self, letters: Iterable[Letter]) -> None:
        """They are not going to be acknowledged: what of them is out waits again, in front of everything else."""
        in_order = sorted(letters, key=lambda letter: letter.number)
        with self._lock:
            for letter in reversed(in_order):
                if self._out.pop(letter.number, None) is not None:
                    self._waiting[letter.qos].appendleft(letter)

    def replace(self, letter: Letter, body: bytes) -> None:
        """Give a letter that waits or is out another body."""
        with self._lock:
            self.bytes += len(body) - len(letter.body)
            letter.body = body

    def abandon(self, before: int, reason: str) -> None:
        """Lose what was put before that number and has not arrived."""
        with self._lock:
            for letter in [letter for letter in self._out.values() if letter.number < before]:
                self._lose(self._out.pop(letter.number), reason)
            for queue in self._waiting:
                while queue and queue[0].number < before:
                    self._lose(queue.popleft(), reason)

    def has_settled(self, before: int) -> bool:
        """Whether all that was put before that number has arrived or is lost."""
        with self._lock:
            heads = [queue[0].number for queue in self._waiting if queue]
            return min(heads, default=before) >= before and min(self._out, default=before) >= before

    @property
    def is_out(self) -> bool:
        """Whether anything is on its way."""
        return bool(self._out)

    @property
    def is_waiting(self) -> bool:
        """Whether anything is not."""
        minor, major = self._waiting
        return bool(minor or major)

    @property
    def backlog(self) -> int:
        """How many letters wait or are out."""
        return self.put_count - self.sent - self.lost

    @property
    def is_full(self) -> bool:
        """Whether no more should be made: one quarter is for what is going on already."""
        return self.bytes * 4 >= self._capacity * 3

    @property
    def is_tight(self) -> bool:
        """Whether who has stopped because it was full should go on waiting."""
        return self.bytes * 2 > self._capacity

    def _make_room(self) -> None:
        for queue in self._waiting:
            while queue and self.bytes > self._capacity:
                self._lose(queue.popleft(), _FULL)

    def _lose(self, letter: Letter, reason: str) -> None:
        self.lost += 1
        self.reason = reason
        self.bytes -= len(letter.body) + LETTER_BYTES
