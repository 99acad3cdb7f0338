"""Health of a destination: whether it is alive, when the next request is due, how long a flush waits."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cascade._loggers import get_logger
from cascade.connectors._health import jitter
from cascade.connectors.otel.answers import Reply
from cascade.connectors.otel.batch import FlushReport, QueuedItems

INITIAL_BACKOFF = 0.2  # seconds before the first retry; then doubled, with jitter
MAX_BACKOFF = 5.0  # a peer that comes up during a run is found within this time
MAX_FLUSH_BACKOFF = 0.1  # longest pause while a flush waits for a dead peer: its flush_deadline is short
MAX_BUSY_FLUSH_BACKOFF = (
    1.0  # longest pause while a flush waits for a peer that answers "later": an overloaded peer needs room
)
FIRST_ANSWER_WAIT = 0.9  # seconds a flush waits for a peer that has never answered
MAX_ANSWER_TIME = (
    2.0  # seconds for an answer, or three times the latest one's, after which tasks are no longer held back
)
UNREACHABLE_WAIT = 0.5  # seconds a flush waits for a peer after its failure
KNOWN_UNREACHABLE_WAIT = (
    0.03  # seconds a flush waits for a peer that an earlier flush found dead: 0.05 with all around it
)
HOLD_TIMEOUT = 30.0  # seconds of nothing but "later" after which tasks are no longer held back


class CollectorHealth:
    """The state of one destination, kept for as long as its queue. Guarded by the owner's lock.

    A peer is alive once it has answered its latest request, with any answer. It is dead after a request without an
    answer: refused, unreachable or silent. An answer that asks for a later retry is "later".

    A flush with a time limit of its own waits

    * for all of that time if the latest request was answered;
    * 0.9 s if the peer has never answered, from the flush's start or the first request, whichever is later;
    * 0.5 s after a failure or the flush's start, whichever is later, or until a second failure in a row whose request
      began during the flush;
    * 0.03 s, or until the first such failure, if an earlier flush found the peer dead and it has not answered since; 0.9 s
      at the process's exit, because the peer may be back;
    * for one more answer if the peer answered nothing but "later" for `hold_timeout` seconds before the flush.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, hold_timeout: float = HOLD_TIMEOUT) -> None:
        self._clock = clock
        self.hold_timeout = hold_timeout
        self._has_answered = False
        self._answered_at = -math.inf
        self._failures = 0
        self._is_known_dead = False
        self._known_dead_patience = KNOWN_UNREACHABLE_WAIT
        self._later_since = math.inf
        self._pauses = 0
        self._failed_at = 0.0
        self._asked_at = math.inf  # the first request since the latest answer
        self._tried_at = 0.0
        self._soonest = 0.0
        self._pause_from = 0.0
        self._pause = 0.0
        self.latency = 0.0  # seconds that the latest answer took
        self.reason = ""

    @property
    def is_failing(self) -> bool:
        """Whether the latest answer was "later", or there was none: one request at a time is enough then."""
        return self._failures > 0 or self._later_since < math.inf

    @property
    def has_answered(self) -> bool:
        """Return whether the collector has answered, and its latest answer is newer than its latest failure."""
        return self._has_answered and not self._failures

    @property
    def is_alive(self) -> bool:
        """Whether tasks are held back for it: it answers in time, and not only "later" for too long.

        A peer that has not been asked yet is alive.
        """
        now = self._clock()
        longest = max(MAX_ANSWER_TIME, 3 * self.latency) if self._has_answered else FIRST_ANSWER_WAIT
        return not self._failures and now - self._asked_at < longest and now - self._later_since < self.hold_timeout

    def ask(self, now: float) -> None:
        """Record that a request is sent at `now`."""
        self._asked_at = min(self._asked_at, now)

    def record(self, reply: Reply, began: float) -> None:
        """Record the reply to a request that was sent at `began`."""
        now = self._clock()
        self._tried_at = began
        self.latency = now - began
        if reply.dead:
            self._failed_at = self._failed_at if self._failures else now
            self._failures += 1
        else:
            self._has_answered = True
            self._answered_at = now
            self._asked_at = math.inf
            self._failures = 0
            self._is_known_dead = False
        if reply.outcome == "retry":
            self._later_since = self._later_since if reply.dead else min(self._later_since, now)
            self._back_off(now, reply.retry_after)
            self.reason = reply.reason
        else:
            self._later_since = math.inf
            self._pauses, self._pause, self._soonest = 0, 0.0, now
            self.reason = ""

    def next_request_at(self, *, is_flushing: bool) -> float:
        """When the next request may be made; a flush shortens the exporter's own pauses, not one that the peer sent."""
        longest = math.inf if not is_flushing else MAX_FLUSH_BACKOFF if self._failures else MAX_BUSY_FLUSH_BACKOFF
        return max(self._soonest, self._pause_from + min(self._pause, longest))

    def flush_deadline(self, start: float) -> float:
        """Until when a flush that began at `start` waits."""
        if self._is_known_dead:
            return start + self._known_dead_patience
        # Our own work before the first request, such as importing gRPC, is not the peer's fault.
        stranger = math.inf if self._has_answered else max(start, self._asked_at) + FIRST_ANSWER_WAIT
        dead = max(start, self._failed_at) + UNREACHABLE_WAIT if self._failures else math.inf
        return min(stranger, dead)

    def is_flush_futile(self, start: float, end: float) -> bool:
        """Whether a flush from `start` to `end` has nothing left to wait for."""
        if self._soonest > end:
            return True
        if self._tried_at < start:
            return False
        if self._failures:
            return self._is_known_dead or self._failures > 1
        return self._later_since + self.hold_timeout <= start

    def begin_exit(self) -> None:
        """Flushes from now on are the last ones."""
        self._known_dead_patience = FIRST_ANSWER_WAIT

    def end_flush(self, start: float) -> str:
        """A flush that began at `start` ended with undelivered items; the reason.

        Later flushes wait only briefly if no answer came to this one although a request was out.
        """
        has_no_answer = self._failures > 0 or self._asked_at < math.inf
        self._is_known_dead |= has_no_answer and self._answered_at < start
        if self.reason:
            return self.reason
        now = self._clock()
        return (
            f"no answer within {now - self._asked_at:.2g} s" if has_no_answer else f"{now - start:.2g} s were too short"
        )

    def _back_off(self, now: float, retry_after: float | None) -> None:
        # Jitter keeps many processes from returning all at once.
        self._pause = min(INITIAL_BACKOFF * 2**self._pauses, MAX_BACKOFF) * jitter()
        self._pauses = min(self._pauses + 1, 16)
        self._pause_from = now
        self._soonest = now + (retry_after or 0.0)


logger = get_logger("cascade.connectors.otel")


@dataclass(frozen=True, slots=True)
class ItemLabel:
    """The items of a queue, as log lines name them."""

    noun: str = "spans"
    endpoint: str = ""

    @property
    def place(self) -> str:
        return f" at {self.endpoint}" if self.endpoint else ""


SPANS = ItemLabel()


class OutageLog:
    """Log state of one outage. It begins with a flush that leaves items undelivered and ends when these are counted.

    Guarded by the queue's lock, but for `log`.
    """

    def __init__(self, label: ItemLabel, clock: Callable[[], float] = time.monotonic) -> None:
        self._label = label
        self._clock = clock
        self._end()

    def _end(self) -> None:
        self._began = math.inf
        self._answered = math.inf
        self._lost = 0  # of the queue when the outage began
        self._late = 0
        self._announced = 0  # undelivered items that a warning has named
        self._has_told_of_loss = False

    @property
    def is_announced(self) -> bool:
        return self._began < math.inf

    def announce(self, run: FlushReport, total: FlushReport) -> bool:
        """Whether the end of a run with `run` is worth a warning.

        Of an outage these are the first run with undelivered items, and the first with lost ones.
        """
        if self.is_announced:
            is_news = run.lost > 0 and not self._has_told_of_loss
        elif run.pending:
            is_news = True
            self._began = self._clock()
            self._lost = total.lost - run.lost
        else:
            return True
        if is_news:
            self._announced += run.pending
            self._has_told_of_loss = run.lost > 0
        return is_news

    def accepted(self, entries: Iterable[QueuedItems]) -> None:
        """The peer took these entries."""
        if self.is_announced:
            self._answered = min(self._answered, self._clock())
            self._late += sum(len(entry.items) for entry in entries if entry.put_at <= self._answered)

    def ended(self, total: FlushReport, holds: Callable[[float], bool]) -> str:
        """The line about the outage's end; empty while items wait that were put before the peer answered."""
        if not self.is_announced or (total.pending and (self._answered == math.inf or holds(self._answered))):
            return ""
        label, seconds = self._label, self._clock() - self._began
        line = f"the outage{label.place} is over after {seconds:.3g} s: {self._late} {label.noun} were delivered late"
        if lost := total.lost - self._lost:
            line += f", {lost} were lost: {total.reason}"
        self._end()
        return line

    def closed(self, lost: int, reason: str) -> str:
        """The line about items that are lost at the process's end; empty if a warning has named just these."""
        is_named = lost <= self._announced and not self._late
        self._end()
        if not lost or is_named:
            return ""
        return f"{lost} {self._label.noun} were lost{self._label.place} when the process ended: {reason}"


def log_outage(line: str) -> None:
    """Log a line as a warning, unless it is empty. Called without the lock: a handler may do anything."""
    if line:
        logger.warning("OtelConnector: %s", line)
