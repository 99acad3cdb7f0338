"""FIFO wait queue of one key, a pair of run and task name. All its tasks wait for the same rule."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from cascade.runtime.control.constraint import Constraint
from cascade.runtime.control.rules import Key, Rule

MAX_SEGMENTS = 64
"""Changes of what a line waits for that are remembered; of a constraint that comes and goes all the time the rest is one."""


class Segment(NamedTuple):
    """A part of a wait: for what, and from when to when, in nanoseconds since the Unix epoch."""

    constraint: Constraint
    start_ns: int
    end_ns: int


Blocked = Callable[[Constraint, int], None]
"""Told by what a task is held back, and since when."""


class Ticket:
    """One task in a line. `told`: by what it was last said to be held back."""

    __slots__ = ("blocked", "granted", "since_ns", "told")

    def __init__(self, blocked: Blocked, granted: asyncio.Future[None], since_ns: int) -> None:
        self.blocked = blocked
        self.granted = granted
        self.since_ns = since_ns
        self.told: Constraint | None = None

    def tell(self, constraint: Constraint, now_ns: int) -> None:
        if self.told is None or not is_same(self.told, constraint):
            self.told = constraint
            self.blocked(constraint, now_ns)


class Line:
    """Waits at one rule. What it has waited for is remembered here, once for all who stand in it."""

    def __init__(self, key: Key, rule: Rule, now: Callable[[], int]) -> None:
        self.key = key
        self.rule = rule
        self.tickets: OrderedDict[Ticket, None] = OrderedDict()
        self.retelling: asyncio.TimerHandle | None = None
        self.now = now
        self._changes: list[tuple[Constraint, int]] = []
        self.move_to(rule)

    @property
    def constraint(self) -> Constraint:
        return self.rule.constraint

    def move_to(self, rule: Rule) -> None:
        """Wait for that rule from now on, behind all who already do."""
        self.rule.lines.pop(self, None)
        self.rule = rule
        rule.lines[self] = None
        if not self._changes or not is_same(self._changes[-1][0], rule.constraint):
            self._changes.append((rule.constraint, self.now()))
            if len(self._changes) > MAX_SEGMENTS:
                del self._changes[1]

    def end(self) -> None:
        """Nobody waits any more."""
        self.rule.lines.pop(self, None)
        if self.retelling is not None:
            self.retelling.cancel()

    def segments(self, ticket: Ticket) -> list[Segment]:
        """What a ticket has waited for until now."""
        ends = [start_ns for _, start_ns in self._changes[1:]] + [self.now()]
        return [
            Segment(constraint, max(start_ns, ticket.since_ns), end_ns)
            for (constraint, start_ns), end_ns in zip(self._changes, ends, strict=True)
            if end_ns > ticket.since_ns
        ]


def is_same(one: Constraint, other: Constraint) -> bool:
    """Whether who waits is told the same of both."""
    return (one.scope, one.type, one.id) == (other.scope, other.type, other.id)
