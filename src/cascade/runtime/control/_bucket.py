"""A token bucket."""

from collections.abc import Callable

_ROUNDING = 1e-9
"""Rounding error of a sum of fractions of a token."""


class TokenBucket:
    """Gains `rate` tokens per second, up to `burst` (at least 1), and is full at first. `clock` returns seconds.

    The first token is available at once at any rate, and each further one after a finite time.
    """

    __slots__ = ("_at", "_burst", "_clock", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = max(1.0, burst)
        self._clock = clock
        self._tokens = self._burst
        self._at = clock()

    @property
    def tokens(self) -> float:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        return self._tokens

    @property
    def has_token(self) -> bool:
        return self.tokens >= 1 - _ROUNDING

    @property
    def delay(self) -> float:
        """Seconds until there is a token; 0 if there is one."""
        return max(0.0, 1 - self.tokens) / self._rate

    def take(self) -> None:
        self._tokens = self.tokens - 1

    def give_back(self) -> None:
        """A token was taken and not used."""
        self._tokens = min(self._burst, self.tokens + 1)

    def continue_from(self, other: "TokenBucket") -> None:
        """Begin with no more tokens than another has: a changed limit is no new start."""
        self._tokens = min(self._burst, other.tokens)
