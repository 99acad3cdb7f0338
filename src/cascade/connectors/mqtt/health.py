"""Health of a broker connection: liveness, reconnection backoff, and the time that a run waits for the broker."""

import math
import time

from cascade.spec.retry import random_factor

FIRST_DELAY = 0.1
MAX_DELAY = 10.0
"""Seconds. The longest delay between two attempts: a broker that restarts during a run is found within this time."""
REFUSED_DELAY = 30.0
"""Seconds between attempts after refused credentials. They seldom become valid, and some brokers ban clients that retry
often."""
ANSWER_TIMEOUT = 1.0
"""Seconds without an answer after which a broker counts as unreachable."""
SHORT_TIMEOUT = 0.1
"""Seconds that a run waits for a broker after an earlier wait has ended without an answer."""
RECOVERY_TIME = 5.0
"""Seconds after a lost connection in which the broker may be restarting."""
_IMMEDIATE = 2
"""Number of attempts without a delay."""


class ConnectionHealth:
    """State of the connection to one broker. The network thread changes it; any thread may read it.

    `silence` is the number of seconds for which that thread has waited for a due answer without any activity of the
    broker. Time in which the operating system did not run the thread is not counted.

    Args:
        previous: The health of the previous session. Its `wait_limit` is kept.
    """

    def __init__(self, previous: "ConnectionHealth | None" = None) -> None:
        self.is_connected = False
        self.reason = ""
        self.silence = 0.0
        self.wait_limit: float = ANSWER_TIMEOUT if previous is None else previous.wait_limit
        """Seconds to wait for a connection, or for any activity of the broker."""
        self.round_trip = 0.0
        """Upper bound of a round trip in seconds. It is added to the time limits, because a broker may be distant."""
        self._reached_at = math.inf
        self.is_busy = False
        """Whether the broker has refused the connection with a transient reason code."""
        self._failed_at = -math.inf
        self._lost_at = -math.inf
        self._is_refused = False
        self._attempts = 0

    @property
    def is_dead(self) -> bool:
        """Whether there is no connection after a failed attempt or a lost connection."""
        return not self.is_connected and max(self._failed_at, self._lost_at) > 0

    @property
    def is_alive(self) -> bool:
        """Whether the broker is connected and answers."""
        return self.is_connected and self.silence < ANSWER_TIMEOUT + self.round_trip

    def record_tcp_connected(self, seconds: float) -> None:
        """Record the seconds that the TCP handshake took."""
        self.round_trip, self._reached_at = seconds, time.monotonic()

    def record_connected(self) -> None:
        self.round_trip = max(self.round_trip, time.monotonic() - self._reached_at)
        self.record_activity()
        self.is_connected, self.is_busy = True, False

    def record_activity(self) -> None:
        """Record that the broker has sent bytes, or has accepted bytes again."""
        self.silence = 0.0
        self.wait_limit = ANSWER_TIMEOUT

    def record_silence(self, seconds: float) -> None:
        """Add seconds without activity while an answer is due."""
        self.silence += seconds

    def record_failed_wait(self) -> None:
        """Record a wait without success. The next wait is short if the broker sent no answer."""
        if not (self.is_alive or self.is_dead):
            self.wait_limit = SHORT_TIMEOUT

    def reset_backoff(self) -> None:
        """Reset the backoff after a useful connection: the next attempt has no delay."""
        self.reason, self._attempts, self._is_refused = "", 0, False

    def record_failure(self, reason: str, *, is_refused: bool, is_busy: bool = False) -> None:
        """Record a failed attempt to connect."""
        self._is_refused = is_refused
        self.reason, self.is_busy = reason, is_busy
        self._failed_at = time.monotonic()

    def record_loss(self, reason: str, *, is_busy: bool = False) -> None:
        """Record the end of the connection."""
        self.is_connected = False
        self.reason, self.is_busy = reason, is_busy
        self._lost_at = time.monotonic()

    def next_delay(self) -> float:
        """Return the seconds until the next attempt, with exponential backoff and jitter."""
        if self._is_refused:
            return REFUSED_DELAY
        self._attempts += 1
        if self._attempts <= _IMMEDIATE:
            return 0.0
        return random_factor(0.0) * min(MAX_DELAY, FIRST_DELAY * 2.0 ** min(self._attempts - 3, 16))

    def should_stop_waiting(self, start: float) -> bool:
        """Return whether a wait that began at `start` (monotonic seconds) should end without an answer."""
        now = time.monotonic()
        if self.is_busy:
            return False
        if self.is_connected:
            return not self.is_alive and now - start > self.wait_limit
        if start - self._lost_at < RECOVERY_TIME:
            return now - max(start, self._lost_at) > self.wait_limit
        return self._failed_at > start or now - start > self.wait_limit
