"""A clock for tests."""


class FixedClock:
    """A clock that advances only when a test advances it: `cs.Engine(…, clock=FixedClock())`.

    Args:
        now_ns: Its first time, in nanoseconds since the Unix epoch.
        step: Seconds by which each reading advances it.
    """

    def __init__(self, now_ns: int = 1_700_000_000_000_000_000, *, step: float = 0.0) -> None:
        self.now_ns = now_ns
        self._step_ns = round(step * 1e9)

    def __call__(self) -> int:
        now = self.now_ns
        self.now_ns += self._step_ns
        return now

    def advance(self, seconds: float) -> None:
        """Advance the clock. A negative number sets it back, as a correction of the system clock does."""
        self.now_ns += round(seconds * 1e9)
