"""Health of a connection: whether the peer is alive, when to try again, and how long a run waits for it."""

import math
import random
import time

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
"""Seconds; a peer that comes back during a run is found within so many."""
REFUSED_PAUSE = 30.0
"""Seconds after refused credentials: they seldom become valid, and some brokers ban a client that retries often."""
PATIENCE = 1.0
"""Seconds without an answer after which a peer counts as dead."""
BRIEF = 0.1
"""Seconds that a run waits for a peer for which an earlier wait was in vain."""
FRESH = 5.0
"""Seconds after a lost connection in which the peer is expected back: it may be restarting."""
_IMMEDIATE = 2
"""The first attempt and its first repetition are made without a pause."""

# A generator of our own: the values of a program's seeded generator must not depend on retries.
_random = random.Random()  # noqa: S311 - jitter is no secret


def jitter() -> float:
    """A factor from 0.5 to 1 for a pause, so that clients do not try again at the same time."""
    return _random.uniform(0.5, 1.0)


class ConnectionHealth:
    """State of the connection to one peer. The network thread writes, any thread reads.

    `silence` is the time in seconds for which that thread has waited for a due answer without any activity of the peer.
    The time in which the thread had no turn does not count.

    Args:
        previous: The health of the session before, whose `patience` goes on.
    """

    def __init__(self, previous: "ConnectionHealth | None" = None) -> None:
        self.is_connected = False
        self.reason = ""
        self.silence = 0.0
        self.patience: float = PATIENCE if previous is None else previous.patience
        """Seconds to wait for the peer to connect, or for any activity."""
        self.round_trip = 0.0
        """Seconds of a round trip to the peer, at most. A peer that is far away has more time for each answer."""
        self._reached_at = math.inf
        self.is_busy = False
        """Whether the peer is alive, but has refused the connection for now."""
        self._failed_at = -math.inf
        self._lost_at = -math.inf
        self._is_refused = False
        self._attempts = 0

    @property
    def is_dead(self) -> bool:
        """Whether an attempt has failed, or the connection was lost."""
        return not self.is_connected and max(self._failed_at, self._lost_at) > 0

    @property
    def is_alive(self) -> bool:
        """Whether the peer accepts messages."""
        return self.is_connected and self.silence < PATIENCE + self.round_trip

    def tcp_connected(self, seconds: float) -> None:
        """TCP has connected, in so many seconds."""
        self.round_trip, self._reached_at = seconds, time.monotonic()

    def connected(self) -> None:
        self.round_trip = max(self.round_trip, time.monotonic() - self._reached_at)
        self.record_activity()
        self.is_connected, self.is_busy = True, False

    def record_activity(self) -> None:
        """The peer has sent bytes, or accepted bytes again after it had accepted none."""
        self.silence = 0.0
        self.patience = PATIENCE

    def record_silence(self, seconds: float) -> None:
        """The peer had no activity for so long, although an answer is due."""
        self.silence += seconds

    def record_failed_wait(self) -> None:
        """A wait has ended without success. If the peer has not even refused, the next wait is brief."""
        if not (self.is_alive or self.is_dead):
            self.patience = BRIEF

    def reset_backoff(self) -> None:
        """The connection was of use: after its end, the next attempt is made at once."""
        self.reason, self._attempts, self._is_refused = "", 0, False

    def failed(self, reason: str, *, is_refused: bool, is_busy: bool = False) -> None:
        """An attempt to connect has failed."""
        self._is_refused = is_refused
        self.reason, self.is_busy = reason, is_busy
        self._failed_at = time.monotonic()

    def lost(self, reason: str, *, is_busy: bool = False) -> None:
        """The connection has ended."""
        self.is_connected = False
        self.reason, self.is_busy = reason, is_busy
        self._lost_at = time.monotonic()

    def next_pause(self) -> float:
        """Seconds until the next attempt, with exponential backoff and jitter."""
        if self._is_refused:
            return REFUSED_PAUSE
        self._attempts += 1
        if self._attempts <= _IMMEDIATE:
            return 0.0
        return _random.uniform(0.0, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._attempts - 3, 16)))

    def is_hopeless(self, start: float) -> bool:
        """Whether a wait that began at `start` can end."""
        now = time.monotonic()
        if self.is_busy:
            return False
        if self.is_connected:
            return not self.is_alive and now - start > self.patience
        if start - self._lost_at < FRESH:
            return now - max(start, self._lost_at) > self.patience
        return self._failed_at > start or now - start > self.patience
