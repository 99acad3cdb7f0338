"""Rules: constraints in force, and places of an executor, that limit the start of tasks."""

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
"""The wire's words for a wait."""


class Key(NamedTuple):
    """All tasks of one run and one name that need a place of the same kind: admission control treats them alike.

    `run_ids` are the run's own and those of the runs that it is nested in. A map as a whole is only ever paused: its
    items are what runs.
    """

    run_ids: tuple[str, ...]
    name: str
    is_map: bool = False
    places: Places | None = None


class Rule:
    """A constraint in force, and the lines that wait for it, in their order.

    A rule that `is_retired` has no effect.
    """

    __slots__ = ("constraint", "covers", "is_booked", "is_retired", "lines", "timer")
    lines: "OrderedDict[Any, None]"

    def __init__(self, constraint: Constraint) -> None:
        self.constraint = constraint
        self.covers = Matcher(constraint.scope)
        self.lines = OrderedDict()
        self.is_retired = False
        self.is_booked = False
        self.timer: asyncio.TimerHandle | None = None

    def has_room(self) -> bool:
        """Whether one more may start now."""
        raise NotImplementedError

    def take(self) -> None:
        """One starts."""

    def take_again(self) -> None:
        """One that has started before, and has stood aside, goes on."""

    def give_back(self, *, unused: bool) -> None:
        """One that was counted has ended; `unused`: it has not started after all."""

    def delay(self) -> float | None:
        """Seconds after which there is room by itself; None if somebody else must make it."""
        return None

    def rest(self) -> None:
        """Nothing is granted now: release what `has_room` has reserved."""


class PauseRule(Rule):
    __slots__ = ()

    def has_room(self) -> bool:
        return self.is_retired


class ConcurrencyRule(Rule):
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


class RateRule(Rule):
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


class PlaceRule(Rule):
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
        if self._request is not None and not self.lines:
            self._request.withdraw()
            self._request = None

    def wait(self, serve: Callable[[Rule], None]) -> None:
        """Call `serve` once a place is reserved."""
        if self._request is None and self._places is not None:
            try:
                self._request = self._places.request(partial(self._granted, serve))
            except Exception as error:  # noqa: BLE001 - a fault of an executor must not stop the run
                self._give_up(error)
                asyncio.get_running_loop().call_soon(serve, self)

    def _granted(self, serve: Callable[[Rule], None], place: Place) -> None:
        self._request = None
        if self._reserved is None and self.lines:
            self._reserved = place
            serve(self)
        else:
            place.release()

    def _give_up(self, error: Exception) -> None:
        logger.error("%s failed; tasks start without a place", type(self._places).__name__, exc_info=error)
        self._places = None


_NO_PLACE = NoPlace(Scope("global"), "", None)


def rule_of(
    constraint: Constraint, at_work: Mapping[Key, int], before: Rule | None, clock: Callable[[], float]
) -> Rule:
    """Return the rule for a constraint on starts.

    Args:
        constraint: The constraint.
        at_work: Number of running tasks by key, kept up to date by admission control before it calls the rule.
        before: The rule that this one replaces.
        clock: Returns seconds that never run backwards.

    Raises:
        RefusedError: The pattern cannot be used.
    """
    match constraint:
        case Pause():
            return PauseRule(constraint)
        case Concurrency():
            return ConcurrencyRule(constraint, at_work)
        case RateLimit():
            rate = RateRule(constraint, clock)
            if isinstance(before, RateRule):
                rate.bucket.continue_from(before.bucket)
            return rate
    raise TypeError(f"{constraint!r} says nothing about starts")
