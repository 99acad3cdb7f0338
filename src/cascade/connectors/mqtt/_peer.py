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
"""Seconds without a word after which a broker is taken for dead."""
BRIEF = 0.1
"""Seconds that are spent on a broker for which somebody has waited in vain already."""
FRESH = 5.0
"""Seconds for which a broker that has gone away is expected back: it may be restarting."""

# A generator of our own: what a program draws from its seeded one must not depend on our retries.
_random = random.Random()  # noqa: S311 - jitter is no secret


class Reputation:
    """What is remembered of a broker from one session to the next."""

    def __init__(self) -> None:
        self.patience = PATIENCE
        """Seconds that it is worth."""

    def found_silent(self) -> None:
        self.patience = BRIEF

    def found_alive(self) -> None:
        self.patience = PATIENCE


class Peer:
    """The state of one broker: the session's thread writes, anyone reads.

    `silence` is for how many seconds that thread has listened for an answer that is due, and nothing has come. No clock
    that others look at can say so: a thread that has had no turn has heard nothing because it has not listened.
    """

    def __init__(self, reputation: Reputation) -> None:
        self.is_connected = False
        self.reason = ""
        self.silence = 0.0
        self._reputation = reputation
        self._failed_at = -math.inf
        self._lost_at = -math.inf
        self._is_refused = False
        self._attempts = 0

    @property
    def is_dead(self) -> bool:
        """Whether it was asked, and is not there."""
        return not self.is_connected and max(self._failed_at, self._lost_at) > 0

    @property
    def is_alive(self) -> bool:
        """Whether it takes what it is sent."""
        return self.is_connected and self.silence < PATIENCE

    @property
    def patience(self) -> float:
        """Seconds for which to wait for it to connect, or to say anything."""
        return self._reputation.patience

    def connected(self) -> None:
        self.heard()
        self.is_connected = True

    def heard(self) -> None:
        """It has said something, or taken something for which there was no room before."""
        self.silence = 0.0
        self._reputation.found_alive()

    def kept_silent(self, seconds: float) -> None:
        """For so long it has not, though an answer is due."""
        self.silence += seconds

    def waited_in_vain(self) -> None:
        """Somebody has waited for it; if it has not even refused, the next will not wait so long."""
        if not (self.is_alive or self.is_dead):
            self._reputation.found_silent()

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
        """Whether somebody who has waited for it since `start` can stop."""
        now = time.monotonic()
        if self.is_connected:
            return not self.is_alive and now - start > self.patience
        if start - self._lost_at < FRESH:
            return now - max(start, self._lost_at) > self.patience
        return self._failed_at > start or now - start > self.patience
