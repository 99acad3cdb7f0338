"""Budget of a trace: limits of spans and bytes, the costs of the children of a run or map, and their reservations.

The cost of a child is known at its end, and thousands of children may start before the first one ends. Therefore each running
child has a reservation. The first reservation is `INITIAL_SPANS` and `INITIAL_BYTES`. Later ones are the mean cost of the
ended children plus twice the deviation, as in the retransmission timer of TCP, but at least `MIN_SPANS` and `MIN_BYTES`.

All spans of a trace, also those of nested runs, have one budget. In a full trace, texts are shortened and spans of the
program are dropped.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from cascade.spec.metadata import ExceptionInfo

PART_SIZE, PART_SPANS = 2_000, 5_000
"""Number of children, and of spans, after which the next child of a run or map starts in a new part. Jaeger draws such traces quickly."""
PART_BYTES = 2_500_000
"""Bytes of a trace after which the next child starts in a new part: half of the limit of Tempo, which is 5 MB."""
SPAN_BYTES = 440
"""Encoded bytes of a span without the id and name of its task, rounded up."""
MAX_FACTOR = 1.5
"""Largest size of a trace in relation to its budget. Running children may exceed their reservations up to this size."""
INITIAL_SPANS, INITIAL_BYTES = 25, 12_500
"""Reservation of a child before the first one has ended."""
MIN_SPANS, MIN_BYTES = 8, 4_000
"""Smallest reservation, because later children may cost more than all earlier ones."""
_MAX_CALLERS = 1_000  # traces of callers whose budgets are kept, about 1,500 bytes each
_MIN_EXCESS = 65_536  # bytes beyond a very small budget, for stack traces
_FAILURE_BYTES = 3_000  # of a failed attempt, in the first reservation
_RESERVED_ATTEMPTS = 5  # attempts of a task with reserved spans
_LAST_MESSAGE_BYTES = 3 * SPAN_BYTES  # kept free for the last message of a child
_GAIN, _DEVIATION_GAIN, _DEVIATIONS = 1 / 8, 1 / 4, 2  # as in RFC 6298, which adds 4 deviations


@dataclass(frozen=True, slots=True)
class PartLimits:
    """Limits of a part: children of one parent, spans, and bytes."""

    children: int = PART_SIZE
    spans: int = PART_SPANS
    bytes: int = PART_BYTES

    @property
    def max_spans(self) -> int:
        """The largest number of spans of Cascade in a trace."""
        return int(self.spans * MAX_FACTOR)

    @property
    def max_bytes(self) -> int:
        """The largest number of bytes of the spans of Cascade in a trace."""
        return self.bytes + max(_MIN_EXCESS, int(self.bytes * (MAX_FACTOR - 1)))


@dataclass(slots=True, eq=False)
class TraceBudget:
    """Spans and bytes of a trace so far, and the reservations of its running children."""

    limits: PartLimits
    spans: int = 0
    bytes: int = 0
    reserved_spans: int = 0
    reserved_bytes: int = 0

    def headroom(self) -> tuple[int, int]:
        """Return the spans and bytes that are neither used nor reserved, up to the largest size of the trace."""
        return (
            self.limits.max_spans - self.spans - self.reserved_spans,
            self.limits.max_bytes - self.bytes - self.reserved_bytes,
        )


class Child:
    """A child of a run or map that has started: its part, its cost so far, and the rest of its reservation.

    The cost includes the spans of the program, nested runs, and failed attempts. The last message repeats the attempts:
    `attempt` is the number of the last counted attempt, `attempt_spans` and `attempt_bytes` are the cost of all of them.
    `shortened` has the shortened exceptions of attempts by number, and None for an attempt without a span.

    `left_out` is the number of dropped spans of the program. Only the child `TraceShards.run` counts them.
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
        """Count spans and bytes, first in the reservation. May be called in any thread and after the end of the child."""
        budget = self.part.budget
        with _lock:
            budget.spans += spans
            budget.bytes += size
            self.add_cost(spans, size)

    def add_cost(self, spans: int, size: int) -> None:
        """Add a cost that the budget includes, also to the tasks that have started the run. The caller holds `_lock`."""
        child: Child | None = self
        while child is not None:
            child.spans += spans
            child.bytes += size
            child.release(min(spans, child.reserved_spans), min(size, child.reserved_bytes))
            child = child.part.outer

    def release(self, spans: int, size: int) -> None:
        """Release a part of the reservation."""
        budget = self.part.budget
        self.reserved_spans -= spans
        self.reserved_bytes -= size
        budget.reserved_spans -= spans
        budget.reserved_bytes -= size

    def end(self, spans: int, size: int) -> None:
        """Count the spans and bytes of the last message, and release the reservation."""
        if self.attempt:  # the last message repeats at most 128 attempts
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
                outer.add_cost(spans, size)

    def charge_attempt(self, attempt: int, size: int) -> None:
        """Count the span of an attempt, which the last message repeats."""
        self.attempt = attempt
        self.attempt_spans += 1
        self.attempt_bytes += size
        self.charge(1, size)

    def shorten(self, attempt: int, exception: ExceptionInfo | None) -> None:
        """Store the shortened exception of an attempt for the last message. None drops the attempt from that message."""
        self.shortened = {**self.shortened, attempt: exception}

    def leave_out(self, size: int, run: "Child") -> None:
        """Count a dropped span of the program, or dropped content of the span of the child.

        It adds to the reservations of later children, but not to the trace.
        """
        with _lock:
            self.spans += 1
            self.bytes += size
            run.left_out += 1

    def has_room(self, size: int) -> bool:
        """Return whether the trace has room for `size` bytes of spans of the program.

        The number of spans has no effect, because storages limit the bytes.
        """
        return self.allowance()[1] >= size + _LAST_MESSAGE_BYTES

    def allowance(self) -> tuple[int, int]:
        """Return the spans and bytes that the child may add to its trace."""
        spans, size = self.part.budget.headroom()
        return spans + self.reserved_spans, size + self.reserved_bytes

    def allowance_of_attempt(self, attempts: int) -> tuple[int, int]:
        """Return the spans and bytes that a failed attempt may use. `attempts` is the number of attempts that may follow.

        The result is the reservation without the share of these attempts, plus a share of the headroom of the trace.
        """
        spans, size = self.part.budget.headroom()
        later = 2 + 3 * min(attempts, _RESERVED_ATTEMPTS)  # the task, its last attempt, and three for each attempt
        share = 2 * max(1, self.part.running)
        return (
            max(0, self.reserved_spans - later) + spans // share,
            max(0, self.reserved_bytes - later * SPAN_BYTES) + size // share,
        )


# Reentrant, because a signal handler or a finalizer may end a span in the same thread.
_lock = threading.RLock()


def _reset_lock() -> None:
    global _lock  # noqa: PLW0603 - a thread of the parent process may hold it at the fork
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_lock)

_NO_CHILD = 2**63


@dataclass(slots=True, eq=False)
class Part:
    """A part of the children of a run or map.

    `has_ended` is true once the last child has ended and a message has the root of the part, or will have it. `outer` is the
    task or the caller in whose trace the part is, if any. The part is full at the spans and bytes of its `capacity`. A nested
    run has a larger capacity, because its children belong to the cost of a running task.
    """

    parent: "Parent"
    number: int
    budget: TraceBudget
    outer: Child | None = None
    children: int = 0
    running: int = 0
    first: int = _NO_CHILD
    last: int = -1
    start_ns: int = 0
    end_ns: int = 0
    has_ended: bool = False
    location: Any = None  # of the spans of its children, a cache of `RunTrace`
    capacity: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        limits, is_nested = self.budget.limits, self.outer is not None and not self.outer.is_caller
        self.capacity = (limits.max_spans, limits.max_bytes) if is_nested else (limits.spans, limits.bytes)

    def extend_to(self, start_ns: int, end_ns: int) -> None:
        """Include the times of a child that has ended."""
        if start_ns < self.start_ns or not self.start_ns:
            self.start_ns = start_ns
        if end_ns > self.end_ns:  # noqa: PLR1730 - faster than `max`, for each child
            self.end_ns = end_ns

    def add(self, number: int) -> None:
        """Count a child that starts, with its index, or with its number in the order of starts."""
        self.children += 1
        self.running += 1
        if number < self.first:  # noqa: PLR1730 - see `extend_to`
            self.first = number
        if number > self.last:  # noqa: PLR1730 - see `extend_to`
            self.last = number


class Parent:
    """A run (with an empty id) or a map, and the parts of its children. `size` is the number of its children, if known.

    `unpublished` has the ended parts whose roots are in no message yet.
    """

    __slots__ = ("current", "id", "name", "parts", "size", "started", "unpublished")

    def __init__(self, parent_id: str, budget: TraceBudget, outer: Child | None = None, name: str = "") -> None:
        self.id, self.name = parent_id, name
        self.size: int | None = None
        self.current = Part(self, 0, budget, outer)
        self.parts = [self.current]
        self.started = 0
        self.unpublished: list[Part] = []

    def finish(self, part: Part) -> None:
        """Mark a part as ended after its last child. The next terminal message of a child has the root of the part."""
        part.has_ended = True
        self.unpublished.append(part)


class _MovingEstimate:
    """Expected spans, or bytes, of the next child: the moving average of the ended ones plus twice their deviation."""

    __slots__ = ("_deviation", "_mean", "_min", "value")

    def __init__(self, initial: int, least: int) -> None:
        self.value, self._min = initial, least
        self._mean, self._deviation = float(initial), 0.0

    def update(self, cost: int) -> None:
        """Include the cost of a child that has ended."""
        if 2 * cost <= self._min == self.value:
            return  # the value is minimal already
        error = cost - self._mean
        self._mean += error * _GAIN
        self._deviation += (abs(error) - self._deviation) * _DEVIATION_GAIN
        self.value = max(self._min, int(self._mean + _DEVIATIONS * self._deviation) + 1)


class Estimate:
    """Expected cost of the next child of a map, or of the next task with a name."""

    __slots__ = ("bytes", "spans")

    def __init__(self, attempts: int) -> None:
        attempts = min(attempts, _RESERVED_ATTEMPTS)
        min_spans, min_bytes = max(MIN_SPANS, 2 * attempts + 1), max(MIN_BYTES, (2 * attempts + 2) * SPAN_BYTES)
        self.spans = _MovingEstimate(max(INITIAL_SPANS, min_spans), min_spans)
        self.bytes = _MovingEstimate(max(INITIAL_BYTES, min_bytes + attempts * _FAILURE_BYTES), min_bytes)


def child_without_reservation(part: Part) -> Child:
    """Return a child for spans outside of tasks, such as those of resources."""
    return Child(part, Estimate(0), 0, 0)


_callers: OrderedDict[str, Child] = OrderedDict()


def caller_in(trace_id: str, limits: PartLimits) -> Child:
    """Return the caller that owns a trace. All runs of this process in the trace have one budget.

    The callers of the latest `_MAX_CALLERS` traces are kept.
    """
    with _lock:
        caller = _callers.get(trace_id)
        if caller is None:
            caller = child_without_reservation(Parent("", TraceBudget(limits)).current)
            caller.is_caller = True
        _callers[trace_id] = caller
        _callers.move_to_end(trace_id)
        if len(_callers) > _MAX_CALLERS:
            _callers.popitem(last=False)
        return caller
