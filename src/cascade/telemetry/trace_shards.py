"""Splits the trace of a large run into parts. Each part is a trace with some children of the run or of a map.

A part is full at a limit of its spans, its encoded bytes or its children (`cascade.telemetry.trace_budget`). The next child
that starts then belongs to a new part.
"""

import os
from collections.abc import Mapping

from cascade.telemetry.trace_budget import (
    PART_BYTES,
    PART_SIZE,
    SPAN_BYTES,
    Child,
    Estimate,
    Parent,
    Part,
    PartLimits,
    TraceBudget,
    child_without_reservation,
)

PART_EVENT = "cascade.part"
"""Name of the event of a listed part on the span of its run or map."""
MAX_LISTED_PARTS = 64
"""Parts in the last message and the span of a run or map: half of the limit of the SDK for links and for events."""

_MAX_ESTIMATES = 1_000
_MAX_DIGITS = 9


def part_limits_from_environment(environ: Mapping[str, str] = os.environ) -> PartLimits:
    """Return the limits of the variables CASCADE_TRACE_PART_SIZE and CASCADE_TRACE_PART_BYTES.

    Raises:
        ValueError: A variable is not a whole number from 1 to 999,999,999.
    """
    return PartLimits(
        children=_number(environ, "CASCADE_TRACE_PART_SIZE", "children", PART_SIZE),
        bytes=_number(environ, "CASCADE_TRACE_PART_BYTES", "bytes", PART_BYTES),
    )


def _number(environ: Mapping[str, str], name: str, unit: str, default: int) -> int:
    given = environ.get(name, "").strip()
    if not given:
        return default
    if not (given.isascii() and given.isdigit() and len(given) <= _MAX_DIGITS and int(given)):
        raise ValueError(f"{name}={given!r} must be a number of {unit} from 1 to 999,999,999; the default is {default}")
    return int(given)


class TraceShards:
    """Assigns the children of a run and of its maps to parts, and finds the parts whose last child has ended.

    All methods are called in the event loop of the run. The run is split after `activate`, which the telemetry subscriber
    calls. `outer` is the task that has started the run, if the run is in its trace. The child `run` has the costs of spans
    outside of tasks, such as those of resources.
    """

    def __init__(self, limits: PartLimits | None = None, outer: Child | None = None) -> None:
        self.limits = limits or PartLimits()
        self.users = 0
        budget = TraceBudget(self.limits) if outer is None else outer.part.budget
        self._parents = {"": Parent("", budget, outer)}
        self.run = child_without_reservation(self._parents[""].current)
        self._estimates: dict[str, Estimate] = {}
        self._running: dict[str, Child] = {}
        self._last: tuple[str, Child, list[Part]] | None = None
        self._numbers: dict[str, int] = {}

    @property
    def is_active(self) -> bool:
        """Whether the run is split: whether a subscriber counts its spans."""
        return self.users > 0

    def activate(self) -> None:
        """Split the run from now on. The marker of its start is counted."""
        self.users += 1
        if self.users == 1:
            self.run.charge(1, SPAN_BYTES)

    def expect(self, parent_id: str, name: str, size: int) -> None:
        """Set the name of the span and the number of children of the run, or of a map that has started."""
        parent = self._parents.get(parent_id) or self._new_parent(parent_id, name)
        parent.name, parent.size = name, size

    def start(
        self, task_id: str, name: str, map_id: str | None = None, index: int | None = None, attempts: int = 0
    ) -> Child:
        """Assign a child of the run or of a map to a part. `attempts` is the number of retries that its policy allows."""
        parent_id = map_id or ""
        parent = self._parents.get(parent_id) or self._new_parent(parent_id, f"map({name})")
        estimate = self._estimates.get(map_id or name) or self._new_estimate(map_id or name, attempts)
        part = parent.current
        if not self._has_room(part, estimate):
            part = self._next(parent)
        part.add(parent.started if index is None else index)
        parent.started += 1
        child = self._running[task_id] = Child(part, estimate, estimate.spans.value, estimate.bytes.value)
        if part.number and map_id is None:
            self._numbers[task_id] = part.number
        return child

    def child(self, task_id: str) -> Child | None:
        """Return a running child, or the child that has ended last; None for others."""
        child = self._running.get(task_id)
        if child is None and self._last is not None and self._last[0] == task_id:
            return self._last[1]
        return child

    def number_of(self, task_id: str) -> int:
        """Return the number of the part of a task or map that has started; 0 for items and others."""
        return self._numbers.get(task_id, 0)

    def end(
        self, task_id: str, child: Child, spans: int, size: int, start_ns: int, end_ns: int, *, ran: bool
    ) -> list[Part]:
        """Count the spans and bytes of the last message of a child, and release its reservation.

        Returns the parts that have ended. The message must have their roots. A child that has not run, such as a skipped
        one, has no effect on the reservations of others.
        """
        if self._running.pop(task_id, None) is None:  # another subscriber has ended it
            return self._last[2] if self._last is not None and self._last[0] == task_id else []
        child.end(spans, size)
        if ran:
            child.estimate.spans.update(child.spans)
            child.estimate.bytes.update(child.bytes)
        ended = self._end_child(child, start_ns, end_ns)
        self._last = task_id, child, ended
        return ended

    def close(self, parent_id: str) -> tuple[list[Part], int]:
        """Remove a map or the run at its last message. Return the parts to list, and the number of all parts.

        The list has all parts whose roots are in no message.
        """
        parent = self._parents.pop(parent_id, None)
        if parent is None:
            return [], 0
        self._estimates.pop(parent_id, None)
        for part in parent.unpublished:
            part.has_ended = False
        further = parent.parts[1:]
        if len(further) <= MAX_LISTED_PARTS:
            return further, len(further)
        rootless = sum(not part.has_ended for part in further)
        room = max(0, MAX_LISTED_PARTS - rootless)
        listed = {id(part) for part in [part for part in further if part.has_ended][:room]}
        return [part for part in further if not part.has_ended or id(part) in listed], len(further)

    def _end_child(self, child: Child, start_ns: int, end_ns: int) -> list[Part]:
        part = child.part
        parent = part.parent
        part.running -= 1
        if part.number:
            part.extend_to(start_ns, end_ns)
            if not part.running and not part.has_ended and not self._is_open(part, child.estimate):
                parent.finish(part)
        if not parent.unpublished:
            return []
        ended, parent.unpublished = parent.unpublished, []
        return ended

    def _is_open(self, part: Part, estimate: Estimate) -> bool:
        """Return whether further children may start in the part."""
        parent = part.parent
        return parent.current is part and parent.started != parent.size and self._has_room(part, estimate)

    def _has_room(self, part: Part, estimate: Estimate) -> bool:
        if part.has_ended or part.children >= self.limits.children:
            return False
        budget = part.budget
        max_spans, max_bytes = part.capacity
        if (
            budget.bytes + budget.reserved_bytes + estimate.bytes.value <= max_bytes
            and budget.spans + budget.reserved_spans + estimate.spans.value <= max_spans
        ):
            return True
        # An empty part has room for any child. Part 0 of a map or of a nested run is in a trace with other spans.
        return not part.children and (part.number > 0 or (not part.parent.id and part.outer is None))

    def _next(self, parent: Parent) -> Part:
        before = parent.current
        if before.number and not before.running and not before.has_ended:
            parent.finish(before)
        budget = TraceBudget(self.limits, spans=1, bytes=2 * SPAN_BYTES)  # of the root of the part
        part = parent.current = Part(parent, before.number + 1, budget)
        parent.parts.append(part)
        return part

    def _new_parent(self, parent_id: str, name: str) -> Parent:
        child = self._running.get(parent_id)
        enclosing = self._parents[""].current if child is None else child.part
        parent = self._parents[parent_id] = Parent(parent_id, enclosing.budget, enclosing.outer, name)
        return parent

    def _new_estimate(self, key: str, attempts: int) -> Estimate:
        if len(self._estimates) >= _MAX_ESTIMATES:
            key = ""
        found = self._estimates[key] = self._estimates.get(key) or Estimate(attempts)
        return found
