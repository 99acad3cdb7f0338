"""The parts of a run's trace: the trace of each child of a run or of a map, and the spans and bytes in these traces.

A part is full when its spans or its encoded bytes reach a budget, or when it has the largest number of children. The
next child that starts then belongs to a new part. The cost of a child is known at its end, and thousands of children may
start before the first one ends. A running child therefore has a reservation: `_FIRST_SPANS` and `_FIRST_BYTES` at first,
as careful as TCP's slow start, then the mean of the ended children plus twice its deviation, as TCP's retransmission timer.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

PART_SIZE = 2_000
"""Children of a run or map in one trace: Jaeger's page stays quick."""
PART_SPANS = 5_000
"""Spans in one trace before the next child starts in a new part: Jaeger's page stays quick."""
PART_BYTES = 2_500_000
"""Bytes in one trace before the next child starts in a new part: half of the limit of Tempo, which is 5 MB."""
SPAN_BYTES = 360
"""Encoded bytes of a span without its task's id and name, rounded up."""
PART_EVENT = "cascade.part"
"""Name of the event on the span of a run or map for each listed part."""
MAX_LISTED_PARTS = 64
"""Parts that the last message and the span of a run or map list: half of the SDK's limit of links and of events."""

_MOST = 1.5  # of the budget: a running child may exceed its reservation, up to here
_LEAST_MARGIN = 65_536  # bytes of that excess: room for stack traces in the parts of a very small budget
_FIRST_SPANS, _FIRST_BYTES = 20, 10_000  # reservation of a child before the first one has ended
_FAILURE_BYTES = 3_000  # of an attempt that fails, for the first reservation
_SURE_ATTEMPTS = 5  # of a task's attempts, those whose spans are reserved in any case
_LEAST_SPANS, _LEAST_BYTES = 8, 4_000  # the least reservation: later children may cost more than all earlier ones
_GAIN, _DEVIATION_GAIN, _MARGIN = 1 / 8, 1 / 4, 2  # RFC 6298 has 4 for the margin, for a timer
_MAX_ESTIMATES = 1_000
_DIGITS = 10


@dataclass(frozen=True, slots=True)
class PartLimits:
    """Children of one parent, spans, and bytes after which a part is full."""

    children: int = PART_SIZE
    spans: int = PART_SPANS
    bytes: int = PART_BYTES

    @property
    def most_spans(self) -> int:
        """Spans that no trace exceeds by the spans of Cascade's own."""
        return int(self.spans * _MOST)

    @property
    def most_bytes(self) -> int:
        """Bytes that no trace exceeds by the spans of Cascade's own."""
        return self.bytes + max(_LEAST_MARGIN, int(self.bytes * (_MOST - 1)))


def part_limits_from_environment(environ: Mapping[str, str] = os.environ) -> PartLimits:
    """The limits with CASCADE_TRACE_PART_SIZE and CASCADE_TRACE_PART_BYTES.

    Raises:
        ValueError: One of them is not a whole number from 1 to 999,999,999.
    """
    return PartLimits(
        children=_number(environ, "CASCADE_TRACE_PART_SIZE", "children", PART_SIZE),
        bytes=_number(environ, "CASCADE_TRACE_PART_BYTES", "bytes", PART_BYTES),
    )


def _number(environ: Mapping[str, str], name: str, unit: str, default: int) -> int:
    given = environ.get(name, "").strip()
    if not given:
        return default
    if not (given.isascii() and given.isdigit() and len(given) < _DIGITS and int(given)):
        raise ValueError(f"{name}={given!r} must be a number of {unit} from 1 to 999,999,999; the default is {default}")
    return int(given)


class TraceBudget:
    """Spans and bytes of one trace: of ended children, reserved for running ones, and the excess of reservations.

    The trace of a nested run is that of the task that started it. Its budget refers to that task as `outer`, and its
    children use what the trace has left up to its largest size.
    """

    __slots__ = (
        "bytes",
        "excess_bytes",
        "excess_spans",
        "limits",
        "outer",
        "reserved_bytes",
        "reserved_spans",
        "spans",
    )

    def __init__(self, limits: PartLimits, outer: "Child | None" = None, spans: int = 0, size: int = 0) -> None:
        self.limits = limits
        self.outer = outer
        self.spans, self.bytes = spans, size
        self.reserved_spans = self.reserved_bytes = 0
        self.excess_spans = self.excess_bytes = 0  # changed by several threads, under `_lock`

    def takes(self, spans: int, size: int) -> bool:
        """Whether a further child with this reservation may start here."""
        if self.outer is not None:
            spans_left, bytes_left = self.headroom()
            return spans <= spans_left and size <= bytes_left
        return (
            self.bytes + self.excess_bytes + self.reserved_bytes + size <= self.limits.bytes
            and self.spans + self.excess_spans + self.reserved_spans + spans <= self.limits.spans
        )

    def headroom(self) -> tuple[int, int]:
        """Spans and bytes that are left up to the largest size of the trace, beyond all reservations."""
        if (outer := self.outer) is not None:
            spans, size = outer.allowance()
            return spans - self.reserved_spans, size - self.reserved_bytes
        return (
            self.limits.most_spans - self.spans - self.excess_spans - self.reserved_spans,
            self.limits.most_bytes - self.bytes - self.excess_bytes - self.reserved_bytes,
        )


class Child:
    """A child of a run or of a map from its start on: its part, its reservation, and the cost so far.

    The cost so far is that of the user's spans, of nested runs and of failed attempts. The child's last message
    repeats the attempts: `noted` is their cost, and the number of the last one. `shortened` has the shortened exceptions of attempts by the attempt's
    number, and None for an attempt without a span.
    """

    spent_spans = spent_bytes = 0
    noted_attempt = noted_spans = noted_bytes = 0
    shortened: Mapping[int, dict[str, str] | None] = MappingProxyType({})

    def __init__(self, part: "Part", estimate: "_Estimate") -> None:
        self.part = part
        self.estimate = estimate
        self.reserved_spans, self.reserved_bytes = estimate.spans, estimate.bytes

    def charge(self, spans: int, size: int) -> None:
        """Count spans and bytes below the child, from any thread, also after its end."""
        budget = self.part.budget
        with _lock:
            self.spent_spans += spans
            self.spent_bytes += size
            budget.excess_spans += _excess(self.spent_spans, spans, self.reserved_spans)
            budget.excess_bytes += _excess(self.spent_bytes, size, self.reserved_bytes)
        if budget.outer is not None:
            budget.outer.charge(spans, size)

    def note(self, attempt: int, size: int) -> None:
        """Count the span of an attempt, which the child's last message repeats."""
        self.noted_attempt = attempt
        self.noted_spans += 1
        self.noted_bytes += size
        self.charge(1, size)

    def shorten(self, attempt: int, exception: dict[str, str] | None) -> None:
        """Keep the shortened exception of an attempt for the child's last message; None leaves the attempt out there."""
        self.shortened = {**self.shortened, attempt: exception}

    def allowance(self) -> tuple[int, int]:
        """Spans and bytes that the child may still add to its trace."""
        spans, size = self.part.budget.headroom()
        return spans + self._spans_left, size + self._bytes_left

    def allowance_now(self, attempts: int) -> tuple[int, int]:
        """Spans and bytes for an attempt that has failed, if up to so many further attempts follow.

        Beyond the reservation, of which those have their share, it is a share of what all running children have left.
        """
        spans, size = self.part.budget.headroom()
        later = 2 + 3 * min(attempts, _SURE_ATTEMPTS)  # spans: the task's, its last attempt's; two and a text for each
        share = 2 * max(1, self.part.running)
        return (
            max(0, self._spans_left - later) + spans // share,
            max(0, self._bytes_left - later * SPAN_BYTES) + size // share,
        )

    @property
    def _spans_left(self) -> int:
        return max(0, self.reserved_spans - self.spent_spans)

    @property
    def _bytes_left(self) -> int:
        return max(0, self.reserved_bytes - self.spent_bytes)


_lock = threading.Lock()


def _reset_lock() -> None:
    global _lock  # noqa: PLW0603 - a thread of the parent process may have held it at the fork
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_lock)


def _excess(spent: int, change: int, reserved: int) -> int:
    """The share of the change by which `spent` exceeds what is reserved."""
    return max(0, spent - reserved) - max(0, spent - change - reserved)


_NO_CHILD = 2**63


def _with_spent(child: Child, spans: int, size: int) -> tuple[int, int]:
    """The cost of a child that has ended, whose last message has that cost. The excess in the budget becomes a part of it."""
    budget = child.part.budget
    # The last message does not repeat all of very many attempts.
    fresh_spans, fresh_bytes = max(1, spans - child.noted_spans), max(SPAN_BYTES, size - child.noted_bytes)
    if budget.outer is not None:
        budget.outer.charge(fresh_spans, fresh_bytes)
    with _lock:
        budget.excess_spans -= max(0, child.spent_spans - child.reserved_spans)
        budget.excess_bytes -= max(0, child.spent_bytes - child.reserved_bytes)
    return child.spent_spans + fresh_spans, child.spent_bytes + fresh_bytes


class Part:
    """One part of the children of a run or map; `has_ended` once a message has the part's root."""

    __slots__ = (
        "budget",
        "children",
        "end_ns",
        "first",
        "has_ended",
        "is_closed",
        "last",
        "number",
        "parent",
        "running",
        "start_ns",
    )

    def __init__(self, parent: "Parent", number: int, budget: TraceBudget) -> None:
        self.parent = parent
        self.number = number
        self.budget = budget
        self.children = self.running = 0
        self.first, self.last = _NO_CHILD, -1
        self.start_ns = self.end_ns = 0
        self.is_closed = self.has_ended = False

    def widen(self, start_ns: int, end_ns: int) -> None:
        """Include the times of a child that has ended."""
        self.start_ns = min(self.start_ns, start_ns) if self.start_ns else start_ns
        self.end_ns = max(self.end_ns, end_ns)


class Parent:
    """A run ("") or a map, and the parts of its children. `size` is the number of its children, None if unknown."""

    __slots__ = ("current", "id", "name", "parts", "size", "started", "unannounced")

    def __init__(self, parent_id: str, budget: TraceBudget, name: str = "", size: int | None = None) -> None:
        self.id, self.name, self.size = parent_id, name, size
        self.current = Part(self, 0, budget)
        self.parts = [self.current]
        self.started = 0
        self.unannounced: list[Part] = []

    def finish(self, part: Part) -> None:
        """Note that the part's last child has ended; the next terminal message of a child has the part's root."""
        part.is_closed = part.has_ended = True
        self.unannounced.append(part)


class _Estimate:
    """The expected cost of a further child of a map, or of a further task of a name."""

    __slots__ = ("_bytes", "_bytes_deviation", "_calm", "_least", "_spans", "_spans_deviation", "bytes", "spans")

    def __init__(self, attempts: int) -> None:
        sure = min(attempts, _SURE_ATTEMPTS)
        self._least = max(_LEAST_SPANS, 2 * sure + 1), max(_LEAST_BYTES, (2 * sure + 2) * SPAN_BYTES)
        self.spans = max(_FIRST_SPANS, self._least[0])
        self.bytes = max(_FIRST_BYTES, self._least[1] + sure * _FAILURE_BYTES)
        self._spans, self._bytes = float(self.spans), float(self.bytes)
        self._spans_deviation = self._bytes_deviation = 0.0
        self._calm = False

    def learn(self, spans: int, size: int) -> None:
        """Take the cost of a child that has ended into account."""
        least_spans, least_bytes = self._least
        if self._calm and spans * 2 <= least_spans and size * 2 <= least_bytes:
            return  # no reservation is smaller
        error = spans - self._spans
        self._spans += error * _GAIN
        self._spans_deviation += (abs(error) - self._spans_deviation) * _DEVIATION_GAIN
        self.spans = max(least_spans, int(self._spans + _MARGIN * self._spans_deviation) + 1)
        error = size - self._bytes
        self._bytes += error * _GAIN
        self._bytes_deviation += (abs(error) - self._bytes_deviation) * _DEVIATION_GAIN
        self.bytes = max(least_bytes, int(self._bytes + _MARGIN * self._bytes_deviation))
        self._calm = self.spans == least_spans and self.bytes == least_bytes


class TraceParts:
    """Gives each child of a run and of its maps a part, and finds the parts whose last child has ended.

    It belongs to one run and is used in the event loop of the run; `Child.charge` may be called in any thread. Without
    `activate`, which the subscriber that makes the messages calls, the run is not split. `outer` is the task that has
    started the run and whose trace the run is in, or None.
    """

    def __init__(self, limits: PartLimits | None = None, outer: Child | None = None) -> None:
        self.limits = limits or PartLimits()
        self.is_active = False
        self._parents = {"": Parent("", TraceBudget(self.limits, outer))}
        self.own = Child(self._parents[""].current, _Estimate(0))
        self.own.reserved_spans = self.own.reserved_bytes = 0
        self._estimates: dict[str, _Estimate] = {}
        self._running: dict[str, Child] = {}
        self._last: tuple[str, Child, list[Part]] | None = None
        self._numbers: dict[str, int] = {}

    def activate(self, spans: int = 2, size: int = 3 * SPAN_BYTES) -> None:
        """Split the run from now on; by default with the cost of the run's span and of its marker."""
        if not self.is_active:
            self.is_active = True
            self.own.charge(spans, size)

    def expect(self, parent_id: str, name: str, size: int) -> None:
        """Set the name and the number of children of the run, or of a map that was started here as a child."""
        parent = self._parents.get(parent_id)
        if parent is None:
            child = self._running.get(parent_id)
            budget = self._parents[""].current.budget if child is None else child.part.budget
            parent = self._parents[parent_id] = Parent(parent_id, budget)
        parent.name, parent.size = name, size

    def start(
        self, task_id: str, name: str, map_id: str | None = None, index: int | None = None, attempts: int = 0
    ) -> Child:
        """Give a child of the run, or of a map, a part. `attempts` is the number of retries that its policy allows."""
        parent_id = map_id or ""
        parent = self._parents.get(parent_id)
        if parent is None:
            parent = self._parents[parent_id] = Parent(parent_id, self._parents[""].current.budget, f"map({name})")
        estimate = self._estimates.get(map_id or name) or self._new_estimate(map_id or name, attempts)
        part = parent.current
        if not self._has_room(part, estimate):
            part = self._next(parent)
        number = parent.started if index is None else index
        part.first = min(part.first, number)
        part.last = max(part.last, number)
        part.children += 1
        part.running += 1
        parent.started += 1
        child = self._running[task_id] = Child(part, estimate)
        budget = part.budget
        budget.reserved_spans += child.reserved_spans
        budget.reserved_bytes += child.reserved_bytes
        if part.number and map_id is None:
            self._numbers[task_id] = part.number
        return child

    def child(self, task_id: str) -> Child | None:
        """The running child, or the one whose end was the last; None for others."""
        child = self._running.get(task_id)
        if child is None and self._last is not None and self._last[0] == task_id:
            return self._last[1]
        return child

    def number_of(self, task_id: str, map_id: str | None = None) -> int:
        """The part of a child: of a task or map from its start on, of an item while it runs; else 0."""
        child = self.child(task_id)
        if child is not None:
            return child.part.number
        return self._numbers.get(task_id, 0) if map_id is None else 0

    def end(
        self, task_id: str, child: Child, spans: int, size: int, start_ns: int, end_ns: int, *, ran: bool
    ) -> list[Part]:
        """Replace the reservation of a child by its cost: the spans and bytes of its last message, and those so far.

        Returns the parts that have ended, whose roots belong to this message. A child that has not run, such as a
        skipped one, does not count for the reservations of others.
        """
        if self._running.pop(task_id, None) is None:  # a second subscriber to the same event
            return self._last[2] if self._last is not None and self._last[0] == task_id else []
        part, budget = child.part, child.part.budget
        budget.reserved_spans -= child.reserved_spans
        budget.reserved_bytes -= child.reserved_bytes
        if child.spent_spans or child.spent_bytes:
            spans, size = _with_spent(child, spans, size)
        elif budget.outer is not None:
            budget.outer.charge(spans, size)
        budget.spans += spans
        budget.bytes += size
        child.reserved_spans = child.reserved_bytes = 0
        if ran:
            child.estimate.learn(spans, size)
        ended = self._leave(part, child.estimate, start_ns, end_ns)
        self._last = task_id, child, ended
        return ended

    def close(self, parent_id: str) -> tuple[list[Part], int]:
        """Forget a map or the run, whose last message is made. Returns the parts to list, and how many there are.

        Those whose roots no message has are listed in any case.
        """
        parent = self._parents.pop(parent_id, None)
        if parent is None:
            return [], 0
        self._estimates.pop(parent_id, None)
        for part in parent.unannounced:
            part.has_ended = False
        further = parent.parts[1:]
        if len(further) <= MAX_LISTED_PARTS:
            return further, len(further)
        rootless = sum(not part.has_ended for part in further)
        room = max(0, MAX_LISTED_PARTS - rootless)
        listed = {id(part) for part in [part for part in further if part.has_ended][:room]}
        return [part for part in further if not part.has_ended or id(part) in listed], len(further)

    def _leave(self, part: Part, estimate: _Estimate, start_ns: int, end_ns: int) -> list[Part]:
        parent = part.parent
        part.running -= 1
        if part.number:
            part.widen(start_ns, end_ns)
            if (
                not part.running
                and not part.has_ended
                and (parent.current is not part or parent.started == parent.size or not self._has_room(part, estimate))
            ):
                parent.finish(part)
        if not parent.unannounced:
            return []
        ended, parent.unannounced = parent.unannounced, []
        return ended

    def _has_room(self, part: Part, estimate: _Estimate) -> bool:
        if part.is_closed or part.children >= self.limits.children:
            return False
        if part.budget.takes(estimate.spans, estimate.bytes):
            return True
        # Any child fits into an empty part. Part 0 is empty in this sense if no other trace is around it.
        return not part.children and (part.number > 0 or (not part.parent.id and part.budget.outer is None))

    def _next(self, parent: Parent) -> Part:
        before = parent.current
        if before.number and not before.running and not before.has_ended:
            parent.finish(before)
        budget = TraceBudget(self.limits, spans=1, size=2 * SPAN_BYTES)  # of the part's root
        part = parent.current = Part(parent, before.number + 1, budget)
        parent.parts.append(part)
        return part

    def _new_estimate(self, key: str, attempts: int) -> _Estimate:
        if len(self._estimates) >= _MAX_ESTIMATES:
            key = ""
        found = self._estimates[key] = self._estimates.get(key) or _Estimate(attempts)
        return found
