"""A run's clock."""

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Gives the time in nanoseconds since the Unix epoch."""


class RunClock:
    """Wall-clock time that never runs backwards within a run, whatever is done to the machine's clock."""

    def __init__(self, clock: Clock = time.time_ns) -> None:
        self._clock = clock
        self._last = 0

    @property
    def last_ns(self) -> int:
        """The time that `now_ns` returned last; 0 before the first call."""
        return self._last

    def now_ns(self) -> int:
        self._last = max(self._last, self._clock())
        return self._last
