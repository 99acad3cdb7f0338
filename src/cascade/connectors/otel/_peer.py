"""What the exporter knows of the other side: whether it lives, when to try again, how long a flush waits for it."""

import math
import random
import time
from collections.abc import Callable, Iterable

from cascade.connectors.otel._transport import Reply

FIRST_PAUSE = 0.2  # seconds before the first retry; then doubled, with jitter
LONGEST_PAUSE = 5.0  # a peer that comes up during a run is found within so many seconds
FLUSH_PAUSE = 0.1  # while somebody waits for a flush, retries come faster
STRANGER_PATIENCE = 0.9  # seconds a flush waits for a peer that has never answered
LONGEST_WAIT = 2.0  # seconds for an answer, or three times the latest one's, until nobody is held back any more
LEAST_TIME = 0.05  # seconds; less is no request
DEAD_PATIENCE = 0.5  # seconds a flush waits for one that has failed

# A generator of our own: what a program draws from its seeded one must not depend on our retries.
_random = random.Random()  # noqa: S311 - jitter is no secret


class Peer:
    """The state of one peer. Guarded by the outbox's lock.

    The rule of patience, for a flush with a time limit of its own: a peer that answered its latest request has all of
    that time; one that has never answered has nine tenths of a second from the flush's start or from when it was first
    asked, whichever is later; one that has failed has half a second from the failure, from the start, or from when it
    has asked to be tried again, whichever is latest, and two failures in a row, the second from a request that began
    during the flush, end it at once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._has_answered = False
        self._failures = 0
        self._pauses = 0
        self._failed_at = 0.0
        self._asked_at = math.inf
        self._tried_at = 0.0
        self._soonest = 0.0
        self._invited_at = 0.0
        self._pause_from = 0.0
        self._pause = 0.0
        self.latency = 0.0  # seconds that the latest answer took
        self.reason = ""

    @property
    def is_dead(self) -> bool:
        return self._failures > 0

    @property
    def is_alive(self) -> bool:
        """Whether it has not failed, and does not let the present request wait for long; one not asked yet is."""
        longest = max(LONGEST_WAIT, 3 * self.latency) if self._has_answered else STRANGER_PATIENCE
        return not self._failures and self._clock() - self._asked_at < longest

    def ask(self, now: float) -> None:
        """A request goes out."""
        self._asked_at = min(self._asked_at, now)

    def record(self, reply: Reply, began: float) -> None:
        """Learn from a reply to a request that began then."""
        now = self._clock()
        self._tried_at = began
        self.latency = now - began
        if reply.dead:
            self._failed_at = self._failed_at if self._failures else now
            self._failures += 1
        else:
            self._has_answered = True
            self._asked_at = math.inf
            self._failures = 0
        if reply.outcome == "retry":
            self._back_off(now, reply.retry_after)
            self.reason = reply.reason
        else:
            self._pauses, self._pause, self._soonest = 0, 0.0, now
            self.reason = ""

    def next_try(self, *, is_flushing: bool) -> float:
        """When the next request may be made; a flush shortens our own pauses, never one that the peer asked for."""
        pause = min(self._pause, FLUSH_PAUSE) if is_flushing else self._pause
        return max(self._soonest, self._pause_from + pause)

    def patience(self, start: float) -> float:
        """Until when a flush that began at `start` waits."""
        if self._failures and self._invited_at:
            return max(start, self._invited_at) + DEAD_PATIENCE
        # Our own work before the first request, such as importing gRPC, is not the peer's fault.
        stranger = math.inf if self._has_answered else max(start, self._asked_at) + STRANGER_PATIENCE
        dead = max(start, self._failed_at) + DEAD_PATIENCE if self._failures else math.inf
        return min(stranger, dead)

    def time_for_request(self, now: float, flushes: Iterable[tuple[float, float]], limit: float) -> float:
        """The seconds for a request that goes out now: while flushes (start, end) wait, no longer than they do."""
        ends = [min(end, self.patience(start)) - now for start, end in flushes]
        return min(limit, max(LEAST_TIME, *ends)) if ends else limit

    def is_hopeless(self, start: float, end: float) -> bool:
        """True when a flush from `start` to `end` can stop waiting: it has had its try, or will not get one."""
        has_tried = self._failures > 1 and self._tried_at >= start
        return has_tried or self._soonest > end

    def _back_off(self, now: float, retry_after: float | None) -> None:
        # Jitter is there so that many processes do not come back all at once: nothing secret.
        self._pause = min(FIRST_PAUSE * 2**self._pauses, LONGEST_PAUSE) * _random.uniform(0.5, 1.0)
        self._pauses = min(self._pauses + 1, 16)
        self._pause_from = now
        self._soonest = now + (retry_after or 0.0)
        self._invited_at = self._soonest if retry_after else 0.0
