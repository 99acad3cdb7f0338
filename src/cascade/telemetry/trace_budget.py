"""Spans and bytes of a trace: the budget of a trace, the reservations of running children, and their costs.

The cost of a child is known at its end, and thousands of children may start before the first one ends. A running child
therefore has a reservation: `_FIRST_SPANS` and `_FIRST_BYTES` at first, as careful as TCP's slow start, then the mean of
the ended children plus twice its deviation, as TCP's retransmission timer, and not less than `_LEAST_SPANS` and
`_LEAST_BYTES`.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

PART_SIZE = 2_000
"""Children of a run or map in one trace: Jaeger's page stays quick."""
PART_SPANS = 5_000
"""Spans in one trace before the next child starts in a new part: Jaeger's page stays quick."""
PART_BYTES = 2_500_000
"""Bytes in one trace before the next child starts in a new part: half of the limit of Tempo, which is 5 MB."""
SPAN_BYTES = 360
"""Encoded bytes of a span without its task's id and name, rounded up."""
KEPT_CALLERS = 1_000
"""Traces of callers whose budgets are kept, some 1,500 bytes each."""
_MOST = 1.5  # of the budget: a running child may exceed its reservation, up to here
_LEAST_MARGIN = 65_536  # bytes of that excess: room for stack traces in the parts of a very small budget
_FIRST_SPANS, _FIRST_BYTES = 20, 10_000  # reservation of a child before the first one has ended
_FAILURE_BYTES = 3_000  # of an attempt that fails, for the first reservation
_SURE_ATTEMPTS = 5  # of a task's attempts, those whose spans are reserved in any case
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
    """Spans and bytes of one trace: of ended children, reserved for running ones, and the excess of reservations.

    The trace of a nested run is that of the task that started it. Its budget refers to that task as `outer`, and its
    children use what the trace has left up to its largest size. In the trace of a caller, `outer` stands for the caller.
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
            kept_spans, kept_bytes = self.outer.kept
            return spans <= spans_left - kept_spans and size <= bytes_left - kept_bytes
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
    kept: tuple[int, int] = 0, 0  # spans and bytes that no further child of a nested run may use
    noted_attempt = noted_spans = noted_bytes = 0
    shortened: Mapping[int, dict[str, str] | None] = MappingProxyType({})

    def __init__(self, part: "Part", estimate: "Estimate") -> None:
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


def total_of(child: Child, spans: int, size: int) -> tuple[int, int]:
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
        "place",
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
        self.place: Any = None  # of the spans of its children, kept by `RunTrace`

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


class Estimate:
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


def without_reservation(part: Part) -> Child:
    """A child for spans that no task has started, such as those of resources."""
    child = Child(part, Estimate(0))
    child.reserved_spans = child.reserved_bytes = 0
    return child


_callers: OrderedDict[str, Child] = OrderedDict()


def caller_in(trace_id: str, limits: PartLimits) -> Child:
    """The caller whose trace runs of this process join: together they have the budget of one trace.

    The latest `KEPT_CALLERS` traces are known.
    """
    with _lock:
        caller = _callers.get(trace_id)
        if caller is None:
            caller = without_reservation(Parent("", TraceBudget(limits)).current)
            caller.kept = limits.most_spans - limits.spans, limits.most_bytes - limits.bytes
        _callers[trace_id] = caller
        _callers.move_to_end(trace_id)
        if len(_callers) > KEPT_CALLERS:
            _callers.popitem(last=False)
        return caller
