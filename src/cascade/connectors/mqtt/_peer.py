"""What is known of the broker, and how long anyone waits for it."""

import math
import random
import time

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 10.0
"""Seconds; a broker that comes back during a run is found within so many."""
REFUSED_PAUSE = 30.0
"""Seconds: wrong credentials seldom become right, and some brokers ban who tries too often."""
PATIENCE = 1.0
"""Seconds without any progress after which a broker is taken for dead."""
FRESH = 5.0
"""Seconds for which a broker that has gone away is expected back: it may be restarting."""

# A generator of our own: what a program draws from its seeded one must not depend on our retries.
_random = random.Random()  # noqa: S311 - jitter is no secret


class Peer:
    """The state of one broker: the session's thread writes, anyone reads."""

    def __init__(self) -> None:
        self.is_connected = False
        self.reason = ""
        self._failed_at = -math.inf
        self._lost_at = -math.inf
        self._is_refused = False
        self._attempts = 0

    @property
    def is_dead(self) -> bool:
        """Whether it was asked, and is not there."""
        return not self.is_connected and max(self._failed_at, self._lost_at) > 0

    def connected(self) -> None:
        self.is_connected = True

    def proved_good(self) -> None:
        """The connection is worth something: when it is lost, the next attempt is made at once."""
        self.reason, self._attempts, self._is_refused = "", 0, False

    def failed(self, reason: str, *, is_refused: bool) -> None:
        """An attempt has failed."""
        self._is_refused = is_refused
        self.reason = reason
        self._failed_at = time.monotonic()

    def lost(self, reason: str) -> None:
        """The connection has ended."""
        self.is_connected = False
        self.reason = reason
        self._lost_at = time.monotonic()

    def next_pause(self) -> float:
        """Seconds until the next attempt: none before the first and its first repetition, then more and more."""
        if self._is_refused:
            return REFUSED_PAUSE
        self._attempts += 1
        if self._attempts <= 2:  # noqa: PLR2004 - as said above
            return 0.0
        return _random.uniform(0.0, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._attempts - 3, 16)))

    def is_hopeless(self, start: float) -> bool:
        """Whether somebody who has waited since `start` for it to be connected can stop."""
        if self.is_connected:
            return False
        if start - self._lost_at < FRESH:
            return time.monotonic() - max(start, self._lost_at) > PATIENCE
        return self._failed_at > start or time.monotonic() - start > PATIENCE
