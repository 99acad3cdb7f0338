"""Limiters: decide whether one more task may start, for a constraint or for the slots of an executor."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.runtime.control.constraint import Concurrency, Constraint, Matcher, Pause, RateLimit
from cascade.runtime.protocols import ExecutorSlots, Slot, SlotRequest
from cascade.spec.metadata import ConstraintRef

logger = get_logger(__name__)

_ROUNDING = 1e-9
"""Rounding error of a sum of fractions of a token."""


class TokenBucket:
    """Token bucket: gains `rate` tokens per second, up to `burst` (at least 1), and is full at first.

    `clock` returns seconds that do not decrease.
    """

    __slots__ = ("_burst", "_clock", "_rate", "_tokens", "_updated")

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = max(1.0, burst)
        self._clock = clock
        self._tokens = self._burst
        self._updated = clock()

    @property
    def tokens(self) -> float:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate)
        self._updated = now
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

    def put_back(self) -> None:
        """Return a token that was taken and not used."""
        self._tokens = min(self._burst, self.tokens + 1)

    def limit_to(self, other: "TokenBucket") -> None:
        """Limit the tokens to the number in the bucket that this one replaces."""
        self._tokens = min(self._burst, other.tokens)


class AdmissionKey(NamedTuple):
    """The key of all tasks of one run and name that need a slot of the same kind. Admission control treats them alike.

    `run_ids` are the ids of the run and of the runs that it is nested in. A pause applies to a map as a whole
    (`is_map`); limits apply to its items only.
    """

    run_ids: tuple[str, ...]
    name: str
    is_map: bool = False
    slots: ExecutorSlots | None = None


class WaitCause(NamedTuple):
    """Cause of a wait: the reason as in PENDING, and the constraint if there is one."""

    reason: str
    constraint: ConstraintRef | None = None


class Limiter:
    """Limits the starts of tasks. The queues that wait for it take turns.

    `is_removed`: it no longer limits anything. `is_scheduled`: the event loop serves its queues in its next turn.
    """

    __slots__ = ("cause", "is_removed", "is_scheduled", "queues", "timer")
    queues: "OrderedDict[Any, None]"

    def __init__(self, reason: str, constraint: ConstraintRef | None = None) -> None:
        self.cause = WaitCause(reason, constraint)
        self.queues = OrderedDict()
        self.is_removed = False
        self.is_scheduled = False
        self.timer: asyncio.TimerHandle | None = None

    def has_room(self) -> bool:
        """Return True if one more task may start now."""
        raise NotImplementedError

    def acquire(self) -> Slot | None:
        """Count a task that starts. Returns its slot if it needs one."""
        return None

    def reacquire(self) -> None:
        """Count a suspended task that continues."""

    def release(self, *, unused: bool) -> None:
        """Stop counting a task. With `unused`, the task did not start."""

    def delay(self) -> float | None:
        """Return the seconds until there is room, or None if the release of another task makes room."""
        return None

    def drop_reservation(self) -> None:
        """Release the slot that `has_room` has reserved, after the last grant of a turn."""


class ConstraintLimiter(Limiter):
    """Limiter of a constraint."""

    __slots__ = ("constraint", "matches")

    def __init__(self, reason: str, constraint: Constraint) -> None:
        super().__init__(reason, constraint.reference)
        self.constraint = constraint
        self.matches = Matcher(constraint.scope)


class PauseLimiter(ConstraintLimiter):
    __slots__ = ()

    def has_room(self) -> bool:
        return self.is_removed


class ConcurrencyLimiter(ConstraintLimiter):
    """Limits the number of running tasks, including those that were running when the constraint arrived.

    The running tasks are counted at the first use: a limit for tasks that never start costs nothing.
    """

    __slots__ = ("_limit", "_running", "_used")

    def __init__(self, constraint: Concurrency, running: Mapping[AdmissionKey, int]) -> None:
        super().__init__("concurrency", constraint)
        self._limit = constraint.limit
        self._running = running
        self._used: int | None = None

    def has_room(self) -> bool:
        used = self._count() if self._used is None else self._used
        return used < self._limit or self.is_removed

    def acquire(self) -> None:
        if self._used is None:
            self._count()  # `running` contains this task already
        else:
            self._used += 1

    reacquire = acquire

    def release(self, *, unused: bool) -> None:  # noqa: ARG002 - no difference here
        if self._used is None:
            self._count()  # `running` no longer contains this task
        else:
            self._used -= 1

    def _count(self) -> int:
        matching = (n for key, n in self._running.items() if not key.is_map and self.matches(key.run_ids, key.name))
        self._used = sum(matching)
        return self._used


class RateLimiter(ConstraintLimiter):
    __slots__ = ("bucket",)

    def __init__(self, constraint: RateLimit, clock: Callable[[], float]) -> None:
        super().__init__("rate_limit", constraint)
        self.bucket = TokenBucket(constraint.rate, constraint.burst, clock)

    def has_room(self) -> bool:
        return self.is_removed or self.bucket.has_token

    def acquire(self) -> None:
        self.bucket.take()

    def release(self, *, unused: bool) -> None:
        if unused:
            self.bucket.put_back()

    def delay(self) -> float | None:
        return self.bucket.delay


class SlotLimiter(Limiter):
    """Limits the starts to the free slots of an executor. `has_room` reserves a slot, and `acquire` returns it.

    Slots that raise are no longer used: tasks start without them.
    """

    __slots__ = ("_request", "_reserved", "_slots")

    def __init__(self, slots: ExecutorSlots) -> None:
        super().__init__("executor")
        self._slots: ExecutorSlots | None = slots
        self._reserved: Slot | None = None
        self._request: SlotRequest | None = None

    def has_room(self) -> bool:
        if self._reserved is None and self._slots is not None:
            try:
                self._reserved = self._slots.try_acquire()
            except Exception as error:  # noqa: BLE001 - a fault of an executor must not stop the run
                raise_in_tests(error)
                self._disable(error)
        return self._reserved is not None or self._slots is None

    def acquire(self) -> Slot | None:
        slot, self._reserved = self._reserved, None
        return slot

    def drop_reservation(self) -> None:
        if (slot := self.acquire()) is not None:
            slot.release()
        if self._request is not None and not self.queues:
            self._request.withdraw()
            self._request = None

    def request(self, serve: Callable[[Limiter], None]) -> None:
        """Call `serve` once a slot is reserved."""
        if self._request is None and self._slots is not None:
            try:
                self._request = self._slots.request(partial(self._granted, serve))
            except Exception as error:  # noqa: BLE001 - a fault of an executor must not stop the run
                raise_in_tests(error)
                self._disable(error)
                asyncio.get_running_loop().call_soon(serve, self)

    def _granted(self, serve: Callable[[Limiter], None], slot: Slot) -> None:
        self._request = None
        if self._reserved is None and self.queues:
            self._reserved = slot
            serve(self)
        else:
            slot.release()

    def _disable(self, error: Exception) -> None:
        logger.error("%s failed; tasks start without a slot", type(self._slots).__name__, exc_info=error)
        self._slots = None


def limiter_of(
    constraint: Constraint,
    running: Mapping[AdmissionKey, int],
    replaced: Limiter | None,
    clock: Callable[[], float],
) -> ConstraintLimiter:
    """Return the limiter of a constraint. A rate has no more tokens than the limiter that it replaces.

    `running` is the number of running tasks by key, which admission control updates before it calls a limiter.

    Raises:
        RefusedError: The pattern is invalid.
    """
    match constraint:
        case Pause():
            return PauseLimiter("paused", constraint)
        case Concurrency():
            return ConcurrencyLimiter(constraint, running)
        case RateLimit():
            rate = RateLimiter(constraint, clock)
            if isinstance(replaced, RateLimiter):
                rate.bucket.limit_to(replaced.bucket)
            return rate
    raise TypeError(f"{constraint!r} does not limit starts")
