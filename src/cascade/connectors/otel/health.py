"""Health of a collector, and the log lines about its outages.

The health decides when the next request is due, whether a full queue delays tasks, and how long a flush waits.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cascade._loggers import get_logger
from cascade.connectors.otel.buffer import FlushReport, QueuedItems
from cascade.connectors.otel.reply import Reply
from cascade.spec.retry import random_factor

INITIAL_BACKOFF = 0.2  # seconds before the first retry; then doubled, with jitter
MAX_BACKOFF = 5.0  # seconds, so that a run soon finds a collector that starts later
MAX_FLUSH_BACKOFF = 0.1  # seconds during a flush to an unreachable collector, which waits only briefly
MAX_BUSY_FLUSH_BACKOFF = 1.0  # seconds during a flush to an overloaded collector
FIRST_RESPONSE_WAIT = 0.9  # seconds that a flush waits for a collector that has never responded
MAX_RESPONSE_TIME = 2.0  # seconds, or three times the latest latency, after which a collector counts as unreachable
UNREACHABLE_WAIT = 0.5  # seconds that a flush waits for a collector after a failed request
KNOWN_UNREACHABLE_WAIT = 0.03  # seconds that later flushes wait; at most 0.05 with the start of a thread
HOLD_TIMEOUT = 30.0  # seconds of retryable responses only, after which they no longer delay tasks


class CollectorHealth:
    """State of one collector. The lock of the owner guards it.

    A collector is alive if its latest request got a response of any kind. It is unreachable if the connection was refused or
    broken, or if no response arrived in time. After a retryable response, the same request is sent again later.

    A flush with a time limit waits

    * for the whole time limit if the latest request got a response;
    * for 0.9 s from its start or the first request, whichever is later, if the collector has never responded;
    * for 0.5 s from its start or the first failure, whichever is later, or until the second failure in a row of a request
      that was sent during the flush;
    * for 0.03 s, or until the first failure, if an earlier flush got no response and none has arrived since. When the
      process exits, it is 0.9 s, because the collector may have restarted;
    * for one more response if all responses of the last `hold_timeout` seconds before the flush were retryable.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, hold_timeout: float = HOLD_TIMEOUT) -> None:
        self._clock = clock
        self.hold_timeout = hold_timeout
        self._has_responded = False
        self._responded_at = -math.inf
        self._unanswered_since = math.inf  # the first request after the latest response
        self._retryable_since = math.inf
        self._failures = 0  # in a row
        self._failed_at = 0.0  # the first of these failures
        self._was_unreachable = False  # in an earlier flush, and no response since
        self._known_unreachable_wait = KNOWN_UNREACHABLE_WAIT
        self._latest_request = 0.0
        self._retry_after = 0.0  # set by the collector
        self._backoff_start = 0.0
        self._backoff = 0.0
        self._backoffs = 0
        self.latency = 0.0  # seconds from the latest request to its response
        self.reason = ""

    @property
    def is_failing(self) -> bool:
        """Whether the latest request failed or got a retryable response. Then there is one request at a time."""
        return self._failures > 0 or self._retryable_since < math.inf

    @property
    def is_connected(self) -> bool:
        """Whether the collector has responded, and no request has failed since."""
        return self._has_responded and not self._failures

    @property
    def is_alive(self) -> bool:
        """Whether a full queue delays tasks: the collector responds in time, and not only with retryable responses.

        Before the first request it is alive.
        """
        now = self._clock()
        longest = max(MAX_RESPONSE_TIME, 3 * self.latency) if self._has_responded else FIRST_RESPONSE_WAIT
        return (
            not self._failures
            and now - self._unanswered_since < longest
            and now - self._retryable_since < self.hold_timeout
        )

    def record_request(self, now: float) -> None:
        self._unanswered_since = min(self._unanswered_since, now)

    def record(self, reply: Reply, began: float) -> None:
        """Record the reply to a request that was sent at `began`."""
        now = self._clock()
        self._latest_request = began
        self.latency = now - began
        if reply.unanswered:
            self._failed_at = self._failed_at if self._failures else now
            self._failures += 1
        else:
            self._has_responded = True
            self._responded_at = now
            self._unanswered_since = math.inf
            self._failures = 0
            self._was_unreachable = False
        if reply.outcome == "retry":
            self._retryable_since = self._retryable_since if reply.unanswered else min(self._retryable_since, now)
            # Jitter spreads the requests of many processes.
            self._backoff = min(INITIAL_BACKOFF * 2**self._backoffs, MAX_BACKOFF) * random_factor()
            self._backoffs = min(self._backoffs + 1, 16)
            self._backoff_start = now
            self._retry_after = now + (reply.retry_after or 0.0)
            self.reason = reply.reason
        else:
            self._retryable_since = math.inf
            self._backoffs, self._backoff, self._retry_after = 0, 0.0, now
            self.reason = ""

    def next_request_at(self, *, is_flushing: bool) -> float:
        """Return when the next request may be sent. A flush shortens the backoff, but not a delay that the collector set."""
        longest = math.inf if not is_flushing else MAX_FLUSH_BACKOFF if self._failures else MAX_BUSY_FLUSH_BACKOFF
        return max(self._retry_after, self._backoff_start + min(self._backoff, longest))

    def flush_deadline(self, start: float) -> float:
        """Return the time until which a flush that began at `start` waits."""
        if self._was_unreachable:
            return start + self._known_unreachable_wait
        failed = max(start, self._failed_at) + UNREACHABLE_WAIT if self._failures else math.inf
        if self._has_responded:
            return failed
        # The time before the first request, such as for the import of gRPC, does not count.
        return min(failed, max(start, self._unanswered_since) + FIRST_RESPONSE_WAIT)

    def should_end_flush(self, start: float, end: float) -> bool:
        """Return whether a flush from `start` to `end` cannot deliver more items."""
        if self._retry_after > end:
            return True
        if self._latest_request < start:
            return False
        if self._failures:
            return self._was_unreachable or self._failures > 1
        return self._retryable_since + self.hold_timeout <= start

    def begin_exit(self) -> None:
        """Give the flushes at the exit of the process more time."""
        self._known_unreachable_wait = FIRST_RESPONSE_WAIT

    def record_failed_flush(self, start: float) -> str:
        """Record a flush from `start` until now that left items undelivered. Return the reason.

        Later flushes wait only briefly if a request was sent and no response has arrived during the flush.
        """
        is_unanswered = self._failures > 0 or self._unanswered_since < math.inf
        self._was_unreachable |= is_unanswered and self._responded_at < start
        if self.reason:
            return self.reason
        now = self._clock()
        if is_unanswered:
            return f"no answer within {now - self._unanswered_since:.2g} s"
        return f"{now - start:.2g} s were too short"


logger = get_logger("cascade.connectors.otel")


@dataclass(frozen=True, slots=True)
class ItemLabel:
    """Name of the items of a queue, and their destination, for log lines."""

    noun: str = "spans"
    endpoint: str = ""

    @property
    def place(self) -> str:
        return f" at {self.endpoint}" if self.endpoint else ""


SPANS = ItemLabel()


class OutageLog:
    """Builds the log lines about outages. The lock of the queue guards it.

    An outage starts with a flush that leaves items undelivered, and ends when all these items are sent or lost.
    """

    def __init__(self, label: ItemLabel, clock: Callable[[], float] = time.monotonic) -> None:
        self._label = label
        self._clock = clock
        self._end()

    def _end(self) -> None:
        self._start = math.inf
        self._accepted_at = math.inf  # the first accepted request of the outage
        self._lost_before = 0
        self._late = 0
        self._reported = 0  # undelivered items that a warning has counted
        self._has_reported_loss = False

    def start(self, run: FlushReport, total: FlushReport) -> bool:
        """Return whether the end of a run causes a warning.

        In an outage, the first run with undelivered items and the first run with lost items do.
        """
        if self._start < math.inf:
            is_news = run.lost > 0 and not self._has_reported_loss
        elif run.pending:
            is_news = True
            self._start = self._clock()
            self._lost_before = total.lost - run.lost
        else:
            return True
        if is_news:
            self._reported += run.pending
            self._has_reported_loss = run.lost > 0
        return is_news

    def record_accepted(self, entries: Iterable[QueuedItems]) -> None:
        if self._start < math.inf:
            self._accepted_at = min(self._accepted_at, self._clock())
            self._late += sum(len(entry.items) for entry in entries if entry.put_at <= self._accepted_at)

    def end(self, total: FlushReport, has_pending: Callable[[float], bool]) -> str:
        """Return the line about the end of the outage. It is empty without an outage, and while items of it are queued."""
        if self._start == math.inf or (
            total.pending and (self._accepted_at == math.inf or has_pending(self._accepted_at))
        ):
            return ""
        label, seconds = self._label, self._clock() - self._start
        line = f"the outage{label.place} is over after {seconds:.3g} s: {self._late} {label.noun} were delivered late"
        if lost := total.lost - self._lost_before:
            line += f", {lost} were lost: {total.reason}"
        self._end()
        return line

    def close(self, lost: int, reason: str) -> str:
        """Return the line about the losses at the exit. It is empty if a warning has counted the same items."""
        is_reported = lost <= self._reported and not self._late
        self._end()
        if not lost or is_reported:
            return ""
        return f"{lost} {self._label.noun} were lost{self._label.place} when the process ended: {reason}"


def log_outage(line: str) -> None:
    """Log a line as a warning, unless it is empty. Call it without the lock, because a handler runs code of the user."""
    if line:
        logger.warning("OtelConnector: %s", line)
