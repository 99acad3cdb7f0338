"""Limiters: constraints in force, and places of an executor, that limit the start of tasks."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from cascade._loggers import get_logger
from cascade.runtime.control._bucket import TokenBucket
from cascade.runtime.control.constraint import Concurrency, Constraint, Matcher, Pause, RateLimit, Scope
from cascade.runtime.protocols import Place, PlaceRequest, Places

logger = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class NoPlace(Constraint):
    """The executor has no free place. No message brings this constraint."""

    @property
    def type(self) -> str:
        return "place"


REASONS: dict[type[Constraint], str] = {
    Pause: "paused",
    Concurrency: "concurrency",
    RateLimit: "rate_limit",
    NoPlace: "executor",
}
"""Reason of a wait on the wire, by the type of the constraint."""


class Key(NamedTuple):
    """All tasks of one run and one name that need a place of the same kind: admission control treats them alike.

    `run_ids` are the id of the run and those of the runs around it. A pause applies to a map as a whole (`is_map`);
    limits apply to its items only.
    """

    run_ids: tuple[str, ...]
    name: str
    is_map: bool = False
    places: Places | None = None


class Limiter:
    """A constraint in force, and the queues that wait for it, in FIFO order.

    `is_retired`: it has no effect any more. `is_booked`: the event loop will serve its queues in its next turn.
    """

    __slots__ = ("constraint", "covers", "is_booked", "is_retired", "queues", "timer")
    queues: "OrderedDict[Any, None]"

    def __init__(self, constraint: Constraint) -> None:
        self.constraint = constraint
        self.covers = Matcher(constraint.scope)
        self.queues = OrderedDict()
        self.is_retired = False
        self.is_booked = False
        self.timer: asyncio.TimerHandle | None = None

    def has_room(self) -> bool:
        """Return True if one more task may start now."""
        raise NotImplementedError

    def take(self) -> None:
        """Count a task that starts."""

    def take_again(self) -> None:
        """Count a task that continues after it was suspended."""

    def give_back(self, *, unused: bool) -> None:
        """Stop counting a task. `unused`: it did not start."""

    def delay(self) -> float | None:
        """Return the seconds until there is room without another event; None if only an event makes room."""
        return None

    def rest(self) -> None:
        """Release the place that `has_room` has reserved, after the last grant of a turn."""


class PauseLimiter(Limiter):
    __slots__ = ()

    def has_room(self) -> bool:
        return self.is_retired


class ConcurrencyLimiter(Limiter):
    """Limits the number of running tasks, with those that ran before the constraint came.

    The tasks in `at_work` are counted at the first use, so that a limit for tasks that never start costs nothing.
    """

    __slots__ = ("_at_work", "_limit", "_used")

    def __init__(self, constraint: Concurrency, at_work: Mapping[Key, int]) -> None:
        super().__init__(constraint)
        self._limit = constraint.limit
        self._at_work = at_work
        self._used: int | None = None

    def has_room(self) -> bool:
        used = self._count() if self._used is None else self._used
        return used < self._limit or self.is_retired

    def take(self) -> None:
        if self._used is None:
            self._count()  # `at_work` contains this task already
        else:
            self._used += 1

    take_again = take

    def give_back(self, *, unused: bool) -> None:  # noqa: ARG002 - no difference here
        if self._used is None:
            self._count()  # `at_work` does not contain this task any more
        else:
            self._used -= 1

    def _count(self) -> int:
        covered = (n for key, n in self._at_work.items() if not key.is_map and self.covers(key.run_ids, key.name))
        self._used = sum(covered)
        return self._used


class RateLimiter(Limiter):
    __slots__ = ("bucket",)

    def __init__(self, constraint: RateLimit, clock: Callable[[], float]) -> None:
        super().__init__(constraint)
        self.bucket = TokenBucket(constraint.rate, constraint.burst, clock)

    def has_room(self) -> bool:
        return self.is_retired or self.bucket.has_token

    def take(self) -> None:
        self.bucket.take()

    def give_back(self, *, unused: bool) -> None:
        if unused:
            self.bucket.give_back()

    def delay(self) -> float | None:
        return self.bucket.delay


class PlaceLimiter(Limiter):
    """Waits for places of an executor. `has_room` reserves a place, which `take` moves to `taken`.

    Places that raise are not used any more: tasks start without them.
    """

    def __init__(self, places: Places) -> None:
        super().__init__(_NO_PLACE)
        self.taken: deque[Place | None] = deque()
        self._places: Places | None = places
        self._reserved: Place | None = None
        self._request: PlaceRequest | None = None

    def has_room(self) -> bool:
        if self._reserved is None and self._places is not None:
            try:
                self._reserved = self._places.try_acquire()
            except Exception as error:  # noqa: BLE001 - a fault of an executor must not stop the run
                self._give_up(error)
        return self._reserved is not None or self._places is None

    def take(self) -> None:
        self.taken.append(self._reserved)
        self._reserved = None

    def rest(self) -> None:
        reserved, self._reserved = self._reserved, None
        if reserved is not None:
            reserved.release()
        if self._request is not None and not self.queues:
            self._request.withdraw()
            self._request = None

    def wait(self, serve: Callable[[Limiter], None]) -> None:
        """Call `serve` once a place is reserved."""
        if self._request is None and self._places is not None:
            try:
                self._request = self._places.request(partial(self._granted, serve))
            except Exception as error:  # noqa: BLE001 - a fault of an executor must not stop the run
                self._give_up(error)
                asyncio.get_running_loop().call_soon(serve, self)

    def _granted(self, serve: Callable[[Limiter], None], place: Place) -> None:
        self._request = None
        if self._reserved is None and self.queues:
            self._reserved = place
            serve(self)
        else:
            place.release()

    def _give_up(self, error: Exception) -> None:
        logger.error("%s failed; tasks start without a place", type(self._places).__name__, exc_info=error)
        self._places = None


_NO_PLACE = NoPlace(Scope("global"), "", None)


def limiter_of(
    constraint: Constraint, at_work: Mapping[Key, int], before: Limiter | None, clock: Callable[[], float]
) -> Limiter:
    """Return the limiter for a constraint on starts.

    Args:
        constraint: The constraint.
        at_work: Number of running tasks by key, kept up to date by admission control before it calls the limiter.
        before: The limiter that this one replaces.
        clock: Returns seconds that never run backwards.

    Raises:
        RefusedError: The pattern cannot be used.
    """
    match constraint:
        case Pause():
            return PauseLimiter(constraint)
        case Concurrency():
            return ConcurrencyLimiter(constraint, at_work)
        case RateLimit():
            rate = RateLimiter(constraint, clock)
            if isinstance(before, RateLimiter):
                rate.bucket.continue_from(before.bucket)
            return rate
    raise TypeError(f"{constraint!r} does not limit starts")
