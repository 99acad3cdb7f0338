"""Admission control: evaluates limits and grants permits."""

import asyncio
import time
from collections.abc import Callable

from cascade.runtime._task_group import BURST
from cascade.runtime.control._index import RuleIndex
from cascade.runtime.control.constraint import Constraint
from cascade.runtime.control.line import Blocked, Line, Segment, Ticket
from cascade.runtime.control.rules import Key, PlaceRule, Rule, rule_of
from cascade.runtime.gates import Gates
from cascade.runtime.protocols import Place

RETELL = 0.5
"""Seconds for which tasks must be held back by another constraint before they say so."""
RETELL_PAUSE = 0.05
"""Seconds between two bursts of that: ten thousand that have news must not keep everybody else from theirs."""


class Admission:
    """Counts who is at work, and holds back those for whom a rule has no room.

    Everything is done in one event loop. A start costs a count while nothing is constrained. Of those who wait, each
    key's stand in a line, which waits for one rule at a time: what changes is looked at once for a line, not once for
    each who waits. Lines that wait for the same rule take turns; a burst is served in a turn of the loop.

    Args:
        gates: While they are full nobody who waits is let go: telemetry is behind, and would lose what they say.
        clock: Gives seconds that never run backwards.
    """

    def __init__(self, gates: Gates | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._gates = gates or Gates()
        self._crowded: dict[Rule, None] = {}
        self._room: asyncio.Task[None] | None = None
        self._clock = clock
        self._rules = RuleIndex(self._rule_of)
        self._lines: dict[Key, Line] = {}
        self._at_work: dict[Key, int] = {}

    def enter(self, key: Key) -> bool:
        """Start one, if it may start now: until `leave` it is at work. If it needs a place, `place` returns that."""
        if not self._rules.is_empty or key.places is not None:
            if self._holding(key) is not None:
                return False
            self._count(key)
        else:
            self._at_work[key] = self._at_work.get(key, 0) + 1
        return True

    async def wait(self, key: Key, blocked: Blocked, now: Callable[[], int]) -> list[Segment]:
        """Start one as soon as it may, and say what it has waited for.

        `blocked` is called at once if that is not now, and again when it is held back by something else for a while;
        `now` gives nanoseconds since the Unix epoch.
        """
        rule = self._holding(key)
        if rule is None:
            self._count(key)
            return []
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(key, rule, now)
            self._serve_later(rule)
        ticket = Ticket(blocked, asyncio.get_running_loop().create_future(), now())
        line.tickets[ticket] = None
        ticket.tell(line.constraint, ticket.since_ns)
        try:
            await ticket.granted
        except asyncio.CancelledError:
            if ticket in line.tickets:
                self._withdraw(line, ticket)
            elif not ticket.granted.cancelled():
                self.leave(key, unused=True)
                if (place := self.place(key)) is not None:
                    place.release()
            raise
        return line.segments(ticket)

    def place(self, key: Key) -> Place | None:
        """Return the place that a successful `enter` or `wait` has taken; None if the key needs none."""
        return None if key.places is None else self._rules.place_rule(key.places).taken.popleft()

    def leave(self, key: Key, *, unused: bool = False) -> None:
        """One is at work no more. `unused`: it has not started after all, and takes nothing from a rate."""
        count = self._at_work[key] - 1
        if count:
            self._at_work[key] = count
        else:
            del self._at_work[key]
        if not self._rules.is_empty or key.places is not None:
            for rule in self._rules.of(key):
                rule.give_back(unused=unused)
                if rule.lines and not isinstance(rule, PlaceRule):  # a place has still to be released
                    self._serve(rule)

    def rejoin(self, key: Key) -> None:
        """One that has only stood aside is at work again, whether there is room or not."""
        self._at_work[key] = self._at_work.get(key, 0) + 1
        for rule in () if self._rules.is_empty else self._rules.of(key):
            rule.take_again()

    def put(self, constraint: Constraint) -> None:
        """Apply a constraint, in place of the constraint of the same scope and type.

        Raises:
            RefusedError: The pattern cannot be used.
        """
        before = self._rules.get(constraint)
        if before is None:
            self._rules.put(constraint)
        else:
            rule = self._rule_of(constraint, before)
            self._rules.put(constraint, rule)
            self._retire(before)
            for line in list(before.lines):
                self._move(line, rule)
            self._serve(rule)

    def remove(self, constraint: Constraint) -> None:
        """End the constraint of the same scope and type."""
        if rule := self._rules.pop(constraint):
            self._retire(rule)
            self._serve(rule)

    def forget(self, run_id: str) -> None:
        """Drop the state of a run that has ended."""
        self._rules.forget(run_id, self._at_work)

    def close(self) -> None:
        """End all constraints, after the last run."""
        for rule in self._rules.clear():
            self._retire(rule)
            self._serve(rule)
        room, self._room = self._room, None
        self._crowded.clear()
        if room is not None:
            room.cancel()

    def _rule_of(self, constraint: Constraint, before: Rule | None = None) -> Rule:
        return rule_of(constraint, self._at_work, before, self._clock)

    def _retire(self, rule: Rule) -> None:
        rule.is_retired = True
        if rule.timer is not None:
            rule.timer.cancel()
            rule.timer = None

    def _holding(self, key: Key) -> Rule | None:
        """What holds back one who comes now: its own line, or a rule without room, or with others before it."""
        line = self._lines.get(key)
        if line is not None:
            return line.rule
        for rule in self._rules.of(key):
            if rule.lines or not rule.has_room():
                return rule
        return None

    def _count(self, key: Key) -> None:
        self._at_work[key] = self._at_work.get(key, 0) + 1
        for rule in self._rules.of(key):
            rule.take()

    def _serve(self, rule: Rule) -> None:
        """Let those who wait for a rule go on while it has room."""
        if rule.lines and not rule.is_booked:
            rule.is_booked = True
            asyncio.get_running_loop().call_soon(self._serve_some, rule)

    def _serve_at_once(self, rule: Rule) -> None:
        if not rule.is_booked:
            self._serve_some(rule)

    def _serve_some(self, rule: Rule) -> None:
        rule.is_booked = False
        if rule.timer is not None:
            rule.timer.cancel()
            rule.timer = None
        self._advance_some(rule)
        rule.rest()

    def _advance_some(self, rule: Rule) -> None:
        for _ in range(BURST):
            if not rule.lines:
                return
            if not rule.has_room():
                self._serve_later(rule)
                return
            if self._gates.is_full():
                self._serve_when_heard(rule)
                return
            self._advance(next(iter(rule.lines)))
        self._serve(rule)

    def _serve_when_heard(self, rule: Rule) -> None:
        self._crowded[rule] = None
        if self._room is None:
            self._room = asyncio.get_running_loop().create_task(self._await_room(), name="cascade-control-room")

    async def _await_room(self) -> None:
        while self._gates.is_full():
            await self._gates.room()
        self._room = None
        crowded, self._crowded = self._crowded, {}
        for rule in crowded:
            self._serve(rule)

    def _serve_later(self, rule: Rule) -> None:
        """See that a rule is served once it has room, where neither `leave` nor another constraint does."""
        if isinstance(rule, PlaceRule):
            rule.wait(self._serve_at_once)
        elif rule.timer is None and not rule.is_booked and (delay := rule.delay()) is not None:
            rule.timer = asyncio.get_running_loop().call_later(delay, self._serve_some, rule)

    def _advance(self, line: Line) -> None:
        """The rule of a line has room: its first one starts, unless another rule has none."""
        for rule in self._rules.of(line.key):
            if not rule.has_room():
                self._move(line, rule)
                return
        ticket, _ = line.tickets.popitem(last=False)
        if not ticket.granted.done():  # otherwise it is cancelled, and about to hear of it
            self._count(line.key)
            ticket.granted.set_result(None)
        if line.tickets:
            line.rule.lines.move_to_end(line)
        else:
            self._end(line)

    def _move(self, line: Line, rule: Rule) -> None:
        before = line.rule
        line.move_to(rule)
        if not before.lines:
            before.rest()
        self._serve_later(rule)
        if line.retelling is None:
            line.retelling = asyncio.get_running_loop().call_later(RETELL, self._retell, line)

    def _retell(self, line: Line, tickets: list[Ticket] | None = None) -> None:
        """Let those who still wait say what for, a burst now and then."""
        line.retelling = None
        tickets = list(line.tickets) if tickets is None else tickets
        for ticket in tickets[:BURST]:
            if ticket in line.tickets:
                ticket.tell(line.constraint, line.now())
        if rest := tickets[BURST:]:
            line.retelling = asyncio.get_running_loop().call_later(RETELL_PAUSE, self._retell, line, rest)

    def _withdraw(self, line: Line, ticket: Ticket) -> None:
        del line.tickets[ticket]
        if not line.tickets:
            self._end(line)

    def _end(self, line: Line) -> None:
        line.end()
        if not line.rule.lines:
            line.rule.rest()
        if self._lines.get(line.key) is line:
            del self._lines[line.key]
