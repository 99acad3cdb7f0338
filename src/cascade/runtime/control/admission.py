"""Who may start: the rules that hold together, who is at work, and who waits for which rule."""

import asyncio
import time
from collections.abc import Callable, Iterator

from cascade.runtime._crew import BURST
from cascade.runtime.control.constraint import Constraint
from cascade.runtime.control.rules import Key, PauseRule, Rule, rule_of

Blocked = Callable[[Constraint], None]
"""Told by which constraint a ticket is held back, and again when it is another one."""


class _Ticket:
    """One task that waits for its start, in the line of the one rule that holds it back."""

    __slots__ = ("blocked", "granted", "key", "rule")

    def __init__(self, key: Key, blocked: Blocked, granted: asyncio.Future[None]) -> None:
        self.key = key
        self.blocked = blocked
        self.granted = granted
        self.rule: Rule | None = None


class Admission:
    """Counts who is at work, and holds back those for whom a rule has no room.

    Everything is done in one event loop. A start costs a count while nothing is constrained. Those who wait are served
    in the order in which they came to the rule that holds them back, a burst of them in a turn of the loop.

    Args:
        clock: Gives seconds that never run backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rules: dict[tuple[str, str], Rule] = {}
        self._at_work: dict[Key, int] = {}
        self._found: dict[Key, tuple[Rule, ...]] = {}

    def enter(self, key: Key) -> bool:
        """Start one, if it may start now: until `leave` it is at work."""
        if self._rules and self._blocking(key) is not None:
            return False
        self._count(key)
        return True

    async def wait(self, key: Key, blocked: Blocked) -> None:
        """Start one as soon as it may; `blocked` is called at once if that is not now."""
        rule = self._blocking(key)
        if rule is None:
            self._count(key)
            return
        ticket = _Ticket(key, blocked, asyncio.get_running_loop().create_future())
        self._park(ticket, rule)
        try:
            await ticket.granted
        except asyncio.CancelledError:
            if ticket.rule is not None:
                del ticket.rule.waiting[ticket]
            elif not ticket.granted.cancelled():
                self.leave(key, unused=True)
            raise

    def leave(self, key: Key, *, unused: bool = False) -> None:
        """One is at work no more. `unused`: it has not started after all, and takes nothing from a rate."""
        count = self._at_work[key] - 1
        if count:
            self._at_work[key] = count
        else:
            del self._at_work[key]
        for rule in self._rules_for(key) if self._rules else ():
            rule.give_back(unused=unused)
            self._serve(rule)

    def rejoin(self, key: Key) -> None:
        """One that has only stood aside is at work again, whether there is room or not."""
        self._at_work[key] = self._at_work.get(key, 0) + 1
        for rule in self._rules_for(key) if self._rules else ():
            rule.take_again()

    def put(self, constraint: Constraint) -> None:
        """Let a constraint hold, in the place of the one of the same scope and type.

        Raises:
            RefusedError: Its pattern cannot be used.
        """
        place = (str(constraint.scope), constraint.type)
        before = self._rules.get(place)
        rule = self._rules[place] = rule_of(constraint, self._at_work, before, self._clock)
        self._found.clear()
        if before is not None:
            self._retire(before)
            for ticket in before.waiting:
                ticket.rule = rule
            rule.waiting, before.waiting = before.waiting, rule.waiting
            self._serve(rule)

    def remove(self, constraint: Constraint) -> None:
        if rule := self._rules.pop((str(constraint.scope), constraint.type), None):
            self._found.clear()
            self._retire(rule)
            self._serve(rule)

    def _retire(self, rule: Rule) -> None:
        rule.is_retired = True
        if rule.timer is not None:
            rule.timer.cancel()
            rule.timer = None

    def _rules_for(self, key: Key) -> tuple[Rule, ...]:
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = tuple(self._covering(key))
        return found

    def _covering(self, key: Key) -> Iterator[Rule]:
        for rule in self._rules.values():
            if rule.covers(key.run_id, key.name) and (not key.is_map or isinstance(rule, PauseRule)):
                yield rule

    def _blocking(self, key: Key, *, is_next: bool = False) -> Rule | None:
        """The first rule that has no room for one more, or has others in its line, unless this one's turn has come."""
        for rule in self._rules_for(key):
            if not rule.has_room() or (rule.waiting and not is_next):
                return rule
        return None

    def _count(self, key: Key) -> None:
        self._at_work[key] = self._at_work.get(key, 0) + 1
        for rule in self._rules_for(key) if self._rules else ():
            rule.take()

    def _park(self, ticket: _Ticket, rule: Rule) -> None:
        ticket.rule = rule
        rule.waiting[ticket] = None
        ticket.blocked(rule.constraint)
        self._serve_later(rule)

    def _serve(self, rule: Rule) -> None:
        """Let those who wait for a rule go on while it has room."""
        if rule.waiting and not rule.is_booked:
            rule.is_booked = True
            asyncio.get_running_loop().call_soon(self._serve_some, rule)

    def _serve_some(self, rule: Rule) -> None:
        rule.is_booked = False
        if rule.timer is not None:
            rule.timer.cancel()
            rule.timer = None
        for _ in range(BURST):
            if not rule.waiting:
                return
            if not rule.has_room():
                self._serve_later(rule)
                return
            self._go_on(rule.waiting.popitem(last=False)[0])
        self._serve(rule)

    def _serve_later(self, rule: Rule) -> None:
        """Where room comes with time, nobody else will say that it is there."""
        if rule.timer is None and not rule.is_booked and (delay := rule.delay()) is not None:
            rule.timer = asyncio.get_running_loop().call_later(delay, self._serve_some, rule)

    def _go_on(self, ticket: _Ticket) -> None:
        ticket.rule = None
        if ticket.granted.done():  # cancelled, and about to hear of it
            return
        blocking = self._blocking(ticket.key, is_next=True)
        if blocking is not None:
            self._park(ticket, blocking)
        else:
            self._count(ticket.key)
            ticket.granted.set_result(None)
