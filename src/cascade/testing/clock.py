"""A clock that a test winds by hand."""


class FixedClock:
    """Stands still until it is advanced; `cs.Engine(…, clock=FixedClock())` takes it.

    Args:
        now_ns: What it shows first, in nanoseconds since the Unix epoch.
        step: Seconds by which each look at it moves it on.
    """

    def __init__(self, now_ns: int = 1_700_000_000_000_000_000, *, step: float = 0.0) -> None:
        self.now_ns = now_ns
        self._step_ns = round(step * 1e9)

    def __call__(self) -> int:
        now = self.now_ns
        self.now_ns += self._step_ns
        return now

    def advance(self, seconds: float) -> None:
        """Move on; a negative number winds it back, as an administrator may do to a machine's clock."""
        self.now_ns += round(seconds * 1e9)
