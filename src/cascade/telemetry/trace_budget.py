"""Spans and bytes of a trace: the budget of a trace, the reservations of running children, and their costs.

The cost of a child is known at its end, and thousands of children may start before the first one ends. A running child
therefore has a reservation: `_FIRST_SPANS` and `_FIRST_BYTES` at first, then the mean of the ended children plus twice
its deviation, as in TCP's retransmission timer, and not less than `_LEAST_SPANS` and `_LEAST_BYTES`.

The spans of one trace, also of nested runs, have one budget. A full trace has shorter texts and no spans of the program.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from cascade.spec.metadata import ExceptionInfo

PART_SIZE, PART_SPANS = 2_000, 5_000
"""Children of a run or map in one trace; spans in one trace before the next child starts in a new part: Jaeger is quick."""
PART_BYTES = 2_500_000
"""Bytes in one trace before the next child starts in a new part: half of the limit of Tempo, which is 5 MB."""
SPAN_BYTES = 360
"""Encoded bytes of a span without its task's id and name, rounded up."""
KEPT_CALLERS = 1_000
"""Traces of callers whose budgets are kept, some 1,500 bytes each."""
_MOST = 1.5  # of the budget: a running child may exceed its reservation, up to here
_LEAST_MARGIN = 65_536  # bytes of that excess: room for stack traces in the parts of a very small budget
_FIRST_SPANS, _FIRST_BYTES = 25, 12_500  # reservation of a child before the first one has ended
_FAILURE_BYTES = 3_000  # of an attempt that fails, for the first reservation
_SURE_ATTEMPTS = 5  # of a task's attempts, those whose spans are reserved in any case
_KEPT_BYTES = 3 * SPAN_BYTES  # of a child's allowance, for its own last message
_LEAST_SPANS, _LEAST_BYTES = 8, 4_000  # the least reservation: later children may cost more than all earlier ones
_GAIN, _DEVIATION_GAIN, _MARGIN = 1 / 8, 1 / 4, 2  # RFC 6298 has 4 for the margin, for a timer
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
    """Spans and bytes of one trace: those so far, and those reserved for running children."""

    __slots__ = ("bytes", "limits", "reserved_bytes", "reserved_spans", "spans")

    def __init__(self, limits: PartLimits, spans: int = 0, size: int = 0) -> None:
        self.limits = limits
        self.spans, self.bytes = spans, size
        self.reserved_spans = self.reserved_bytes = 0

    def headroom(self) -> tuple[int, int]:
        """Spans and bytes that are left up to the largest size of the trace, beyond all reservations."""
        return (
            self.limits.most_spans - self.spans - self.reserved_spans,
            self.limits.most_bytes - self.bytes - self.reserved_bytes,
        )


class Child:
    """A child of a run or of a map from its start on: its part, its cost so far, and the rest of its reservation.

    The cost has the program's spans, nested runs and failed attempts. The last message repeats the attempts: `attempt`
    is the number of the last one that is counted, `attempt_spans` and `attempt_bytes` are their cost. `shortened` has
    the exceptions of attempts whose texts are shortened, by number, and None for an attempt without a span.

    `left_out` is set for the child that stands for the run.
    """

    is_caller = False
    spans = bytes = left_out = 0
    attempt = attempt_spans = attempt_bytes = 0
    shortened: Mapping[int, ExceptionInfo | None] = MappingProxyType({})

    def __init__(self, part: "Part", estimate: "Estimate", spans: int, size: int) -> None:
        self.part = part
        self.estimate = estimate
        self.reserved_spans, self.reserved_bytes = spans, size
        budget = part.budget
        with _lock:
            budget.reserved_spans += spans
            budget.reserved_bytes += size

    def charge(self, spans: int, size: int) -> None:
        """Count spans and bytes, at the cost of the reservation first; from any thread, also after the child's end."""
        budget = self.part.budget
        with _lock:
            budget.spans += spans
            budget.bytes += size
            self.use(spans, size)

    def use(self, spans: int, size: int) -> None:
        """Count what is in the budget already, for the tasks too that have started the run; `_lock` is held."""
        child: Child | None = self
        while child is not None:
            child.spans += spans
            child.bytes += size
            child.release(min(spans, child.reserved_spans), min(size, child.reserved_bytes))
            child = child.part.outer

    def release(self, spans: int, size: int) -> None:
        budget = self.part.budget
        self.reserved_spans -= spans
        self.reserved_bytes -= size
        budget.reserved_spans -= spans
        budget.reserved_bytes -= size

    def end(self, spans: int, size: int) -> None:
        """Count the spans and bytes of the child's last message, and end its reservation."""
        if self.attempt:  # the last message does not repeat all of very many attempts
            spans, size = max(1, spans - self.attempt_spans), max(SPAN_BYTES, size - self.attempt_bytes)
        part = self.part
        budget, outer = part.budget, part.outer
        with _lock:
            budget.spans += spans
            budget.bytes += size
            budget.reserved_spans -= self.reserved_spans
            budget.reserved_bytes -= self.reserved_bytes
            self.reserved_spans = self.reserved_bytes = 0
            self.spans += spans
            self.bytes += size
            if outer is not None:
                outer.use(spans, size)

    def charge_attempt(self, attempt: int, size: int) -> None:
        """Count the span of an attempt, which the child's last message repeats."""
        self.attempt = attempt
        self.attempt_spans += 1
        self.attempt_bytes += size
        self.charge(1, size)

    def shorten(self, attempt: int, exception: ExceptionInfo | None) -> None:
        """Keep the shortened exception of an attempt for the last message; None leaves the attempt out there."""
        self.shortened = {**self.shortened, attempt: exception}

    def leave_out(self, size: int, run: "Child") -> None:
        """Count a span of the program for which the trace had no room, or the content of the child's span.

        Later children get a reservation for it; the trace does not have it.
        """
        with _lock:
            self.spans += 1
            self.bytes += size
            run.left_out += 1

    def has_room(self, size: int) -> bool:
        """Whether the trace has room for so many bytes of the program's spans, beside the child's own span.

        The number of spans is no reason to leave spans out: storages limit the bytes.
        """
        return self.allowance()[1] >= size + _KEPT_BYTES

    def allowance(self) -> tuple[int, int]:
        """Spans and bytes that the child may still add to its trace."""
        spans, size = self.part.budget.headroom()
        return spans + self.reserved_spans, size + self.reserved_bytes

    def allowance_now(self, attempts: int) -> tuple[int, int]:
        """Spans and bytes for an attempt that has failed, if up to so many further attempts follow.

        Beyond the reservation, of which those have their share, it is a share of what all running children have left.
        """
        spans, size = self.part.budget.headroom()
        later = 2 + 3 * min(attempts, _SURE_ATTEMPTS)  # spans: the task's, its last attempt's; two and a text for each
        share = 2 * max(1, self.part.running)
        return (
            max(0, self.reserved_spans - later) + spans // share,
            max(0, self.reserved_bytes - later * SPAN_BYTES) + size // share,
        )


# Reentrant: a signal handler, or a finalizer that the garbage collector calls, may end a span in the same thread.
_lock = threading.RLock()


def _reset_lock() -> None:
    global _lock  # noqa: PLW0603 - a thread of the parent process may have held it at the fork
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_lock)

_NO_CHILD = 2**63


class Part:
    """One part of the children of a run or map; `has_ended` once a message has the part's root.

    `outer` is the task or the caller in whose trace the run is, if the part is in that trace. `full_at` has the spans
    and bytes at which the part is full. They are larger for a nested run: its children are the cost of a running one.
    """

    __slots__ = (
        "budget",
        "children",
        "end_ns",
        "first",
        "full_at",
        "has_ended",
        "is_closed",
        "last",
        "number",
        "outer",
        "parent",
        "place",
        "running",
        "start_ns",
    )

    def __init__(self, parent: "Parent", number: int, budget: TraceBudget, outer: Child | None = None) -> None:
        self.parent = parent
        self.number = number
        self.budget = budget
        self.outer = outer
        limits, is_nested = budget.limits, outer is not None and not outer.is_caller
        self.full_at = (limits.most_spans, limits.most_bytes) if is_nested else (limits.spans, limits.bytes)
        self.children = self.running = 0
        self.first, self.last = _NO_CHILD, -1
        self.start_ns = self.end_ns = 0
        self.is_closed = self.has_ended = False
        self.place: Any = None  # of the spans of its children, kept by `RunTrace`

    def widen(self, start_ns: int, end_ns: int) -> None:
        """Include the times of a child that has ended."""
        if start_ns < self.start_ns or not self.start_ns:
            self.start_ns = start_ns
        if end_ns > self.end_ns:  # noqa: PLR1730 - faster than `max`, and done for each child
            self.end_ns = end_ns

    def add(self, number: int) -> None:
        """Count a child that starts, with its index or its place in the order."""
        self.children += 1
        self.running += 1
        if number < self.first:  # noqa: PLR1730 - see `widen`
            self.first = number
        if number > self.last:  # noqa: PLR1730 - see `widen`
            self.last = number


class Parent:
    """A run ("") or a map, and the parts of its children. `size` is the number of its children, None if unknown."""

    __slots__ = ("current", "id", "name", "parts", "size", "started", "unannounced")

    def __init__(self, parent_id: str, budget: TraceBudget, outer: Child | None = None, name: str = "") -> None:
        self.id, self.name = parent_id, name
        self.size: int | None = None
        self.current = Part(self, 0, budget, outer)
        self.parts = [self.current]
        self.started = 0
        self.unannounced: list[Part] = []

    def finish(self, part: Part) -> None:
        """Note that the part's last child has ended; the next terminal message of a child has the part's root."""
        part.is_closed = part.has_ended = True
        self.unannounced.append(part)


class _Expected:
    """The expected spans, or bytes, of the next child: the mean of the ended ones plus twice their deviation."""

    __slots__ = ("_deviation", "_least", "_mean", "value")

    def __init__(self, first: int, least: int) -> None:
        self.value, self._least = first, least
        self._mean, self._deviation = float(first), 0.0

    def learn(self, cost: int) -> None:
        if 2 * cost <= self._least == self.value:
            return  # no value is smaller
        error = cost - self._mean
        self._mean += error * _GAIN
        self._deviation += (abs(error) - self._deviation) * _DEVIATION_GAIN
        self.value = max(self._least, int(self._mean + _MARGIN * self._deviation) + 1)


class Estimate:
    """The expected cost of a further child of a map, or of a further task of a name."""

    __slots__ = ("bytes", "spans")

    def __init__(self, attempts: int) -> None:
        sure = min(attempts, _SURE_ATTEMPTS)
        least_spans, least_bytes = max(_LEAST_SPANS, 2 * sure + 1), max(_LEAST_BYTES, (2 * sure + 2) * SPAN_BYTES)
        self.spans = _Expected(max(_FIRST_SPANS, least_spans), least_spans)
        self.bytes = _Expected(max(_FIRST_BYTES, least_bytes + sure * _FAILURE_BYTES), least_bytes)


def without_reservation(part: Part) -> Child:
    """A child for spans that no task has started, such as those of resources."""
    return Child(part, Estimate(0), 0, 0)


_callers: OrderedDict[str, Child] = OrderedDict()


def caller_in(trace_id: str, limits: PartLimits) -> Child:
    """The caller whose trace runs of this process join: together they have the budget of one trace.

    The latest `KEPT_CALLERS` traces are known.
    """
    with _lock:
        caller = _callers.get(trace_id)
        if caller is None:
            caller = without_reservation(Parent("", TraceBudget(limits)).current)
            caller.is_caller = True
        _callers[trace_id] = caller
        _callers.move_to_end(trace_id)
        if len(_callers) > KEPT_CALLERS:
            _callers.popitem(last=False)
        return caller
